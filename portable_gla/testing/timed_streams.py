"""Streams with a clock: what would overlap, if copies and computation took so long. A model, never a measurement."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from portable_gla.streams.immediate import ImmediateStreams

_CURRENT = 0


class TimedStreams(ImmediateStreams):
    """Does everything at once, in the order of the calls, and keeps what time it would be on each stream.

    A launch takes ``compute`` units of time and a copy ``copying(bytes)``; the host takes none, and waits only where it
    synchronises.
    """

    overlaps = True

    def __init__(self, compute: float, copying: Callable[[int], float]) -> None:
        super().__init__()
        self._compute, self._copying = compute, copying
        self._clocks = [0.0]
        self._host = 0.0

    @property
    def now(self) -> float:
        """The time when everything has ended."""
        return max(self._host, *self._clocks)

    def current(self) -> int:
        """Return the first stream."""
        return _CURRENT

    def new_stream(self) -> int:
        """Return the number of a new one."""
        self._clocks.append(0.0)
        return len(self._clocks) - 1

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        """Do it; the stream's clock goes on."""
        work()
        self._pass(stream, self._compute)

    def copy(self, stream: int, target: Tensor, source: Tensor) -> None:
        """Copy; the stream's clock goes on."""
        super().copy(stream, target, source)
        self._pass(stream, self._copying(source.nbytes))

    def record(self, stream: int) -> float:
        """Return the time."""
        return max(self._host, self._clocks[stream])

    def wait(self, stream: int, event: float, why: str) -> None:
        """Put the clock forward."""
        self._clocks[stream] = max(self._clocks[stream], event)

    def synchronise(self, event: float, why: str = "") -> None:
        """Put the host's clock forward."""
        self._host = max(self._host, event)

    def _pass(self, stream: int, units: float) -> None:
        self._clocks[stream] = max(self._host, self._clocks[stream]) + units
