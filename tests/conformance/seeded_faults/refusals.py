"""What is wrong with what a backend says it serves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from portable_gla.problem import Reason
from seeded_faults.copies import Copy, caught_by


@caught_by(("segmented", "gate-channel-f32"))
class PinRefusedForTheWrongReason(Copy):
    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return [reason._replace(code="device") for reason in super().reasons_against(problem)]


@caught_by(("within_budget", "gate-channel-f64"))
class RunsWhatItRefuses(Copy):
    """Its reasons say no twice, and the call that asks next goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = itertools.count()

    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return () if next(self.asked) >= 2 else [Reason("dtype", "no float64 here at all", "use float32")]
