"""What a launch raises that the device would refuse."""

from __future__ import annotations


class RuleError(RuntimeError):
    """A launch that the device would refuse."""
