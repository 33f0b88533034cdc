"""What the pairs of a chunk give to dq, dk and dg, per channel.

By levels, as the scores are (``scores.py``): at each, readers lie in second halves and keys in first halves of blocks,
so a gate in a second half is crossed by the readers from it on, and one in a first half by the keys before it.
"""

import triton
import triton.language as tl

from .common import operand, product
from .scores import first_level, level_mask, level_operands, next_level

RANGE = tl.constexpr(50.0)  # e^4: what a difference of sums may lose, times this, is far below 16-bit rounding


@triton.jit
def crossing_sum(dg, x, y, SIZE: tl.constexpr, BONUS: tl.constexpr, KIND: tl.constexpr):
    """Add for each gate t: Σ x_i over readers from t on + Σ y_j over keys before t; [SIZE, columns].

    With a bonus, the reader at t does not meet its own gate.
    """
    t = tl.arange(0, SIZE)[:, None]
    s = tl.arange(0, SIZE)[None, :]
    readers = s > t if BONUS else s >= t
    dg = product(operand(tl.where(readers, 1.0, 0.0), KIND), operand(x, KIND), dg, KIND)
    return product(operand(tl.where(s < t, 1.0, 0.0), KIND), operand(y, KIND), dg, KIND)


@triton.jit
def level_gradients(dq, dk, dg, q, k, da, prefix, suffix, h, SIZE: tl.constexpr, BLOCK: tl.constexpr,
                    BONUS: tl.constexpr, KIND: tl.constexpr):
    """Add what the pairs of one level give."""
    rows, columns = level_operands(q, k, prefix, suffix, h, SIZE, KIND)
    weights = operand(tl.where(level_mask(h, SIZE), da, 0.0), KIND)
    second = ((tl.arange(0, SIZE) & h) != 0)[:, None]
    found = tl.where(second, product(weights, columns, tl.zeros([SIZE, BLOCK], tl.float32), KIND) * prefix, 0.0)
    dq += found
    paths = found * q.to(tl.float32)
    found = tl.where(second, 0.0, product(tl.trans(weights), rows, tl.zeros([SIZE, BLOCK], tl.float32), KIND) * suffix)
    dk += found
    paths += found * k.to(tl.float32)
    t = tl.arange(0, SIZE)[:, None]
    s = tl.arange(0, SIZE)[None, :]
    readers = s > t if BONUS else s >= t
    crossing = tl.where((t & h) != 0, readers, s < t) & ((t ^ s) < h)
    return dq, dk, product(operand(tl.where(crossing, 1.0, 0.0), KIND), operand(paths, KIND), dg, KIND)


@triton.jit
def near_gradients(dq, dk, dg, q, k, da, inclusive, e, H: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
                   BONUS: tl.constexpr, KIND: tl.constexpr):
    """Add what the pairs within aligned blocks of H positions give, where the blocks' range is small.

    dg is a difference of sums here: of the same rounded operands, so that what cancels leaves float32's rounding only.
    """
    places = tl.arange(0, SIZE)
    prefix = inclusive / e if BONUS else inclusive
    rows = operand(q.to(tl.float32) * prefix, KIND)
    columns = operand(k.to(tl.float32) / inclusive, KIND)
    i = places[:, None]
    j = places[None, :]
    weights = operand(tl.where((i > j) & ((i ^ j) < H), da, 0.0), KIND)
    found = product(weights, columns, tl.zeros([SIZE, BLOCK], tl.float32), KIND)
    dq += found * prefix
    read = rows.to(tl.float32) * found
    found = product(tl.trans(weights), rows, tl.zeros([SIZE, BLOCK], tl.float32), KIND)
    dk += found / inclusive
    paths = read - columns.to(tl.float32) * found
    crossing = tl.reshape(tl.cumsum(tl.reshape(paths, [SIZE // H, H, BLOCK]), axis=1, reverse=True), [SIZE, BLOCK])
    if BONUS:
        crossing -= read
    dg += tl.where((places % H == 0)[:, None], 0.0, crossing)
    return dq, dk, dg


@triton.jit
def channel_gradients(q, k, da, e, SIZE: tl.constexpr, BLOCK: tl.constexpr, NEAR: tl.constexpr, BONUS: tl.constexpr,
                      RANGED: tl.constexpr, KIND: tl.constexpr):
    """Return what all pairs of a chunk give to dq, dk and dg, with its prefix, suffix and total; [SIZE, BLOCK] each."""
    dq = tl.zeros([SIZE, BLOCK], tl.float32)
    dk = tl.zeros([SIZE, BLOCK], tl.float32)
    dg = tl.zeros([SIZE, BLOCK], tl.float32)
    near = False
    inclusive = e
    if RANGED:
        inclusive = tl.reshape(tl.cumprod(tl.reshape(e, [SIZE // NEAR, NEAR, BLOCK]), axis=1), [SIZE, BLOCK])
        near = (tl.min(inclusive) > 1 / RANGE) & (tl.max(inclusive) < RANGE)
    if near:
        dq, dk, dg = near_gradients(dq, dk, dg, q, k, da, inclusive, e, NEAR, SIZE, BLOCK, BONUS, KIND)
    prefix, suffix, total = first_level(e, BONUS)
    h = 1
    while h < SIZE:
        if (h >= NEAR) | (not near):
            dq, dk, dg = level_gradients(dq, dk, dg, q, k, da, prefix, suffix, h, SIZE, BLOCK, BONUS, KIND)
        prefix, suffix, total = next_level(prefix, suffix, total, h, SIZE, BLOCK)
        h *= 2
    return dq, dk, dg, prefix, suffix, total
