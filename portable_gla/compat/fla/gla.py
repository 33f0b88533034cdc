"""GLA: a decay per key channel, ``g`` [B, T, H, K]."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from portable_gla.compat.fla import _arguments
from portable_gla.compat.fla._run import run


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute GLA; see :func:`portable_gla.attention` for the recurrence.

    Parameters
    ----------
    q, k, v
        [B, T, H, K], [B, T, H, K] and [B, T, H, V] in one dtype.
    g
        [B, T, H, K], natural log of the decay.
    scale
        Factor on o; default ``K ** -0.5``.
    initial_state
        [N, H, K, V], or [N, H, V, K] if ``state_v_first``.
    output_final_state
        Return the state after the last token.
    state_v_first
        States are [V, K] instead of [K, V], coming in and going out.
    cu_seqlens
        int32 or int64 [N + 1]: packed sequences, with B = 1.
    cu_seqlens_cpu
        The same on the CPU: its values are checked, without a synchronisation.

    Returns
    -------
    o : Tensor
        [B, T, H, V] in v's dtype.
    final_state : Tensor or None
        Shaped as ``initial_state``, float32 (float64 for float64 inputs); None unless asked for.

    Raises
    ------
    TypeError, ValueError
        A malformed call; among them B > 1 or another number of states than N with ``cu_seqlens``.
    portable_gla.UnsupportedProblem
        No backend serves the call.
    """
    if g is None:
        raise TypeError("g: expected a tensor [B, T, H, K], got None")
    return run(q, k, v, _arguments.gate("g", g, 4, q), scale=scale, initial_state=initial_state,
               output_final_state=output_final_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
               cu_seqlens_cpu=cu_seqlens_cpu)


def fused_chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute GLA; the same as :func:`chunk_gla`. The original has retired this name and only raises."""
    return chunk_gla(q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens, cu_seqlens_cpu)


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **legacy: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute GLA with gates on keys, on values, on both or on neither.

    ::

        S_t = diag(exp(gk_t)) S_{t-1} diag(exp(gv_t)) + k_t v_tᵀ
        o_t = scale · S_tᵀ q_t

    Parameters
    ----------
    q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens
        As in :func:`chunk_gla`.
    gk
        [B, T, H, K] or None (no decay along K).
    gv
        [B, T, H, V] or None. With ``gk`` as well the gates take V times the memory of gk, said by a
        :class:`portable_gla.PortabilityWarning`.
    reverse
        Run right to left.
    **legacy
        ``transpose_state_layout``, the former name of ``state_v_first``: DeprecationWarning.

    Returns
    -------
    o, final_state
        As :func:`chunk_gla`.

    Raises
    ------
    TypeError, ValueError
        As :func:`chunk_gla`; TypeError for an unknown keyword, ValueError for both names of the state's layout.
    portable_gla.UnsupportedProblem
        No backend serves the call; in strict mode also for ``gk`` together with ``gv``.
    """
    state_v_first = _arguments.state_layout("fused_recurrent_gla", state_v_first, legacy)
    _arguments.refuse_unknown("fused_recurrent_gla", legacy)
    return run(q, k, v, _arguments.gate("gk", gk, 4, q), gv=_arguments.gate("gv", gv, 4, q), scale=scale,
               initial_state=initial_state, output_final_state=output_final_state, reverse=reverse,
               state_v_first=state_v_first, cu_seqlens=cu_seqlens)
