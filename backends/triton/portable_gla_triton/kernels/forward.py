"""The forward pass: each program walks one segment of one head for one tile of V, its state on chip throughout."""

import triton
import triton.language as tl

from .common import link_index, load_rows, load_state, locate, operand, product, store_rows, store_state
from .gates import channel_decays, head_decays, pair_decays, vector_decays
from .scores import channel_scores


@triton.jit
def forward(q, k, v, g, bonus, initial, cu_seqlens, o, final, links, scale, tokens, sequences, heads, unit,
            q_group, k_group, v_group, g_group,
            K: tl.constexpr, V: tl.constexpr, GATE: tl.constexpr, BONUS: tl.constexpr, INITIAL: tl.constexpr,
            FINAL: tl.constexpr, PACKED: tl.constexpr, SEGMENTED: tl.constexpr, REVERSE: tl.constexpr,
            WIDE: tl.constexpr, KIND: tl.constexpr, RANGED: tl.constexpr, SLICED: tl.constexpr,
            C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, STAGES: tl.constexpr):
    """Write o and the final state of one (segment, head, tile of V).

    Grid: slots x heads x tiles of V, tiles fastest: programs that share q, k and g run side by side. The state's K is
    on chip whole, in tiles; SLICED, one tile after another walks the segment, each adding to o, which is float32 then.
    """
    BLOCKS_K: tl.constexpr = 1 if SLICED else (K + BK - 1) // BK
    SLICES: tl.constexpr = (K + BK - 1) // BK if SLICED else 1
    BLOCKS_V: tl.constexpr = (V + BV - 1) // BV
    program = tl.program_id(0)
    head = (program // BLOCKS_V) % heads
    sequence, batch, start, length, piece = locate(
        program // BLOCKS_V // heads, cu_seqlens, tokens, sequences, unit, PACKED)
    if (piece > 0) & (piece * unit >= length):
        return
    values = tl.arange(0, BV) + (program % BLOCKS_V) * BV
    value_mask = values < V
    for part in range(SLICES):
        states = ()
        for block in tl.static_range(BLOCKS_K):
            keys = tl.arange(0, BK) + (block + part) * BK
            state = tl.zeros([BK, BV], tl.float32)
            if SEGMENTED:
                if piece > 0:
                    state = load_state(links, link_index(sequence, start, piece, tokens, unit, PACKED), head, keys,
                                       keys < K, values, value_mask)
            if INITIAL:
                if piece == 0:
                    state = load_state(initial, sequence, head, keys, keys < K, values, value_mask)
            states = states + (state,)
        end = tl.minimum(length, (piece + 1) * unit)
        # With many tiles of K and a bonus, what is hoisted out of the loop would spill.
        for position in tl.range(piece * unit, end, C, num_stages=STAGES, disable_licm=BONUS and BLOCKS_K > 4):
            valid = position + tl.arange(0, C) < end
            v_tile = load_rows(v, batch, head // v_group, start, length, position, valid, values, value_mask, C,
                               REVERSE, WIDE)
            v_operand = operand(v_tile, KIND)
            scores = tl.zeros([C, C], tl.float32)
            out = tl.zeros([C, BV], tl.float32)
            diagonal = tl.zeros([C], tl.float32)
            if GATE == "none":
                v_later = v_operand
                total = 1.0
            elif GATE != "channel":
                e = head_decays(g, batch, head // g_group, start, length, position, C, GATE, REVERSE, WIDE)
                prefix, suffix, total = vector_decays(e, C, BONUS)
                v_later = operand(v_tile.to(tl.float32) * suffix[:, None], KIND)
            updated = ()
            for block in tl.static_range(BLOCKS_K):
                keys = tl.arange(0, BK) + (block + part) * BK
                key_mask = keys < K
                q_tile = load_rows(q, batch, head // q_group, start, length, position, valid, keys, key_mask, C,
                                   REVERSE, WIDE)
                k_tile = load_rows(k, batch, head // k_group, start, length, position, valid, keys, key_mask, C,
                                   REVERSE, WIDE)
                if BONUS:
                    u = tl.load(bonus + head * K + keys, mask=key_mask, other=0.0).to(tl.float32)
                    diagonal += tl.sum(q_tile.to(tl.float32) * k_tile.to(tl.float32) * u[None, :], axis=1)
                if GATE == "channel":
                    e = channel_decays(g, batch, head // g_group, start, length, position, keys, key_mask, C, REVERSE,
                                       WIDE)
                    scores, reader, writer, decay = channel_scores(
                        scores, q_tile, k_tile, e, C, BK, BONUS, RANGED, KIND)
                    out = product(reader, operand(states[block], KIND), out, KIND)
                    updated = updated + (product(tl.trans(writer), v_operand, states[block] * decay[:, None], KIND),)
                else:
                    q_operand, k_operand = operand(q_tile, KIND), operand(k_tile, KIND)
                    scores = product(q_operand, tl.trans(k_operand), scores, KIND)
                    out = product(q_operand, operand(states[block], KIND), out, KIND)
                    updated = updated + (product(tl.trans(k_operand), v_later, states[block] * total, KIND),)
            states = updated
            i = tl.arange(0, C)[:, None]
            j = tl.arange(0, C)[None, :]
            if GATE == "none":
                scores = tl.where(i >= j, scores, 0.0)
            elif GATE != "channel":
                out *= prefix[:, None]
                scores *= pair_decays(e, C, BONUS)
            if BONUS:
                scores = tl.where(i == j, diagonal[:, None], scores)
            out = product(operand(scores, KIND), v_operand, out, KIND) * scale
            if SLICED:
                if part > 0:
                    out += load_rows(o, batch, head, start, length, position, valid, values, value_mask, C, REVERSE,
                                     WIDE)
            store_rows(o, out, batch, head, start, length, position, valid, values, value_mask, C, REVERSE, WIDE)
        if FINAL:
            if end >= length:
                for block in tl.static_range(BLOCKS_K):
                    keys = tl.arange(0, BK) + (block + part) * BK
                    store_state(final, states[block], sequence, head, keys, keys < K, values, value_mask)
        if SLICED:
            tl.debug_barrier()  # the next slice reads what this one wrote to o
