"""That a run knows a backend's kernels from PyTorch operations in their place."""

from __future__ import annotations

import pytest
import torch

from hardware_ci import evidence, profiles
from portable_gla import registry

CPU = torch.device("cpu")


def test_a_backend_with_kernels_of_its_own_passes():
    found = evidence.run("cpu", CPU, "float32")
    assert found["outcome"] == "passed" and found["products"] == {} and found["poisoned"] is True
    assert found["served_by"] == "cpu" and found["profile"]["absent"]


def test_the_plain_backend_is_what_it_says():
    found = evidence.run("eager", CPU)
    assert found["outcome"] == "passed" and found["products"]


def test_operations_in_the_place_of_kernels_fail(broken):
    broken.fault = lambda o: o
    broken.plain = False
    found = evidence.run("broken", CPU)
    assert found["outcome"] == "failed" and "PyTorch multiplied matrices" in found["reason"]
    assert {"bmm", "matmul"} & set(found["products"])


def test_a_path_that_the_plan_calls_plain_fails(broken, monkeypatch):
    broken.fault = lambda o: o
    broken.plain, broken.priority = False, 1000
    broken.plain_for = lambda problem: True
    found = evidence.run("broken", CPU, "float32")
    assert found["outcome"] == "failed" and "plain PyTorch operations stand in for its kernels" in found["reason"]


def test_memory_that_cannot_be_poisoned_fails(monkeypatch):
    monkeypatch.setattr(evidence.poison, "holds", lambda device: False)
    found = evidence.run("cpu", CPU, "float32")
    assert found["outcome"] == "failed" and "poisoned" in found["reason"]


def test_without_evidence_nothing_is_timed(tiny, monkeypatch):
    monkeypatch.setattr(evidence, "run", lambda *_: {"outcome": "failed", "reason": "not its kernels"})
    result, found = tiny()
    assert result.exit_code == 1 and found["verdict"] == "failed"
    assert found["steps"]["benchmarks"] == {
        "outcome": "skipped", "reason": "nothing is timed: evidence is failed"}
    assert "not its kernels" in result.stderr


def test_the_profile_of_an_npu_is_read(tmp_path):
    path = tmp_path / "host_1_ascend_pt" / "ASCEND_PROFILER_OUTPUT" / "kernel_details.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\ufeffDevice_id,Name,Type,Accelerator Core,Start Time(us),Duration(us),Wait Time(us)\n"
                    "0,sweep,sweep,MIX_AIC,\"17\t\",10.5,0\n0,outputs,outputs,MIX_AIC,\"30\t\",20.25,1\n"
                    "0,sweep,sweep,MIX_AIC,\"60\t\",11.5,0\n", encoding="utf-8")
    assert profiles.read_details(tmp_path.glob("**/kernel_details.csv")) == [
        {"name": "sweep", "calls": 2, "microseconds": 22.0}, {"name": "outputs", "calls": 1, "microseconds": 20.25}]
    assert profiles.read_details([]) == []


@pytest.mark.parametrize("backend", ["triton", "volta"])
def test_a_backend_that_is_not_here_is_an_error(backend):
    assert backend in registry.names()
    with pytest.raises(NotImplementedError, match="not cpu"):
        evidence.run(backend, CPU, "float16")
