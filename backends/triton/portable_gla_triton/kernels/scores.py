"""The scores of a chunk: A_ij = Σ_k q_ik k_jk Π_{j<s≤i} e_sk for j < i, per channel.

Two ways to the same numbers. Where every prefix of the chunk lies within ``RANGE`` of 1, both sides are referenced to
the chunk's start: one product. Elsewhere by levels: the pairs (i, j) whose highest differing bit is h lie in one block
of 2 h positions, i in its second half and j in its first, and the decay between them is the prefix of i within its half
times the suffix of j within its own. Both are products of decays between j and i and of nothing else, so this is exact
for every g; log2 C products cover all pairs.
"""

import triton
import triton.language as tl

from .common import operand, product
from .gates import last_row

RANGE = tl.constexpr(1e24)  # e^55: with keys of up to 1e14, operands stay in the range of bfloat16 and float32


@triton.jit
def first_level(e, BONUS: tl.constexpr):
    """Return prefix, suffix and total of blocks of one position."""
    ones = tl.full(e.shape, 1.0, tl.float32)
    return (ones if BONUS else e), ones, e


@triton.jit
def next_level(prefix, suffix, total, h, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Return prefix, suffix and total of blocks of 2 h positions from those of h."""
    rows = tl.arange(0, SIZE)
    other = tl.gather(total, tl.broadcast_to((rows ^ h)[:, None], [SIZE, BLOCK]), axis=0)
    second = ((rows & h) != 0)[:, None]
    return tl.where(second, prefix * other, prefix), tl.where(second, suffix, suffix * other), total * other


@triton.jit
def level_operands(q, k, prefix, suffix, h, SIZE: tl.constexpr, KIND: tl.constexpr):
    """Return the rows q_i P_i of second halves and the columns k_j Q_j of first halves, 0 in the other halves."""
    second = ((tl.arange(0, SIZE) & h) != 0)[:, None]
    rows = operand(tl.where(second, q.to(tl.float32) * prefix, 0.0), KIND)
    columns = operand(tl.where(second, 0.0, k.to(tl.float32) * suffix), KIND)
    return rows, columns


@triton.jit
def level_mask(h, SIZE: tl.constexpr):
    """Mark the pairs of a level: i in the second half of a block of 2 h, j in its first; [SIZE, SIZE]."""
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    return (i > j) & ((i ^ j) >= h) & ((i ^ j) < 2 * h)


@triton.jit
def level_scores(scores, q, k, e, SIZE: tl.constexpr, BLOCK: tl.constexpr, BONUS: tl.constexpr, KIND: tl.constexpr):
    """Add the scores of all pairs, level by level; return them with prefix, suffix and total of the chunk."""
    prefix, suffix, total = first_level(e, BONUS)
    h = 1
    while h < SIZE:
        rows, columns = level_operands(q, k, prefix, suffix, h, SIZE, KIND)
        found = product(rows, tl.trans(columns), tl.zeros([SIZE, SIZE], tl.float32), KIND)
        scores += tl.where(level_mask(h, SIZE), found, 0.0)
        prefix, suffix, total = next_level(prefix, suffix, total, h, SIZE, BLOCK)
        h *= 2
    return scores, prefix, suffix, total


@triton.jit
def channel_scores(scores, q, k, e, SIZE: tl.constexpr, BLOCK: tl.constexpr, BONUS: tl.constexpr,
                   RANGED: tl.constexpr, KIND: tl.constexpr):
    """Add the scores of all pairs, and without a bonus of each position with itself.

    Returns scores, the operands q_i P_i and k_j Q_j [SIZE, BLOCK], and the chunk's total [BLOCK]. RANGED allows the one
    product where the range is small: not for float32, whose rounding would show.
    """
    near = False
    inclusive = e
    if RANGED:
        inclusive = tl.cumprod(e, axis=0)
        near = (tl.min(inclusive) > 1 / RANGE) & (tl.max(inclusive) < RANGE)
    if near:
        total = last_row(inclusive, SIZE)
        prefix = inclusive / e if BONUS else inclusive
        reader = operand(q.to(tl.float32) * prefix, KIND)
        undecayed = k.to(tl.float32) / inclusive
        found = product(reader, tl.trans(operand(undecayed, KIND)), tl.zeros([SIZE, SIZE], tl.float32), KIND)
        i = tl.arange(0, SIZE)[:, None]
        j = tl.arange(0, SIZE)[None, :]
        scores += tl.where(i >= j, found, 0.0)
        writer = operand(undecayed * total[None, :], KIND)
    else:
        scores, prefix, suffix, totals = level_scores(scores, q, k, e, SIZE, BLOCK, BONUS, KIND)
        if not BONUS:
            scores = diagonal_scores(scores, q, k, SIZE, KIND)
        total = tl.max(totals, axis=0)  # all rows hold it
        reader = operand(q.to(tl.float32) * prefix, KIND)
        writer = operand(k.to(tl.float32) * suffix, KIND)
    return scores, reader, writer, total


@triton.jit
def diagonal_scores(scores, q_weighted, k, SIZE: tl.constexpr, KIND: tl.constexpr):
    """Add the scores of each position with itself, where no decay applies."""
    found = product(operand(q_weighted, KIND), tl.trans(operand(k, KIND)), tl.zeros([SIZE, SIZE], tl.float32), KIND)
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    return scores + tl.where(i == j, found, 0.0)
