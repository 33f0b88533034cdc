"""What is wrong with states: between sequences and segments, at the ends, in their dtype and order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from portable_gla.backend import Call
from seeded_faults.copies import Copy, Forward, budget, caught_by, changed, with_o


@caught_by(*budget("packed-two", "packed-many", "packed-ones-plain", "packed-empty-middle"),
           ("batch_invariant", "packed-two"))
class StateNotResetBetweenSequences(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        if call.cu_seqlens is None or call.q.shape[1] == 0:
            return result
        whole = torch.tensor([0, call.q.shape[1]])
        initial = None if call.initial_state is None else call.initial_state[:1]
        return with_o(result, super().forward(changed(call, cu_seqlens=whole, initial_state=initial), save=False)[0])


@caught_by(*budget("gate-channel-f32", "gate-none-bf16"))
class FinalStateOfTheWrongHead(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        o, final, residual = super().forward(call, save=save)
        return o, None if final is None else final.roll(1, 1), residual


@caught_by(*budget("gate-channel-f32", "gate-channel-bf16", "gate-head-f16"))
class StateCastTo16Bits(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        o, final, residual = super().forward(call, save=save)
        return o, None if final is None else final.bfloat16().to(final.dtype), residual


@caught_by(*budget("dims-3x17", "dims-64x100"))
class FinalStateTransposed(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        o, final, residual = super().forward(call, save=save)
        return o, None if final is None else final.mT.contiguous().view(final.shape), residual


@caught_by(*budget("packed-empty-first", "packed-all-empty", "tokens-0"))
class EmptySequenceForgetsItsState(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        o, final, residual = super().forward(call, save=save)
        if final is not None and call.cu_seqlens is not None:
            final[call.cu_seqlens.diff() == 0] = 0
        elif final is not None and call.q.shape[1] == 0:
            final.zero_()
        return o, final, residual


@caught_by(*budget("state-broadcast-final-f32"))
class BroadcastStateReachesTheFirstSequenceOnly(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        initial = call.initial_state
        if initial is not None and initial.shape[0] == 1:
            initial = torch.cat([initial, torch.zeros(call.sequences - 1, *initial.shape[1:])])
        return super().forward(changed(call, initial_state=initial), save=save)


@caught_by(("chained", "gate-channel-f32"), ("within_budget", "gate-channel-f32"))
class InitialStateTransposed(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        initial = call.initial_state
        if initial is not None:
            initial = initial.mT.contiguous().view(initial.shape)
        return super().forward(changed(call, initial_state=initial), save=save)


@caught_by(("segmented", "gate-channel-f32"))
class SegmentsWithoutTheirState(Copy):
    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return super().reasons_against(dataclasses.replace(problem, pins=()))

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        half = call.q.shape[1] // 2
        if call.pins.get("segments", 1) > 1:
            late = {name: getattr(call, name)[:, half:] for name in "qkvg"}
            result[0][:, half:] = super().forward(changed(call, initial_state=None, **late), save=False)[0]
        return result
