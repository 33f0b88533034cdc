"""The command line where there is an NPU: what it says of the device, the path, and the way out."""

from __future__ import annotations

import json


def test_verify_on_an_npu(python_on_npu):
    """As a user checks a port; the last lines say by which path."""
    said = python_on_npu("-m", "fake_npu", "portable_gla_doctor", "verify", "--device", "npu", "--backend", "ascend",
                         "--case", "gate-head-*", "--json")
    found = json.loads(said)
    target, = found["targets"]
    assert found["ok"] and target["backend"] == "ascend" and target["device"] == "npu:0" and target["rows"]
    note, = target["notes"]
    assert note.startswith("path: PyTorch operations: ") and "pip install triton-ascend" in note


def test_verify_says_the_path_in_text(python_on_npu):
    said = python_on_npu("-m", "fake_npu", "portable_gla_doctor", "verify", "--device", "npu", "--case", "tokens-1")
    assert "ascend on npu:0: path: PyTorch operations: " in said and "eager on npu:0" in said
    assert "checks within budget" in said


def test_doctor_on_an_npu(python_on_npu):
    found = json.loads(python_on_npu("-m", "fake_npu", "portable_gla_doctor", "doctor", "--json"))
    assert found["ok"]
    run = next(run for run in found["runs"] if run["device"] == "npu:0")
    assert run["backend"] == "ascend" and run["ok"]
    assert "triton-ascend-missing" in [finding["code"] for finding in found["findings"]]


def test_doctor_on_an_unknown_chip(python_on_npu):
    found = json.loads(python_on_npu("-m", "fake_npu", "portable_gla_doctor", "doctor", "--json",
                                     FAKE_NPU="Ascend310P3"))
    finding = next(finding for finding in found["findings"] if finding["code"] == "npu-unknown")
    assert "Ascend310P3" in finding["text"] and "PORTABLE_GLA_ASCEND_SOC" in finding["remedy"]
    assert next(run for run in found["runs"] if run["device"] == "npu:0")["backend"] == "eager"


def test_the_chip_can_be_named_by_the_environment(python_on_npu):
    said = python_on_npu("-m", "fake_npu", "portable_gla_doctor", "doctor", "--json", FAKE_NPU="Ascend310P3",
                         PORTABLE_GLA_ASCEND_SOC="910B2")
    assert next(run for run in json.loads(said)["runs"] if run["device"] == "npu:0")["backend"] == "ascend"


def test_plan_for_an_npu_that_is_not_here(python_on_npu):
    said = python_on_npu("-m", "fake_npu", "portable_gla_doctor", "plan", "--device", "950", "--tokens", "4096",
                         "--json")
    assert json.loads(said)["backend"] == "ascend"
