"""Gated linear attention on one slab: n blocks of c tokens, every decay a product of exp(g), never a quotient.

Within a block the decay from token j to token i is formed by multiplying exp(g) up, one token at a time: exact for
every g ≤ 0, resets included, and no gate ever meets a cumulative sum that a neighbour has spoilt. Shapes: H heads, n
blocks, c tokens, K and V channels. o and do are without the factor ``scale``: the caller has it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Slab(NamedTuple):
    """q, k, decay [H, n, c, K] and v [H, n, c, V]; past a sequence's end k, v, q are 0 and the decay is 1."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor


class SlabGradients(NamedTuple):
    """As :class:`Slab`, with g for the decay's logarithm; state [H, K, V] before the slab; bonus [H, K]."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    state: Tensor
    bonus: Tensor | None


class _Decays(NamedTuple):
    before: Tensor  # [H, n, c, K]: from the block's start to what token i reads
    after: Tensor  # [H, n, c, K]: from token j to the block's end
    block: Tensor  # [H, n, K]: over the whole block


def forward(x: Slab, state: Tensor, bonus: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return o [H, n, c, V] and the state after the slab, from the state [H, K, V] before it."""
    decays = _decays(x.decay, own=bonus is None)
    states = _scan(decays.block, (x.k * decays.after).mT @ x.v, state)
    o = (x.q * decays.before) @ states[:, :-1] + _scores(x, bonus) @ x.v
    return o, states[:, -1]


def backward(x: Slab, state: Tensor, bonus: Tensor | None, do: Tensor, dstate: Tensor) -> SlabGradients:
    """Return the gradients, from do [H, n, c, V] times scale and the gradient [H, K, V] of the state after the slab.

    dg_t gathers every path across token t (from a key or the incoming state before it to a query or the outgoing
    state after it). Each such term carries the factor exp(g_t), so a strong gate's small dg is right to its own size;
    the usual difference q·dq − k·dk is not.
    """
    own = bonus is None
    decays = _decays(x.decay, own)
    q_in, k_out = x.q * decays.before, x.k * decays.after
    states = _scan(decays.block, k_out.mT @ x.v, state)[:, :-1]
    # dstates[:, b] is by the state after block b; the last entry of the flipped scan is by the state before the slab.
    scanned = _scan(decays.block.flip(1), (q_in.mT @ do).flip(1), dstate)
    dstates, dbefore = scanned[:, :-1].flip(1), scanned[:, -1]

    dq_in = decays.before * (do @ states.mT)
    dk_out = decays.after * (x.v @ dstates.mT)
    dv = _scores(x, bonus).mT @ do + k_out @ dstates
    dscores = do @ x.v.mT
    dq_pairs, dk_pairs, dg_pairs = _pair_gradients(x, dscores, own)

    inflow = (x.q * dq_in).flip(2).cumsum(2).flip(2)  # from the incoming state to the queries i ≥ t
    outflow = (x.k * dk_out).cumsum(2)  # from the keys j ≤ t to the outgoing state
    if not own:
        inflow = _shift(inflow, -1)  # token t reads before its own gate
    through = decays.block * (states * dstates).sum(-1)
    dg = inflow + _shift(outflow, 1) + through[:, :, None] + dg_pairs
    dq, dk, dbonus = dq_in + dq_pairs, dk_out + dk_pairs, None
    if bonus is not None:
        diagonal = torch.diagonal(dscores, dim1=-2, dim2=-1)[..., None]
        dq = dq + diagonal * bonus[:, None, None] * x.k
        dk = dk + diagonal * bonus[:, None, None] * x.q
        dbonus = (diagonal * x.q * x.k).sum((1, 2))
    return SlabGradients(dq, dk, dv, dg, dbefore, dbonus)


