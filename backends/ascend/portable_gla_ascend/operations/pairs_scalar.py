"""Pairs of tokens in a chunk where all channels of a head decay alike (one gate a head, constant, or none).

The decays of pairs are then one matrix for all channels, so scores are one product of q and k, times that matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla_ascend.operations.layout import CHUNK
from portable_gla_ascend.operations.levels import LEVELS, corner, halves, sides


class ScalarPairs:
    """Scores of n chunks, and what meets the states. q, k [n, 64, K] as operands; g [n, 64] or None.

    ``scores`` [n, 64, 64] and ``q_in``, ``k_out`` [n, 64, K] are operands; ``total`` is [n, 1] in float32.
    """

    def __init__(self, q: Tensor, k: Tensor, g: Tensor | None, scale: float, bonus: Tensor | None) -> None:
        self.q, self.k, self.scale, self.own = q, k, scale, bonus is None
        self.gated = g is not None
        count = q.shape[0]
        if g is None:
            ones = q.new_ones(1, CHUNK, CHUNK, dtype=torch.float32)
            self.decays = scale * ones.tril(0 if self.own else -1)
            self.before = self.after = q.new_ones(1, CHUNK, 1, dtype=torch.float32)
            self.total = q.new_ones(count, 1, dtype=torch.float32)
        else:
            self._decay(g.float().exp())
        self.scores = (torch.bmm(q, k.mT) * self.decays).to(q.dtype)
        if bonus is not None:
            own_pairs = scale * (q.float() * k * bonus[:, None]).sum(-1)
            self.scores.diagonal(dim1=1, dim2=2).copy_(own_pairs)
        self.q_in = (q * (scale * self.before)).to(q.dtype)
        self.k_out = (k * self.after).to(q.dtype)

    def _decay(self, each: Tensor) -> None:
        """Multiply the decays of pairs up, level by level; each [n, 64] is exp(g)."""
        count = each.shape[0]
        decays = each.new_zeros(count, CHUNK, CHUNK)
        if self.own:
            decays.diagonal(dim1=1, dim2=2).fill_(1.0)
        before = each.clone() if self.own else torch.ones_like(each)
        after, total = torch.ones_like(each), each[..., None]
        for level in range(LEVELS):
            upper, lower = sides(before[..., None], level)[1], sides(after[..., None], level)[0]
            corner(decays, level).copy_((upper @ lower.mT).permute(0, 2, 3, 1))
            left, right = halves(total)
            lower.mul_(right[:, :, None])
            upper.mul_(left[:, :, None])
            total = left * right
        self.decays = self.scale * decays
        self.before, self.after, self.total = before[..., None], after[..., None], total[:, 0]

    def backward(self, dscores: Tensor, dq_in: Tensor, dk_out: Tensor, through: Tensor,
                 ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return dq, dk and dg [n, 64, 1] in float32, the bonus's diagonal left out.

        dscores [n, 64, 64], in float32 if there are gates; dq_in, dk_out [n, 64, K] are the gradients of ``q_in`` and
        ``k_out``; through [n, 1] is total · sum of (state before · gradient of the state after).
        """
        draw = (dscores * self.decays).to(self.q.dtype)
        dq_in, dk_out = dq_in * (self.scale * self.before), dk_out * self.after
        dq, dk = torch.bmm(draw, self.k) + dq_in, torch.bmm(draw.mT, self.q) + dk_out
        if not self.gated:
            return dq, dk, None
        # In float32: a token's dg is one number, the sum of all its paths, and nothing averages their roundings.
        paths = torch.bmm(self.q.float(), self.k.float().mT) * self.decays * dscores
        rows, columns = ((x * y).sum(-1, keepdim=True) for x, y in ((self.q, dq_in), (self.k, dk_out)))
        across = through[:, None]
        for level in reversed(range(LEVELS)):
            upper, lower = sides(rows, level)[1], sides(columns, level)[0]
            across = torch.stack((across + upper.sum(2), across + lower.sum(2)), 2).flatten(1, 2)
            block = corner(paths, level).permute(0, 3, 1, 2)
            upper.add_(block.sum(3, keepdim=True))
            lower.add_(block.sum(2)[..., None])
        return dq, dk, across + rows if self.own else across
