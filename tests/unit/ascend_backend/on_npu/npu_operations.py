"""NPU tensors without Triton-Ascend: the Ascend backend's PyTorch operations, and a warning that says so."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from portable_gla_ascend import paths

import portable_gla
from portable_gla import nn, planning
from portable_gla.testing import cases, checks, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target, find, run

NPU = torch.device("npu", 0)
TARGET = Target("ascend", NPU)
ON_THE_HOST = {"copy to the host", "scalar read by the host"}


@pytest.fixture(autouse=True)
def without_triton_ascend(monkeypatch):
    """Whatever is installed here."""
    monkeypatch.setattr(paths, "triton_ascend", lambda: paths.Reason(
        "library", "triton-ascend is not installed", "pip install triton-ascend"))
    planning._plans.clear()
    planning._warned.clear()


def tensors(**options):
    return [torch.randn(2, 70, 2, 16, device=NPU, **options) for _ in range(3)] + [
        torch.nn.functional.logsigmoid(torch.randn(2, 70, 2, 16, device=NPU)).requires_grad_(
            options.get("requires_grad", False))]


def test_the_device_is_found():
    assert find("ascend")[0] == TARGET
    assert [info.available for info in portable_gla.backends() if info.name == "ascend"] == [True]


def test_the_plan_says_which_path_and_why():
    with pytest.warns(portable_gla.PortabilityWarning, match="triton-ascend is not installed"):
        portable_gla.attention(*tensors())
    plan = portable_gla.plan(*tensors())
    assert plan.backend == "ascend" and plan.fallback and not plan.emulated
    assert str(plan.problem.device) == "910b (Ascend910B2)"
    assert "path: PyTorch operations: triton-ascend is not installed -> pip install triton-ascend" in str(plan)
    named = portable_gla.plan(*tensors(), backend="ascend")
    assert not named.fallback and "path: PyTorch operations" in str(named)


def test_strict_mode_refuses():
    with portable_gla.strict(), pytest.raises(portable_gla.UnsupportedProblem, match=r"not ascend: strict mode"):
        portable_gla.attention(*tensors())
    with portable_gla.strict():
        portable_gla.attention(*tensors(), backend="ascend")


def test_a_pinned_path_is_no_fallback():
    with portable_gla.override(operations=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        portable_gla.attention(*tensors())
        plan = portable_gla.plan(*tensors())
    assert plan.backend == "ascend" and "operations=1 is pinned" in str(plan)


@pytest.mark.parametrize("name", [
    "gate-channel-f32", "gate-channel-bf16", "gate-head-f16", "gate-constant-bf16", "gate-none-f32", "reverse-bonus",
    "packed-many-channel-bf16", "heads-grouped-channel", "strides-channels-first", "tokens-0",
    "regime-resets-channel-f32"])
def test_forward_and_backward(name, seed):
    rows = list(checks.CHECKS["within_budget"](TARGET, cases.named(name), seed))
    assert all(row.ok for row in rows), "\n".join(map(str, rows))


@pytest.mark.parametrize("name", ["gate-channel-f32", "gate-head-bf16", "bonus-channel-f32", "gate-constant-f16"])
def test_decoding(name, seed):
    rows = list(checks.CHECKS["decodes"](TARGET, cases.named(name), seed))
    assert rows and all(row.ok for row in rows), "\n".join(map(str, rows))


def test_only_the_lengths_of_a_pack_are_read_by_the_host(seed):
    npu = torch.npu
    packed = inputs.make(cases.named("packed-many"), seed, NPU)
    for given, reads in ((inputs.make(Case("plain", initial_state="each"), seed, NPU), 0), (packed, 2)):
        npu.forget_events()
        run(TARGET, given)
        found = npu.events()
        assert sum(count for name, count in found.items() if name in ON_THE_HOST) == reads  # forward, backward
        assert found["aten::bmm"] > 0


@pytest.mark.parametrize("with_slots", [False, True])
def test_decoding_waits_for_nothing(seed, with_slots):
    given = inputs.make(Case("one", tokens=1, batch=3, initial_state="each"), seed, NPU)
    state = torch.cat([given.initial_state, given.initial_state]).clone()[:6 if with_slots else 3]
    slots = torch.tensor([4, -1, 0], device=NPU) if with_slots else None
    torch.npu.forget_events()
    portable_gla.decode_(given.q, given.k, given.v, given.g, state, slots=slots, backend="ascend")
    assert not ON_THE_HOST & set(torch.npu.events())
    assert torch.npu.events()["aten::exp"] == 1


def test_float32_products_stay_float32(monkeypatch):
    """Whatever a user allowed: rounded to 12 bits, they would miss every budget."""
    seen = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: (seen.append(torch.npu.matmul.allow_hf32), bmm(*args))[1])
    torch.npu.matmul.allow_hf32 = True
    try:
        q, k, v, g = tensors(requires_grad=True)
        portable_gla.attention(q, k, v, g, backend="ascend").sum().backward()
        assert torch.npu.matmul.allow_hf32 is True
    finally:
        torch.npu.matmul.allow_hf32 = False
    assert seen and not any(seen)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(seed, dynamic):
    def function(q, k, v, g):
        return portable_gla.attention(torch.tanh(q), k, v, g, output_final_state=True, backend="ascend")

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tokens in (70, 33):
        q, k, v, g = (x.detach()[:, :tokens].requires_grad_() for x in tensors())
        results = []
        for call in (function, compiled):
            o, final = call(q, k, v, g)
            results.append([o, final, *torch.autograd.grad(o.square().sum() + final.sum(), [q, k, v, g])])
        for wanted, found in zip(*results, strict=True):
            assert found.device == NPU and torch.equal(wanted, found)


def test_compiled_decoding():
    q, k, v, g = (x[:, :1] for x in tensors())
    states = [torch.ones(2, 2, 16, 16, device=NPU) for _ in range(2)]

    def function(state):
        return portable_gla.decode_(q, k, v, g, state, backend="ascend")

    torch._dynamo.reset()
    wanted = function(states[0])
    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(states[1]), wanted)
    assert torch.equal(*states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    q, k, v, g = tensors(requires_grad=True)
    with torch.autocast("npu", dtype=dtype):
        o, final = portable_gla.attention(q, k, v, g, output_final_state=True, backend="ascend")
    assert o.dtype == dtype and final.dtype == torch.float32
    wanted = portable_gla.attention(*(x.detach().to(dtype) for x in (q, k, v)), g.detach(), backend="ascend")
    assert torch.equal(o, wanted)
    o.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in (q, k, v, g))


def test_a_layer_trains():
    layer = nn.GatedLinearAttention(32, num_heads=2).to(NPU)
    x = torch.randn(2, 20, 32, device=NPU)
    with portable_gla.override(operations=1):
        before = layer(x)
        before = before[0] if isinstance(before, tuple) else before
        before.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_refusals_name_what_is_in_the_way():
    for problem, words in (
            (Case("float64", dtype=torch.float64), "too coarse for float64"),
            (dataclasses.replace(cases.named("dims-600x520"), tokens=18), "K = 600 is more than 512")):
        reasons = TARGET.reasons_against(problem)
        assert any(words in reason.text for reason in reasons) and all(reason.hint for reason in reasons)
