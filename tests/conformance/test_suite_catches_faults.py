"""The suite itself is tested: each fault below, seeded into a copy of a backend, must be caught by the named checks.

The copy wraps the eager backend; a fault changes what one of its methods is given or returns, as the mistake would.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from portable_gla import registry
from portable_gla.backend import Backend, Call, DecodeCall, Gradients
from portable_gla.problem import Reason
from portable_gla.testing import cases
from portable_gla.testing.checks import CHECKS, CheckRow
from portable_gla.testing.running import Target

Forward = tuple[Tensor, Tensor | None, Tensor | None]


class Copy:
    """A backend that does as another does; faults override one of its methods."""

    name = "copy"
    priority = -1
    plain = False

    def __init__(self) -> None:
        self.sound: Backend = registry.get("eager")

    def unavailable(self) -> Sequence[Any]:
        return ()

    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return self.sound.reasons_against(problem)

    def schedule(self, problem: Any) -> Any:
        return self.sound.schedule(problem)

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        return self.sound.residual_spec(call)

    def forward(self, call: Call, *, save: bool) -> Forward:
        return self.sound.forward(call, save=save)

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        return self.sound.backward(call, residual, do, dfinal_state)

    def decode(self, call: DecodeCall) -> None:
        self.sound.decode(call)


class Fault(NamedTuple):
    backend: type[Copy]
    check: str
    case: str

    def __str__(self) -> str:
        return f"{self.backend.__name__}-{self.check}-{self.case}"


FAULTS: list[Fault] = []


def caught_by(*pairs: tuple[str, str]) -> Callable[[type[Copy]], type[Copy]]:
    def note(backend: type[Copy]) -> type[Copy]:
        FAULTS.extend(Fault(backend, check, case) for check, case in pairs)
        return backend

    return note


def budget(*names: str) -> list[tuple[str, str]]:
    return [("within_budget", name) for name in names]


def changed(call: Call, **fields: Any) -> Call:
    return dataclasses.replace(call, **fields)


def with_o(result: Forward, o: Tensor) -> Forward:
    return o, *result[1:]


# What is wrong with o.


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


@caught_by(*budget("gate-channel-f32", "gate-head-bf16", "regime-slow-channel-f32", "regime-huge-channel-f32"))
class GateShiftedByOneToken(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        return super().forward(changed(call, g=call.g.roll(1, 1)), save=save)  # type: ignore[union-attr]


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


# What is wrong with states.


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


# What is wrong with gradients.


class Backwards(Copy):
    """A fault of the backward pass alone."""

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        return self.spoilt(call, super().backward(call, residual, do, dfinal_state), do, dfinal_state)

    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        raise NotImplementedError


@caught_by(*budget("gate-channel-f32", "gate-constant-bf16"))
class MissingScaleInDk(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        return found._replace(k=found.k / call.scale)


@caught_by(*budget("gate-channel-f32", "gate-head-f32"))
class RowOfDgOff(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        assert found.g is not None
        found.g[0, 7] *= 1.1
        return found


@caught_by(*budget("gate-channel-f32", "gate-head-bf16", "gate-constant-f32"))
class DgLacksTheStateTerm(Backwards):
    """The part of dg that crosses a boundary with d final_state."""

    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        residual = self.sound.forward(call, save=True)[2]
        assert residual is not None
        return found._replace(g=self.sound.backward(call, residual, do, None).g)


@caught_by(*budget("regime-strong-channel-f32", "regime-strong-head-f32", "regime-extreme-channel-f32",
                   "regime-resets-channel-f32"))
class DgByDifferences(Backwards):
    """dg as a running sum of q · dq − k · dk: noise of the neighbours' size where a gate is strong."""

    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        assert call.g is not None and found.g is not None
        final = self.sound.forward(changed(call, output_final_state=True), save=False)[1]
        assert final is not None
        last = (final * dfinal_state).sum(-1)[:, None] if dfinal_state is not None else 0.0
        dg = (call.q * found.q - call.k * found.k).flip(1).cumsum(1).flip(1) + last
        return found._replace(g=dg if call.g.dim() == 4 else dg.sum(-1))


