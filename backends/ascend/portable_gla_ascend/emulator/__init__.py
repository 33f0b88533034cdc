"""Runs the kernels on the host, under the device's rules."""

from portable_gla_ascend.emulator.errors import RuleError
from portable_gla_ascend.emulator.kernels import load

__all__ = ["RuleError", "load"]
