"""Pairs of tokens in a chunk where every channel has its own gate.

At each level (see ``levels.py``) rows carry q and columns k, each with its factor of the decay; their products are the
scores. The four lowest levels are one product of blocks of 16 tokens, of which each level keeps its own pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla_ascend.operations.layout import CHUNK
from portable_gla_ascend.operations.levels import LEVELS, corner, halves, on_diagonal, sides

_SMALL = 4
_BLOCK = 2**_SMALL  # tokens: what the matrix unit multiplies at once


class ChannelPairs:
    """Scores of n chunks, and what meets the states. q, k [n, 64, K] as operands; g [n, 64, K].

    ``scores`` [n, 64, 64] and ``q_in``, ``k_out`` [n, 64, K] are operands; ``total`` is [n, K] in float32.
    """

    def __init__(self, q: Tensor, k: Tensor, g: Tensor, scale: float, bonus: Tensor | None) -> None:
        self.scale, self.own = scale, bonus is None
        decay = g.float().exp()
        self.factor = scale * decay if self.own else torch.full_like(decay, scale)
        rows = q * self.factor
        columns = k.to(torch.float32, copy=True)
        own_pairs = scale * (q.float() * columns if bonus is None else q * columns * bonus[:, None]).sum(-1)
        self.totals = [decay]
        self.operands = q.new_empty(LEVELS, *q.shape)
        for level in range(LEVELS):
            upper, lower = sides(rows, level)[1], sides(columns, level)[0]
            for target, x in zip(sides(self.operands[level], level), (lower, upper), strict=True):
                target.copy_(x)
            left, right = halves(self.totals[-1])
            lower.mul_(right[:, :, None])
            upper.mul_(left[:, :, None])
            self.totals.append(left * right)
        self.rows, self.columns, self.total = rows, columns, self.totals[-1][:, 0]
        self.q_in, self.k_out = rows.to(q.dtype), columns.to(q.dtype)
        self.scores = self._scores()
        self.scores.diagonal(dim1=1, dim2=2).copy_(own_pairs)

    def _scores(self) -> Tensor:
        count = self.operands.shape[1]
        scores = self.operands.new_zeros(count, CHUNK, CHUNK)
        small = self._small()
        pairs = torch.unflatten(torch.bmm(small, small.mT), 0, (_SMALL, -1))
        pairs = torch.where(_masks(pairs), pairs, 0).sum(0)  # of each pair one level counts
        on_diagonal(scores, _BLOCK).copy_(torch.unflatten(pairs, 0, (count, -1)).permute(0, 2, 3, 1))
        for level in range(_SMALL, LEVELS):
            lower, upper = (x.flatten(0, 1) for x in sides(self.operands[level], level))
            corner(scores, level).copy_(torch.unflatten(torch.bmm(upper, lower.mT), 0, (count, -1)).permute(0, 2, 3, 1))
        return scores

    def _small(self) -> Tensor:
        """Return the operands of the lowest levels by blocks of 16: [levels · n · 4, 16, K]."""
        return torch.unflatten(self.operands[:_SMALL], 2, (-1, _BLOCK)).flatten(0, 2)

    def backward(self, dscores: Tensor, dq_in: Tensor, dk_out: Tensor, through: Tensor,
                 ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return dq, dk and dg [n, 64, K] in float32, the diagonal left out.

        dscores [n, 64, 64]; dq_in, dk_out [n, 64, K] in float32 are the gradients of ``q_in`` and ``k_out``, and are
        overwritten; through [n, K] is total · sum over V of (state before · gradient of the state after).

        dg gathers, for each token, what crosses it: a product of a value and its gradient for every factor of decay,
        passed down from level to level. Every such term carries exp(g) of its token, so a strong gate's small gradient
        is right to its own size.
        """
        from_rows, from_columns = self.rows * dq_in, self.columns * dk_out
        across = through[:, None]
        gradients = self._operand_gradients(dscores)
        for level in reversed(range(LEVELS)):
            upper, lower = sides(from_rows, level)[1], sides(from_columns, level)[0]
            across = torch.stack((across + upper.sum(2), across + lower.sum(2)), 2).flatten(1, 2)
            left, right = halves(self.totals[level])
            dlower, dupper = gradients[level]
            olower, oupper = sides(self.operands[level], level)
            for whole, part, factor, operand, found in (
                    (dq_in, 1, left, oupper, dupper), (dk_out, 0, right, olower, dlower)):
                sides(whole, level)[part].mul_(factor[:, :, None]).add_(found)
                (upper if part else lower).add_(operand.float() * found)
        dq = dq_in * self.factor
        return dq, dk_out, across + from_rows if self.own else across

    def _operand_gradients(self, dscores: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return, for every level, the gradients of its lower and upper operands."""
        count = dscores.shape[0]
        blocks = on_diagonal(dscores, _BLOCK).permute(0, 3, 1, 2).flatten(0, 1)
        blocks = torch.where(_masks(blocks), blocks, 0)
        both = (blocks + blocks.mT).flatten(0, 1)  # a block's rows by its columns, and the other way round
        small = torch.bmm(both, self._small()).view(_SMALL, *self.operands.shape[1:])
        found = [sides(small[level], level) for level in range(_SMALL)]
        for level in range(_SMALL, LEVELS):
            lower, upper = (x.flatten(0, 1) for x in sides(self.operands[level], level))
            pairs = corner(dscores, level).permute(0, 3, 1, 2).flatten(0, 1)
            found.append((torch.unflatten(torch.bmm(pairs.mT, upper), 0, (count, -1)),
                          torch.unflatten(torch.bmm(pairs, lower), 0, (count, -1))))
        return found


def _masks(like: Tensor) -> Tensor:
    """Return which pairs of a block of 16 each of the lowest levels has: [4, 1, 16, 16]."""
    place = torch.arange(_BLOCK, device=like.device)
    row, column = place[:, None], place[None, :]
    level = torch.arange(_SMALL, device=like.device)[:, None, None, None]
    lower_half = (column >> level) % 2 == 0
    return (row >> level + 1 == column >> level + 1) & ((row >> level) % 2 == 1) & lower_half
