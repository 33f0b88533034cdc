"""How much of a state that comes into a run is left at each of its tokens.

The decay of token t is the product of exp(g) over the run's tokens up to t (before t with a bonus): always that
product, never a quotient, so -inf, -1e5 and growth are what they are. Inside a chunk the logarithms are added up, in
float32 (float64 for float64); chunks are multiplied. Tokens are walked in tiles, so that temporaries stay small
whatever T is, and tiles are in processing order: with ``reverse`` each is read backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 32  # tokens whose logarithms are added up before exp


def tile_bytes(device: torch.device) -> int:
    """Return what one temporary of a tile may take: within a core's cache, or enough for a launch to be worth it."""
    return 2**20 if device.type == "cpu" else 2**26


def tile_length(device: torch.device, rows: int, heads: int, channels: int, itemsize: int) -> int:
    """Return how many tokens one tile has: a multiple of the chunk."""
    return max(CHUNK, tile_bytes(device) // max(1, rows * heads * channels * itemsize) // CHUNK * CHUNK)


@dataclass(frozen=True)
class Tiles:
    """The tokens [start, stop) of a shard, cut into tiles in processing order."""

    start: int
    stop: int
    length: int
    reverse: bool

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.length)

    def first(self, count: int) -> Tiles:
        """Return the first ``count`` tiles, in processing order."""
        most = min(self.stop - self.start, count * self.length)
        if self.reverse:
            return Tiles(self.stop - most, self.stop, self.length, True)
        return Tiles(self.start, self.start + most, self.length, False)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in range(len(self)):
            done = index * self.length
            if self.reverse:
                yield max(self.start, self.stop - done - self.length), self.stop - done
            else:
                yield self.start + done, min(self.stop, self.start + done + self.length)


def cut(x: Tensor, tile: tuple[int, int], reverse: bool) -> Tensor:
    """Take a tile of x [B, T, ...] in processing order."""
    part = x[:, tile[0]:tile[1]]
    return part.flip(1) if reverse else part


def gates(g: Tensor, tile: tuple[int, int], reverse: bool, dtype: torch.dtype) -> Tensor:
    """Return a tile's gates, [B, t, Hg, K], or [B, t, Hg, 1] of one gate per head ([1, t, Hg, 1] of a constant)."""
    if g.dim() == 1:
        return g.to(dtype)[None, None, :, None].expand(1, tile[1] - tile[0], -1, 1)
    part = cut(g, tile, reverse).to(dtype)
    return part if g.dim() == 4 else part[..., None]


def _chunks(part: Tensor) -> Tensor:
    """Cut [B, t, Hg, K] into [B, t / chunk, chunk, Hg, K]; tokens that fill the last one do not decay."""
    padded = functional.pad(part, (0, 0, 0, 0, 0, -part.shape[1] % CHUNK))
    return padded.reshape(part.shape[0], -1, CHUNK, *part.shape[2:])


def over_tiles(g: Tensor, tiles: Tiles, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Return the decay before each tile, and that after the last; [rows or 1, Hg, K], K being 1 of one gate per head.

    Tiles at which nothing is left are left out of the list: what is zero stays zero. Only a CPU can tell without a
    wait; elsewhere the list is whole.
    """
    decay = g.new_ones(shape(g), dtype=dtype)
    before = []
    for tile in tiles:
        if decay.device.type == "cpu" and not bool(decay.any()):
            break
        before.append(decay)
        decay = decay * _chunks(gates(g, tile, tiles.reverse, dtype)).sum(2).exp().prod(1)
    return before, decay


def shape(g: Tensor) -> tuple[int, int, int]:
    """Return the shape of a decay: [rows, Hg, K], K being 1 of one gate per head, and rows of a constant."""
    if g.dim() == 1:
        return 1, g.shape[0], 1
    return g.shape[0], g.shape[2], g.shape[3] if g.dim() == 4 else 1


def within(part: Tensor, before: Tensor, exclusive: bool) -> Tensor:
    """Return the decay at each token of a tile, [B, t, Hg, K], given its gates and the decay before it [B, Hg, K]."""
    logs = _chunks(part)
    sums = logs.cumsum(2)
    totals = sums[:, :, -1].exp()
    starts = torch.cat([before[:, None], before[:, None] * totals[:, :-1].cumprod(1)], 1)
    if exclusive:
        sums = functional.pad(sums[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return (sums.exp() * starts[:, :, None]).flatten(1, 2)[:, :part.shape[1]]


def to_heads(x: Tensor, heads: int, dim: int = -2) -> Tensor:
    """Let output head h read head ``h * Hx // H`` of x."""
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim)


def from_heads(x: Tensor, heads: int, dim: int = -2) -> Tensor:
    """Add up what :func:`to_heads` repeated."""
    if x.shape[dim] == heads:
        return x
    dim %= x.dim()
    return x.reshape(*x.shape[:dim], heads, -1, *x.shape[dim + 1:]).sum(dim + 1)
