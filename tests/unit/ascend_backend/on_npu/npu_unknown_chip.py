"""A chip that no table knows: a reason, a way out, and PyTorch operations with a warning."""

from __future__ import annotations

import pytest
import torch
from portable_gla_ascend import paths

import portable_gla
from portable_gla import planning


def tensors():
    return [torch.randn(1, 20, 2, 16, device="npu") for _ in range(3)]


def test_it_is_refused_with_the_way_out():
    with pytest.raises(portable_gla.UnsupportedProblem, match="does not know the chip 'Ascend310P3'") as error:
        portable_gla.attention(*tensors(), backend="ascend")
    assert "set PORTABLE_GLA_ASCEND_SOC" in str(error.value)
    with pytest.warns(portable_gla.PortabilityWarning, match="Ascend310P3"):
        portable_gla.attention(*tensors())
    assert portable_gla.plan(*tensors()).backend == "eager"


def test_it_can_be_taken_for_a_known_one(monkeypatch):
    monkeypatch.setattr(paths, "_assumed", "910B2")
    planning._plans.clear()
    with portable_gla.override(operations=1):
        plan = portable_gla.plan(*tensors())
        assert plan.backend == "ascend" and "Ascend310P3" in str(plan)
        portable_gla.attention(*tensors(), backend="ascend")


def test_what_it_is_taken_for_must_be_known_too(monkeypatch):
    monkeypatch.setattr(paths, "_assumed", "920")
    planning._plans.clear()
    with pytest.raises(portable_gla.UnsupportedProblem, match="nor the '920' of PORTABLE_GLA_ASCEND_SOC"):
        portable_gla.attention(*tensors(), backend="ascend")
