"""What a state that comes into a run adds to the run's outputs, and the gradients of that.

::

    o_t += scale · (q_t ⊙ d_t)ᵀ S        d_t: the decay up to token t, of token t itself too unless there is a bonus

All in float32 (float64 for float64), tile by tile, and only as far as something of the state is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.distributed.decays import (
    Tiles,
    cut,
    from_heads,
    gates,
    over_tiles,
    shape,
    tile_length,
    to_heads,
    within,
)


@dataclass(frozen=True)
class Entry:
    """Tokens of this rank's shard that a state comes into."""

    run: int  # among the rank's runs
    start: int  # of the piece that it comes into, in the shard
    stop: int
    tiles: Tiles  # of that piece, where something of the state is left
    before: list[Tensor]  # the decay before each tile, [rows or 1, Hg, K or 1]; empty without a gate
    decay: Tensor | None  # over the whole piece
    scale: float
    exclusive: bool

    def weights(self, g: Tensor, tile: tuple[int, int], index: int, dtype: torch.dtype) -> Tensor:
        """Return d_t of a tile, [B, t, Hg, K or 1]."""
        return within(gates(g, tile, self.tiles.reverse, dtype), self.before[index], self.exclusive)

    def weighted(self, q: Tensor, g: Tensor | None, tile: tuple[int, int], index: int, heads: int,
                 dtype: torch.dtype) -> Tensor:
        """Return scale · q_t ⊙ d_t of a tile, [B, t, H, K]."""
        part = to_heads(cut(q, tile, self.tiles.reverse).to(dtype), heads) * self.scale
        return part if g is None else part * to_heads(self.weights(g, tile, index, dtype), heads)

    def prepare(self, q: Tensor, g: Tensor | None, heads: int, dtype: torch.dtype, most: int) -> list[Tensor]:
        """Compute the first ``most`` tiles' weighted queries: what needs no state."""
        return [self.weighted(q, g, tile, index, heads, dtype)
                for index, tile in zip(range(most), self.tiles, strict=False)]

    def add(self, o: Tensor, q: Tensor, g: Tensor | None, state: Tensor, prepared: list[Tensor]) -> None:
        """Add to o [B, T, H, V] what ``state`` [B, H, K, V] gives; ``prepared`` is used up."""
        prepared.reverse()
        for index, tile in enumerate(self.tiles):
            queries = prepared.pop() if prepared else self.weighted(q, g, tile, index, o.shape[2], state.dtype)
            read = (queries.transpose(1, 2) @ state).transpose(1, 2)
            o[:, tile[0]:tile[1]] += read.flip(1) if self.tiles.reverse else read

    def state_gradient(self, q: Tensor, g: Tensor | None, do: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of the state [B, H, K, V]."""
        found = torch.zeros_like(like)
        for index, tile in enumerate(self.tiles):
            queries = self.weighted(q, g, tile, index, do.shape[2], like.dtype)
            part = cut(do, tile, self.tiles.reverse).to(like.dtype)
            found += queries.permute(0, 2, 3, 1) @ part.transpose(1, 2)
        return found

    def input_gradients(self, q: Tensor, g: Tensor | None, do: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of q and g at the tiles' tokens, that of g as [B, t, Hg, K or 1]; both are wide.

        The gate of token s decays every later token's reading, so its gradient is a sum over those: the tiles are
        walked from the last, and what they have summed is carried on.
        """
        heads, dtype, backwards, first = do.shape[2], state.dtype, self.tiles.reverse, self.tiles.start
        rows, tokens = q.shape[0], self.tiles.stop - first
        dq = state.new_empty(rows, tokens, *q.shape[2:])
        dg = None if g is None else state.new_empty(rows, tokens, *shape(g)[1:])
        later: Tensor | None = None
        for index, tile in reversed(list(enumerate(self.tiles))):
            here = slice(tile[0] - first, tile[1] - first)
            read = (cut(do, tile, backwards).to(dtype).transpose(1, 2) @ state.transpose(2, 3)).transpose(1, 2)
            slope = read * self.scale  # d o / d q, for each output head
            if g is not None:
                slope = slope * to_heads(self.weights(g, tile, index, dtype), heads)
            folded = from_heads(slope, q.shape[2])
            dq[:, here] = folded.flip(1) if backwards else folded
            if dg is None:
                continue
            slope = slope * to_heads(cut(q, tile, backwards).to(dtype), heads)
            if dg.shape[3] == 1:
                slope = slope.sum(-1, keepdim=True)
            sums = from_heads(slope, dg.shape[2]).flip(1).cumsum(1).flip(1)  # from each token on
            after = torch.zeros_like(sums[:, :1]) if later is None else later
            sums = sums + after
            later = sums[:, :1]
            if self.exclusive:
                sums = torch.cat([sums[:, 1:], after], 1)
            dg[:, here] = sums.flip(1) if backwards else sums
        return dq, dg


def entry(run: int, start: int, stop: int, q: Tensor, g: Tensor | None, state_shape: tuple[int, int, int],
          dtype: torch.dtype, scale: float, *, reverse: bool, exclusive: bool) -> Entry:
    """Describe an entry at the tokens [start, stop) of the shard; ``state_shape`` is H, K, V."""
    heads, key_dim, value_dim = state_shape
    length = tile_length(q.device, q.shape[0], heads, max(key_dim, value_dim), dtype.itemsize)
    tiles = Tiles(start, stop, length, reverse)
    if g is None:
        return Entry(run, start, stop, tiles, [], None, scale, exclusive)
    with torch.no_grad():
        before, decay = over_tiles(g, tiles, dtype)
    return Entry(run, start, stop, tiles.first(len(before)), before, decay, scale, exclusive)
