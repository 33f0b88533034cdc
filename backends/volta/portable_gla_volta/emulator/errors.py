"""What a launch does wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong at one place, as it was seen first; ``count`` is how often it was seen."""

    kind: str
    kernel: str
    block: int
    thread: int
    place: str  # file:line
    text: str
    count: int

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.kernel}, block {self.block}, thread {self.thread}, {self.place}: {self.text}{times}"


class EmulationError(RuntimeError):
    """A launch did what it must not do; ``faults`` lists what was found before it was stopped."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class OutOfBoundsError(EmulationError):
    """An access outside the launch's tensors or the block's shared memory, or not at a multiple of its size."""


class UninitialisedError(EmulationError):
    """A load of shared memory that no thread of the block has stored to."""


class RaceError(EmulationError):
    """Two threads of a block used the same bytes, at least one stored, and no barrier orders them."""


class SynchronizationError(EmulationError):
    """A barrier that only part of a block reached, or a shuffle or mma that only part of a warp reached."""


class GlobalConflictError(EmulationError):
    """A block used global memory that another block of the same launch stores to."""


# In the order of the machine's Kind; of several faults the first in this order names the error.
KINDS: tuple[tuple[str, type[EmulationError]], ...] = (
    ("shared-bounds", OutOfBoundsError), ("global-bounds", OutOfBoundsError), ("alignment", OutOfBoundsError),
    ("uninitialised", UninitialisedError), ("race", RaceError), ("barrier", SynchronizationError),
    ("warp", SynchronizationError), ("blocks", GlobalConflictError), ("refused", EmulationError))


def error_of(faults: list[Fault]) -> EmulationError:
    """Make the error that stands for ``faults``."""
    kinds = [kind for kind, _ in KINDS]
    return KINDS[min(kinds.index(fault.kind) for fault in faults)][1](faults)
