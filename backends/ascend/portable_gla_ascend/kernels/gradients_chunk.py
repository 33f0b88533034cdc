"""All gradients of a chunk at once: what is read, and its scores, serve q, k, v and g alike."""

import triton.language as tl

from portable_gla_ascend.kernels.common import chunk_of, kept_state, kernel, masks, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate, pair_decays, whole_decay
from portable_gla_ascend.kernels.scores import channel_gradients_scores


@kernel
def gradients_chunk(
    q, k, v, do, g, bonus, dq, dk, dv, dg, dbonus, near_table, states, state_scales, adjoints, adjoint_scales, places,
    cu_seqlens, scale, items, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, do_row, do_token, do_head,
    g_row, g_token, g_head, q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr,
    KIND: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Write dq, dk [B, T, H, K], dv [B, T, H, V], dg and what dbonus sums.

    From the state before the chunk's block of SPAN (1 or 2) chunks and the adjoint one after the chunk. Walks
    ``items`` = slots of chunks x heads. dg is [B, T, H, K] per channel, else [B, H, T].
    """
    near, position = masks(near_table, C, REVERSE)
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    kept_tiles = (V + KEPT_V - 1) // KEPT_V
    channel = tl.arange(0, BK)
    same = channel[:, None] == channel[None, :]
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        _, head, slot, chunk, row, first, length, kept_slot = chunk_of(
            item, 1, heads, places, cu_seqlens, tokens, C, SPAN, PACKED)
        place = slot * heads + head
        kept_place = (kept_slot + chunk // SPAN).to(tl.int64) * heads + head
        at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
        before, has = tokens_of(first, length, chunk - 1, chunk % SPAN != 0, C, REVERSE)
        q_start = row * q_row + (head // q_group) * q_head
        k_start = row * k_row + (head // k_group) * k_head
        v_start = row * v_row + (head // v_group) * v_head
        do_start = row * do_row + head * do_head
        g_start = row * g_row + (head // g_group) * g_head
        dscores = tl.zeros([C, C], dtype=tl.float32)  # of (i, j), and flipped of (j, i)
        flipped = tl.zeros([C, C], dtype=tl.float32)
        for tile_v in range(tiles_v):
            at_v = tile_v * BV + tl.arange(0, BV)
            vs = rows(v, v_start, at, v_token, at_v, inside, V)
            dos = rows(do, do_start, at, do_token, at_v, inside, V)
            dscores += product(dos, tl.trans(vs), KIND)
        for tile_v in range(tiles_v):
            # The other way round, by the cube too and of operands loaded again: else the vector unit would transpose.
            at_v = tile_v * BV + tl.arange(0, BV)
            vs = rows(v, v_start, at, v_token, at_v, inside, V)
            dos = rows(do, do_start, at, do_token, at_v, inside, V)
            flipped += product(vs, tl.trans(dos), KIND)
        dscores = dscores * scale
        flipped = flipped * scale
        if GATE == "channel" or BONUS:
            own = tl.sum(tl.where(near == 0, dscores, 0.0), 1)[:, None]
        if GATE == "channel":
            dscores = tl.where(near >= 0, dscores, flipped)
        elif GATE != "none":
            shared = load_gate(g, g_start, at, g_token, tl.arange(0, C), inside, K, GATE)
            decay = pair_decays(near, shared, BONUS, KIND)
            dscores = dscores * decay
            decay = tl.trans(decay)
            flipped = flipped * decay
            dg_head = tl.zeros([C], dtype=tl.float32)
        scores = tl.zeros([C, C], dtype=tl.float32)  # of (j, i)
        diagonal = tl.zeros([C, BK] if GATE == "none" else [C], dtype=tl.float32)
        for tile_k in range(tiles_k):
            at_k = tile_k * BK + tl.arange(0, BK)
            qs = rows(q, q_start, at, q_token, at_k, inside, K)
            ks = rows(k, k_start, at, k_token, at_k, inside, K)
            if GATE == "channel" or BONUS:
                pair = qs.to(tl.float32) * ks.to(tl.float32)
                if BONUS:
                    pair *= tl.load(bonus + head * K + at_k, mask=at_k < K, other=0.0).to(tl.float32)[None, :]
                if GATE == "none":  # the 950's compiler refuses the sums there
                    diagonal += pair
                else:
                    diagonal += tl.sum(pair, 1)
            if GATE == "channel":
                gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
                dq_found, dk_found, dg_found, scores = channel_gradients_scores(
                    qs, ks, gates, dscores, scores, near, position, inside, DEPTH, BONUS, KIND, C)
            else:
                # Comparisons with a number that is 0: a left operand is a value of its own in every turn.
                zero = tl.minimum(tile_k, 0)
                if BONUS:
                    dk_found = product(tl.where(near < zero, flipped, 0.0), qs, KIND)
                    dq_found = product(tl.where(near > zero, dscores, 0.0), ks, KIND)
                else:
                    dk_found = product(tl.where(near <= zero, flipped, 0.0), qs, KIND)
                    dq_found = product(tl.where(near >= zero, dscores, 0.0), ks, KIND)
                scores += product(ks, tl.trans(qs), KIND)
                if GATE == "none":
                    # A sum that only the cube has touched cannot go on as another product's: the compiler refuses it.
                    dk_found = tl.where(inside[:, None], dk_found, 0.0)
            dq_state = tl.zeros([C, BK], dtype=tl.float32)
            dk_state = tl.zeros([C, BK], dtype=tl.float32)
            crossing = tl.zeros([BK, BK], dtype=tl.float32)
            if SPAN == 2:
                across = tl.zeros([C, C], dtype=tl.float32)
                passed = tl.zeros([C, BK], dtype=tl.float32)
            for tile_v in range(tiles_v):
                at_v = tile_v * BV + tl.arange(0, BV)
                vs = rows(v, v_start, at, v_token, at_v, inside, V)
                dos = rows(do, do_start, at, do_token, at_v, inside, V)
                corner = at_k[:, None] * V + at_v[None, :]
                kept_tile = (tile_v * BV) // KEPT_V
                within = (at_k < K)[:, None] & (at_v < V)[None, :]
                state = kept_state(states, state_scales, kept_place * (K * V) + corner,
                                   (kept_place * kept_tiles + kept_tile) * K + at_k, at_k < K, within, SCALED)
                adjoint = kept_state(adjoints, adjoint_scales, place * (K * V) + corner,
                                     (place * kept_tiles + kept_tile) * K + at_k, at_k < K, within, SCALED)
                if SPAN == 2:
                    v_before = rows(v, v_start, before, v_token, at_v, has, V)
                    across += product(dos, tl.trans(v_before), KIND)
                    dos = rows(do, do_start, at, do_token, at_v, inside, V)
                    if GATE != "none":
                        passed += product(v_before, tl.trans(adjoint), KIND)
                dq_state += product(dos, tl.trans(state), KIND)
                dk_state += product(vs, tl.trans(adjoint), KIND)
                if GATE != "none":
                    crossing += product(state, tl.trans(adjoint), KIND)
            dq_state = dq_state * scale
            qs = rows(q, q_start, at, q_token, at_k, inside, K).to(tl.float32)
            ks = rows(k, k_start, at, k_token, at_k, inside, K).to(tl.float32)
            if GATE != "none":
                through = tl.sum(tl.where(same, crossing, 0.0), 0)
            if SPAN == 2:
                k_before = rows(k, k_start, before, k_token, at_k, has, K)
                if GATE != "none":
                    g_before = load_gate(g, g_start, before, g_token, at_k, has, K, GATE)
                    kept = whole_decay(g_before, KIND)
                    k_before = k_before.to(tl.float32) * decays(near < 0, g_before, KIND)
                    through = through * kept + tl.sum(passed * k_before, 0)
                    dq_state = dq_state * kept[None, :]
                dq_state += product(across * scale, k_before, KIND)
            if GATE != "none":
                gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
                if BONUS:
                    dq_state = dq_state * decays(near > 0, gates, KIND)
                else:
                    dq_state = dq_state * decays(near >= 0, gates, KIND)
                dk_state = dk_state * decays(near < 0, gates, KIND)
                through = through * whole_decay(gates, KIND)
            # A token's gate lies on the paths from the state before to readers at or after it, and from writers before.
            readers = qs * dq_state
            writers = ks * dk_state
            out = (row * tokens + at)[:, None] * (heads * K) + head * K + at_k[None, :]
            within = inside[:, None] & (at_k < K)[None, :]
            if GATE != "none":
                if BONUS:
                    spanned = tl.dot((near < 0).to(tl.float32), readers, input_precision="ieee")
                else:
                    spanned = tl.dot((near <= 0).to(tl.float32), readers, input_precision="ieee")
                spanned += tl.dot((near > 0).to(tl.float32), writers, input_precision="ieee") + through[None, :]
                if GATE == "channel":
                    tl.store(dg + out, (dg_found + spanned).to(dg.dtype.element_ty), mask=within)
                else:
                    dg_head += tl.sum(spanned, 1)
            if BONUS:
                tl.store(dbonus + place * K + at_k, tl.sum(own * qs * ks, 0), mask=at_k < K)
            dq_found += dq_state
            dk_found += dk_state
            if GATE == "channel" or BONUS:
                seen = own
                if BONUS:
                    seen = own * tl.load(bonus + head * K + at_k, mask=at_k < K, other=0.0).to(tl.float32)[None, :]
                dq_found += seen * ks
                dk_found += seen * qs
            tl.store(dq + out, dq_found.to(dq.dtype.element_ty), mask=within)
            tl.store(dk + out, dk_found.to(dk.dtype.element_ty), mask=within)
        if GATE == "head" or GATE == "constant":
            # Pairs j < t <= i (to a bonus t < i): summed over j < t on the cube, then over i.
            crossed = tl.dot((near > 0).to(tl.float32), flipped * scores, input_precision="ieee")
            if BONUS:
                dg_head += tl.sum(tl.where(near < 0, crossed, 0.0), 1)
            else:
                dg_head += tl.sum(tl.where(near <= 0, crossed, 0.0), 1)
            tl.store(dg + (row * heads + head) * tokens + at, dg_head, mask=inside)
            scores = scores * decay
        if GATE != "channel":
            if BONUS:
                scores = tl.where(near < 0, scores, 0.0)
            else:
                scores = tl.where(near <= 0, scores, 0.0)
        if GATE == "channel" or BONUS:
            if GATE == "none":
                diagonal = tl.sum(diagonal, 1)
            scores += tl.where(near == 0, diagonal[:, None], 0.0)
        scores = scores * scale
        for tile_v in range(tiles_v):
            at_v = tile_v * BV + tl.arange(0, BV)
            kept_tile = (tile_v * BV) // KEPT_V
            found = tl.zeros([C, BV], dtype=tl.float32)
            for tile_k in range(tiles_k):
                at_k = tile_k * BK + tl.arange(0, BK)
                ks = rows(k, k_start, at, k_token, at_k, inside, K)
                if GATE != "none":
                    gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
                    ks = ks.to(tl.float32) * decays(near < 0, gates, KIND)
                adjoint = kept_state(adjoints, adjoint_scales,
                                     place * (K * V) + at_k[:, None] * V + at_v[None, :],
                                     (place * kept_tiles + kept_tile) * K + at_k, at_k < K,
                                     (at_k < K)[:, None] & (at_v < V)[None, :], SCALED)
                found += product(ks, adjoint, KIND)
            if GATE == "none":
                found = tl.where(inside[:, None], found, 0.0)
            dos = rows(do, do_start, at, do_token, at_v, inside, V)
            found += product(tl.where(near <= tl.minimum(tile_v, 0), scores, 0.0), dos, KIND)
            tl.store(dv + (row * tokens + at)[:, None] * (heads * V) + head * V + at_v[None, :],
                     found.to(dv.dtype.element_ty), mask=inside[:, None] & (at_v < V)[None, :])
