"""The gradients of one chunk, from the state before it and the gradient by the state after it.

With dA_ij = scale · do_i · v_j for j < i (F_ij: the decay from j to i; u: the bonus, or 1)::

    dq_i = scale · P_i ⊙ (S do_i) + Σ_j dA_ij k_j ⊙ F_ij + u ⊙ k_i dA_ii
    dk_j = Q_j ⊙ (R v_j) + Σ_i dA_ij q_i ⊙ F_ij + u ⊙ q_j dA_jj
    dv_j = Rᵀ (k_j ⊙ Q_j) + scale · Σ_i A_ij do_i

dg_t sums the paths that cross the gate of t: from the state to outputs from t on, from keys before t to the state
after, from state to state, and from keys before t to outputs from t on. Each carries e_t itself; nothing of another
path is added and taken away again, so the gradient of a strong gate is right relative to its own size.

A program makes dq, dk and dg of one tile of K, or dv of one tile of V: the roles of a chunk run side by side and share
what they read in cache. States are kept at every second chunk; a program gets what its own lacks from the other chunk
of the pair.
"""

import triton
import triton.language as tl

from .common import arange, load_rows, locate, operand, product, row_pointer, row_step, store_rows
from .gates import channel_decays, channel_weights, head_decays, pair_decays, vector_decays
from .pairs import channel_gradients, crossing_sum
from .scores import channel_scores


