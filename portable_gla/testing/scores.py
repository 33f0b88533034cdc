"""What rounding a call's scores may do: the sums of squares of its terms, with one term a pair of tokens.

A computation by chunks multiplies q and k first, A_ij = Σ_k q_ik k_jk F_ijk with the decays F, or do and v, dA_ij = Σ_v
do_iv v_jv, and rounds these sums to feed them to the next product. Where their terms agree in sign a sum is larger than
the root of its terms' squares, and so is the error of rounding it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from portable_gla.backend import Call
from portable_gla.testing.oracle import expand, fold, sequences, turn


class _Squares(NamedTuple):
    """[B, T, H, ...]: Σ (A v)², and with dA for A the sums that make dq, dk and dg; Σ (Aᵀ do)²; [H, K] dbonus."""

    o: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dg: Tensor
    dbonus: Tensor


def squares(call: Call, do: Tensor) -> dict[str, Tensor]:
    """Return Σ of squares over the pairs of tokens, by quantity and in its shape, of a call in float64.

    A path from a key to a reader n tokens later crosses a constant gate n times: its square counts n² times.
    """
    inputs = expand(call, call.heads)
    o, dq, dk, dv, dg = (torch.zeros_like(x) for x in (inputs[2], *inputs))
    found = _Squares(o, dq, dk, dv, dg, inputs[0].new_zeros(inputs[0].shape[2:]))
    per_channel = call.g is not None and call.g.dim() == 4
    constant = call.g is not None and call.g.dim() == 1
    for rows, tokens, _ in sequences(call):
        q, k, v, g, d = (turn(call, x[rows, tokens]).transpose(1, 2) for x in (*inputs, do))
        part = _of_pairs(q, k, v, g, d, call.bonus, call.scale, per_channel, constant)
        for whole, one in zip(found[:-1], part[:-1], strict=True):
            whole[rows, tokens] = turn(call, one.transpose(1, 2))
        found.dbonus.add_(part.dbonus)
    named = {"o": found.o, "dq": fold(found.dq, call.q), "dk": fold(found.dk, call.k), "dv": fold(found.dv, call.v)}
    if call.g is not None:
        named["dg"] = fold(found.dg, call.g)
    if call.bonus is not None:
        named["dbonus"] = found.dbonus
    return named


def _either(terms: Tensor) -> Tensor:
    """Return the square of a sum of the last dimension or the sum of the squares, whichever is more.

    In the gradient of a gate that channels share, one rounding of a number of do meets the whole of A_ij, and one of q
    the whole of dA_ij.
    """
    return terms.sum(-1, keepdim=True).square().maximum(terms.square().sum(-1, keepdim=True))


def _of_pairs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, do: Tensor, bonus: Tensor | None, scale: float,
              per_channel: bool, constant: bool) -> _Squares:
    """Take q, k, g, v, do [B, H, T, ...] of sequences that run as one, reader by reader."""
    o, dq, dk, dv, dg = (torch.zeros_like(x) for x in (v, q, k, v, g))
    dbonus = q.new_zeros(q.shape[1], q.shape[3])
    decays = torch.ones_like(k)  # from every key to this reader
    for i in range(q.shape[2]):
        before, upto = slice(0, i), slice(0, i + 1)
        gate = g[:, :, i, None].exp()
        if bonus is None:
            decays[:, :, before] *= gate
        weights = decays[:, :, upto].clone()
        if bonus is not None:
            weights[:, :, i] *= bonus
        reader, read = scale * q[:, :, i, None], do[:, :, i, None]
        keys, back = k[:, :, upto] * weights, (v[:, :, upto] * read).sum(-1, keepdim=True)
        score = (reader * keys).sum(-1, keepdim=True)
        o[:, :, i] = (score * v[:, :, upto]).square().sum(2)
        dv[:, :, upto] += (score * read).square()
        dq[:, :, i] = (scale * back * keys).square().sum(2)
        dk[:, :, upto] += (back * reader * weights).square()
        if bonus is not None:
            dbonus += (back[:, :, i] * reader[:, :, 0] * k[:, :, i]).square().sum(0)
        # A gate is crossed by the paths from the keys before it; with a bonus the reader's own is not.
        if per_channel:
            paths = (back * reader * keys).square()
        else:  # fold adds as many channels
            paths = _either(reader * keys) * _either(v[:, :, upto] * read) / keys.shape[-1]
        paths = paths[:, :, before]
        crossed = slice(1, i + 1) if bonus is None else slice(1, i)
        if constant:
            times = torch.arange(i, 0, -1, dtype=paths.dtype)[:, None] - int(bonus is not None)
            dg[:, :, i] += (times.square() * paths).sum(2)
        else:
            dg[:, :, crossed] += paths.cumsum(2)[:, :, : crossed.stop - 1]
        if bonus is not None:
            decays[:, :, before] *= gate
    return _Squares(o, dq, dk, dv, dg, dbonus)
