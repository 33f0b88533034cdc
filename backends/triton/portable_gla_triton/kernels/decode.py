"""One or a few tokens per sequence by the recurrence, the state read and written once."""

import triton
import triton.language as tl

from .common import load_state, row_pointer, store_state


@triton.jit
def decode(q, k, v, g, bonus, state, slots, o, scale, tokens, heads, slot_stride, q_group, k_group, v_group, g_group,
           K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, SLOTS: tl.constexpr,
           ROWS: tl.constexpr, BV: tl.constexpr):
    """Update a sequence's state and write o, for one head and one tile of V; a slot of -1 gives zeros.

    Grid: batch x heads x tiles of V. ROWS is K rounded up to a power of two: K is not cut, so o needs no second sum.
    """
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    tile = program % BLOCKS_V
    head = (program // BLOCKS_V) % heads
    batch = program // BLOCKS_V // heads
    keys = tl.arange(0, ROWS)
    key_mask = keys < K
    values = tl.arange(0, BV) + tile * BV
    value_mask = values < V
    wide_keys = keys.to(tl.int64)
    wide_values = values.to(tl.int64)
    row = tl.cast(batch, tl.int64)
    if SLOTS:
        row = tl.load(slots + row * slot_stride).to(tl.int64)
    if row < 0:
        for token in range(tokens):
            pointer = row_pointer(o, batch, head, 0, tokens, token, False) + wide_values * o[4]
            tl.store(pointer, tl.zeros([BV], o[0].dtype.element_ty), mask=value_mask)
        return
    found = load_state(state, row, head, keys, key_mask, values, value_mask)
    if BONUS:
        u = tl.load(bonus + head * K + keys, mask=key_mask, other=0.0).to(tl.float32)
    for token in range(tokens):
        q_row = tl.load(row_pointer(q, batch, head // q_group, 0, tokens, token, False) + wide_keys * q[4],
                        mask=key_mask, other=0.0).to(tl.float32) * scale
        k_row = tl.load(row_pointer(k, batch, head // k_group, 0, tokens, token, False) + wide_keys * k[4],
                        mask=key_mask, other=0.0).to(tl.float32)
        v_row = tl.load(row_pointer(v, batch, head // v_group, 0, tokens, token, False) + wide_values * v[4],
                        mask=value_mask, other=0.0).to(tl.float32)
        added = k_row[:, None] * v_row[None, :]
        if BONUS:
            out = tl.sum(found * q_row[:, None], axis=0) + tl.sum(q_row * u * k_row, axis=0) * v_row
        if GATE == "channel":
            decay = tl.exp(tl.load(row_pointer(g, batch, head // g_group, 0, tokens, token, False) + wide_keys * g[4],
                                   mask=key_mask, other=0.0).to(tl.float32))
            found = found * decay[:, None] + added
        elif GATE == "head":
            decay = tl.exp(tl.load(row_pointer(g, batch, head // g_group, 0, tokens, token, False)).to(tl.float32))
            found = found * decay + added
        elif GATE == "constant":
            decay = tl.exp(tl.load(g[0] + tl.cast(head // g_group, tl.int64) * g[3]).to(tl.float32))
            found = found * decay + added
        else:
            found += added
        if not BONUS:
            out = tl.sum(found * q_row[:, None], axis=0)
        pointer = row_pointer(o, batch, head, 0, tokens, token, False) + wide_values * o[4]
        tl.store(pointer, out.to(o[0].dtype.element_ty), mask=value_mask)
    store_state(state, found, row, head, keys, key_mask, values, value_mask)
