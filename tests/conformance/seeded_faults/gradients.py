"""What is wrong with gradients, where o and the final state are right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from portable_gla.backend import Call, Gradients
from seeded_faults.copies import Copy, budget, caught_by, changed


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
