"""The plan of a long context: where its bytes are, on devices that are not here."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import portable_gla
from portable_gla import devices, scaling
from portable_gla.problem import Problem
from portable_gla.testing import emulate
from portable_gla.testing.counting import counted
from portable_gla.testing.streams import ShuffledStreams

WHOLE = Problem(tokens=65_536, heads=4, key_dim=64, value_dim=128, dtype=torch.bfloat16, training=True,
                device=devices.named("h200"))


def test_what_is_kept_is_on_the_device_or_on_the_host():
    layers, on_device = 12, scaling.plan_long(WHOLE, layers=12)
    one = on_device.local
    assert on_device.host_bytes == 0 and not on_device.traffic
    assert on_device.device_bytes == one.cost.peak_memory + 11 * (one.cost.inputs + one.schedule.residual_bytes)
    states = scaling.plan_long(WHOLE, layers=layers, keep="states")
    assert states.host_bytes == layers * one.schedule.residual_bytes > 0
    everything = scaling.plan_long(WHOLE, layers=layers, keep="all")
    assert everything.host_bytes == layers * (one.cost.inputs + one.schedule.residual_bytes)
    assert everything.device_bytes < states.device_bytes < on_device.device_bytes


def test_a_stack_keeps_what_the_plan_says():
    """Counted: every storage that autograd keeps for the calls of a stack, on emulated kernels."""
    layers, tokens = 3, 300
    with emulate("triton"), portable_gla.override(segments=3):
        problem = None
        kept: dict[int, int] = {}

        def pack(x):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        results = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            for _ in range(layers):
                q, k = (torch.randn(1, tokens, 2, 16, requires_grad=True) for _ in range(2))
                v, g = torch.randn(1, tokens, 2, 32), -torch.rand(1, tokens, 2, 16)
                results.append((portable_gla.attention(q, k, v, g, backend="triton"), q, k, v, g))
                problem = portable_gla.plan(q, k, v, g, backend="triton").problem
        one = scaling.plan_long(problem, backend="triton").local
        predicted = layers * (one.cost.inputs + one.schedule.residual_bytes)
        assert sum(kept.values()) == predicted
        assert scaling.plan_long(problem, layers=layers, keep="all", backend="triton").host_bytes == predicted


def test_the_host_holds_what_the_plan_says():
    """Counted: what ``offload_states`` copies out, under emulated kernels."""
    layers = 3
    with emulate("triton"), portable_gla.override(segments=3):
        q, k, v, g = (-torch.rand(1, 300, 2, 16, requires_grad=True) for _ in range(4))
        for keep, tensors in (("states", "residuals"), ("all", "all")):
            offload = portable_gla.offload_states(tensors=tensors, streams=ShuffledStreams(0))
            with offload:
                o = sum(portable_gla.attention(q * i, k * i, v * i, g * i, backend="triton").sum()
                        for i in (0.5, 1.0, 1.5))
            o.backward()
            problem = portable_gla.plan(q, k, v, g, backend="triton").problem
            found = scaling.plan_long(problem, layers=layers, keep=keep, backend="triton")
            assert found.host_bytes == offload.moved_bytes


@pytest.mark.parametrize("training", [False, True])
def test_a_stream_takes_what_the_plan_says(training):
    """Counted: every allocation of a streamed call; the CPU's kernels take their workspace from malloc, uncounted."""
    problem = Problem(tokens=10**6, heads=2, key_dim=64, value_dim=64, dtype=torch.bfloat16, training=training,
                      device=devices.named("cpu"))
    problem = dataclasses.replace(problem, tokens=3 * scaling.segment_tokens(problem))
    shape, inputs = (1, problem.tokens, 2, 64), {}
    for name in ("q", "k", "v", "g", "do"):
        inputs[name] = -torch.rand(shape, dtype=torch.bfloat16)
    out = torch.empty(shape, dtype=torch.bfloat16)

    def run():
        if training:
            return portable_gla.stream_backward(
                *inputs.values(), device="cpu", progress=False,
                out={name: torch.empty(shape, dtype=torch.bfloat16) for name in "qkvg"})
        return portable_gla.stream(*list(inputs.values())[:4], device="cpu", out=out, progress=False)

    found = scaling.plan_long(problem, keep="stream", backend="cpu")
    predicted = found.device_bytes - found.local.schedule.workspace_bytes
    # What the host keeps is PyTorch's as well here: gradients, and the states between segments.
    kept = 4 * out.nbytes + 3 * 2 * 64 * 64 * 4 if training else 0
    assert (counted(run)[0].peak - kept) / predicted == pytest.approx(1, abs=0.1)


def test_traffic_does_not_grow_with_the_sequence():
    short, long = (scaling.plan_long(dataclasses.replace(WHOLE, tokens=tokens), devices=8, layers=24)
                   for tokens in (65_536, 1_048_576))
    assert [row.moved for row in short.traffic] == [row.moved for row in long.traffic]
    forward, backward = short.traffic
    assert backward.moved == 7 * 4 * 64 * 128 * 4 and forward.moved == backward.moved + 7 * 4 * 64 * 4
    assert all(row.hides for row in long.traffic)
    assert short.local.problem.tokens == 8192


def test_the_largest_sequence_fits_and_twice_of_it_does_not():
    for keep in ("device", "states", "all"):
        most = scaling.largest(WHOLE, devices=4, layers=8, keep=keep)
        def planned(tokens, keep=keep):
            return scaling.plan_long(dataclasses.replace(WHOLE, tokens=tokens), devices=4, layers=8, keep=keep)
        assert planned(most).fits and not planned(2 * most).fits
    assert scaling.largest(WHOLE, keep="stream") is None


def test_a_streamed_sequence_takes_the_same_device_memory_at_any_length():
    found = {scaling.plan_long(dataclasses.replace(WHOLE, tokens=tokens), keep="stream").device_bytes
             for tokens in (65_536, 4_000_000)}
    assert len(found) == 1


def test_what_no_backend_serves_is_said():
    found = scaling.plan_long(dataclasses.replace(WHOLE, device=devices.named("v100")), backend="triton", layers=2)
    assert found.device_bytes is None and found.fits is None and "no backend serves" in str(found)


@pytest.mark.parametrize(("arguments", "words"), [
    ({"devices": 0}, "devices: expected 1 or more, got 0"),
    ({"layers": 0}, "layers: expected 1 or more, got 0"),
    ({"keep": "disk"}, "keep: expected one of device, states, all, stream, got 'disk'"),
    ({"devices": 2, "keep": "stream"}, "keep: stream runs a sequence through one device"),
])
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        scaling.plan_long(WHOLE, **arguments)
