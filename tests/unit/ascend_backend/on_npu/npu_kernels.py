"""NPU tensors with Triton-Ascend, as far as this machine can: the kernels, interpreted, on the device's tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
from portable_gla_ascend import emulator, paths
from portable_gla_ascend.backend import backend

import portable_gla
from portable_gla import planning
from portable_gla.testing import cases, checks
from portable_gla.testing.running import Target

NPU = torch.device("npu", 0)
TARGET = Target("ascend", NPU)


@pytest.fixture(autouse=True)
def with_triton_ascend(monkeypatch):
    monkeypatch.setattr(paths, "triton_ascend", lambda: None)
    monkeypatch.setattr(backend, "_kernels", emulator.load)
    planning._plans.clear()
    planning._failed.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", portable_gla.PortabilityWarning)
        yield


def tensors():
    return [torch.randn(1, 70, 2, 16, device=NPU).requires_grad_() for _ in range(3)] + [
        torch.nn.functional.logsigmoid(torch.randn(1, 70, 2, 16, device=NPU)).detach().requires_grad_()]


def test_the_plan_says_that_kernels_run():
    with portable_gla.strict():
        plan = portable_gla.plan(*tensors())
        o = portable_gla.attention(*tensors())
    assert plan.backend == "ascend" and not plan.fallback and not plan.emulated
    assert "path: kernels: triton-ascend is installed" in str(plan)
    assert o.device == NPU


def test_no_operation_multiplies():
    """What ran is the kernels: PyTorch has not multiplied a matrix."""
    inputs = tensors()
    torch.npu.forget_events()
    portable_gla.attention(*inputs).sum().backward()
    assert not {"aten::bmm", "aten::baddbmm", "aten::mm", "aten::baddbmm_"} & set(torch.npu.events())


@pytest.mark.parametrize("name", ["gate-channel-f32", "gate-head-bf16", "gate-constant-f16", "gate-none-f32",
                                  "packed-empty-middle", "reverse-bonus", "heads-grouped-channel"])
def test_forward_and_backward(name, seed):
    rows = list(checks.CHECKS["within_budget"](TARGET, cases.named(name), seed))
    assert all(row.ok for row in rows), "\n".join(map(str, rows))


@pytest.mark.parametrize("name", ["gate-channel-f32", "bonus-channel-f32"])
def test_decoding(name, seed):
    rows = list(checks.CHECKS["decodes"](TARGET, cases.named(name), seed))
    assert rows and all(row.ok for row in rows), "\n".join(map(str, rows))


def test_compiled():
    def function(q, k, v, g):
        return portable_gla.attention(torch.tanh(q), k, v, g, output_final_state=True)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    q, k, v, g = tensors()
    results = []
    for call in (function, compiled):
        o, final = call(q, k, v, g)
        results.append([o, final, *torch.autograd.grad(o.square().sum() + final.sum(), [q, k, v, g])])
    assert all(torch.equal(wanted, found) for wanted, found in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    q, k, v, g = tensors()
    with torch.autocast("npu", dtype=dtype):
        o = portable_gla.attention(q, k, v, g)
    assert o.dtype == dtype
    o.float().sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in (q, k, v, g))
