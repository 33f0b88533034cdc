"""What a state that comes into a run adds to the run's outputs, and the gradients of that.

::

    o_t += scale · (q_t ⊙ d_t)ᵀ S        d_t: the decay up to token t, of token t itself too unless there is a bonus

All in float32 (float64 for float64), tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.distributed.decays import Tiles, cut, from_heads, gates, to_heads, within


@dataclass(frozen=True)
class Entry:
    """Tokens of this rank's shard that a state comes into, and the decay before each of their tiles."""

    run: int  # among the rank's runs
    tiles: Tiles
    before: Tensor | None  # [tiles + 1, B, Hg, K or 1]; None: no gate
    scale: float
    exclusive: bool

    def _alive(self, index: int) -> bool:
        """Tell whether anything of the state is left at a tile; on an accelerator asking would be a wait."""
        return self.before is None or self.before.device.type != "cpu" or bool(self.before[index].any())

    def weights(self, g: Tensor | None, tile: tuple[int, int], index: int, dtype: torch.dtype) -> Tensor | None:
        """Return d_t of a tile, [B, t, Hg, K or 1]."""
        if g is None or self.before is None:
            return None
        return within(gates(g, tile, self.tiles.reverse, dtype), self.before[index], self.exclusive)

    def weighted(self, q: Tensor, g: Tensor | None, tile: tuple[int, int], index: int, heads: int,
                 dtype: torch.dtype) -> Tensor:
        """Return scale · q_t ⊙ d_t of a tile, [B, t, H, K]."""
        part = to_heads(cut(q, tile, self.tiles.reverse).to(dtype), heads) * self.scale
        weights = self.weights(g, tile, index, dtype)
        return part if weights is None else part * to_heads(weights, heads)

    def prepare(self, q: Tensor, g: Tensor | None, heads: int, dtype: torch.dtype, most: int) -> list[Tensor]:
        """Compute the first ``most`` tiles' weighted queries: what needs no state."""
        found: list[Tensor] = []
        for index, tile in enumerate(self.tiles):
            if len(found) == most or not self._alive(index):
                break
            found.append(self.weighted(q, g, tile, index, heads, dtype))
        return found

    def add(self, o: Tensor, q: Tensor, g: Tensor | None, state: Tensor, prepared: list[Tensor]) -> None:
        """Add to o [B, T, H, V] what ``state`` [B, H, K, V] gives; ``prepared`` is used up."""
        prepared.reverse()
        for index, tile in enumerate(self.tiles):
            if not self._alive(index):
                break
            queries = prepared.pop() if prepared else self.weighted(q, g, tile, index, o.shape[2], state.dtype)
            read = (queries.transpose(1, 2) @ state).transpose(1, 2)
            o[:, tile[0]:tile[1]] += read.flip(1) if self.tiles.reverse else read

    def state_gradient(self, q: Tensor, g: Tensor | None, do: Tensor, like: Tensor) -> Tensor:
        """Return the gradient of the state [B, H, K, V]."""
        found = torch.zeros_like(like)
        for index, tile in enumerate(self.tiles):
            if not self._alive(index):
                break
            queries = self.weighted(q, g, tile, index, do.shape[2], like.dtype)
            part = cut(do, tile, self.tiles.reverse).to(like.dtype)
            found += queries.permute(0, 2, 3, 1) @ part.transpose(1, 2)
        return found

    def input_gradients(self, q: Tensor, g: Tensor | None, do: Tensor, state: Tensor, dq: Tensor,
                        dg: Tensor | None) -> None:
        """Write the gradients of q and g at these tokens; dg is wide, and [B, T, Hg, 1] of one gate per head.

        The gate of token s decays every later token's reading, so its gradient is a sum over those: the tiles are
        walked from the last, and what they have summed is carried on.
        """
        heads, dtype = do.shape[2], state.dtype
        later: Tensor | None = None
        for index, tile in reversed(list(enumerate(self.tiles))):
            if not self._alive(index):
                continue
            backwards = self.tiles.reverse
            part = cut(do, tile, backwards).to(dtype)
            read = (part.transpose(1, 2) @ state.transpose(2, 3)).transpose(1, 2) * self.scale
            weights = self.weights(g, tile, index, dtype)
            slope = read if weights is None else read * to_heads(weights, heads)  # d o / d q, per output head
            folded = from_heads(slope, q.shape[2])
            dq[:, tile[0]:tile[1]] = folded.flip(1) if backwards else folded
            if dg is None or weights is None:
                continue
            slope = slope * to_heads(cut(q, tile, backwards).to(dtype), heads)
            if weights.shape[-1] == 1:
                slope = slope.sum(-1, keepdim=True)
            slope = from_heads(slope, dg.shape[2])
            sums = slope.flip(1).cumsum(1).flip(1)  # from each token on
            if later is not None:
                sums = sums + later
            last = sums[:, :1]
            if self.exclusive:
                after = torch.zeros_like(sums[:, :1]) if later is None else later
                sums = torch.cat([sums[:, 1:], after], 1)
            later = last
            dg[:, tile[0]:tile[1]] = sums.flip(1) if backwards else sums
