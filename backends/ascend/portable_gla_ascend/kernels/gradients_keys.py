"""A chunk's gradients of q, k and g."""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import kept_state, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate, pair_decays, whole_decay
from portable_gla_ascend.kernels.scores import channel_gradients


@triton.jit
def key_gradients(
    q, k, v, do, g, bonus, dq, dk, dg, dbonus, near, position, states, state_scales, adjoints, adjoint_scales,
    place, kept_place, row, head, chunk, first, length, scale, tokens, heads, q_start, q_token, k_start, k_token,
    v_start, v_token, do_start, do_token, g_start, g_token, K, V,
    GATE: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr, KIND: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KEPT_V: tl.constexpr, DEPTH: tl.constexpr,
):
    """Write a chunk's dq, dk and dg, and what dbonus sums, by tiles of K."""
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    channel = tl.arange(0, BK)
    same = channel[:, None] == channel[None, :]
    at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
    before, has = tokens_of(first, length, chunk - 1, chunk % SPAN != 0, C, REVERSE)
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
    elif BONUS:  # here and not in the loop, over which the 950's compiler would not end
        dscores = tl.where(near > 0, dscores, 0.0)
        flipped = tl.where(near < 0, flipped, 0.0)
    else:
        dscores = tl.where(near >= 0, dscores, 0.0)
        flipped = tl.where(near <= 0, flipped, 0.0)
    if GATE == "head" or GATE == "constant":
        shared = load_gate(g, g_start, at, g_token, tl.arange(0, C), inside, K, GATE)
        decay = pair_decays(near, shared, BONUS, KIND)
        dscores = dscores * decay
        decay = tl.trans(decay)
        flipped = flipped * decay
        dg_head = tl.zeros([C], dtype=tl.float32)
        scores = tl.zeros([C, C], dtype=tl.float32)  # of (j, i)
    for tile_k in range(tiles_k):
        # With a number added that is 0, a left operand is a value of its own in every turn.
        zero = tl.minimum(tile_k, 0)
        at_k = tile_k * BK + tl.arange(0, BK)
        qs = rows(q, q_start, at, q_token, at_k, inside, K)
        ks = rows(k, k_start, at, k_token, at_k, inside, K)
        if GATE == "channel":
            gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
            dq_found, dk_found, dg_found = channel_gradients(
                qs, ks, gates, dscores, near, position, inside, DEPTH, BONUS, KIND, C)
        else:
            dk_found = product(flipped + zero.to(tl.float32), qs, KIND)
            dq_found = product(dscores + zero.to(tl.float32), ks, KIND)
            if GATE == "none":
                # A sum that only the cube has touched cannot go on as another product's: the compiler refuses it.
                dk_found = tl.where(inside[:, None], dk_found, 0.0)
            else:
                scores += product(ks, tl.trans(qs), KIND)
        dq_state = tl.zeros([C, BK], dtype=tl.float32)
        dk_state = tl.zeros([C, BK], dtype=tl.float32)
        crossing = tl.zeros([BK, BK if KIND != "split" else BV], dtype=tl.float32)
        if SPAN == 2:
            across = tl.zeros([C, C], dtype=tl.float32)
            passed = tl.zeros([C, BK], dtype=tl.float32)
        for tile_v in range(tiles_v):
            at_v = tile_v * BV + tl.arange(0, BV)
            vs = rows(v, v_start, at, v_token, at_v, inside, V)
            dos = rows(do, do_start, at, do_token, at_v, inside, V)
            state = kept_state(states, state_scales, kept_place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
            adjoint = kept_state(adjoints, adjoint_scales, place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
            if SPAN == 2:
                v_before = rows(v, v_start, before, v_token, at_v, has, V)
                across += product(dos, tl.trans(v_before), KIND)
                dos = rows(do, do_start, at, do_token, at_v, inside, V)
                if GATE != "none":
                    passed += product(v_before, tl.trans(adjoint), KIND)
            dq_state += product(dos, tl.trans(state), KIND)
            dk_state += product(vs, tl.trans(adjoint), KIND)
            if GATE != "none" and KIND != "split":
                crossing += product(state, tl.trans(adjoint), KIND)
        if GATE != "none" and KIND == "split":
            # In a loop of its own: compilers for the 950 fail where the cube and the vector unit share a tile.
            for tile_v in range(tiles_v):
                at_v = tile_v * BV + tl.arange(0, BV)
                state = kept_state(states, state_scales, kept_place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
                adjoint = kept_state(adjoints, adjoint_scales, place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
                crossing += state.to(tl.float32) * adjoint.to(tl.float32)
        dq_state = dq_state * scale
        # Loaded again, from where it is not known to have been: else it would take room meanwhile.
        at_k += zero
        qs = rows(q, q_start, at, q_token, at_k, inside, K).to(tl.float32)
        ks = rows(k, k_start, at, k_token, at_k, inside, K).to(tl.float32)
        if GATE != "none":
            if KIND != "split":
                through = tl.sum(tl.where(same, crossing, 0.0), 0)
            else:
                through = tl.sum(crossing, 1)
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
            # A reader's own gate apart: fewer masks at a time.
            dq_state = dq_state * decays(near > 0, gates, KIND)
            if not BONUS:
                dq_state = dq_state * tl.exp(gates.to(tl.float32))
            dk_state = dk_state * decays(near < 0, gates, KIND)
            through = through * whole_decay(gates, KIND)
        # A token's gate lies on the paths from the state before to readers at or after it, and from writers before.
        readers = qs * dq_state
        writers = ks * dk_state
        out = (row * tokens + at)[:, None] * (heads * K) + head * K + at_k[None, :]
        within = inside[:, None] & (at_k < K)[None, :]
        if GATE != "none":
            spanned = tl.dot((near < 0).to(tl.float32), readers, input_precision="ieee")
            if not BONUS:
                spanned += readers
            spanned += tl.dot((near > 0).to(tl.float32), writers, input_precision="ieee")
            if GATE == "channel":
                dg_found += spanned + through[None, :]
                tl.store(dg + out, dg_found.to(dg.dtype.element_ty), mask=within)
            else:
                dg_head += tl.sum(spanned, 1) + tl.sum(through, 0)
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
