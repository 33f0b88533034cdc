"""Decoding: the plain recurrence over a few tokens, all sequences at once, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from portable_gla.backend import DecodeCall


def decode(call: DecodeCall) -> None:
    """Write o to ``call.out`` and the states to ``call.state``; see :class:`portable_gla.backend.DecodeCall`."""
    batch, tokens = call.q.shape[:2]
    if batch == 0:
        return
    heads = call.state.shape[1]
    compute = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    rows = torch.arange(batch, device=call.q.device) if call.slots is None else call.slots.clamp(min=0).long()
    old = call.state[rows]
    state = old.to(compute)
    bonus = None if call.bonus is None else call.bonus.to(compute)[..., None]
    for t in range(tokens):
        q, k, v = (_heads(x[:, t].to(compute), heads) for x in (call.q, call.k, call.v))
        outer = k[..., None] * v[:, :, None]
        decayed = state if call.g is None else _decay(call.g, t, heads, compute) * state
        read = decayed + outer if bonus is None else state + bonus * outer
        state = decayed + outer
        o = call.scale * (q[:, :, None] @ read)[:, :, 0]
        if call.slots is not None:
            o = o.where((call.slots >= 0)[:, None, None], o.new_zeros(()))
        call.out[:, t] = o.to(call.out.dtype)
    _write(call, rows, old, state.to(call.state.dtype))


def _write(call: DecodeCall, rows: Tensor, old: Tensor, new: Tensor) -> None:
    if call.slots is None:
        call.state.copy_(new)
        return
    # A skipped sequence repeats the write of one that is not (or rewrites row 0 as it was): no two writes differ.
    valid = call.slots >= 0
    new = new.where(valid[:, None, None, None], old)
    source = torch.arange(rows.shape[0], device=rows.device).where(valid, valid.int().argmax())
    call.state.index_copy_(0, rows[source], new[source])


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def _decay(g: Tensor, t: int, heads: int, compute: torch.dtype) -> Tensor:
    if g.dim() == 1:
        return _heads(g[None], heads).to(compute).exp()[..., None, None]
    g = _heads(g[:, t], heads).to(compute).exp()
    return g[..., None, None] if g.dim() == 2 else g[..., None]
