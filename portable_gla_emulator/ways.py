"""The ways to run a launch: all pieces together, all programs together, or one program after another.

Whatever is found where programs run together is found again where each runs alone, which says what, and by whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import EmulationError, RaceError
from .floats import Array
from .language import EmulatedFunction
from .memory import Memory
from .programs import Apart, NotTogether, Walk, largest_group, run_in_groups
from .semantics import builder

Sizes = tuple[int, int, int]


class Run:
    """One launch: a function, its arguments as it sees them, its grid, and the memory that it gets."""

    def __init__(self, function: EmulatedFunction, values: dict[str, Any], sizes: Sizes,
                 memory: Callable[[bool], Memory]) -> None:
        self._function, self._values, self._sizes, self._memory = function, values, sizes, memory
        self._programs = math.prod(sizes)

    def by_any_way(self, counting: bool) -> Memory:
        """Run all programs, and return the memory that has what they loaded and stored.

        With ``counting`` no piece runs apart from its program, which loads once what all its pieces need.
        """
        ways = [self._pieces] if self._function.piece is not None and not counting else []
        ways += [self._together] if self._programs > 1 else []
        for way in ways if largest_group() > 1 else []:
            memory = self._memory(True)
            try:
                way(memory)
            except NotTogether:
                memory.take_back(everything=True)
            except Exception as error:
                memory.take_back(everything=True)
                if way == self._pieces and isinstance(error, RaceError):
                    continue  # pieces of one program may meet in memory
                self._one_by_one()
                raise EmulationError("what each program does alone fails where they run together: the emulator is "
                                     "wrong") from error
            else:
                return memory
        return self._one_by_one()

    def _one_by_one(self) -> Memory:
        memory = self._memory(False)
        for program in range(self._programs):
            self._run(self._function.body, memory, np.array([program]), None)
        return memory

    def _pieces(self, memory: Memory) -> None:
        body = self._function.piece
        assert body is not None
        try:
            self._run(body, memory, np.zeros(1, dtype=np.int64), None)
            raise AssertionError("a walk was expected")
        except Walk as walk:
            items = walk.items
        memory.take_back()
        self._in_groups(items, memory, lambda group: self._run(body, memory, group % self._programs, group))

    def _together(self, memory: Memory) -> None:
        self._in_groups(self._programs, memory,
                        lambda group: self._run(self._function.body, memory, group, None))

    @staticmethod
    def _in_groups(count: int, memory: Memory, run: Callable[[Array], None]) -> None:
        def attempt(group: Array) -> None:
            try:
                run(group)
            except Apart:
                memory.take_back()
                raise

        run_in_groups(count, attempt)

    def _run(self, body: Callable[..., Any], memory: Memory, programs: Array, pieces: Array | None) -> None:
        memory.begin(programs if pieces is None else pieces)
        builder.memory, builder.grid_idx, builder.pieces = memory, _places(programs, self._sizes), pieces
        body(**self._values)
        memory.finish()


def _places(programs: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """Return the programs' numbers along each axis of the grid, a single one where all have the same."""
    x, y, z = (place.astype(np.int32) for place in np.unravel_index(programs, sizes))
    return tuple(place[:1] if (place == place[0]).all() else place for place in (x, y, z))  # type: ignore[return-value]
