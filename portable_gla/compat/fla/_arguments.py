"""What the original's signatures need beyond :func:`portable_gla.attention`'s: keywords, gates, packing."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from portable_gla import validation

_SHAPES = {3: "[B, T, H]", 4: "[B, T, H, K]"}


def refuse_unknown(function: str, unknown: dict[str, Any]) -> None:
    """Raise TypeError for any keyword that is left, as a plain signature would."""
    for name in unknown:
        if name == "head_first":
            raise TypeError(f"{function}() takes no 'head_first': tensors are [B, T, H, ...]; transpose them")
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def state_layout(function: str, state_v_first: bool, legacy: dict[str, Any]) -> bool:
    """Return whether states are [V, K], taking the former name ``transpose_state_layout`` out of ``legacy``.

    Raises
    ------
    ValueError
        If both names are given.
    """
    if "transpose_state_layout" not in legacy:
        return state_v_first
    value = bool(legacy.pop("transpose_state_layout"))
    if state_v_first:
        raise ValueError(f"{function}(): state_v_first and transpose_state_layout are one thing: give only the former")
    warnings.warn(f"{function}(): transpose_state_layout is now called state_v_first", DeprecationWarning, stacklevel=3)
    return value


def check_state_layout(state_v_first: object) -> None:
    """Refuse what is no bool: before 0.6 ``cu_seqlens`` stood in this position."""
    if not isinstance(state_v_first, bool):
        raise TypeError(f"state_v_first: expected a bool, got {type(state_v_first).__name__}; pass cu_seqlens by its "
                        "keyword, its position differs between versions")


def check_packing(q: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None,
                  cu_seqlens_cpu: Tensor | None) -> None:
    """Check B = 1 and one state per packed sequence; with ``cu_seqlens_cpu`` the offsets' values as well.

    Raises
    ------
    ValueError
        On a mismatch.
    """
    if cu_seqlens is None:
        return
    if q.shape[0] != 1:
        raise ValueError(f"q: expected B = 1 with cu_seqlens, got B = {q.shape[0]}: pack the sequences along T")
    sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None and initial_state.shape[0] != sequences:
        raise ValueError(f"initial_state: expected one state for each of the {sequences} sequences of cu_seqlens, "
                         f"got {initial_state.shape[0]}")
    if cu_seqlens_cpu is not None:
        validation.check_cu_seqlens_values(cu_seqlens_cpu, q.shape[1])


def gate(name: str, g: Tensor | None, rank: int, q: Tensor) -> Tensor | None:
    """Check a gate's rank, and give it a dtype that :func:`portable_gla.attention` takes: q's or float32.

    Raises
    ------
    TypeError, ValueError
        If it is no tensor of that rank.
    """
    if g is None:
        return None
    if not isinstance(g, Tensor):
        raise TypeError(f"{name}: expected a tensor {_SHAPES[rank]}, got {type(g).__name__}")
    if g.dim() != rank:
        raise ValueError(f"{name}: expected {_SHAPES[rank]}, got shape {list(g.shape)}")
    return g if g.dtype == q.dtype else g.to(torch.float32)


def head_gate(g: Tensor | None, g_gamma: Tensor | None, q: Tensor) -> Tensor | None:
    """Combine the gate [B, T, H] with the constant one [H]: both decay the state, so their logarithms add.

    Raises
    ------
    TypeError, ValueError
        If either is no tensor of its rank.
    """
    g = gate("g", g, 3, q)
    if g_gamma is None:
        return g
    if not isinstance(g_gamma, Tensor):
        raise TypeError(f"g_gamma: expected a tensor [H], got {type(g_gamma).__name__}")
    if g_gamma.dim() != 1:
        raise ValueError(f"g_gamma: expected [H], got shape {list(g_gamma.shape)}")
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return g_gamma.to(wide) if g is None else g.to(wide) + g_gamma.to(wide)