@caught_by(*budget("heads-kv-channel", "heads-q-channel", "heads-grouped-bonus-bf16"))
class SharedHeadGradientFromTheLastHead(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        heads = call.heads
        spread = changed(call, q=call.q.repeat_interleave(heads // call.q.shape[2], 2),
                         k=call.k.repeat_interleave(heads // call.k.shape[2], 2))
        residual = self.sound.forward(spread, save=True)[2]
        assert residual is not None
        whole = self.sound.backward(spread, residual, do, dfinal_state)
        return found._replace(q=whole.q[:, :, heads // call.q.shape[2] - 1::heads // call.q.shape[2]].contiguous(),
                              k=whole.k[:, :, heads // call.k.shape[2] - 1::heads // call.k.shape[2]].contiguous())


@caught_by(*budget("state-broadcast-final-f32", "packed-two-reverse-bonus"))
class BroadcastStateGradientNotSummed(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        initial = call.initial_state
        if initial is None or initial.shape[0] != 1:
            return found
        spread = changed(call, initial_state=initial.expand(call.state_shape))
        residual = self.sound.forward(spread, save=True)[2]
        assert residual is not None
        each = self.sound.backward(spread, residual, do, dfinal_state).initial_state
        return found._replace(initial_state=None if each is None else each[:1].clone())


@caught_by(*budget("bonus-channel-f32", "bonus-none-bf16"))
class BonusGradientOfOneBatchRow(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        assert found.bonus is not None
        return found._replace(bonus=found.bonus / call.q.shape[0])


@caught_by(*budget("gate-constant-f32", "gate-constant-f16"))
class ConstantGateGradientLacksATail(Backwards):
    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        cut = changed(call, **{name: getattr(call, name)[:, :-8] for name in "qkv"})
        residual = self.sound.forward(cut, save=True)[2]
        assert residual is not None
        return found._replace(g=self.sound.backward(cut, residual, do[:, :-8], dfinal_state).g)


@caught_by(("strided", "strides-heads-first"))
class GradientTakenForContiguous(Copy):
    """Reads do by contiguous strides: past its memory, where it is expanded."""

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        if not do.is_contiguous():
            first, do = do[0, 0, 0, 0], torch.full(do.shape, math.nan)
            do[0, 0, 0, 0] = first
        return super().backward(call, residual, do, dfinal_state)


@caught_by(("partial_gradients", "gate-channel-f32"))
class GradientLostWithoutTheFinalState(Copy):
    """As if d final_state were always there, or nothing came back to o."""

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        found = super().backward(call, residual, do, dfinal_state)
        return found if dfinal_state is not None else found._replace(v=torch.zeros_like(found.v))


@caught_by(*budget("regime-resets-channel-f32", "regime-all-resets-head-f32"))
class GradientOfAResetIsNaN(Backwards):
    """dg / exp(g) · exp(g)."""

    def spoilt(self, call: Call, found: Gradients, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        assert call.g is not None and found.g is not None
        decay = call.g.exp()
        return found._replace(g=found.g / decay * decay)


@caught_by(*budget("packed-two", "packed-many"))
class GradientCrossesSequences(Copy):
    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        found = super().backward(call, residual, do, dfinal_state)
        assert call.cu_seqlens is not None
        starts = call.cu_seqlens[1:-1].long()
        found.k[:, (starts - 1).clamp(min=0)] += 0.1
        return found


# What is wrong with segments and chains, and with decoding.


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


@caught_by(("segmented", "gate-channel-f32"))
class PinRefusedForTheWrongReason(Copy):
    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return [reason._replace(code="device") for reason in super().reasons_against(problem)]


@caught_by(("within_budget", "gate-channel-f64"))
class RunsWhatItRefuses(Copy):
    """Its reasons say no twice, and the call that asks next goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = itertools.count()

    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return () if next(self.asked) >= 2 else [Reason("dtype", "no float64 here at all", "use float32")]


@caught_by(("chained", "gate-channel-f32"), ("within_budget", "gate-channel-f32"))
class InitialStateTransposed(Copy):
    def forward(self, call: Call, *, save: bool) -> Forward:
        initial = call.initial_state
        if initial is not None:
            initial = initial.mT.contiguous().view(initial.shape)
        return super().forward(changed(call, initial_state=initial), save=save)


@caught_by(("flipped", "reverse-channel-f32"))
class ReverseWithTheOtherDecay(Copy):
    """Run backwards with the gate of the token before, not of its own."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        g = call.g if call.reverse or call.g is None else call.g.roll(1, 1)
        return super().forward(changed(call, g=g), save=save)


@caught_by(("either_layout", "layout-bhtd-channel"))
class LayoutMatters(Copy):
    """In the last bit."""

    def forward(self, call: Call, *, save: bool) -> Forward:
        result = super().forward(call, save=save)
        return result if call.q.is_contiguous() else with_o(result, result[0] * (1 + 2**-22))


@caught_by(("decodes", "gate-channel-f32"), ("decodes", "bonus-channel-f32"))
class DecodeWritesTheSkippedSequence(Copy):
    """−1 taken as the last row of the pool."""

    def decode(self, call: DecodeCall) -> None:
        if call.slots is not None:
            call = dataclasses.replace(call, slots=call.slots % call.state.shape[0])
        super().decode(call)


@caught_by(("decodes", "gate-channel-f32"))
class DecodeLeavesSkippedOutputs(Copy):
    def decode(self, call: DecodeCall) -> None:
        before = call.out.clone()
        super().decode(call)
        if call.slots is not None:
            call.out[call.slots < 0] = before[call.slots < 0]


@caught_by(("decodes", "gate-channel-f32"), ("decodes", "gate-none-bf16"))
class DecodeForgetsTheState(Copy):
    def decode(self, call: DecodeCall) -> None:
        before = call.state.clone()
        super().decode(call)
        call.state.copy_(before)


@caught_by(("decodes", "gate-channel-f32"), ("decodes", "gate-head-bf16"))
class DecodeTakesTheFirstGateForAll(Copy):
    def decode(self, call: DecodeCall) -> None:
        assert call.g is not None
        super().decode(dataclasses.replace(call, g=call.g[:, :1].expand(call.g.shape)))


def rows(backend: Copy, fault: Fault, seed: int) -> Iterator[CheckRow]:
    registry.register(backend)
    try:
        yield from CHECKS[fault.check](Target("copy"), cases.named(fault.case), seed)
    finally:
        registry.unregister("copy")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault, seed: int) -> None:
    assert CHECKS[fault.check].applies(cases.named(fault.case)), "this check does not run on this case"
    assert not all(row.ok for row in rows(fault.backend(), fault, seed))


@pytest.mark.parametrize(("check", "case"), sorted({(fault.check, fault.case) for fault in FAULTS}))
def test_sound_copy_passes(check: str, case: str, seed: int) -> None:
    assert all(row.ok for row in rows(Copy(), Fault(Copy, check, case), seed))
