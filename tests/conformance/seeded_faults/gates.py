"""What is wrong with gates: the wrong token's, resets, huge and strong ones, the other direction's."""

from __future__ import annotations

import math

import torch

from portable_gla.backend import Call
from seeded_faults.copies import Copy, Forward, budget, caught_by, changed, with_o


@caught_by(*budget("gate-channel-f32", "gate-head-bf16", "regime-slow-channel-f32", "regime-huge-channel-f32"))
class GateShiftedByOneToken(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        return super().forward(changed(call, g=call.g.roll(1, 1)), save=save)  # type: ignore[union-attr]


@caught_by(("causal", "regime-slow-channel-f32"), ("causal", "gate-head-f32"))
class FutureLeaksThroughTheAnchor(Copy):
    """Decays formed as a quotient by the block's last cumulative gate: rounded away where a later gate is strong."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        if call.g is None or call.g.dim() == 1:
            return result
        total = call.g.float().flatten(2).sum((1, 2)).abs()[:, None, None, None]
        return with_o(result, (result[0] * (1 + total * 2**-24)).to(call.v.dtype))


@caught_by(*budget("regime-resets-channel-f32", "regime-edges-head-f32", "regime-all-resets-channel-bf16"))
class ResetGivesNaN(Copy):
    """A difference of cumulative gates: -inf - -inf."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        if call.g is None or call.g.dim() == 1:
            return result
        total = call.g.float().cumsum(1)
        bad = (total - total).isnan()
        bad = bad.any(-1) if bad.dim() == 4 else bad
        return with_o(result, result[0].masked_fill(bad[..., None], math.nan))


@caught_by(*budget("regime-huge-channel-f32", "regime-huge-head-f32"))
class HugeGateSpoilsItsNeighbours(Copy):
    """Gates taken as differences of a float32 cumulative sum."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        assert call.g is not None
        total = call.g.float().cumsum(1)
        g = torch.cat([call.g[:, :1].float(), total[:, 1:] - total[:, :-1]], 1)
        return super().forward(changed(call, g=g), save=save)


@caught_by(*budget("regime-strong-channel-f32", "regime-range-head-f32", "regime-resets-channel-f32"))
class GateClampedTooEarly(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        return super().forward(changed(call, g=call.g.clamp(min=-8.0)), save=save)  # type: ignore[union-attr]


@caught_by(*budget("reverse-channel-f32", "reverse-bonus"))
class ReverseIgnoredForTheGate(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        g = call.g.flip(1) if call.reverse and call.g is not None and call.g.dim() > 1 else call.g
        return super().forward(changed(call, g=g), save=save)


@caught_by(("flipped", "reverse-channel-f32"))
class ReverseWithTheOtherDecay(Copy):
    """Run backwards with the gate of the token before, not of its own."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        g = call.g if call.reverse or call.g is None else call.g.roll(1, 1)
        return super().forward(changed(call, g=g), save=save)
