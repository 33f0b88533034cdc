"""The gradients, all chunks side by side: a chunk's of q, k and g, and those of v."""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import chunk_of, kernel, masks
from portable_gla_ascend.kernels.gradients_keys import key_gradients
from portable_gla_ascend.kernels.gradients_values import value_gradients


@kernel
def gradients(
    q, k, v, do, g, bonus, dq, dk, dv, dg, dbonus, near_table, states, state_scales, adjoints, adjoint_scales, depths,
    places, cu_seqlens, scale, items, tokens, heads,
    q_row, q_token, q_head, k_row, k_token, k_head, v_row, v_token, v_head, do_row, do_token, do_head,
    g_row, g_token, g_head, q_group, k_group, v_group, g_group, K, V,
    GATE: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, BONUS: tl.constexpr, SCALED: tl.constexpr,
    KIND: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    LOOP_K: tl.constexpr, LOOP_V: tl.constexpr, KEPT_V: tl.constexpr, DEPTH: tl.constexpr, KEYS: tl.constexpr,
    VALUES: tl.constexpr, OWN_MASKS: tl.constexpr,
):
    """Write dq, dk [B, T, H, K], dg and what dbonus sums (``KEYS``), and dv [B, T, H, V] (``VALUES``).

    From the state before the chunk's block of SPAN (1 or 2) chunks and the adjoint one after the chunk. Walks
    ``items`` = slots of chunks x heads. dg is [B, T, H, K] per channel, else [B, H, T]. Tiles of K and V are LOOP_K and
    LOOP_V for the gradients of q, k and g, BK and BV for that of v. ``OWN_MASKS``: see ``half_masks``.
    """
    near, position = masks(near_table, C, REVERSE)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        _, head, slot, chunk, row, first, length, kept_slot = chunk_of(
            item, 1, heads, places, cu_seqlens, tokens, C, SPAN, PACKED)
        q_start = row * q_row + (head // q_group) * q_head
        k_start = row * k_row + (head // k_group) * k_head
        v_start = row * v_row + (head // v_group) * v_head
        do_start = row * do_row + head * do_head
        g_start = row * g_row + (head // g_group) * g_head
        place = slot * heads + head
        kept_place = (kept_slot + chunk // SPAN).to(tl.int64) * heads + head
        if KEYS:
            near_k, position_k = half_masks(near, position, near_table, item, OWN_MASKS, C, REVERSE)
            key_gradients(
                q, k, v, do, g, bonus, dq, dk, dg, dbonus, near_k, position_k, states, state_scales, adjoints,
                adjoint_scales, place, kept_place, row, head, chunk, first, length, scale, tokens, heads, q_start,
                q_token, k_start, k_token, v_start, v_token, do_start, do_token, g_start, g_token, K, V, GATE, REVERSE,
                BONUS, SCALED, KIND, C, SPAN, LOOP_K, LOOP_V, KEPT_V, DEPTH)
        if VALUES:
            near_v, position_v = half_masks(near, position, near_table, item, OWN_MASKS, C, REVERSE)
            value_gradients(
                q, k, do, g, bonus, dv, near_v, position_v, adjoints, adjoint_scales, depths, place, row, head, chunk,
                first, length, scale, tokens, heads, q_start, q_token, k_start, k_token, do_start, do_token, g_start,
                g_token, K, V, GATE, REVERSE, BONUS, SCALED, KIND, C, BK, BV, KEPT_V)


@triton.jit
def half_masks(near, position, near_table, item, OWN: tl.constexpr, C: tl.constexpr, REVERSE: tl.constexpr):
    """Return a half's masks: ``OWN`` where what is made of both halves' masks does not fit at once.

    They are loaded by an address that is not known to be the same in every turn, else they would be kept all the while.
    """
    if OWN:
        return masks(near_table + tl.minimum(item, 0), C, REVERSE)
    else:
        return near, position
