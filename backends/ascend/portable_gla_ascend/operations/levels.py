"""Pairs of a chunk by levels: at level l those whose places differ first in bit l, counted from the top.

Tokens are numbered in a chunk; a pair (j, i), j < i, belongs to the highest bit in which j and i differ. At level l,
of blocks of 2 · 2^l tokens, j is then in the lower half of a block and i in its upper half: the decay from j to i is
one factor of j (from j to the end of its half) times one of i (from the start of its half). Both are products of
exp(g) over tokens between the two: nothing is subtracted or divided, so a reset is exact, and growth is met only on the
way. From one level to the next, each factor takes the neighbouring half's total decay with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 6
"""2^6 is a chunk of 64."""


def sides(x: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """View [n, 64, D] as the lower and the upper halves of the level's blocks: [n, blocks, 2^level, D] each."""
    lower, upper = torch.unflatten(x, 1, (-1, 2, 2**level)).unbind(2)
    return lower, upper


def halves(total: Tensor) -> tuple[Tensor, Tensor]:
    """View totals [n, 2 · blocks, D] of halves as those of the lower and of the upper halves: [n, blocks, D] each."""
    lower, upper = torch.unflatten(total, 1, (-1, 2)).unbind(2)
    return lower, upper


def corner(matrix: Tensor, level: int) -> Tensor:
    """View the level's pairs of [n, 64, 64]: [n, 2^level, 2^level, blocks]."""
    size = 2**level
    return on_diagonal(matrix, 2 * size)[:, size:, :size]


def on_diagonal(matrix: Tensor, size: int) -> Tensor:
    """View the blocks on the diagonal of [n, 64, 64]: [n, size, size, blocks]."""
    columns = torch.unflatten(matrix, 2, (-1, size))
    return torch.unflatten(columns, 1, (-1, size)).diagonal(dim1=1, dim2=3)
