"""Under ``transfer_to_npu`` PyTorch says cuda of the NPU: nothing here may believe it."""

from __future__ import annotations

import fake_npu
import pytest
import torch

import portable_gla
from portable_gla_doctor import facts


@pytest.fixture(scope="module", autouse=True)
def transferred():
    fake_npu.transfer_to_npu()
    assert torch.cuda.is_available() and torch.cuda.get_device_name(0) == "Ascend910B2"


def test_the_backend_is_chosen_by_the_tensors():
    q, k, v = (torch.randn(1, 20, 2, 16).cuda().requires_grad_() for _ in range(3))
    assert q.device.type == "npu"
    with portable_gla.override(operations=1):
        plan = portable_gla.plan(q, k, v)
        portable_gla.attention(q, k, v).sum().backward()
    assert plan.backend == "ascend"
    assert q.grad.device.type == "npu"
    for name in ("triton", "volta"):
        assert "device" in [reason.code for reason in plan.reasons[name]]


def test_no_backend_stumbles_over_it():
    found = {info.name: info for info in portable_gla.backends()}
    assert found["ascend"].available and not found["triton"].available and not found["volta"].available
    assert not any("load-error" in [reason.code for reason in info.reasons] for info in found.values())
    plan = portable_gla.plan(*[torch.randn(1, 20, 2, 16)] * 3)
    assert plan.backend == "cpu", str(plan)


def test_the_doctor_does_not_take_it_for_cuda():
    seen = facts.with_torch(facts.gather(), torch)
    assert seen.cuda_build is None and seen.built_archs == ()
