"""Decoding: the recurrence, all sequences at once, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla.backend import DecodeCall
from portable_gla_ascend.operations.attention import exact_products


def decode(call: DecodeCall) -> None:
    """Write o to ``call.out`` and the new states to ``call.state``."""
    if call.q.shape[0] == 0:
        return
    with exact_products(call.q):
        _decode(call)


def _decode(call: DecodeCall) -> None:
    heads = call.state.shape[1]
    present = None if call.slots is None else call.slots >= 0
    rows = None if call.slots is None else call.slots.clamp(min=0).long()
    stored = call.state if rows is None else call.state.index_select(0, rows)
    state = stored.float()
    bonus = None if call.bonus is None else call.bonus.float()[..., None]
    for t in range(call.q.shape[1]):
        q, k, v = (_spread(x[:, t].float(), heads) for x in (call.q, call.k, call.v))
        outer = k[..., None] * v[:, :, None]
        following = outer + (state if call.g is None else _decay(call.g, t, heads) * state)
        read = following if bonus is None else torch.addcmul(state, bonus, outer)
        o = call.scale * torch.matmul(q[:, :, None], read)[:, :, 0]
        if present is not None:
            o = o.masked_fill(~present[:, None, None], 0)
        call.out[:, t] = o.to(call.out.dtype)
        state = following
    if rows is None or present is None:
        call.state.copy_(state)
        return
    # Whoever is skipped writes what the first present sequence writes, to the same row; if none is, row 0 as it was.
    whose = torch.where(present, torch.arange(rows.shape[0], device=rows.device), present.int().argmax())
    kept = torch.where(present[:, None, None, None], state.to(stored.dtype), stored)
    call.state.index_copy_(0, rows.index_select(0, whose), kept.index_select(0, whose))


def _spread(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def _decay(g: Tensor, t: int, heads: int) -> Tensor:
    """Return exp(g) of one token as [B or 1, H, K or 1, 1]."""
    each = _spread(g[None] if g.dim() == 1 else g[:, t], heads).float().exp()
    return each[..., None] if each.dim() == 3 else each[..., None, None]
