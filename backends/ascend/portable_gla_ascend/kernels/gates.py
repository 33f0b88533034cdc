"""Decays: a chunk's gates, and their sums over spans of tokens.

A sum over a span is a product of a 0/1 mask with the gates, so it holds the span's own terms and nothing is subtracted:
a gate of -1e5, or -inf, leaves its neighbours alone. All masks are cut from one small table, ``near``: at (i, j) the
highest bit in which i and j differ, negative where i < j, 0 where i = j.
"""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import rows

FORGET = tl.constexpr(-110.0)  # exp of it is 0 in float32: gates below it are taken as it


@triton.jit
def load_gate(g, start, tokens, stride, columns, inside, K, GATE: tl.constexpr):
    """Load a chunk's gates, [C, BK]: per channel as they are stored, else repeated, in float32."""
    if GATE == "channel":
        found = rows(g, start, tokens, stride, columns, inside, K)
        if found.dtype == tl.float32:  # in fewer tiles than a comparison takes
            return tl.maximum(found, FORGET, propagate_nan=tl.PropagateNan.ALL)
    elif GATE == "head":
        found = tl.load(g + start + tokens * stride, mask=inside, other=0.0)
    else:
        # bishengir-compile aborts unless a vector operation comes between the load and the choice.
        shared = tl.maximum(tl.load(g + start), FORGET, propagate_nan=tl.PropagateNan.ALL)
        found = tl.where(inside, shared + tl.zeros(inside.shape, dtype=tl.float32), 0.0)
    if GATE != "channel":
        found = tl.broadcast_to(found[:, None], [inside.shape[0], columns.shape[0]])
    wide = found.to(tl.float32)
    return tl.where(wide < FORGET, FORGET, wide).to(found.dtype)


@triton.jit
def spans(mask, g):
    """Sum each row's span of gates."""
    if g.dtype == tl.float32:
        return tl.dot(mask.to(tl.float32), g, input_precision="ieee")
    else:
        return tl.dot(mask.to(g.dtype), g)


@triton.jit
def halves(g):
    """Split gates into multiples of 1/256, whose sums float32 holds exactly, and what is left, whose sums are small."""
    coarse = (g * 256.0).to(tl.int32).to(tl.float32) * 0.00390625
    return coarse, g - coarse


@triton.jit
def decays(mask, g, KIND: tl.constexpr):
    """Return exp of each row's span of gates; ``f32``: right to float32's last bits however long the span."""
    if KIND == "f32":
        coarse, fine = halves(g)
        return tl.exp(spans(mask, coarse)) * tl.exp(spans(mask, fine))
    else:
        return tl.exp(spans(mask, g))


@triton.jit
def whole_decay(g, KIND: tl.constexpr):
    """Return exp of the sum of a chunk's gates: [BK]."""
    if KIND == "f32":
        coarse, fine = halves(g)
        return tl.exp(tl.sum(coarse, 0)) * tl.exp(tl.sum(fine, 0))
    else:
        return tl.exp(tl.sum(g.to(tl.float32), 0))


@triton.jit
def pair_decays(near, g, BONUS: tl.constexpr, KIND: tl.constexpr):
    """Return the decays [C, C] between tokens j < i: over (j, i], or (j, i) to a bonus; g [C, C] repeats a column."""
    if BONUS:
        read = near > 0
    else:
        read = near >= 0
    if KIND == "f32":
        coarse, fine = halves(g)
        found = tl.exp(spans(read, tl.where(near > 0, coarse, 0.0)))
        return found * tl.exp(spans(read, tl.where(near > 0, fine, 0.0)))
    else:
        return tl.exp(spans(read, tl.where(near > 0, g, 0.0)))
