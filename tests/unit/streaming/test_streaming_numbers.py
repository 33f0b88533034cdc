"""``stream`` and ``stream_backward`` are held to the error budgets of one call, on the cases that all backends run."""

import contextlib
import dataclasses
import random

import pytest
import torch

import portable_gla
from portable_gla.testing import budgets, cases, emulate
from portable_gla.testing import inputs as numbers
from portable_gla.testing.poison import poisoned_memory
from portable_gla.testing.streams import ThreadedStreams

CASES = [case for case in cases.CASES if "quick" in case.tags
         or (case.name.startswith(("packed", "state", "heads")) and case.tokens <= 200
             and case.dtype == torch.float32)]


def streamed(case, seed, tokens, **options):
    """Return what came out, named as in ``budgets.QUANTITIES``, in layout BTHD; and the inputs."""
    inputs = numbers.make(case, seed)
    given = dict(numbers.tensors(inputs))
    turned = case.layout == "BHTD"
    turn = (lambda x: x.transpose(1, 2)) if turned else (lambda x: x)
    q, k, v, g = (None if given.get(name) is None else turn(given[name]) if given[name].dim() > 1 else given[name]
                  for name in ("q", "k", "v", "g"))
    options = {"device": "cpu", "segment_tokens": tokens, "scale": case.scale, "initial_state": inputs.initial_state,
               "cu_seqlens": inputs.cu_seqlens, "reverse": case.reverse, "bonus": inputs.bonus, "layout": case.layout,
               "backend": "eager" if case.dtype == torch.float64 else "cpu", "progress": False, **options}
    result = portable_gla.stream(q, k, v, g, output_final_state=case.final_state, **options)
    found = dict(zip(("o", "final_state"), result if case.final_state else [result], strict=False))
    gradients = portable_gla.stream_backward(q, k, v, g, turn(inputs.do), dfinal_state=inputs.dfinal_state, **options)
    found.update({f"d{name}": x for name, x in gradients._asdict().items() if x is not None})
    if turned:
        found.update({name: found[name].transpose(1, 2) for name in ("o", "dq", "dk", "dv", "dg")
                      if name in found and found[name].dim() > 1})
    return found, inputs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(case, seed):
    tokens = random.Random(seed).choice((3, 8, 17, 24))
    with poisoned_memory():
        found, inputs = streamed(case, seed, tokens)
    expected = budgets.expected(inputs)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.device.type == "cpu"
        verdict = budgets.compare(x, expected[name])
        assert verdict.ok, f"{name}, segments of {tokens}: {verdict}"
    leaves = dict(numbers.tensors(inputs))
    assert all(found[f"d{name}"].dtype == x.dtype and found[f"d{name}"].shape == x.shape for name, x in leaves.items())


@pytest.mark.parametrize("fake", [None, ThreadedStreams])
def test_emulated_triton_kernels(seed, fake):
    case = dataclasses.replace(cases.named("gate-channel-f32"), tokens=70, key_dim=16, value_dim=16)
    streams = None if fake is None else fake(seed)
    with emulate("triton"), contextlib.nullcontext() if fake is None else streams.computing_on(streams.new_stream()):
        found, inputs = streamed(case, seed, 40, backend="triton", streams=streams)
    expected = budgets.expected(inputs, rounds_operands=True)
    assert all(budgets.compare(x, expected[name]).ok for name, x in found.items())


def test_one_segment_is_one_call_to_the_bit(seed):
    case = dataclasses.replace(cases.named("reverse-bonus"), tokens=90)
    found, inputs = streamed(case, seed, 90)
    given = dict(numbers.tensors(inputs))
    leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
    o = portable_gla.attention(
        leaves["q"], leaves["k"], leaves["v"], leaves.get("g"), scale=case.scale, reverse=True, bonus=leaves["bonus"],
        initial_state=leaves.get("initial_state"), output_final_state=case.final_state, backend="cpu")
    o = o[0] if case.final_state else o
    assert torch.equal(found["o"], o)
