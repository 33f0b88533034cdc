"""A budget of wall-clock time for a run, asked between the pieces of its work."""

from __future__ import annotations

import math
import time


class Deadline:
    """Counts from its making; without a budget it never passes."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, 0 where none are."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the time is spent."""
        return self.left == 0
