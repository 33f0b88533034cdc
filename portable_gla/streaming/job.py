"""One streamed computation: what both passes know of the call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from portable_gla.cost import format_bytes
from portable_gla.errors import HostMemoryError
from portable_gla.streaming.pipeline import Buffer, Part, Pipeline
from portable_gla.streaming.segments import Segment
from portable_gla.streaming.sources import Source
from portable_gla.streams import Streams, available_host_bytes

Report = Callable[[int, int], None]
"""Told (finished, all) steps."""


@dataclass(frozen=True)
class Job:
    """A validated call. ``tokenwise`` are q, k, v, g and do, as far as they have tokens; states are on the host."""

    tokenwise: Mapping[str, Source]
    gate: Tensor | None  # a constant one, on the device, in the state's dtype
    bonus: Tensor | None  # on the device, in the state's dtype
    initial_state: Tensor | None  # on the host, in the state's dtype
    packed: bool
    sequences: int  # N
    heads: int
    scale: float
    reverse: bool
    layout: str
    backend: str | None
    segments: Sequence[Segment]
    streams: Streams
    depth: int

    @property
    def batch(self) -> int:
        """B."""
        return self.tokenwise["q"].shape[0]

    @property
    def state_dtype(self) -> torch.dtype:
        """float64 for float64 inputs, else float32."""
        return torch.float64 if self.tokenwise["q"].dtype == torch.float64 else torch.float32

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """[H, K, V]."""
        return self.heads, self.tokenwise["q"].shape[3], self.tokenwise["v"].shape[3]

    @property
    def carried(self) -> int:
        """How many states go from one segment to the next: of the document that both have a part of, or B."""
        return 1 if self.packed else self.batch

    def rows(self, segment: Segment) -> int:
        """How many sequences have tokens in a segment."""
        return self.batch if segment.documents is None else len(segment.documents)

    def shape(self, name: str, segment: Segment) -> tuple[int, ...]:
        """Shape of a segment of q, k, v, g, do or of a gradient of it."""
        shape = self.tokenwise[name].shape
        return shape[0], segment.tokens, *shape[2:]

    def part(self, name: str, segment: Segment) -> Part:
        """Copy a segment of q, k, v, g or do in."""
        source = self.tokenwise[name]
        return Part(self.shape(name, segment), lambda into: source.read(segment.start, segment.end, into),
                    source.pinned(segment.start, segment.end))

    def offsets(self, segment: Segment) -> Part:
        """Copy a segment's own ``cu_seqlens`` in."""
        values = torch.tensor(segment.offsets, dtype=torch.int32)
        return Part((len(values),), copied(values))

    def states(self, segment: Segment, values: Tensor, wanted: Callable[[int], bool]) -> Part:
        """Copy states [N or 1, H, K, V] of a segment's documents in; zeros for those that are not wanted."""
        assert segment.documents is not None
        documents = segment.documents

        def fill(into: Tensor) -> None:
            for row, (number, _, _) in enumerate(documents):
                if wanted(row):
                    into[row].copy_(values[number if len(values) > 1 else 0])
                else:
                    into[row].zero_()

        return Part((len(documents), *self.state_shape), fill)

    def state_buffer(self, rows: int) -> Buffer:
        """Return the buffer of so many states."""
        heads, key_dim, value_dim = self.state_shape
        return Buffer(rows * heads * key_dim * value_dim, self.state_dtype)

    def most_rows(self) -> int:
        """Return the most sequences that have tokens in one segment."""
        return max((self.rows(segment) for segment in self.segments), default=0)

    def buffer(self, name: str) -> Buffer:
        """Return the buffer of the longest segment of q, k, v, g or do."""
        count = max((segment.tokens for segment in self.segments), default=0)
        shape = self.tokenwise[name].shape
        for size in (shape[0], *shape[2:]):
            count *= size
        return Buffer(count, self.tokenwise[name].dtype)

    def pipeline(self, buffers: Mapping[str, Buffer]) -> Pipeline:
        """Allocate the ring."""
        return Pipeline(self.streams, self.depth, buffers)

    def on_device(self, x: Tensor) -> Tensor:
        """Copy a small tensor to the device."""
        return x.to(self.streams.device)

    def options(self, segment: Segment) -> dict[str, Any]:
        """Return the arguments of attention that no tensor is."""
        return {"scale": self.scale, "reverse": self.reverse, "backend": self.backend}

    def without(self, *names: str) -> Job:
        """Return the same call without some tensors."""
        return dataclasses.replace(
            self, tokenwise={name: source for name, source in self.tokenwise.items() if name not in names})


def copied(values: Tensor) -> Callable[[Tensor], None]:
    """Return what fills an input with ``values``."""
    def fill(into: Tensor) -> None:
        into.copy_(values)

    return fill


def check_host_memory(count: int, what: str) -> None:
    """Refuse to take more host memory than there is."""
    available = available_host_bytes()
    if available is not None and count > available:
        raise HostMemoryError(f"{what} take {format_bytes(count)} of host memory, and {format_bytes(available)} is "
                              "available; pass memory-mapped tensors to write to, or make segment_tokens larger")


@contextmanager
def reporting(progress: bool | Report | None, what: str) -> Iterator[Report]:
    """Show a bar on stderr where there is a terminal, or call what the user gave."""
    if callable(progress):
        yield progress
        return
    if progress is False:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, force_terminal=progress)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
