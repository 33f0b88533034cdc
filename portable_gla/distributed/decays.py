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
TILE_BYTES = 2**23  # what one temporary of a tile may take


def tile_length(rows: int, heads: int, channels: int, itemsize: int) -> int:
    """Return how many tokens one tile has: a multiple of the chunk."""
    return max(CHUNK, TILE_BYTES // max(1, rows * heads * channels * itemsize) // CHUNK * CHUNK)


@dataclass(frozen=True)
class Tiles:
    """The tokens [start, stop) of a shard, cut into tiles in processing order."""

    start: int
    stop: int
    length: int
    reverse: bool

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.length)

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


def over_tiles(g: Tensor, tiles: Tiles, dtype: torch.dtype) -> Tensor:
    """Return the decay before each tile and after the last: [tiles + 1, B, Hg, K] (K is 1 of one gate per head)."""
    shape = (1, g.shape[0], 1) if g.dim() == 1 else (g.shape[0], g.shape[2], g.shape[3] if g.dim() == 4 else 1)
    decay = g.new_ones(shape, dtype=dtype)
    found = [decay]
    gone = False
    for tile in tiles:
        if not gone:
            decay = decay * _chunks(gates(g, tile, tiles.reverse, dtype)).sum(2).exp().prod(1)
            # Once everything is forgotten it stays so. Only a CPU can ask without a wait.
            gone = decay.device.type == "cpu" and not bool(decay.any())
        found.append(decay)
    return torch.stack(found)


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
