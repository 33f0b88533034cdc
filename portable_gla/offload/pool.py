"""Host memory for what is offloaded: arenas that the device copies to and from directly, cut into slots, reused."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from portable_gla.cost import format_bytes
from portable_gla.errors import HostMemoryError
from portable_gla.streams import Event, Streams, available_host_bytes

_ALIGNMENT = 64  # bytes; any dtype's, and a cache line


@dataclass(slots=True)
class _Extent:
    """Free bytes of an arena; whoever takes them waits for ``events``: copies that may still run."""

    start: int
    size: int
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True)
class _Arena:
    memory: Tensor  # uint8
    free: list[_Extent]  # by start, never two that touch

    def put(self, freed: _Extent) -> None:
        """Insert an extent, and join it with those that it touches."""
        joined = []
        for extent in self.free:
            if extent.start + extent.size == freed.start:
                freed = _Extent(extent.start, extent.size + freed.size, [*extent.events, *freed.events])
            elif freed.start + freed.size == extent.start:
                freed = _Extent(freed.start, freed.size + extent.size, [*freed.events, *extent.events])
            else:
                joined.append(extent)
        self.free = sorted([*joined, freed], key=lambda extent: extent.start)

    @property
    def whole(self) -> bool:
        return [(extent.start, extent.size) for extent in self.free] == [(0, self.memory.numel())]


@dataclass(slots=True)
class Slot:
    """Bytes of an arena that hold one tensor; whoever writes there first waits for ``events``."""

    arena: _Arena
    start: int
    size: int
    memory: Tensor  # uint8, exactly as many bytes as were asked for
    events: list[Event]


class HostPool:
    """One arena of ``fixed`` bytes, or one more arena for every slot that does not fit.

    Raises
    ------
    HostMemoryError
        If the host has less than ``fixed`` bytes.
    """

    def __init__(self, streams: Streams, fixed: int | None = None) -> None:
        self._streams = streams
        self._fixed = fixed = None if fixed is None else _aligned(fixed)
        self._arenas: list[_Arena] = []
        self._lock = threading.Lock()
        # A slot is given back wherever the last reference to a graph dies: in the collector, with the lock held too.
        self._returned: deque[tuple[Slot, tuple[Event, ...]]] = deque()
        if fixed is not None:
            self._check_host(fixed)
            self._grow(fixed)

    @property
    def bytes(self) -> int:
        """Host memory that the pool has taken, in use or not."""
        return sum(arena.memory.numel() for arena in self._arenas)

    def require(self, count: int) -> None:
        """Raise HostMemoryError if a slot of ``count`` bytes could not be had now."""
        with self._lock:
            self._settle()
            if self._find(_aligned(count)) is None:
                self._check_growth(_aligned(count))

    def take(self, count: int) -> Slot:
        """Take a slot of ``count`` bytes.

        Raises
        ------
        HostMemoryError
            If the fixed pool has no such slot left, or the host no such memory.
        """
        size = _aligned(count)
        with self._lock:
            self._settle()
            found = self._find(size)
            if found is None:
                self._check_growth(size)
                found = self._grow(size)
            arena, extent = found
            events, start = list(extent.events), extent.start
            if extent.size == size:
                arena.free.remove(extent)
            else:
                extent.start, extent.size = extent.start + size, extent.size - size
            return Slot(arena, start, size, arena.memory[start:start + count], events)

    def give_back(self, slot: Slot, events: Sequence[Event]) -> None:
        """Return a slot whose last copies end with ``events``; from any thread, at any moment."""
        self._returned.append((slot, tuple(events)))

    def release(self) -> None:
        """Give the arenas in which no slot is in use back to the host, after their last copies."""
        with self._lock:
            self._settle()
            idle = [arena for arena in self._arenas if arena.whole]
            self._arenas = [arena for arena in self._arenas if not arena.whole]
            for arena in idle:
                for event in arena.free[0].events:
                    self._streams.synchronise(event)
                self._streams.release_host_memory(arena.memory)

    def _settle(self) -> None:
        while self._returned:
            slot, events = self._returned.popleft()
            slot.arena.put(_Extent(slot.start, slot.size, list(events)))

    def _find(self, size: int) -> tuple[_Arena, _Extent] | None:
        """Find the smallest free extent that is large enough."""
        fitting = [(arena, extent) for arena in self._arenas for extent in arena.free if extent.size >= size]
        return min(fitting, key=lambda place: place[1].size) if fitting else None

    def _check_growth(self, size: int) -> None:
        if self._fixed is None:
            self._check_host(size)
        elif self._arenas or size > self._fixed:  # else its memory was released, and is taken again
            free = sum(extent.size for arena in self._arenas for extent in arena.free)
            raise HostMemoryError(
                f"host_bytes: the pool of {format_bytes(self._fixed)} has {format_bytes(free)} left, and the states "
                f"of this call need {format_bytes(size)} in one piece; make host_bytes larger, or leave it out")

    def _check_host(self, size: int) -> None:
        available = available_host_bytes()
        if available is not None and size > available:
            raise HostMemoryError(
                f"offload_states needs {format_bytes(size)} more host memory, and {format_bytes(available)} is "
                f"available (the pool has {format_bytes(self.bytes)}); offload less, or use more segments")

    def _grow(self, size: int) -> tuple[_Arena, _Extent]:
        size = size if self._fixed is None else self._fixed
        extent = _Extent(0, size)
        arena = _Arena(self._streams.host_memory(size), [extent])
        self._arenas.append(arena)
        return arena, extent


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
