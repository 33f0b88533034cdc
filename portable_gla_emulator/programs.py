"""Runs the programs of a grid together, in groups that take the same way through a kernel.

Every value of a kernel has a leading axis: one place for each program of the group, or a single one where all have the
same. Where a kernel asks for one number (a branch, a loop's bounds) and the programs have several, the run ends with
:class:`Apart`, and each part of the group that agrees there runs again from the start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from .floats import Array

_TOGETHER = 64
_most = _TOGETHER


class Apart(Exception):
    """Programs of a group go different ways; ``keys`` has one number each, equal where their ways are."""

    def __init__(self, keys: Array) -> None:
        super().__init__("programs go different ways")
        self.keys = keys


class Walk(Exception):
    """A kernel is about to walk pieces of work, ``items`` of them in all."""

    def __init__(self, items: int) -> None:
        super().__init__(f"a walk of {items} pieces")
        self.items = items


class NotTogether(Exception):
    """The kernel does what is emulated for one program at a time only."""


def agreed(values: Array) -> Array:
    """Return the one value [] of all programs, from one each or one for all: [programs or 1].

    Raises
    ------
    Apart
        If programs differ.
    """
    if values.size > 1 and (values != values[0]).any():
        raise Apart(values)
    first: Array = values[0]
    return first


@contextlib.contextmanager
def together(most: int = _TOGETHER) -> Iterator[None]:
    """Within the context, on all threads, at most so many programs of a launch run together; 1: each alone."""
    global _most
    before, _most = _most, most
    try:
        yield
    finally:
        _most = before


def largest_group() -> int:
    """Return how many programs may run together."""
    return _most


def run_in_groups(programs: int, run: Callable[[Array], None]) -> None:
    """Call ``run`` with the numbers of programs that run together, until each of them has run to its end.

    ``run`` leaves nothing behind where it raises :class:`Apart`.
    """
    waiting = [np.arange(first, min(first + _most, programs)) for first in range(0, programs, _most)][::-1]
    while waiting:
        group = waiting.pop()
        try:
            run(group)
        except Apart as apart:
            _, part = np.unique(apart.keys, return_inverse=True)
            waiting += [group[part == i] for i in range(part.max(), -1, -1)]
