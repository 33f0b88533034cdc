"""What an emulated launch raises when a kernel does what no kernel here may do."""

from __future__ import annotations


class EmulationError(RuntimeError):
    """A kernel broke a rule that the emulator checks, or used what it does not have."""


class OutOfBoundsError(EmulationError):
    """An address under a true mask lies outside every tensor of the launch."""


class RaceError(EmulationError):
    """Two programs of one launch touch the same address, and at least one of them stores to it."""
