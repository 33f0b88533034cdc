"""Decay along the value dimension: S_t = diag(exp(gk_t)) S_{t-1} diag(exp(gv_t)) + k_t v_tᵀ.

Column j of S never meets another column, and decays by exp(gk_t + gv_tj). So each column is a head of its own, with
V = 1: :func:`portable_gla.attention` on H · V heads is exact, stable for every gate, and differentiable, and its shared
heads let q and k stay as they are. With ``gv`` alone the gate is one number per such head, and nothing grows. With
both, the gate is [B, T, H · V, K]: V times gk.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from portable_gla import settings
from portable_gla.api import attention
from portable_gla.errors import PortabilityWarning, UnsupportedProblem


def attention_with_value_gate(
    q: Tensor, k: Tensor, v: Tensor, gk: Tensor | None, gv: Tensor, *, scale: float | None,
    initial_state: Tensor | None, cu_seqlens: Tensor | None, output_final_state: bool, reverse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute :func:`portable_gla.attention` with a decay ``gv`` [B, T, H, V] of the value channels as well.

    Parameters are as there; v, gv and gk have all H heads, q and k may share theirs.

    Raises
    ------
    ValueError
        If gv is not of v's shape, or a head count differs.
    UnsupportedProblem
        In strict mode, if both gates are given: that needs V times the memory of gk.
    """
    batch, tokens, heads, value_dim = v.shape
    if gv.shape != v.shape:
        raise ValueError(f"gv: expected shape {list(v.shape)} as v, got {list(gv.shape)}")
    for name, x in (("q", q), ("k", k), ("gk", gk)):
        if x is not None and (x.shape[2] > heads or (name == "gk" and x.shape[2] != heads)):
            raise ValueError(f"{name}: expected H = {heads} heads as v has with gv, got {x.shape[2]}")
    if gk is None:
        g = gv.flatten(2)
    else:
        _say_what_it_costs(gk, value_dim)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        g = (gk.to(wide)[:, :, :, None, :] + gv.to(wide)[..., None]).flatten(2, 3)
    if initial_state is not None:
        initial_state = initial_state.transpose(-1, -2).flatten(1, 2)[..., None]
    found = attention(q, k, v.flatten(2)[..., None], g, scale=q.shape[-1] ** -0.5 if scale is None else scale,
                      initial_state=initial_state, cu_seqlens=cu_seqlens, output_final_state=output_final_state,
                      reverse=reverse)
    if isinstance(found, Tensor):
        return found.view(batch, tokens, heads, value_dim)
    o, final_state = found
    return (o.view(batch, tokens, heads, value_dim),
            final_state.view(final_state.shape[0], heads, value_dim, -1).transpose(-1, -2).contiguous())


def _say_what_it_costs(gk: Tensor, value_dim: int) -> None:
    if torch.compiler.is_compiling():
        return
    text = f"gk and gv together need a gate [B, T, H · V, K], {value_dim} times gk, and V-times more work on gates"
    if settings.current().strict:
        raise UnsupportedProblem(f"{text}: strict mode takes no such path; leave it, or give one of the two gates")
    warnings.warn(PortabilityWarning(text), stacklevel=5)
