"""A chunk's gradient of v."""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import kept_state, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate
from portable_gla_ascend.kernels.scores import added_own, tile_scores, whole_scores


@triton.jit
def value_gradients(
    q, k, do, g, bonus, dv, near, position, adjoints, adjoint_scales, depths, place, row, head, chunk, first, length,
    scale, tokens, heads, q_start, q_token, k_start, k_token, do_start, do_token, g_start, g_token, K, V,
    GATE: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr, KIND: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr,
):
    """Write a chunk's dv by tiles of V, from its scores, made once, and the adjoint state after it."""
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
    scores = tl.zeros([C, C], dtype=tl.float32)  # of (j, i)
    own = tl.zeros([C, BK] if GATE == "none" else [C], dtype=tl.float32)
    for tile_k in range(tiles_k):
        at_k = tile_k * BK + tl.arange(0, BK)
        qs = rows(q, q_start, at, q_token, at_k, inside, K)
        ks = rows(k, k_start, at, k_token, at_k, inside, K)
        gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
        if BONUS:
            own = added_own(own, qs, ks, bonus + head * K, at_k, K, GATE)
        depth_at = depths + place * tiles_k + tile_k
        scores += tile_scores(qs, ks, gates, near, position, depth_at, GATE, BONUS, KIND, C)
    scores = whole_scores(scores, own, near, g, g_start, g_token, at, inside, K, GATE, BONUS, KIND, C) * scale
    for tile_v in range(tiles_v):
        at_v = tile_v * BV + tl.arange(0, BV)
        found = tl.zeros([C, BV], dtype=tl.float32)
        for tile_k in range(tiles_k):
            at_k = tile_k * BK + tl.arange(0, BK)
            ks = rows(k, k_start, at, k_token, at_k, inside, K)
            if GATE != "none":
                gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
                ks = ks.to(tl.float32) * decays(near < 0, gates, KIND)
            adjoint = kept_state(adjoints, adjoint_scales, place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
            found += product(ks, adjoint, KIND)
        if GATE == "none":
            # A sum that only the cube has touched cannot go on as another product's: the compiler refuses the copy.
            found = tl.where(inside[:, None], found, 0.0)
        dos = rows(do, do_start, at, do_token, at_v, inside, V)
        # Compared with a number that is 0: a left operand is a value of its own in every turn.
        found += product(tl.where(near <= tl.minimum(tile_v, 0), scores, 0.0), dos, KIND)
        tl.store(dv + (row * tokens + at)[:, None] * (heads * V) + head * V + at_v[None, :],
                 found.to(dv.dtype.element_ty), mask=inside[:, None] & (at_v < V)[None, :])
