"""A chunk's scores and their gradients, with gates per channel.

The pairs (i, j) whose highest differing bit is s lie in one block of 2s tokens, i in its upper half and j in its lower.
Row i carries the decay from the half's start to i, row j that from after j to the half's end: no exponent is positive.
So one tile holds q above and k below, each times its decay, and its product with itself has the pairs of that level.
``depth`` levels are taken so; what is left, pairs within blocks of C >> depth, goes as one product of q e^p by k e^-p,
p counted from the block's first token. The caller knows that p stays small there; with all levels taken, blocks are
single tokens and p is 0.
"""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import product
from portable_gla_ascend.kernels.gates import decays, spans


@triton.jit
def span_mask(near, upper, s, BONUS: tl.constexpr):
    """Say which gates lie between a row and the middle of its block of 2s tokens; ``upper``: rows above it.

    Of a transposed mask ``near`` is negated, and ``upper`` says it of columns.
    """
    if BONUS:
        above = near > 0
    else:
        above = near >= 0
    return (tl.abs(near) < s) & ((upper & above) | ((upper == 0) & (near < 0)))


@triton.jit
def block_mask(near, inner, block):
    """Say which gates lie between a block's first token, not ``inner``, and a row."""
    return (tl.abs(near) < block) & (near >= 0) & inner


@triton.jit
def channel_scores(q, k, g, near, position, depth, BONUS: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr):
    """Return k qᵀ with decays between, [C, C]: at (j, i) for j <= i (with a bonus j < i), else 0."""
    row = position[:, None]
    column = position[None, :]
    q = q.to(tl.float32)
    k = k.to(tl.float32)
    found = tl.zeros([C, C], dtype=tl.float32)
    for level in range(depth):
        s = (C // 2) >> level
        upper = (row & s) != 0
        x = tl.where(upper, q, k) * decays(span_mask(near, upper, s, BONUS), g, KIND)
        found += tl.where(near == -s, product(x, tl.trans(x), KIND), 0.0)
    block = C >> depth
    mask = block_mask(near, (column & (block - 1)) != 0, block)
    after = spans(mask, g)
    if BONUS:
        before = spans(mask & (near > 0), g)
        pairs = product(k * tl.exp(-after), tl.trans(q * tl.exp(before)), KIND)
        return found + tl.where((near < 0) & (near > -block), pairs, 0.0)
    else:
        pairs = product(k * tl.exp(-after), tl.trans(q * tl.exp(after)), KIND)
        return found + tl.where((near <= 0) & (near > -block), pairs, 0.0)


@triton.jit
def channel_gradients(
    q, k, g, dscores, near, position, inside, depth, BONUS: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr,
):
    """Return dq, dk and dg [C, BK] of pairs j < i; ``dscores`` has the scores' gradient at (i, j) and at (j, i).

    Always by levels: dg of a token is the sum over the pairs that it lies between, and nothing is subtracted.
    """
    dq = tl.zeros(q.shape, dtype=tl.float32)
    dk = tl.zeros(q.shape, dtype=tl.float32)
    dg = tl.zeros(q.shape, dtype=tl.float32)
    for level in range(depth):
        s = (C // 2) >> level
        upper = (position[:, None] & s) != 0
        decay = decays(span_mask(near, upper, s, BONUS), g, KIND)
        x = tl.where(upper, q, k).to(tl.float32)
        dx = product(tl.where(tl.abs(near) == s, dscores, 0.0), x * decay, KIND) * decay
        dq += tl.where(upper, dx, 0.0)
        dk += tl.where(upper, 0.0, dx)
        crossing = span_mask(-near, (position[None, :] & s) != 0, s, BONUS)
        through = tl.dot(crossing.to(tl.float32), x * dx, input_precision="ieee")
        # Summed by the cube alone, it would be lost: the 950's compiler drops the product.
        dg += tl.where(inside[:, None], through, 0.0)
    return dq, dk, dg


@triton.jit
def channel_gradients_scores(
    q, k, g, dscores, scores, near, position, inside, depth, BONUS: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr,
):
    """Return what ``channel_gradients`` does, and ``scores`` with these pairs' added, at (j, i)."""
    dq = tl.zeros(q.shape, dtype=tl.float32)
    dk = tl.zeros(q.shape, dtype=tl.float32)
    dg = tl.zeros(q.shape, dtype=tl.float32)
    for level in range(depth):
        s = (C // 2) >> level
        upper = (position[:, None] & s) != 0
        decay = decays(span_mask(near, upper, s, BONUS), g, KIND)
        x = tl.where(upper, q, k).to(tl.float32)
        decayed = x * decay
        dx = product(tl.where(tl.abs(near) == s, dscores, 0.0), decayed, KIND) * decay
        dq += tl.where(upper, dx, 0.0)
        dk += tl.where(upper, 0.0, dx)
        crossing = span_mask(-near, (position[None, :] & s) != 0, s, BONUS)
        through = tl.dot(crossing.to(tl.float32), x * dx, input_precision="ieee")
        # Summed by the cube alone, it would be lost: the 950's compiler drops the product.
        dg += tl.where(inside[:, None], through, 0.0)
        scores += tl.where(near == -s, product(decayed, tl.trans(decayed), KIND), 0.0)
    return dq, dk, dg, scores
