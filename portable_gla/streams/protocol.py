"""What code that overlaps copies with computation may ask of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Stream: TypeAlias = Any
"""A queue of work on a device; opaque, made by :meth:`Streams.new_stream` or :meth:`Streams.current`."""

Event: TypeAlias = Any
"""A point in a stream; opaque, made by :meth:`Streams.record`."""


class Streams(Protocol):
    """The streams of one device.

    Work queued on one stream runs in order; between streams only :meth:`wait` orders anything. Device memory belongs to
    the current stream: what :meth:`empty_strided` gives may still be in use by work that was queued there before, and
    what is given back may be in use by work queued there afterwards. So another stream that writes new memory waits
    for an event of the current one, and the current one waits for the other before the memory is given back.
    """

    device: torch.device
    overlaps: bool  # False: every call has finished when it returns, and moving anything out of the way gains nothing

    def current(self) -> Stream:
        """Return the stream on which the caller's own computation is queued."""
        ...

    def new_stream(self) -> Stream:
        """Return a stream beside the current one."""
        ...

    def launch(self, stream: Stream, work: Callable[[], None]) -> None:
        """Queue the device work that ``work`` does on ``stream``; it runs once, now or when the stream gets to it."""
        ...

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Queue ``target.copy_(source)``, unseen by autograd; the host side is of :meth:`host_memory`, or pinned."""
        ...

    def record(self, stream: Stream) -> Event:
        """Return an event that has happened once everything queued on ``stream`` so far has finished."""
        ...

    def wait(self, stream: Stream, event: Event, why: str) -> None:
        """Hold back what is queued on ``stream`` from now on until ``event``; ``why`` names the dependency."""
        ...

    def synchronise(self, event: Event, why: str = "") -> None:
        """Block the caller until ``event``, and raise what went wrong before it."""
        ...

    def empty_strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate device memory, in the order of the current stream."""
        ...

    def free(self, stream: Stream, tensor: Tensor) -> None:
        """Say that nobody uses ``tensor`` after what ``stream``, in whose order it was allocated, has been given."""
        ...

    def host_memory(self, count: int) -> Tensor:
        """Allocate exactly ``count`` bytes (uint8) of host memory that the device copies from and to directly."""
        ...

    def release_host_memory(self, memory: Tensor) -> None:
        """Give back what :meth:`host_memory` gave, after its last copy."""
        ...
