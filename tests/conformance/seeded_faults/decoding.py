"""What is wrong with decoding."""

from __future__ import annotations

import dataclasses

from portable_gla.backend import DecodeCall
from seeded_faults.copies import Copy, caught_by


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
