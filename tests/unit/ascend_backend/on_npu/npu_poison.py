"""Memory is poisoned on a device whose extension knows nothing of PyTorch's deterministic mode."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from portable_gla import registry
from portable_gla.testing import cases, checks, poison
from portable_gla.testing.running import Target

NPU = torch.device("npu", 0)


@pytest.fixture(params=[True, False], autouse=True)
def extension(request):
    torch.npu.set_poisons(request.param)
    yield request.param
    torch.npu.set_poisons(True)


def test_what_is_allocated_is_nan(extension):
    x = torch.ones(3, 5, device=NPU)
    with poison.poisoned_memory():
        assert poison.holds(NPU) == extension
    with poison.poisoned_memory(NPU):
        assert poison.holds(NPU)
        fresh = [torch.empty(3, 5, device=NPU), torch.empty_like(x), x.new_empty(7), x.new_empty(7, dtype=torch.half),
                 torch.empty_strided((3, 5), (5, 1), device=NPU), x.new_empty_strided((2, 2), (2, 1))]
        assert torch.empty(3, dtype=torch.int32, device=NPU).shape == (3,)
    assert all(value.isnan().all() for value in fresh)


def test_what_a_backend_forgets_to_write_shows(monkeypatch, seed):
    backend = registry.get("ascend")
    forward = backend.forward

    def forgetful(call, *, save):
        o, final, residual = forward(dataclasses.replace(call, pins={"operations": 1}), save=save)
        fresh = torch.empty_like(o)
        assert fresh.isnan().all()
        fresh[:, 1:] = o[:, 1:]
        return fresh, final, residual

    monkeypatch.setattr(backend, "forward", forgetful)
    rows = list(checks.CHECKS["within_budget"](Target("ascend", NPU), cases.named("gate-none-f32"), seed))
    assert [row.quantity for row in rows if not row.ok] and "o" in {row.quantity for row in rows if not row.ok}
