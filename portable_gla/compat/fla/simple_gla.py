"""Simple GLA: a decay per head, ``g`` [B, T, H] (Mamba-2), ``g_gamma`` [H] (RetNet), both or none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from portable_gla.compat.fla import _arguments
from portable_gla.compat.fla._run import run
from portable_gla.compat.fla._scores import scores


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute simple GLA; see :func:`portable_gla.attention` for the recurrence.

    Parameters
    ----------
    q, k, v
        [B, T, H, K], [B, T, H, K] and [B, T, H, V] in one dtype.
    g
        [B, T, H], natural log of the decay.
    g_gamma
        [H], the same for every token; with ``g`` as well the two add.
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
    **options
        ``chunk_size``, a power of two: accepted, and left to the plan (see :func:`portable_gla.override`).

    Returns
    -------
    o : Tensor
        [B, T, H, V] in v's dtype.
    final_state : Tensor or None
        Shaped as ``initial_state``, float32 (float64 for float64 inputs); None unless asked for.

    Raises
    ------
    TypeError, ValueError
        A malformed call; among them an unknown keyword, a ``chunk_size`` that is no power of two, and B > 1 or another
        number of states than N with ``cu_seqlens``.
    portable_gla.UnsupportedProblem
        No backend serves the call.
    """
    chunk_size = options.pop("chunk_size", None)
    _arguments.refuse_unknown("chunk_simple_gla", options)
    if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
        raise ValueError(f"chunk_size: expected a power of 2, got {chunk_size}")
    return run(q, k, v, _arguments.head_gate(g, g_gamma, q), scale=scale, initial_state=initial_state,
               output_final_state=output_final_state, state_v_first=state_v_first, cu_seqlens=cu_seqlens,
               cu_seqlens_cpu=cu_seqlens_cpu)


def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute simple GLA; parameters, results and errors as :func:`chunk_simple_gla`, states always [K, V]."""
    return run(q, k, v, _arguments.head_gate(g, g_gamma, q), scale=scale, initial_state=initial_state,
               output_final_state=output_final_state, cu_seqlens=cu_seqlens)


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **legacy: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute simple GLA, in either direction; results and errors as :func:`chunk_simple_gla`.

    Parameters
    ----------
    q, k, v, g, g_gamma, scale, initial_state, output_final_state, state_v_first, cu_seqlens
        As in :func:`chunk_simple_gla`.
    reverse
        Run right to left.
    **legacy
        ``transpose_state_layout``, the former name of ``state_v_first``: DeprecationWarning; ValueError with both.
    """
    state_v_first = _arguments.state_layout("fused_recurrent_simple_gla", state_v_first, legacy)
    _arguments.refuse_unknown("fused_recurrent_simple_gla", legacy)
    return run(q, k, v, _arguments.head_gate(g, g_gamma, q), scale=scale, initial_state=initial_state,
               output_final_state=output_final_state, reverse=reverse, state_v_first=state_v_first,
               cu_seqlens=cu_seqlens)


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **unknown: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute simple GLA, and on request its attention matrix.

    Parameters
    ----------
    q, k, v, g, scale, cu_seqlens, cu_seqlens_cpu
        As in :func:`chunk_simple_gla`.
    output_attentions
        Return A as well. It is formed beside o by plain PyTorch operations, in O(T²), and carries no gradient.
    **unknown
        None is accepted.

    Returns
    -------
    o : Tensor
        [B, T, H, V] in v's dtype.
    attentions : Tensor or None
        A [B, H, T, T] in q's dtype, o = A v; None unless asked for.

    Raises
    ------
    TypeError, ValueError
        As :func:`chunk_simple_gla`; ValueError for ``output_attentions`` with ``cu_seqlens``.
    """
    _arguments.refuse_unknown("parallel_simple_gla", unknown)
    if output_attentions and cu_seqlens is not None:
        raise ValueError("output_attentions: expected False with cu_seqlens: A is formed for whole sequences only")
    gates = _arguments.head_gate(g, None, q)
    o, _ = run(q, k, v, gates, scale=scale, initial_state=None, output_final_state=False, cu_seqlens=cu_seqlens,
               cu_seqlens_cpu=cu_seqlens_cpu)
    return o, scores(q, k, gates, o.shape[2], scale) if output_attentions else None
