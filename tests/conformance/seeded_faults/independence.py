"""What depends on what it must not: strides, the run, the batch, NaN elsewhere, the layout; or changes an input."""

from __future__ import annotations

import itertools

import torch

from portable_gla.backend import Call
from seeded_faults.copies import Copy, Forward, caught_by, changed, with_o


@caught_by(("strided", "strides-channels-first"), ("strided", "strides-stepped"), ("strided", "strides-fused"))
class StridesIgnored(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        q = call.q.as_strided(call.q.shape, torch.empty(call.q.shape).stride())
        return super().forward(changed(call, q=q), save=save)


@caught_by(("within_budget", "gate-channel-f32"))
class Nondeterministic(Copy):
    """In the last bit of one element."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = itertools.count()

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        if next(self.runs) % 2:
            result[0][0, 0, 0, 0] *= 1 + torch.finfo(call.v.dtype).eps
        return result


@caught_by(("batch_invariant", "gate-channel-f32"), ("batch_invariant", "packed-two"))
class DependsOnTheBatch(Copy):
    """In the last bit."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        return with_o(result, result[0] * (1 + call.sequences * torch.finfo(call.v.dtype).eps))


@caught_by(("isolated_sequences", "gate-channel-f32"), ("isolated_heads", "gate-channel-f32"))
class NaNSpreads(Copy):
    """A masked sum: 0 · NaN."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        return with_o(result, result[0] + 0 * call.v.sum())


@caught_by(("within_budget", "gate-channel-f32"))
class OverwritesAnInput(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        call.k.mul_(call.scale)
        return result


@caught_by(("either_layout", "layout-bhtd-channel"))
class LayoutMatters(Copy):
    """In the last bit."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        return result if call.q.is_contiguous() else with_o(result, result[0] * (1 + 2**-22))
