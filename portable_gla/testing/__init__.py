"""What tests of a backend need: the oracle, the case table, error budgets, conformance checks, and emulation."""

from portable_gla.testing.emulation import emulate

__all__ = ["emulate"]
