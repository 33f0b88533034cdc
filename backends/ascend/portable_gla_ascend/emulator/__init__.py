"""Runs the kernels in Triton's interpreter, under the device's rules."""

from portable_gla_ascend.emulator.kernels import load
from portable_gla_ascend.emulator.rules import RuleError

__all__ = ["RuleError", "load"]
