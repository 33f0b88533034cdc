"""What launches check and count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from .counts import Launch

CHECKS = ("fast", "all")


@dataclass(frozen=True)
class Options:
    """One setting for the process, since a backward pass may run on another thread."""

    order: int = 1
    truncate: bool = False
    checks: str = "fast"
    count: bool = False
    launches: list[Launch] = field(default_factory=list)


_current = Options()


def current() -> Options:
    """Return the options of a launch that begins now."""
    return _current


@contextlib.contextmanager
def options(order: int = 1, truncate: bool = False, checks: str = "fast",
            count: bool = False) -> Iterator[list[Launch]]:
    """Choose how launches within the context run, on all threads; the list is of what they did, if they are counted.

    Parameters
    ----------
    order
        Seed of the order in which blocks, warps and the lanes of a warp run; 0: in that of their numbers.
    truncate
        Whether the tensor cores cut sums to 24 bits as V100's do, or round them.
    checks
        ``fast``: bounds, alignment, barriers, shuffles, and shared memory that is loaded before it is stored to.
        ``all``: also races in a block, and blocks that use what another block of the launch stores. That takes
        20 bytes for each byte of the launch's tensors, and longer.
    count
        Whether to count what launches do to memory.
    """
    global _current
    if checks not in CHECKS:
        raise ValueError(f"checks: expected one of {CHECKS}, got {checks!r}")
    before, _current = _current, Options(order, truncate, checks, count)
    try:
        yield _current.launches
    finally:
        _current = before
