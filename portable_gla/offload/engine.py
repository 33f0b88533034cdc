"""Moves tensors of one device to host memory and back, ahead of the pass that wants them.

Out, on a stream of its own: after the computation that made the tensor ("made"), and after the last copies of what was
in the slot before ("host slot free"). The device's memory is given back in the order of the stream that made the
tensor, once that waits for the copy ("copied out"); it waits for an older copy only, so that the latest ones overlap
with what is computed next.

Back, on another: into memory that belongs to the current stream from the moment it is allocated ("room"), from a slot
that is written ("in the slot"); whoever reads it waits for it ("copied back"), and so does whoever gets the memory of a
copy that nobody came for ("orphan filled").

Tensors go in groups: what one call saves. Taking a tensor starts the copies of the rest of its group and of the groups
saved before it, which a backward pass wants next.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.offload.pool import HostPool, Slot
from portable_gla.streams import Event, Stream, Streams


@dataclass(eq=False)
class Moved:
    """A tensor in host memory: all that its graph keeps of it. When it dies, its slot is free again."""

    engine: Engine
    slot: Slot
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    stored: Event
    number: int
    group: int
    fetched: bool = False  # a copy back was started, in the present walk through the graph
    loaded: Event = None  # of the last copy back
    arriving: Tensor | None = None  # the device memory of a copy back that nobody has taken yet
    owner: Stream = None  # the stream in whose order that memory was allocated

    def __del__(self) -> None:
        self.engine.forget(self)


class Engine:
    """The streams, the pool, and what is at present in it, for one device.

    ``ahead`` is both how many groups are on their way out at most before computation waits for the oldest, and how many
    are copied back before they are asked for.
    """

    def __init__(self, streams: Streams, pool: HostPool, ahead: int) -> None:
        self.streams, self.pool, self._ahead = streams, pool, ahead
        self._outward, self._homeward = streams.new_stream(), streams.new_stream()
        self._leaving: deque[tuple[int, Tensor, bool, Event, Stream]] = deque()
        self._orphans: deque[tuple[Tensor, Event, Stream]] = deque()
        self._held: dict[int, weakref.ref[Moved]] = {}
        self._count = self._groups = 0
        self._lock = threading.RLock()  # re-entered where a graph dies inside

    def new_group(self) -> int:
        """Begin the group of what another call saves."""
        with self._lock:
            self._groups += 1
            return self._groups

    def pack(self, x: Tensor, *, group: int, owned: bool, dense: bool = False) -> Moved:
        """Start to copy ``x`` out.

        ``owned``: nobody else reads it, so that its memory may be used again; ``dense``: it may come back without the
        gaps between its elements.
        """
        streams, current = self.streams, self.streams.current()
        shape, strides = tuple(x.shape), tuple(x.stride())
        if _overlaps(_small(shape, strides), strides):
            x, owned = x.contiguous(), False
            strides = tuple(x.stride())
        source = x.as_strided(_small(shape, strides), strides)
        if dense and not _without_gaps(tuple(source.shape), strides):
            closed = _contiguous(tuple(source.shape))
            strides = tuple(0 if old == 0 else new for old, new in zip(strides, closed, strict=True))
        with self._lock:
            slot = self.pool.take(source.numel() * source.element_size())
            streams.wait(self._outward, streams.record(current), "made")
            for event in slot.events:
                streams.wait(self._outward, event, "host slot free")
            streams.copy(self._outward, _in_slot(slot, x.dtype, tuple(source.shape), strides), source)
            stored = streams.record(self._outward)
            self._leaving.append((group, x, owned, stored, current))
            self._let_go(self._ahead)
            self._count += 1
            moved = Moved(self, slot, x.dtype, shape, strides, stored, self._count, group)
            self._held[self._count] = weakref.ref(moved)
        return moved

    def unpack(self, moved: Moved) -> Tensor:
        """Return the tensor on its device, and start the copies of those that were saved before it."""
        streams, current = self.streams, self.streams.current()
        with self._lock:
            if moved.arriving is not None and moved.owner != current:  # not in this stream's order: leave it
                self._orphans.append((moved.arriving, moved.loaded, moved.owner))
                moved.arriving = None
            following = self._following(moved)
            if moved.arriving is None:
                if moved.fetched:  # and taken already: the graph is walked again
                    for other in following:
                        other.fetched = other.arriving is not None
                self._fetch(moved, current)
            for other in following:
                if not other.fetched:
                    self._fetch(other, current)
            self._let_go(len(self._leaving))
            streams.wait(current, moved.loaded, "copied back")
            found, moved.arriving = moved.arriving, None
        assert found is not None
        return found.as_strided(moved.shape, moved.strides)

    def flush(self) -> None:
        """Let computation wait for all copies out, and give their device memory back."""
        with self._lock:
            self._let_go(0)

    def forget(self, moved: Moved) -> None:
        """Give back the slot of a tensor that nobody can ask for any more."""
        self._held.pop(moved.number, None)
        if moved.arriving is not None:  # a graph dropped half-way: the copy must not meet another owner of its memory
            self._orphans.append((moved.arriving, moved.loaded, moved.owner))
        self.pool.give_back(moved.slot, [moved.stored] if moved.loaded is None else [moved.loaded])

    def _let_go(self, most: int) -> None:
        while self._orphans:
            unwanted, loaded, stream = self._orphans.popleft()
            self.streams.wait(stream, loaded, "orphan filled")
            self.streams.free(stream, unwanted)
        while len({group for group, *_ in self._leaving}) > most:
            _, x, owned, stored, stream = self._leaving.popleft()
            self.streams.wait(stream, stored, "copied out")
            if owned:
                self.streams.free(stream, x)

    def _following(self, moved: Moved) -> list[Moved]:
        """List what will be wanted after ``moved``: its own group, and those saved before it, the latest first."""
        groups: dict[int, list[Moved]] = {}
        for reference in list(self._held.values()):
            other = reference()
            if other is not None and other is not moved and other.group <= moved.group:
                groups.setdefault(other.group, []).append(other)
        earlier = sorted(groups.keys() - {moved.group}, reverse=True)[:self._ahead]
        return [other for group in (moved.group, *earlier) for other in groups.get(group, ())]

    def _fetch(self, moved: Moved, current: Stream) -> None:
        streams = self.streams
        shape = _small(moved.shape, moved.strides)
        target = streams.empty_strided(shape, moved.strides, moved.dtype)
        streams.wait(self._homeward, streams.record(current), "room")
        streams.wait(self._homeward, moved.stored, "in the slot")
        streams.copy(self._homeward, target, _in_slot(moved.slot, moved.dtype, shape, moved.strides))
        moved.loaded = streams.record(self._homeward)
        moved.arriving, moved.owner, moved.fetched = target, current, True


def _small(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Leave one of the rows that an expanded tensor repeats."""
    return tuple(1 if stride == 0 and size > 1 else size for size, stride in zip(shape, strides, strict=True))


def _extents(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    return sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1)


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two elements may share an address, so that nothing can be copied there."""
    reach = 0
    for stride, size in _extents(shape, strides):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _without_gaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for stride, size in _extents(shape, strides):
        if stride != expected:
            return False
        expected *= size
    return True


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)


def _in_slot(slot: Slot, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """View a slot as the tensor that it holds: with the tensor's own strides where they leave no gaps, else dense."""
    flat = slot.memory.view(dtype)
    return flat.as_strided(shape, strides) if _without_gaps(shape, strides) else flat.view(shape)
