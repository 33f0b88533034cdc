"""One or a few tokens per sequence."""

import triton.language as tl

from portable_gla_ascend.kernels.common import kernel


@kernel
def decode(
    q, k, v, g, bonus, state, slots, out, scale, items, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head,
    state_row, state_head, state_k, state_v, out_row, out_token, out_head, out_v, slots_row,
    q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, BONUS: tl.constexpr, SLOTS: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):
    """Write o and, in place, the states; a slot of -1 gives zeros. Walks ``items`` = rows x heads x tiles of V."""
    tiles_v = (V + BV - 1) // BV
    at_k = tl.arange(0, BK)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        at_v = (item % tiles_v) * BV + tl.arange(0, BV)
        head = ((item // tiles_v) % heads).to(tl.int64)
        row = (item // (tiles_v * heads)).to(tl.int64)
        slot = row
        if SLOTS:
            slot = tl.load(slots + row * slots_row).to(tl.int64)
        used = slot >= 0
        at = state + slot * state_row + head * state_head + at_k[:, None] * state_k + at_v[None, :] * state_v
        within = (at_k < K)[:, None] & (at_v < V)[None, :] & used
        held = tl.load(at, mask=within, other=0.0).to(tl.float32)
        some_k = (at_k < K) & used
        some_v = (at_v < V) & used
        for token in range(tokens):
            keys = tl.load(k + row * k_row + token * k_token + (head // k_group) * k_head + at_k, mask=some_k,
                           other=0.0)
            reads = tl.load(q + row * q_row + token * q_token + (head // q_group) * q_head + at_k, mask=some_k,
                            other=0.0)
            values = tl.load(v + row * v_row + token * v_token + (head // v_group) * v_head + at_v, mask=some_v,
                             other=0.0)
            added = keys.to(tl.float32)[:, None] * values.to(tl.float32)[None, :]
            kept = held
            if GATE == "channel":
                gates = tl.load(g + row * g_row + token * g_token + (head // g_group) * g_head + at_k, mask=some_k,
                                other=0.0)
                kept = held * tl.exp(gates.to(tl.float32))[:, None]
            elif GATE == "head" or GATE == "constant":
                gate = tl.load(g + row * g_row + token * g_token + (head // g_group) * g_head)
                kept = held * tl.exp(gate.to(tl.float32))
            seen = kept + added
            if BONUS:
                u = tl.load(bonus + head * K + at_k, mask=some_k, other=0.0).to(tl.float32)
                seen = held + u[:, None] * added
            held = kept + added
            found = tl.sum(reads.to(tl.float32)[:, None] * seen, 0) * scale
            tl.store(out + row * out_row + token * out_token + head * out_head + at_v * out_v,
                     found.to(out.dtype.element_ty), mask=at_v < V)
        tl.store(at, held.to(state.dtype.element_ty), mask=within)
