"""The hardware CI's evidence on an NPU: operations are told from kernels, the profile is read, memory is poisoned."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from portable_gla_ascend import emulator, paths
from portable_gla_ascend.backend import backend

from hardware_ci import evidence, machine, matrix
from portable_gla import devices, planning

NPU = torch.device("npu", 0)


@pytest.fixture(params=[True, False])
def kernels(request, monkeypatch):
    """With Triton-Ascend (its kernels interpreted) and without."""
    missing = paths.Reason("library", "triton-ascend is not installed", "pip install triton-ascend")
    monkeypatch.setattr(paths, "triton_ascend", lambda: None if request.param else missing)
    monkeypatch.setattr(backend, "_kernels", emulator.load)
    monkeypatch.setattr(evidence, "_TOKENS", 70)
    planning._plans.clear()
    return request.param


@pytest.fixture
def profiler(monkeypatch):
    """As much of torch_npu's profiler as is used: it writes the file that it is known to write."""

    class Profile:
        def __init__(self, *, activities, on_trace_ready):
            self.activities, self.folder = activities, on_trace_ready

        def __enter__(self):
            return self

        def __exit__(self, *_):
            folder = Path(self.folder, "host_1_ascend_pt", "ASCEND_PROFILER_OUTPUT")
            folder.mkdir(parents=True)
            (folder / "kernel_details.csv").write_text("Name,Type,Duration(us)\nsweep,sweep,12.5\n", encoding="utf-8")

    module = types.ModuleType("torch_npu")
    module.profiler = types.SimpleNamespace(
        profile=Profile, ProfilerActivity=types.SimpleNamespace(NPU="NPU"), tensorboard_trace_handler=lambda path: path)
    monkeypatch.setitem(sys.modules, "torch_npu", module)


def test_kernels_are_told_from_operations(kernels, profiler):
    found = evidence.run("ascend", NPU)
    assert found["profile"] == {"kernels": [{"name": "sweep", "calls": 1, "microseconds": 12.5}]}
    assert found["poisoned"] is True
    if kernels:
        assert found["outcome"] == "passed" and found["products"] == {}
        assert found["notes"][0] == "path: kernels: triton-ascend is installed"
    else:
        assert found["outcome"] == "failed" and found["products"]["bmm"] > 0
        assert "stand in for its kernels: path: PyTorch operations: triton-ascend is not installed" in found["reason"]


def test_a_missing_profiler_is_said(monkeypatch):
    monkeypatch.setattr(evidence, "_TOKENS", 70)
    with torch.no_grad():
        found = evidence.run("eager", NPU)
    assert found["outcome"] == "passed" and "No module named 'torch_npu'" in found["profile"]["absent"]


def test_an_extension_that_does_not_poison_is_helped():
    torch.npu.set_poisons(False)
    try:
        assert evidence.run("eager", NPU)["poisoned"] is True
    finally:
        torch.npu.set_poisons(True)


def test_the_device_has_its_row():
    row = matrix.recognise(devices.of(NPU))
    assert row is not None and (row.key, row.backend) == ("910b", "ascend")
    assert machine.device_facts(NPU)["name"] == "Ascend910B2"
