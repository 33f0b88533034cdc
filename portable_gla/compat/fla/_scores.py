"""The attention matrix that ``parallel_simple_gla`` can return, in plain PyTorch operations."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def scores(q: Tensor, k: Tensor, g: Tensor | None, heads: int, scale: float | None) -> Tensor:
    """Return A [B, H, T, T] in q's dtype, A_ij = scale · q_i·k_j · exp(g_{j+1} + … + g_i) for j ≤ i, else 0.

    Every sum of gates is formed from its own first term on: a difference of two running sums would lose small decays
    behind strong ones, and give NaN behind a reset (-inf).

    Parameters
    ----------
    q, k
        [B, T, Hq, K] and [B, T, Hk, K].
    g
        [B, T, Hg] or None.
    heads
        H.
    scale
        Default ``K ** -0.5``.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    batch, tokens = q.shape[:2]
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    after = causal.tril(-1)
    found = q.new_empty(batch, heads, tokens, tokens)
    for row in range(batch):  # the float32 intermediates are as large as A: hold one row's only
        queries, keys = (x[row].to(wide).transpose(0, 1).repeat_interleave(heads // x.shape[2], 0) for x in (q, k))
        part = factor * (queries @ keys.mT)
        if g is not None:
            gates = g[row].to(wide).T.repeat_interleave(heads // g.shape[2], 0)
            part = part * gates[:, :, None].expand_as(part).where(after, 0.0).cumsum(1).exp()
        found[row] = part.where(causal, 0.0)
    return found