def _decays(decay: Tensor, own: bool) -> _Decays:
    count = decay.shape[2]
    up, down = [torch.ones_like(decay[:, :, 0])], [torch.ones_like(decay[:, :, 0])]
    for i in range(count):
        up.append(up[-1] * decay[:, :, i])
        down.append(down[-1] * decay[:, :, count - 1 - i])
    before = torch.stack(up[1:] if own else up[:-1], 2)
    return _Decays(before, torch.stack(down[-2::-1], 2), up[-1])


def _scan(decay: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """Return the states [H, n + 1, K, V] before the first block and after each, from added [H, n, K, V]."""
    states = added.new_empty(added.shape[0], added.shape[1] + 1, *added.shape[2:])
    states[:, 0] = state
    for b in range(added.shape[1]):
        torch.addcmul(added[:, b], decay[:, b, :, None], states[:, b], out=states[:, b + 1])
    return states


def _keys_so_far(x: Slab) -> list[Tensor]:
    """Return for every token t the keys j ≤ t decayed to the state after it: [H, n, t + 1, K] each."""
    keys: list[Tensor] = []
    for t in range(x.k.shape[2]):
        new = x.k[:, :, t:t + 1]
        keys.append(torch.cat([keys[-1] * x.decay[:, :, t:t + 1], new], 2) if keys else new)
    return keys


def _queries_from(x: Slab, own: bool) -> list[Tensor]:
    """Return for every token t the queries that read the state after it, decayed back to it: [H, n, ≤ c − t, K].

    With ``own`` these are i ≥ t, else i > t (and none for the last token).
    """
    count = x.q.shape[2]
    queries = [x.q[:, :, count:]] * count
    for t in reversed(range(count)):
        if own:
            later = queries[t + 1] * x.decay[:, :, t + 1:t + 2] if t + 1 < count else queries[t]
            queries[t] = torch.cat([x.q[:, :, t:t + 1], later], 2)
        elif t + 1 < count:
            later = queries[t + 1] * x.decay[:, :, t + 1:t + 2]
            queries[t] = torch.cat([x.q[:, :, t + 1:t + 2], later], 2)
    return queries


def _scores(x: Slab, bonus: Tensor | None) -> Tensor:
    """Return the in-block scores [H, n, c, c], zero above the diagonal."""
    count = x.q.shape[2]
    scores = x.q.new_zeros(*x.q.shape[:3], count)
    keys = x.k[:, :, :0]
    for i in range(count):
        q = x.q[:, :, i, :, None]
        if bonus is not None:
            scores[:, :, i, :i] = (keys @ q)[..., 0]
            scores[:, :, i, i] = (x.q[:, :, i] * bonus[:, None] * x.k[:, :, i]).sum(-1)
        keys = torch.cat([keys * x.decay[:, :, i:i + 1], x.k[:, :, i:i + 1]], 2)
        if bonus is None:
            scores[:, :, i, :i + 1] = (keys @ q)[..., 0]
    return scores


def _pair_gradients(x: Slab, dscores: Tensor, own: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk and dg of the pairs within blocks, the bonus diagonal left out."""
    count = x.q.shape[2]
    keys, queries = _keys_so_far(x), _queries_from(x, own)
    first = 0 if own else 1  # the first reader of the state after t is t + first
    dq, dk, dg = (torch.zeros_like(x.q) for _ in range(3))
    for t in range(count):
        if t + first < count:
            # Token t + first reads the keys j ≤ t; key t is read by the tokens i ≥ t + first.
            dq[:, :, t + first] = (dscores[:, :, t + first, None, :t + 1] @ keys[t])[:, :, 0]
            dk[:, :, t] = (dscores[:, :, t + first:, t, None].mT @ queries[t])[:, :, 0]
        if t > 0 and t + first < count:
            crossing = dscores[:, :, t + first:, :t].mT @ queries[t]
            dg[:, :, t] = (keys[t][:, :, :t] * crossing).sum(2)
    return dq, dk, dg


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift along the tokens of a block, zeros coming in."""
    zeros = torch.zeros_like(x[:, :, :1])
    return torch.cat([zeros, x[:, :, :-1]], 2) if by > 0 else torch.cat([x[:, :, 1:], zeros], 2)
