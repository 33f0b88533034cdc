"""A state's steps from chunk to chunk."""

import triton
import triton.language as tl

from portable_gla_ascend.kernels.common import kept_state, product, rows, tokens_of
from portable_gla_ascend.kernels.gates import decays, load_gate, whole_decay


@triton.jit
def stepped(state, xs, ys, gates, near, within, scale, FORWARD: tl.constexpr, BONUS: tl.constexpr, GATE: tl.constexpr,
            KIND: tl.constexpr):
    """Return the state after a chunk (``FORWARD``: xs is k, ys is v), or the adjoint one before it (q, do)."""
    if GATE != "none":
        if FORWARD:
            xs = xs.to(tl.float32) * decays(near < 0, gates, KIND)
        elif BONUS:
            xs = xs.to(tl.float32) * decays(near > 0, gates, KIND)
        else:
            xs = xs.to(tl.float32) * decays(near >= 0, gates, KIND)
        state = state * whole_decay(gates, KIND)[:, None]
    added = product(tl.trans(xs), ys, KIND)
    if not FORWARD:
        added = added * scale
    elif GATE == "none":
        # Summed by the cube alone, the state would be lost: the compiler keeps it from a buffer never written.
        added = tl.where(within, added, 0.0)
    return state + added


@triton.jit
def state_before(
    k, k_start, k_token, at_k, K, v, v_start, v_token, at_v, V, g, g_start, g_token, kept, scales, place, tile_v, first,
    length, chunk, near, scale, BONUS: tl.constexpr, GATE: tl.constexpr, KIND: tl.constexpr, SCALED: tl.constexpr,
    C: tl.constexpr, SPAN: tl.constexpr, KEPT_V: tl.constexpr, REVERSE: tl.constexpr,
):
    """Return a tile [BK, BV] of the state before a chunk, from that before its block of SPAN chunks, at ``place``."""
    state = kept_state(kept, scales, place, at_k, at_v, tile_v, K, V, SCALED, KEPT_V)
    if SPAN > 1:
        within = (at_k < K)[:, None] & (at_v < V)[None, :]
        state = state.to(tl.float32)
        steps = chunk % SPAN
        for step in range(steps):
            at, inside = tokens_of(first, length, chunk - steps + step, True, C, REVERSE)
            ks = rows(k, k_start, at, k_token, at_k, inside, K)
            vs = rows(v, v_start, at, v_token, at_v, inside, V)
            gates = load_gate(g, g_start, at, g_token, at_k, inside, K, GATE)
            state = stepped(state, ks, vs, gates, near, within, scale, True, BONUS, GATE, KIND)
    return state
