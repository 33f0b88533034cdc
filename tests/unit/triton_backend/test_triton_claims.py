"""What the Triton backend takes and refuses, and how it cuts sequences: no kernel runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from portable_gla_triton.backend import backend

import portable_gla
from portable_gla import devices, segments
from portable_gla.problem import Device, Problem
from portable_gla.testing import emulate

PROBLEM = Problem(tokens=4096, heads=16, key_dim=128, value_dim=128, dtype=torch.bfloat16,
                  device=devices.named("h200"), training=True)
ONE = Problem(tokens=4096, heads=1, key_dim=128, value_dim=128, dtype=torch.bfloat16, device=devices.named("h200"))


@pytest.mark.parametrize("kind", ["a100", "h100", "h200", "b200", "mi250", "mi300"])
def test_devices_that_it_serves(kind):
    assert portable_gla.plan(PROBLEM, device=kind).backend == "triton"


@pytest.mark.parametrize(("changed", "code"), [
    ({"device": devices.named("v100")}, "arch"),
    ({"device": devices.named("t4")}, "arch"),
    ({"device": Device("cuda", "", "sm_61", present=False)}, "arch"),
    ({"device": devices.named("910b")}, "device"),
    ({"device": devices.named("cpu")}, "device"),
    ({"dtype": torch.float64}, "dtype"),
    ({"key_dim": 513}, "size"),
    ({"value_dim": 1024}, "size"),
    ({"pins": (("segments", 0),)}, "pin"),
    ({"pins": (("chunk", 64),)}, "pin"),
])
def test_refusals(changed, code):
    reasons = backend.reasons_against(dataclasses.replace(PROBLEM, **changed))
    assert [reason.code for reason in reasons] == [code]
    assert all(reason.hint for reason in reasons)


def test_emulation_says_so():
    q = torch.randn(1, 8, 1, 16)
    with emulate("triton"):
        plan = portable_gla.plan(q, q, q)
    assert plan.backend == "triton" and plan.emulated
    assert "triton (emulated)" in str(plan)


def test_without_a_gpu_cpu_tensors_are_not_its():
    q = torch.randn(1, 8, 1, 16)
    with pytest.raises(portable_gla.UnsupportedProblem, match="serves cuda tensors, not cpu"):
        portable_gla.attention(q, q, q, backend="triton")


def test_a_batch_that_fills_the_device_runs_in_one_segment():
    assert portable_gla.plan(dataclasses.replace(PROBLEM, batch=8)).schedule.tiles["segments"] == 1
    few = portable_gla.plan(dataclasses.replace(ONE, tokens=2**17)).schedule
    assert few.tiles["segments"] > 32


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65, 4096, 10**7])
@pytest.mark.parametrize("pinned", [0, 1, 2, 3, 1000])
def test_segments_cover_the_tokens_in_whole_chunks(tokens, pinned):
    cut = segments.choose(2, tokens, 4, 128, 132, pinned)
    pieces = -(-tokens // cut.unit)
    assert cut.unit % segments.GRAIN == 0 and cut.unit > 0
    assert cut.several == (pieces > 1)
    if pinned:
        assert pieces <= pinned


def test_a_kernel_that_does_not_compile_is_a_clear_error(monkeypatch):
    triton = pytest.importorskip("triton")

    def broken(*_):
        raise triton.compiler.errors.CompilationError("def kernel(): ...", None, "no such operation")

    q = torch.randn(1, 8, 1, 16)
    with emulate("triton"):
        handle = portable_gla.plan(q, q, q).handle
        monkeypatch.setattr(portable_gla.registry.get(handle), "_launcher", broken)
        with pytest.raises(portable_gla.KernelError, match=r"no such operation(.|\n)*triton \(emulated\)"):
            portable_gla.attention(q, q, q, backend="triton")
