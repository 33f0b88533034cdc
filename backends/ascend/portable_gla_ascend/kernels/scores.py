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
from portable_gla_ascend.kernels.gates import decays, load_gate, pair_decays, spans


@triton.jit
def span_mask(near, upper, s, BONUS: tl.constexpr, TURNED: tl.constexpr = False):
    """Say which gates lie between a row and the middle of its block of 2s tokens; ``upper``: rows above it.

    ``TURNED``: the mask's transpose, of which ``upper`` says it of columns.
    """
    if TURNED:
        above = near < 0 if BONUS else near <= 0
        return (tl.abs(near) < s) & ((upper & above) | ((upper == 0) & (near > 0)))
    else:
        above = near > 0 if BONUS else near >= 0
        return (tl.abs(near) < s) & ((upper & above) | ((upper == 0) & (near < 0)))


@triton.jit
def block_mask(near, inner, block):
    """Say which gates lie between a block's first token, not ``inner``, and a row."""
    return (tl.abs(near) < block) & (near >= 0) & inner


@triton.jit
def tile_scores(q, k, g, near, position, depth_at, GATE: tl.constexpr, BONUS: tl.constexpr, KIND: tl.constexpr,
                C: tl.constexpr):
    """Return what a tile of K adds to a chunk's scores, [C, C] at (j, i): see ``whole_scores``."""
    if GATE == "channel":
        return channel_scores(q, k, g, near, position, tl.load(depth_at), BONUS, KIND, C)
    else:
        return product(k, tl.trans(q), KIND)


@triton.jit
def added_own(own, q, k, bonus, at_k, K, GATE: tl.constexpr):
    """Add what a tile of K gives to each token's score with itself, through the bonus."""
    u = tl.load(bonus + at_k, mask=at_k < K, other=0.0).to(tl.float32)
    pair = q.to(tl.float32) * k.to(tl.float32) * u[None, :]
    if GATE == "none":  # the 950's compiler refuses the sums there
        return own + pair
    else:
        return own + tl.sum(pair, 1)


@triton.jit
def whole_scores(scores, own, near, g, g_start, g_token, at, inside, K, GATE: tl.constexpr, BONUS: tl.constexpr,
                 KIND: tl.constexpr, C: tl.constexpr):
    """Return a chunk's scores, [C, C] at (j, i) for j <= i, from what its tiles of K added up to.

    Gates that channels share, and the causal mask, come in here; with gates per channel each tile has them.
    """
    if GATE == "head" or GATE == "constant":
        gates = load_gate(g, g_start, at, g_token, tl.arange(0, C), inside, K, GATE)
        scores = scores * tl.trans(pair_decays(near, gates, BONUS, KIND))
    if GATE != "channel":
        if BONUS:
            scores = tl.where(near < 0, scores, 0.0)
        else:
            scores = tl.where(near <= 0, scores, 0.0)
    if BONUS:
        if GATE == "none":
            own = tl.sum(own, 1)
        scores += tl.where(near == 0, own[:, None], 0.0)
    return scores


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
        crossing = span_mask(near, (position[None, :] & s) != 0, s, BONUS, TURNED=True)
        through = tl.dot(crossing.to(tl.float32), x * dx, input_precision="ieee")
        # Summed by the cube alone, it would be lost: the 950's compiler drops the product.
        dg += tl.where(inside[:, None], through, 0.0)
    return dq, dk, dg
