"""The outputs, all chunks side by side."""

import triton.language as tl

from portable_gla_ascend.kernels.common import chunk_of, kept_state, kernel, masks, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate, whole_decay
from portable_gla_ascend.kernels.scores import added_own, tile_scores, whole_scores
from portable_gla_ascend.kernels.steps import state_before


@kernel
def outputs(
    q, k, v, g, bonus, o, near_table, kept, scales, depths, places, cu_seqlens, scale, items, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr,
    KIND: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr,
):
    """Write o of each chunk of C tokens, from the state before its block of SPAN chunks.

    Walks ``items`` = slots of chunks x heads x tiles of V.
    """
    near, position = masks(near_table, C, REVERSE)
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tile_v, head, slot, chunk, row, first, length, kept_slot = chunk_of(
            item, tiles_v, heads, places, cu_seqlens, tokens, C, SPAN, PACKED)
        place = (kept_slot + chunk // SPAN).to(tl.int64) * heads + head
        depth_at = (slot * heads + head) * tiles_k
        at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
        q_start = row * q_row + (head // q_group) * q_head
        k_start = row * k_row + (head // k_group) * k_head
        v_start = row * v_row + (head // v_group) * v_head
        g_start = row * g_row + (head // g_group) * g_head
        at_v = tile_v * BV + tl.arange(0, BV)
        if SPAN == 2:  # the chunk before, where it lies in the same block
            before, has = tokens_of(first, length, chunk - 1, chunk % SPAN != 0, C, REVERSE)
        found = tl.zeros([C, BV], dtype=tl.float32)
        scores = tl.zeros([C, C], dtype=tl.float32)  # of (j, i), and so is across: a left operand is used once
        if SPAN == 2:
            across = tl.zeros([C, C], dtype=tl.float32)
        own = tl.zeros([C, BK] if GATE == "none" else [C], dtype=tl.float32)
        for tile_k in range(tiles_k):
            at_k = tile_k * BK + tl.arange(0, BK)
            qs = rows(q, q_start, at, q_token, at_k, inside, K)
            ks = rows(k, k_start, at, k_token, at_k, inside, K)
            gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
            if BONUS:
                own = added_own(own, qs, ks, bonus + head * K, at_k, K, GATE)
            scores += tile_scores(qs, ks, gates, near, position, depths + depth_at + tile_k, GATE, BONUS, KIND, C)
            reached = qs
            if GATE != "none":
                if BONUS:
                    reached = qs.to(tl.float32) * decays(near > 0, gates, KIND)
                else:
                    reached = qs.to(tl.float32) * decays(near >= 0, gates, KIND)
            if SPAN == 2:
                k_before = rows(k, k_start, before, k_token, at_k, has, K)
                if GATE != "none":
                    g_before = load_gate(g, g_start, before, g_token, at_k, has, K, GATE)
                    k_before = k_before.to(tl.float32) * decays(near < 0, g_before, KIND)
                    across += product(k_before, tl.trans(reached), KIND)
                    reached = reached * whole_decay(g_before, KIND)[None, :]
                else:
                    across += product(k_before, tl.trans(reached), KIND)
            if SPAN == 2:
                state = kept_state(kept, scales, place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
            else:
                state = state_before(
                    k, k_start, k_token, at_k, K, v, v_start, v_token, at_v, V, g, g_start, g_token, kept, scales,
                    place, tile_v, first, length, chunk, near, scale, BONUS, GATE, KIND, SCALED, C, SPAN, KEPT_V,
                    REVERSE)
            found += product(reached, state, KIND)
        scores = whole_scores(scores, own, near, g, g_start, g_token, at, inside, K, GATE, BONUS, KIND, C)
        if GATE == "none":
            # A sum that only the cube has touched cannot go on as another product's: the compiler refuses the copy.
            found = tl.where(inside[:, None], found, 0.0)
            if SPAN == 2:
                across = tl.where(inside[None, :], across, 0.0)
        vs = rows(v, v_start, at, v_token, at_v, inside, V)
        found += product(tl.trans(scores), vs, KIND)
        if SPAN == 2:
            v_before = rows(v, v_start, before, v_token, at_v, has, V)
            found += product(tl.trans(across), v_before, KIND)
        tl.store(o + (row * tokens + at)[:, None] * (heads * V) + head * V + at_v[None, :],
                 (found * scale).to(o.dtype.element_ty), mask=inside[:, None] & (at_v < V)[None, :])
