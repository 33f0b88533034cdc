"""The gradients, all chunks side by side: of q, k and g by tiles of K, of v by tiles of V."""

import triton.language as tl

from portable_gla_ascend.kernels.common import chunk_of, kept_state, kernel, masks, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate, pair_decays, whole_decay
from portable_gla_ascend.kernels.scores import channel_gradients, channel_scores


@kernel
def gradients_k(
    q, k, v, do, g, bonus, dq, dk, dg, dbonus, near_table, states, state_scales, adjoints, adjoint_scales, places,
    cu_seqlens, scale, items, batch, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, do_row, do_token, do_head,
    g_row, g_token, g_head, q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr,
    KIND: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr, DEPTH: tl.constexpr,
):
    """Write dq, dk [B, T, H, K], dg and what dbonus sums, from the state before each chunk and the adjoint after it.

    Walks ``items`` = slots of chunks x heads x tiles of K. dg is [B, T, H, K] per channel, else [tiles of K, B, H, T].
    """
    near, position = masks(near_table, C, REVERSE)
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    kept_tiles = (V + KEPT_V - 1) // KEPT_V
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tile_k, head, slot, chunk, row, first, length, _ = chunk_of(
            item, tiles_k, heads, places, cu_seqlens, tokens, C, 1, PACKED)
        place = slot * heads + head
        at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
        at_k = tile_k * BK + tl.arange(0, BK)
        qs = rows(q, row * q_row + (head // q_group) * q_head, at, q_token, at_k, inside, K)
        ks = rows(k, row * k_row + (head // k_group) * k_head, at, k_token, at_k, inside, K)
        v_start = row * v_row + (head // v_group) * v_head
        do_start = row * do_row + head * do_head
        g_start = row * g_row + (head // g_group) * g_head
        dscores = tl.zeros([C, C], dtype=tl.float32)
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
            gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
            dscores = tl.where(near >= 0, dscores, flipped)
            dq_found, dk_found, dg_found = channel_gradients(
                qs, ks, gates, dscores, near, position, inside, DEPTH, BONUS, KIND, C)
        else:
            if BONUS:
                paired = tl.where(near > 0, dscores, 0.0)
                flipped = tl.where(near < 0, flipped, 0.0)
            else:
                paired = tl.where(near >= 0, dscores, 0.0)
                flipped = tl.where(near <= 0, flipped, 0.0)
            if GATE != "none":
                shared = load_gate(g, g_start, at, g_token, tl.arange(0, C), inside, K, GATE)
                decay = pair_decays(near, shared, BONUS, KIND)
                paired = paired * decay
                flipped = flipped * tl.trans(decay)
            dk_found = product(flipped, qs, KIND)
            if GATE != "none":
                # Pairs j < t <= i (to a bonus t < i): summed over j < t on the cube, then over i.
                crossed = paired * product(qs.to(tl.float32), tl.trans(ks), KIND)
                crossed = tl.dot(crossed, (near < 0).to(tl.float32), input_precision="ieee")
                if BONUS:
                    dg_head = tl.sum(tl.where(near > 0, crossed, 0.0), 0)
                else:
                    dg_head = tl.sum(tl.where(near >= 0, crossed, 0.0), 0)
            dq_found = product(paired, ks, KIND)
            if GATE == "none":
                # A sum that only the cube has touched cannot go on as another product's: the compiler refuses the copy.
                dk_found = tl.where(inside[:, None], dk_found, 0.0)
        dq_state = tl.zeros([C, BK], dtype=tl.float32)
        dk_state = tl.zeros([C, BK], dtype=tl.float32)
        crossing = tl.zeros([BK, BV], dtype=tl.float32)
        for tile_v in range(tiles_v):
            at_v = tile_v * BV + tl.arange(0, BV)
            vs = rows(v, v_start, at, v_token, at_v, inside, V)
            dos = rows(do, do_start, at, do_token, at_v, inside, V)
            corner = place * (K * V) + at_k[:, None] * V + at_v[None, :]
            scale_at = (place * kept_tiles + (tile_v * BV) // KEPT_V) * K + at_k
            within = (at_k < K)[:, None] & (at_v < V)[None, :]
            state = kept_state(states, state_scales, corner, scale_at, at_k < K, within, SCALED)
            adjoint = kept_state(adjoints, adjoint_scales, corner, scale_at, at_k < K, within, SCALED)
            dq_state += product(dos, tl.trans(state), KIND)
            dk_state += product(vs, tl.trans(adjoint), KIND)
        if GATE != "none":
            # In a loop of its own: compilers for the 950 fail where the cube and the vector unit share a tile.
            for tile_v in range(tiles_v):
                at_v = tile_v * BV + tl.arange(0, BV)
                corner = place * (K * V) + at_k[:, None] * V + at_v[None, :]
                scale_at = (place * kept_tiles + (tile_v * BV) // KEPT_V) * K + at_k
                within = (at_k < K)[:, None] & (at_v < V)[None, :]
                state = kept_state(states, state_scales, corner, scale_at, at_k < K, within, SCALED)
                adjoint = kept_state(adjoints, adjoint_scales, corner, scale_at, at_k < K, within, SCALED)
                crossing += state.to(tl.float32) * adjoint.to(tl.float32)
        dq_state = dq_state * scale
        qs = rows(q, row * q_row + (head // q_group) * q_head, at, q_token, at_k, inside, K).to(tl.float32)
        ks = rows(k, row * k_row + (head // k_group) * k_head, at, k_token, at_k, inside, K).to(tl.float32)
        if GATE != "none":
            gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
            if BONUS:
                dq_state = dq_state * decays(near > 0, gates, KIND)
            else:
                dq_state = dq_state * decays(near >= 0, gates, KIND)
            dk_state = dk_state * decays(near < 0, gates, KIND)
            through = tl.sum(crossing, 1) * whole_decay(gates, KIND)
        # A token's gate lies on the paths from the state before to readers at or after it, and from writers before it.
        readers = qs * dq_state
        writers = ks * dk_state
        out = (row * tokens + at)[:, None] * (heads * K) + head * K + at_k[None, :]
        within = inside[:, None] & (at_k < K)[None, :]
        if GATE == "channel":
            if BONUS:
                dg_found += tl.dot((near < 0).to(tl.float32), readers, input_precision="ieee")
            else:
                dg_found += tl.dot((near <= 0).to(tl.float32), readers, input_precision="ieee")
            dg_found += tl.dot((near > 0).to(tl.float32), writers, input_precision="ieee") + through[None, :]
            tl.store(dg + out, dg_found.to(dg.dtype.element_ty), mask=within)
        elif GATE != "none":
            if BONUS:
                across = tl.dot((near < 0).to(tl.float32), readers, input_precision="ieee")
            else:
                across = tl.dot((near <= 0).to(tl.float32), readers, input_precision="ieee")
            across += tl.dot((near > 0).to(tl.float32), writers, input_precision="ieee")
            dg_head += tl.sum(across, 1) + tl.sum(through, 0)
            tl.store(dg + ((tile_k.to(tl.int64) * batch + row) * heads + head) * tokens + at, dg_head, mask=inside)
        if BONUS:
            tl.store(dbonus + place * K + at_k, tl.sum(own * qs * ks, 0), mask=at_k < K)
            own = own * tl.load(bonus + head * K + at_k, mask=at_k < K, other=0.0).to(tl.float32)[None, :]
        dq_found += dq_state
        dk_found += dk_state
        if GATE == "channel" or BONUS:
            dq_found += own * ks
            dk_found += own * qs
        tl.store(dq + out, dq_found.to(dq.dtype.element_ty), mask=within)
        tl.store(dk + out, dk_found.to(dk.dtype.element_ty), mask=within)


@kernel
def gradients_v(
    q, k, do, g, bonus, dv, near_table, adjoints, adjoint_scales, depths, places, cu_seqlens, scale, items, tokens,
    heads,
    q_row, q_token, q_head, k_row, k_token, k_head, do_row, do_token, do_head, g_row, g_token, g_head,
    q_group, k_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr,
    KIND: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr,
):
    """Write dv [B, T, H, V]. Walks ``items`` = slots of chunks x heads x tiles of V."""
    near, position = masks(near_table, C, REVERSE)
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    kept_tiles = (V + KEPT_V - 1) // KEPT_V
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tile_v, head, slot, chunk, row, first, length, _ = chunk_of(
            item, tiles_v, heads, places, cu_seqlens, tokens, C, 1, PACKED)
        place = slot * heads + head
        at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
        at_v = tile_v * BV + tl.arange(0, BV)
        scores = tl.zeros([C, C], dtype=tl.float32)
        own = tl.zeros([C, BK] if GATE == "none" else [C], dtype=tl.float32)
        found = tl.zeros([C, BV], dtype=tl.float32)
        for tile_k in range(tiles_k):
            at_k = tile_k * BK + tl.arange(0, BK)
            qs = rows(q, row * q_row + (head // q_group) * q_head, at, q_token, at_k, inside, K)
            ks = rows(k, row * k_row + (head // k_group) * k_head, at, k_token, at_k, inside, K)
            gates = load_gate(g, row * g_row + (head // g_group) * g_head, at, g_token, at_k, inside, K, GATE)
            if BONUS:
                u = tl.load(bonus + head * K + at_k, mask=at_k < K, other=0.0).to(tl.float32)
                pair = qs.to(tl.float32) * ks.to(tl.float32) * u[None, :]
                if GATE == "none":  # the 950's compiler refuses the sums there
                    own += pair
                else:
                    own += tl.sum(pair, 1)
            if GATE == "channel":
                depth = tl.load(depths + place * tiles_k + tile_k)
                scores += channel_scores(qs, ks, gates, near, position, depth, BONUS, KIND, C)
            else:
                scores += product(qs, tl.trans(ks), KIND)
            if GATE != "none":
                ks = ks.to(tl.float32) * decays(near < 0, gates, KIND)
            adjoint = kept_state(adjoints, adjoint_scales, place * (K * V) + at_k[:, None] * V + at_v[None, :],
                                 (place * kept_tiles + (tile_v * BV) // KEPT_V) * K + at_k, at_k < K,
                                 (at_k < K)[:, None] & (at_v < V)[None, :], SCALED)
            found += product(ks, adjoint, KIND)
        if GATE == "head" or GATE == "constant":
            gates = load_gate(g, row * g_row + (head // g_group) * g_head, at, g_token, tl.arange(0, C), inside, K,
                              GATE)
            scores = scores * pair_decays(near, gates, BONUS, KIND)
        if GATE != "channel":
            scores = tl.trans(scores)
            if BONUS:
                scores = tl.where(near < 0, scores, 0.0)
            else:
                scores = tl.where(near <= 0, scores, 0.0)
        if BONUS:
            if GATE == "none":
                own = tl.sum(own, 1)
            scores += tl.where(near == 0, own[:, None], 0.0)
        if GATE == "none":
            # A sum that only the cube has touched cannot go on as another product's: the compiler refuses the copy.
            found = tl.where(inside[:, None], found, 0.0)
        dos = rows(do, row * do_row + head * do_head, at, do_token, at_v, inside, V)
        found += product(scores * scale, dos, KIND)
        tl.store(dv + (row * tokens + at)[:, None] * (heads * V) + head * V + at_v[None, :],
                 found.to(dv.dtype.element_ty), mask=inside[:, None] & (at_v < V)[None, :])
