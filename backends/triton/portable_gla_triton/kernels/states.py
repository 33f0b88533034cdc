"""States between segments and chunks, in both directions of time.

Forward, S is the state: S ← T ⊙ S + Σ_j (k_j ⊙ Q_j) v_jᵀ. Backward, R is the loss's gradient by it, against time:
R ← T ⊙ R + scale · Σ_i (q_i ⊙ P_i) do_iᵀ. ``summarize`` leaves what each segment adds to a state that starts from zero,
and its total decay; ``scan`` turns these into the states between segments; ``chunk_states`` walks the segments again,
from those, and keeps the state at every chunk.
"""

import triton
import triton.language as tl

from .common import link_index, load_rows, load_state, locate, operand, product, store_state
from .gates import channel_decays, channel_weights, head_decays, vector_decays


@triton.jit
def sweep(x, y, g, state, first, last, batch, head, start, length, x_group, y_group, g_group, keys, key_mask, values,
          value_mask, chunks, chunk_scales, slot, heads, tile, factor,
          BLOCKS_V: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
          GATE: tl.constexpr, BONUS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr,
          FORWARD: tl.constexpr, KEEP: tl.constexpr, SCALED: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
          BV: tl.constexpr, STAGES: tl.constexpr):
    """Walk the positions first..last and return the state after them, and their total decay [BK].

    ``factor`` multiplies what is added.
    """
    decay = tl.full([BK], 1.0, tl.float32)
    count = tl.cdiv(last - first, C)
    for step in tl.range(0, count, num_stages=STAGES):
        chunk = step if FORWARD else count - 1 - step
        position = first + chunk * C
        valid = position + tl.arange(0, C) < last
        if KEEP:
            keep_state(chunks, chunk_scales, state, slot + chunk, heads, head, keys, key_mask, values, value_mask, tile,
                       BLOCKS_V, K, V, SCALED)
        x_tile = load_rows(x, batch, head // x_group, start, length, position, valid, keys, key_mask, C, REVERSE, WIDE)
        y_tile = load_rows(y, batch, head // y_group, start, length, position, valid, values, value_mask, C, REVERSE,
                           WIDE)
        if GATE == "channel":
            e = channel_decays(g, batch, head // g_group, start, length, position, keys, key_mask, C, REVERSE, WIDE)
            weight, total = channel_weights(e, C, BK, FORWARD, BONUS)
            state = product(tl.trans(operand(x_tile.to(tl.float32) * (weight * factor), KIND)), operand(y_tile, KIND),
                            state * total[:, None], KIND)
            decay *= total
        elif GATE == "none":
            state = product(tl.trans(operand(x_tile.to(tl.float32) * factor, KIND)), operand(y_tile, KIND), state, KIND)
        else:
            e = head_decays(g, batch, head // g_group, start, length, position, C, GATE, REVERSE, WIDE)
            prefix, suffix, total = vector_decays(e, C, BONUS)
            weight = (suffix if FORWARD else prefix) * factor
            state = product(tl.trans(operand(x_tile, KIND)),
                            operand(y_tile.to(tl.float32) * weight[:, None], KIND), state * total, KIND)
            decay *= total
    return state, decay


@triton.jit
def keep_state(chunks, chunk_scales, state, row, heads, head, keys, key_mask, values, value_mask, tile,
               BLOCKS_V: tl.constexpr, K: tl.constexpr, V: tl.constexpr, SCALED: tl.constexpr):
    """Store a tile of a chunk's state; float16 with a power of two a row, so that any float32 fits its range."""
    row = (tl.cast(row, tl.int64) * heads + head)
    if SCALED:
        largest = tl.max(tl.abs(state), axis=1)
        bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(tl.maximum(bits, 0x01000000), 0x7E000000)
        unit = bits.to(tl.float32, bitcast=True)
        state = state / unit[:, None]
        tl.store(chunk_scales + (row * K + keys) * BLOCKS_V + tile, unit, mask=key_mask)
    pointers = chunks + row * K * V + keys[:, None] * V + values[None, :]
    tl.store(pointers, state.to(chunks.dtype.element_ty), mask=key_mask[:, None] & value_mask[None, :])


@triton.jit
def summarize(x, y, g, cu_seqlens, links, decays, scale, tokens, sequences, heads, unit, x_group, y_group, g_group,
              K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, PACKED: tl.constexpr,
              REVERSE: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr, FORWARD: tl.constexpr, C: tl.constexpr,
              BK: tl.constexpr, BV: tl.constexpr, STAGES: tl.constexpr):
    """Write what a segment adds, times ``scale``, to the state that leaves it: every segment but the last one.

    Grid: slots x heads x tiles of K x tiles of V. ``links`` [rows, H, K, V] and ``decays`` [rows, H, K] (per head or
    less: [rows, H, 1]) have a row for each boundary between segments.
    """
    BLOCKS_K: tl.constexpr = (K + BK - 1) // BK
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    tile = program % BLOCKS_V
    block = (program // BLOCKS_V) % BLOCKS_K
    rest = program // BLOCKS_V // BLOCKS_K
    head = rest % heads
    sequence, batch, start, length, piece = locate(rest // heads, cu_seqlens, tokens, sequences, unit, PACKED)
    boundary = piece + 1 if FORWARD else piece
    if (boundary == 0) | (boundary * unit >= length):
        return
    keys = tl.arange(0, BK) + block * BK
    values = tl.arange(0, BV) + tile * BV
    state = tl.zeros([BK, BV], tl.float32)
    first = piece * unit
    last = tl.minimum(length, first + unit)
    state, decay = sweep(x, y, g, state, first, last, batch, head, start, length, x_group, y_group, g_group, keys,
                         keys < K, values, values < V, links[0], links[0], 0, heads, tile, scale, BLOCKS_V, K, V, GATE,
                         BONUS, REVERSE, WIDE, KIND, FORWARD, False, False, C, BK, BV, STAGES)
    row = link_index(sequence, start, boundary, tokens, unit, PACKED)
    store_state(links, state, row, head, keys, keys < K, values, values < V)
    if tile == 0:
        if GATE == "channel":
            tl.store(decays + (tl.cast(row, tl.int64) * heads + head) * K + keys, decay, mask=keys < K)
        elif block == 0:
            tl.store(decays + tl.cast(row, tl.int64) * heads + head, tl.max(decay, axis=0))


@triton.jit
def scan(links, decays, edge, cu_seqlens, tokens, heads, unit, K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr,
         EDGE: tl.constexpr, PACKED: tl.constexpr, FORWARD: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Turn what segments add into the states at the boundaries between them, in place.

    Grid: sequences x heads x tiles of K x tiles of V; ``edge`` is the initial state, or the final state's gradient.
    """
    BLOCKS_K: tl.constexpr = (K + BK - 1) // BK
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    keys = tl.arange(0, BK) + ((program // BLOCKS_V) % BLOCKS_K) * BK
    values = tl.arange(0, BV) + (program % BLOCKS_V) * BV
    head = (program // BLOCKS_V // BLOCKS_K) % heads
    sequence = program // BLOCKS_V // BLOCKS_K // heads
    start = 0
    length = tokens
    if PACKED:
        start = tl.load(cu_seqlens + sequence).to(tl.int32)
        length = tl.load(cu_seqlens + sequence + 1).to(tl.int32) - start
    state = tl.zeros([BK, BV], tl.float32)
    if EDGE:
        state = load_state(edge, sequence, head, keys, keys < K, values, values < V)
    boundaries = tl.cdiv(length, unit) - 1
    for step in range(boundaries):
        boundary = step + 1 if FORWARD else boundaries - step
        row = link_index(sequence, start, boundary, tokens, unit, PACKED)
        if GATE == "channel":
            decay = tl.load(decays + (tl.cast(row, tl.int64) * heads + head) * K + keys, mask=keys < K, other=0.0)
            state *= decay[:, None]
        else:
            state *= tl.load(decays + tl.cast(row, tl.int64) * heads + head)
        state += load_state(links, row, head, keys, keys < K, values, values < V)
        store_state(links, state, row, head, keys, keys < K, values, values < V)


@triton.jit
def chunk_states(q, k, v, do, g, initial, dfinal, dinitial, forward_links, backward_links, cu_seqlens, s_chunks,
                 s_scales, r_chunks, r_scales, scale, tokens, sequences, heads, unit, q_group, k_group, v_group,
                 g_group,
                 K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, INITIAL: tl.constexpr,
                 FINAL: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, REVERSE: tl.constexpr,
                 WIDE: tl.constexpr, KIND: tl.constexpr, SCALED: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
                 BV: tl.constexpr, STAGES: tl.constexpr):
    """Keep the state before every chunk, and the gradient by the state after it; write the initial state's gradient.

    Grid: slots x heads x tiles of K x tiles of V x 2, the two directions fastest.
    """
    BLOCKS_K: tl.constexpr = (K + BK - 1) // BK
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    forward = tl.program_id(0) % 2 == 0
    program = tl.program_id(0) // 2
    tile = program % BLOCKS_V
    block = (program // BLOCKS_V) % BLOCKS_K
    rest = program // BLOCKS_V // BLOCKS_K
    head = rest % heads
    sequence, batch, start, length, piece = locate(rest // heads, cu_seqlens, tokens, sequences, unit, PACKED)
    if (piece > 0) & (piece * unit >= length):
        return
    keys = tl.arange(0, BK) + block * BK
    key_mask = keys < K
    values = tl.arange(0, BV) + tile * BV
    value_mask = values < V
    first = piece * unit
    last = tl.minimum(length, first + unit)
    slot = first // C + (start // C + sequence if PACKED else sequence * tl.cdiv(tokens, C))
    state = tl.zeros([BK, BV], tl.float32)
    if forward:
        if INITIAL:
            if piece == 0:
                state = load_state(initial, sequence, head, keys, key_mask, values, value_mask)
        if SEGMENTED:
            if piece > 0:
                state = load_state(forward_links, link_index(sequence, start, piece, tokens, unit, PACKED), head, keys,
                                   key_mask, values, value_mask)
        sweep(k, v, g, state, first, last, batch, head, start, length, k_group, v_group, g_group, keys, key_mask,
              values, value_mask, s_chunks, s_scales, slot, heads, tile, 1.0, BLOCKS_V, K, V, GATE, BONUS, REVERSE,
              WIDE, KIND, True, True, SCALED, C, BK, BV, STAGES)
    else:
        if FINAL:
            if last >= length:
                state = load_state(dfinal, sequence, head, keys, key_mask, values, value_mask)
        if SEGMENTED:
            if last < length:
                state = load_state(backward_links, link_index(sequence, start, piece + 1, tokens, unit, PACKED), head,
                                   keys, key_mask, values, value_mask)
        state, decay = sweep(
            q, do, g, state, first, last, batch, head, start, length, q_group, 1, g_group, keys, key_mask, values,
            value_mask, r_chunks, r_scales, slot, heads, tile, scale, BLOCKS_V, K, V, GATE, BONUS, REVERSE, WIDE, KIND,
            False, True, SCALED, C, BK, BV, STAGES)
        if INITIAL:
            if piece == 0:
                store_state(dinitial, state, sequence, head, keys, key_mask, values, value_mask)
