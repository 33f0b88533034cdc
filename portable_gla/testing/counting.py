"""How much memory PyTorch's CPU allocator has handed out at a time: every allocation counted, none sampled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch.profiler import ProfilerActivity, profile

Result = TypeVar("Result")


class Counted(NamedTuple):
    """Bytes beyond what was allocated before: at the peak, and still at the end."""

    peak: int
    left: int


def counted(function: Callable[[], Result]) -> tuple[Counted, Result]:
    """Run a function; count what it, and all that it calls, allocates and frees through PyTorch.

    Not seen: memory maps, and what a kernel takes from malloc itself.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = function()
    kineto = record.profiler.kineto_results  # type: ignore[union-attr]
    steps = sorted((event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]")
    live = peak = 0
    for _, size in steps:
        live += size
        peak = max(peak, live)
    return Counted(peak, live), result
