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
def load_gate(g, start, tokens, stride, columns, inside, K: tl.constexpr, GATE: tl.constexpr):
    """Load a chunk's gates: [C, BK] per channel, as they are stored, or [C] in float32."""
    if GATE == "channel":
        found = rows(g, start, tokens, stride, columns, inside, K)
    elif GATE == "head":
        found = tl.load(g + start + tokens * stride, mask=inside, other=0.0).to(tl.float32)
    elif GATE == "constant":
        found = tl.where(inside, tl.load(g + start).to(tl.float32), 0.0)
    else:
        found = tl.where(inside, 0.0, 0.0)
    wide = found.to(tl.float32)
    return tl.where(wide < FORGET, FORGET, wide).to(found.dtype)


@triton.jit
def spans(mask, g, GATE: tl.constexpr):
    """Sum each row's span of gates: [C, BK], or [C, 1] where channels share a gate."""
    if GATE == "channel":
        if g.dtype == tl.float32:
            return tl.dot(mask.to(tl.float32), g, input_precision="ieee")
        else:
            return tl.dot(mask.to(g.dtype), g)
    else:
        return tl.sum(tl.where(mask, g[None, :], 0.0), 1)[:, None]


@triton.jit
def total(g, GATE: tl.constexpr):
    """Sum all gates of a chunk: [BK], or [1]."""
    found = tl.sum(g.to(tl.float32), 0)
    if GATE == "channel":
        return found
    else:
        return found[None]


@triton.jit
def pairwise(near, g, BONUS: tl.constexpr):
    """Return, for gates that channels share, the sums between every two tokens j < i: over (j, i], or (j, i) to a bonus."""
    after = tl.where(near > 0, g[:, None], 0.0)
    if BONUS:
        return tl.dot((near > 0).to(tl.float32), after, input_precision="ieee")
    else:
        return tl.dot((near >= 0).to(tl.float32), after, input_precision="ieee")
