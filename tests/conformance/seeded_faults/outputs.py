"""What is wrong with o: rows, elements, heads, the diagonal, what is never written."""

from __future__ import annotations

import torch

from portable_gla.backend import Call
from seeded_faults.copies import Copy, Forward, budget, caught_by, changed, with_o


@caught_by(*budget("gate-channel-f64", "gate-channel-f32", "gate-channel-bf16", "gate-channel-f16", "tokens-1000"))
class RowOffByATenth(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        result[0][0, min(5, call.q.shape[1] - 1), 0] *= 1.1
        return result


@caught_by(*budget("gate-channel-f32", "dims-128x128", "wide-channel-bf16"))
class ElementOffByATenth(Copy):
    """The largest of its row, so that a cancelling sum does not excuse it."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        row = result[0][0, 9, 0]
        row[row.abs().argmax()] *= 1.1
        return result


@caught_by(*budget("gate-channel-f32", "gate-none-bf16", "tokens-1"))
class LostDiagonal(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        own = call.scale * (call.q.float() * call.k).sum(-1, keepdim=True) * call.v
        return with_o(result, (result[0] - own).to(call.v.dtype))


@caught_by(*budget("tokens-65", "tokens-129"))
class IndexOffAtAChunkBoundary(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        result[0][:, 64] = result[0][:, 63]
        return result


@caught_by(*budget("tokens-17"))
class LastBlockLost(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        result[0][:, 16:] = 0
        return result


@caught_by(*budget("gate-channel-f32", "gate-channel-bf16"))
class UninitialisedTail(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        o = torch.empty_like(result[0])
        o[:, :-1] = result[0][:, :-1]
        return with_o(result, o)


@caught_by(*budget("bonus-channel-f32", "bonus-head-bf16", "reverse-bonus"))
class BonusReadsTheDecayedState(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        if call.bonus is None:
            return result
        plain = super().forward(changed(call, bonus=None), save=False)[0]
        diagonal = call.scale * (call.q * (call.bonus - 1) * call.k).sum(-1, keepdim=True) * call.v
        return with_o(result, (plain + diagonal).to(call.v.dtype))


@caught_by(*budget("heads-mixed-channel", "heads-k-head", "heads-grouped-none"))
class HeadsInterleavedTheOtherWay(Copy):
    """Output head h reads head h % Hk, not h * Hk // H."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        heads, count = call.heads, call.v.shape[2]
        q, k = (x[:, :, [h % x.shape[2] for h in range(heads)]] for x in (call.q, call.k))
        v = call.v[:, :, [h % count for h in range(heads)]]
        return super().forward(changed(call, q=q, k=k, v=v), save=save)
