"""States between chunks: a sweep along each sequence, for a forward pass one way, for a backward pass both."""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import keep, kernel, masks, rows, sequence, tokens_of
from portable_gla_ascend.kernels.gates import load_gate, spans
from portable_gla_ascend.kernels.steps import stepped


@kernel
def sweep(
    k, v, g, near_table, initial, states, state_scales, final, depths, cu_seqlens, scale, items, tokens, heads,
    k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head, initial_row, final_row,
    k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, INITIAL: tl.constexpr,
    FINAL: tl.constexpr, SCALED: tl.constexpr, RANGE: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr,
    SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DEPTH: tl.constexpr,
):
    """Keep the state before every SPAN chunks, and say how many levels chunks take: see ``swept``.

    Walks ``items`` = sequences x heads x tiles of K x tiles of V.
    """
    near, position = masks(near_table, C, REVERSE)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        swept(item, near, k, v, g, initial, states, state_scales, final, depths, cu_seqlens, scale, tokens, heads,
              k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head, initial_row, final_row,
              k_group, v_group, g_group, K, V, GATE, PACKED, REVERSE, True, BONUS, INITIAL, FINAL, SCALED, RANGE, KIND,
              C, SPAN, BK, BV, DEPTH)


@kernel
def sweep_both(
    q, k, v, do, g, near_table, initial, states, state_scales, dfinal, adjoints, adjoint_scales, dinitial, depths,
    cu_seqlens, scale, items, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, do_row, do_token, do_head,
    g_row, g_token, g_head, initial_row, dfinal_row, dinitial_row, q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, INITIAL: tl.constexpr,
    DFINAL: tl.constexpr, SCALED: tl.constexpr, RANGE: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr,
    SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DEPTH: tl.constexpr,
):
    """Keep the state before every SPAN chunks and, side by side with it, the adjoint one after each chunk.

    Walks ``items`` = sequences x heads x tiles of K x tiles of V x 2 directions.
    """
    near, position = masks(near_table, C, REVERSE)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        # Loops of one turn or none: of a run-time if, the compiler would keep both sides' buffers at once.
        for _ in range(1 - item % 2):
            swept(item // 2, near, k, v, g, initial, states, state_scales, states, depths, cu_seqlens, scale, tokens,
                  heads, k_row, k_token, k_head, v_row, v_token, v_head, g_row, g_token, g_head, initial_row, 0,
                  k_group, v_group, g_group, K, V, GATE, PACKED, REVERSE, True, BONUS, INITIAL, False, SCALED, RANGE,
                  KIND, C, SPAN, BK, BV, DEPTH)
        for _ in range(item % 2):
            swept(item // 2, near, q, do, g, dfinal, adjoints, adjoint_scales, dinitial, depths, cu_seqlens, scale,
                  tokens, heads, q_row, q_token, q_head, do_row, do_token, do_head, g_row, g_token, g_head, dfinal_row,
                  dinitial_row, q_group, 1, g_group, K, V, GATE, PACKED, REVERSE, False, BONUS, DFINAL, INITIAL, SCALED,
                  0.0, KIND, C, 1, BK, BV, DEPTH)


@triton.jit
def swept(
    item, near, x, y, g, edge, kept, scales, last, depths, cu_seqlens, scale, tokens, heads,
    x_row, x_token, x_head, y_row, y_token, y_head, g_row, g_token, g_head, edge_row, last_row,
    x_group, y_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, FORWARD: tl.constexpr, BONUS: tl.constexpr,
    EDGE: tl.constexpr, LAST: tl.constexpr, SCALED: tl.constexpr, RANGE: tl.constexpr, KIND: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DEPTH: tl.constexpr,
):
    """Keep one sequence's and head's state before every SPAN chunks, or the adjoint one after.

    ``FORWARD``: x is k and y is v; else q and do.
    Forward it also says, for each chunk, head and tile of K, how many levels its scores need: none where its gates stay
    within ``RANGE`` nats, those above blocks of 16 where these do; else, and with ``RANGE`` = 0, all ``DEPTH``
    (2 ** DEPTH = C).
    """
    tiles_k = (K + BK - 1) // BK
    tiles_v = (V + BV - 1) // BV
    tile_v = item % tiles_v
    tile_k = (item // tiles_v) % tiles_k
    head = (item // (tiles_v * tiles_k)) % heads
    n = item // (tiles_v * tiles_k * heads)
    row, first, length, slot = sequence(cu_seqlens, n, tokens, C, PACKED)
    _, _, _, kept_slot = sequence(cu_seqlens, n, tokens, C * SPAN, PACKED)
    at_k = tile_k * BK + tl.arange(0, BK)
    at_v = tile_v * BV + tl.arange(0, BV)
    within = (at_k < K)[:, None] & (at_v < V)[None, :]
    corner = at_k[:, None] * V + at_v[None, :]
    head64 = head.to(tl.int64)
    if EDGE:
        state = tl.load(edge + n.to(tl.int64) * edge_row + head64 * (K * V) + corner, mask=within, other=0.0)
    else:
        state = tl.zeros([BK, BV], dtype=tl.float32)
    x_start = row.to(tl.int64) * x_row + (head64 // x_group) * x_head
    y_start = row.to(tl.int64) * y_row + (head64 // y_group) * y_head
    g_start = row.to(tl.int64) * g_row + (head64 // g_group) * g_head
    chunks = (length + C - 1) // C
    for step in range(chunks):
        if FORWARD:
            chunk = step
            keeping = chunk % SPAN == 0
        else:
            chunk = chunks - 1 - step
            keeping = (chunk % SPAN == SPAN - 1) | (step == 0)
        place = (kept_slot + chunk // SPAN).to(tl.int64) * heads + head
        keep(kept, scales, place * (K * V) + corner, (place * tiles_v + tile_v) * K + at_k, state,
             (at_k < K) & keeping, within & keeping, SCALED)
        at, inside = tokens_of(first, length, chunk, True, C, REVERSE)
        xs = rows(x, x_start, at, x_token, at_k, inside, K)
        ys = rows(y, y_start, at, y_token, at_v, inside, V)
        gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
        state = stepped(state, xs, ys, gates, near, within, scale, FORWARD, BONUS, GATE, KIND)
        if FORWARD and GATE == "channel":
            levels = DEPTH
            if RANGE > 0:
                size = tl.abs(gates)
                whole = tl.max(tl.sum(size.to(tl.float32), 0), 0)
                block = tl.max(tl.max(spans(tl.abs(near) < 16, size), 1), 0)
                levels = tl.where(whole <= RANGE, 0, tl.where(block <= RANGE, DEPTH - 4, DEPTH))
            tl.store(depths + ((slot + chunk).to(tl.int64) * heads + head) * tiles_k + tile_k, levels,
                     mask=tile_v == 0)
    if LAST:
        tl.store(last + n.to(tl.int64) * last_row + head64 * (K * V) + corner, state, mask=within)