@triton.jit
def gradients(q, k, v, do, g, bonus, dq, dk, dv, dg, dbonus, cu_seqlens, s_kept, s_scales, r_kept, r_scales, scale,
              tokens, sequences, heads, q_group, k_group, v_group, g_group,
              K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, PACKED: tl.constexpr,
              REVERSE: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr, RANGED: tl.constexpr,
              SCALED: tl.constexpr, C: tl.constexpr, NEAR: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Write dq, dk, dg (and a chunk's share of dbonus) of one tile of K, or dv of one tile of V.

    Grid: pairs of chunks x heads x 2 x (tiles of K + tiles of V), these fastest. dq, dk, dv have H heads, whatever q,
    k and v have. dg: per channel like dq; per head [parts, B, T, H], a part for each tile of K; constant [parts, 2 x
    pairs, H]; its tuple has the stride of parts at the end. dbonus [2 x pairs, H, K].
    """
    BLOCKS_K: tl.constexpr = (K + BK - 1) // BK
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    role = tl.program_id(0) % (BLOCKS_K + BLOCKS_V)
    rest = tl.program_id(0) // (BLOCKS_K + BLOCKS_V)
    half = rest % 2
    head = (rest // 2) % heads
    slot = rest // 2 // heads
    sequence, batch, start, length, pair = locate(slot, cu_seqlens, tokens, sequences, 2 * C, PACKED)
    position = (2 * pair + half) * C
    row = tl.cast(slot, tl.int64) * heads + head
    share = (row // heads * 2 + half) * heads + head  # of dbonus and of a constant gate's dg
    if position >= length:
        if role < BLOCKS_K:
            if GATE == "constant":
                tl.store(dg[0] + role * dg[5] + share, 0.0)
            if BONUS:
                keys = tl.arange(0, BK) + role * BK
                tl.store(dbonus + share * K + keys, tl.zeros([BK], tl.float32), mask=keys < K)
        return
    valid = position + tl.arange(0, C) < length
    if role < BLOCKS_K:
        key_gradients(q, k, v, do, g, bonus, dq, dk, dg, dbonus, s_kept, s_scales, r_kept, r_scales, scale, q_group,
                      k_group, v_group, g_group, batch, head, heads, start, length, position, half, valid, row, share,
                      role, K, V, GATE, BONUS, REVERSE, WIDE, KIND, RANGED, SCALED, C, NEAR, BK, BV)
    else:
        value_gradients(q, k, do, g, bonus, dv, r_kept, r_scales, scale, q_group, k_group, g_group, batch, head,
                        start, length, position, half, valid, row, role - BLOCKS_K, K, V, GATE, BONUS, REVERSE, WIDE,
                        KIND, RANGED, SCALED, C, BK, BV)


@triton.jit
def key_gradients(q, k, v, do, g, bonus, dq, dk, dg, dbonus, s_kept, s_scales, r_kept, r_scales, scale, q_group,
                  k_group, v_group, g_group, batch, head, heads, start, length, position, half, valid, row, share,
                  block,
                  K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, REVERSE: tl.constexpr,
                  WIDE: tl.constexpr, KIND: tl.constexpr, RANGED: tl.constexpr, SCALED: tl.constexpr, C: tl.constexpr,
                  NEAR: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Write dq, dk, dg and dbonus of one tile of K: first what needs v and do, tile by tile, then the pairs."""
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    keys = tl.arange(0, BK) + block * BK
    key_mask = keys < K
    other = position + C - 2 * C * half
    other_valid = other + tl.arange(0, C) < length
    if half == 0:
        link, link_total = link_of(q, g, scale, q_group, g_group, batch, head, start, length, other, other_valid, keys,
                                   key_mask, False, GATE, BONUS, REVERSE, WIDE, KIND, C, BK)
    else:
        link, link_total = link_of(k, g, 1.0, k_group, g_group, batch, head, start, length, other, other_valid, keys,
                                   key_mask, True, GATE, BONUS, REVERSE, WIDE, KIND, C, BK)
    da = tl.zeros([C, C], tl.float32)
    from_state = tl.zeros([C, BK], tl.float32)  # S do_i
    to_state = tl.zeros([C, BK], tl.float32)  # R v_j
    through = tl.zeros([BK], tl.float32)  # the products of S and R along V
    for tile in range(BLOCKS_V):
        values = tl.arange(0, BV) + tile * BV
        value_mask = values < V
        if half == 0:
            linked = load_rows(do, batch, head, start, length, other, other_valid, values, value_mask, C, REVERSE, WIDE)
        else:
            linked = load_rows(v, batch, head // v_group, start, length, other, other_valid, values, value_mask, C,
                               REVERSE, WIDE)
        added = product(tl.trans(link), operand(linked, KIND), tl.zeros([BK, BV], tl.float32), KIND)
        s = load_kept(s_kept, s_scales, row, keys, key_mask, values, value_mask, tile, BLOCKS_V, K, V, SCALED)
        r = load_kept(r_kept, r_scales, row, keys, key_mask, values, value_mask, tile, BLOCKS_V, K, V, SCALED)
        if half == 0:
            r = r * link_total[:, None] + added
        else:
            s = s * link_total[:, None] + added
        do_tile = operand(load_rows(do, batch, head, start, length, position, valid, values, value_mask, C, REVERSE,
                                    WIDE), KIND)
        v_tile = operand(load_rows(v, batch, head // v_group, start, length, position, valid, values, value_mask, C,
                                   REVERSE, WIDE), KIND)
        da = product(do_tile, tl.trans(v_tile), da, KIND)
        through += tl.sum(s * r, axis=1)
        from_state = product(do_tile, tl.trans(operand(s, KIND)), from_state, KIND)
        to_state = product(v_tile, tl.trans(operand(r, KIND)), to_state, KIND)
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    da *= scale
    diagonal = tl.sum(tl.where(i == j, da, 0.0), axis=1)
    q_tile = load_rows(q, batch, head // q_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
    k_tile = load_rows(k, batch, head // k_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
    if GATE == "channel":
        e = channel_decays(g, batch, head // g_group, start, length, position, keys, key_mask, C, REVERSE, WIDE)
        dq_tile, dk_tile, dg_tile, prefix, suffix, total = channel_gradients(
            q_tile, k_tile, da, e, C, BK, NEAR, BONUS, RANGED, KIND)
        from_state *= prefix * scale
        to_state *= suffix
        dq_tile += from_state
        dk_tile += to_state
        dg_tile += total * through[None, :]
        dg_tile = crossing_sum(dg_tile, q_tile.to(tl.float32) * from_state, k_tile.to(tl.float32) * to_state, C, BONUS,
                               KIND)
        store_rows(dg, dg_tile, batch, head, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
    else:
        weights = tl.where(i > j, da, 0.0)
        if GATE == "none":
            dq_tile = from_state * scale
            dk_tile = to_state
        else:
            e = head_decays(g, batch, head // g_group, start, length, position, C, GATE, REVERSE, WIDE)
            prefix, suffix, total = vector_decays(e, C, BONUS)
            dq_tile = from_state * (prefix * scale)[:, None]
            dk_tile = to_state * suffix[:, None]
            weights *= pair_decays(e, C, BONUS)
            readers = j > i if BONUS else j >= i
            reads = tl.sum(q_tile.to(tl.float32) * dq_tile, axis=1)
            writes = tl.sum(k_tile.to(tl.float32) * dk_tile, axis=1)
            crossing = tl.sum(tl.where(readers, reads[None, :], 0.0) + tl.where(j < i, writes[None, :], 0.0), axis=1)
            crossing += tl.sum(through, axis=0) * total
            paths = weights * product(operand(q_tile, KIND), tl.trans(operand(k_tile, KIND)),
                                      tl.zeros([C, C], tl.float32), KIND)
            later = product(operand(tl.where(readers, 1.0, 0.0), KIND), operand(paths, KIND),
                            tl.zeros([C, C], tl.float32), KIND)
            crossing += tl.sum(tl.where(j < i, later, 0.0), axis=1)
            if GATE == "constant":
                tl.store(dg[0] + block * dg[5] + share, tl.sum(tl.where(valid, crossing, 0.0), axis=0))
            else:
                part = (dg[0] + block * dg[5], dg[1], dg[2], dg[3], dg[4])
                store_vector(part, crossing, batch, head, start, length, position, valid, C, REVERSE, WIDE)
        weights_operand = operand(weights, KIND)
        dq_tile = product(weights_operand, operand(k_tile, KIND), dq_tile, KIND)
        dk_tile = product(tl.trans(weights_operand), operand(q_tile, KIND), dk_tile, KIND)
    q_itself = q_tile.to(tl.float32) * diagonal[:, None]
    k_itself = k_tile.to(tl.float32) * diagonal[:, None]
    if BONUS:
        u = tl.load(bonus + head * K + keys, mask=key_mask, other=0.0).to(tl.float32)[None, :]
        tl.store(dbonus + share * K + keys, tl.sum(q_itself * k_tile.to(tl.float32), axis=0), mask=key_mask)
        q_itself *= u
        k_itself *= u
    store_rows(dq, dq_tile + k_itself, batch, head, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
    store_rows(dk, dk_tile + q_itself, batch, head, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)


@triton.jit
def value_gradients(q, k, do, g, bonus, dv, r_kept, r_scales, scale, q_group, k_group, g_group, batch, head, start,
                    length, position, half, valid, row, tile, K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
                    BONUS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr,
                    RANGED: tl.constexpr, SCALED: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Write dv of one tile of V: the scores again, tile of K by tile of K."""
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    values = tl.arange(0, BV) + tile * BV
    value_mask = values < V
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    other_valid = (position + C + tl.arange(0, C) < length) & (half == 0)
    scores = tl.zeros([C, C], tl.float32)
    itself = tl.zeros([C], tl.float32)  # with a bonus: each position with itself
    found = tl.zeros([C, BV], tl.float32)
    for block in range((K + BK - 1) // BK):
        keys = tl.arange(0, BK) + block * BK
        key_mask = keys < K
        r = load_kept(r_kept, r_scales, row, keys, key_mask, values, value_mask, tile, BLOCKS_V, K, V, SCALED)
        # A second chunk has the kept state as it is: its link loads nothing. (As a branch, Triton 3.7 fails on bf16x6.)
        link, link_total = link_of(q, g, scale, q_group, g_group, batch, head, start, length, position + C, other_valid,
                                   keys, key_mask, False, GATE, BONUS, REVERSE, WIDE, KIND, C, BK)
        linked = load_rows(do, batch, head, start, length, position + C, other_valid, values, value_mask, C, REVERSE,
                           WIDE)
        kept_part = tl.where(half == 0, link_total, 1.0)[:, None]
        r = product(tl.trans(link), operand(linked, KIND), r * kept_part, KIND)
        q_tile = load_rows(q, batch, head // q_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
        k_tile = load_rows(k, batch, head // k_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
        if GATE == "channel":
            e = channel_decays(g, batch, head // g_group, start, length, position, keys, key_mask, C, REVERSE, WIDE)
            scores, reader, writer, total = channel_scores(scores, q_tile, k_tile, e, C, BK, BONUS, RANGED, KIND)
            found = product(writer, operand(r, KIND), found, KIND)
        else:
            k_operand = operand(k_tile, KIND)
            scores = product(operand(q_tile, KIND), tl.trans(k_operand), scores, KIND)
            found = product(k_operand, operand(r, KIND), found, KIND)
        if BONUS:
            u = tl.load(bonus + head * K + keys, mask=key_mask, other=0.0).to(tl.float32)
            itself += tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32) * u[None, :], axis=1)
    if GATE == "none":
        scores = tl.where(i >= j, scores, 0.0)
    elif GATE != "channel":
        e = head_decays(g, batch, head // g_group, start, length, position, C, GATE, REVERSE, WIDE)
        prefix, suffix, total = vector_decays(e, C, BONUS)
        found *= suffix[:, None]
        scores *= pair_decays(e, C, BONUS)
    if BONUS:
        scores = tl.where(i == j, itself[:, None], scores)
    do_tile = load_rows(do, batch, head, start, length, position, valid, values, value_mask, C, REVERSE, WIDE)
    found = product(tl.trans(operand(scores * scale, KIND)), operand(do_tile, KIND), found, KIND)
    store_rows(dv, found, batch, head, start, length, position, valid, values, value_mask, C, REVERSE, WIDE)


@triton.jit
def link_of(x, g, factor, x_group, g_group, batch, head, start, length, position, valid, keys, key_mask,
            FORWARD: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr,
            KIND: tl.constexpr, C: tl.constexpr, BK: tl.constexpr):
    """Return the operand of a chunk that goes into a state, [C, BK], and the chunk's total [BK].

    FORWARD: S ← total ⊙ S + (k_j Q_j)ᵀ v. Else R ← total ⊙ R + (factor · q_i P_i)ᵀ do.
    """
    tile = load_rows(x, batch, head // x_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
    if GATE == "channel":
        e = channel_decays(g, batch, head // g_group, start, length, position, keys, key_mask, C, REVERSE, WIDE)
        weight, total = channel_weights(e, C, BK, FORWARD, BONUS)
        found = operand(tile.to(tl.float32) * weight * factor, KIND)
    else:
        e = head_decays(g, batch, head // g_group, start, length, position, C, GATE, REVERSE, WIDE)
        prefix, suffix, whole = vector_decays(e, C, BONUS)
        total = tl.full([BK], 1.0, tl.float32) * whole
        weight = suffix if FORWARD else prefix
        found = operand(tile.to(tl.float32) * (weight * factor)[:, None], KIND)
    return found, total


@triton.jit
def load_kept(kept, scales, row, keys, key_mask, values, value_mask, tile, BLOCKS_V: tl.constexpr, K: tl.constexpr,
              V: tl.constexpr, SCALED: tl.constexpr):
    """Load a tile of a kept state in float32."""
    pointers = kept + row * K * V + keys[:, None] * V + values[None, :]
    state = tl.load(pointers, mask=key_mask[:, None] & value_mask[None, :], other=0.0).to(tl.float32)
    if SCALED:
        state *= tl.load(scales + (row * K + keys) * BLOCKS_V + tile, mask=key_mask, other=0.0)[:, None]
    return state


@triton.jit
def store_vector(x, value, batch, head, start, length, position, valid, SIZE: tl.constexpr, REVERSE: tl.constexpr,
                 WIDE: tl.constexpr):
    """Store one number a position."""
    pointers = row_pointer(x, batch, head, start, length, position, REVERSE) + arange(SIZE, WIDE) * row_step(x, REVERSE)
    tl.store(pointers, value.to(x[0].dtype.element_ty), mask=valid)
