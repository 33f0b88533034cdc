"""A CPU's streams: there are none, and all work is done when a call returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from portable_gla.streams.protocol import Event, Stream


class ImmediateStreams:
    """Runs everything at once, on CPU tensors."""

    overlaps = False

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = torch.device("cpu") if device is None else device

    def current(self) -> Stream:
        """Return None: there is one order."""
        return None

    def new_stream(self) -> Stream:
        """Return None."""
        return None

    def launch(self, stream: Stream, work: Callable[[], None]) -> None:
        """Do it."""
        work()

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Copy."""
        with torch.no_grad():
            target.copy_(source)

    def record(self, stream: Stream) -> Event:
        """Return None: it has happened."""
        return None

    def wait(self, stream: Stream, event: Event, why: str) -> None:
        """Do nothing."""

    def synchronise(self, event: Event, why: str = "") -> None:
        """Do nothing."""

    def empty_strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate."""
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=self.device)

    def free(self, stream: Stream, tensor: Tensor) -> None:
        """Do nothing: the last reference frees it."""

    def host_memory(self, count: int) -> Tensor:
        """Allocate."""
        return torch.empty(count, dtype=torch.uint8)

    def release_host_memory(self, memory: Tensor) -> None:
        """Do nothing: the last reference frees it."""
