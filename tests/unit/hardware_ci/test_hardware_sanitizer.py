"""compute-sanitizer is found where it is, its word is taken, and its absence is recorded."""

from __future__ import annotations

import pytest
import torch

from hardware_ci import sanitizer
from hardware_ci.deadline import Deadline

GPU = torch.device("cuda", 0)


@pytest.fixture
def tool(tmp_path):
    """A script in place of the tool: it runs ``body``."""

    def make(body, folder=tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "compute-sanitizer"
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def nowhere(monkeypatch):
    monkeypatch.setattr(sanitizer, "_packages", lambda: [])
    monkeypatch.setattr(sanitizer, "_TOOLKIT", "/nonexistent")


def test_an_absent_tool_is_a_skip_with_its_reason(nowhere, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = sanitizer.run("triton", GPU, Deadline())
    assert found["outcome"] == "skipped" and "was not found" in found["reason"]


def test_other_devices_are_a_skip_too():
    assert sanitizer.run("cpu", torch.device("cpu"), Deadline())["outcome"] == "skipped"


def test_it_is_found_on_path_in_a_toolkit_and_in_a_wheel(tool, nowhere, monkeypatch, tmp_path):
    assert sanitizer.find({"PATH": ""}) is None
    wheel = tool("", tmp_path / "site" / "nvidia" / "cu13" / "bin")
    monkeypatch.setattr(sanitizer, "_packages", lambda: [str(tmp_path / "site")])
    assert sanitizer.find({"PATH": ""}) == wheel
    toolkit = tool("", tmp_path / "cuda" / "bin")
    assert sanitizer.find({"PATH": "", "CUDA_HOME": str(tmp_path / "cuda")}) == toolkit
    on_path = tool("", tmp_path / "bin")
    assert sanitizer.find({"PATH": str(tmp_path / "bin"), "CUDA_HOME": str(tmp_path / "cuda")}) == on_path


def test_both_tools_run_on_the_small_script(tool, monkeypatch):
    path = tool('echo "$@"; echo "caching off: $PYTORCH_NO_CUDA_MEMORY_CACHING"')
    monkeypatch.setattr(sanitizer, "find", lambda: path)
    found = sanitizer.run("triton", GPU, Deadline())
    assert found["outcome"] == "passed" and list(found["tools"]) == ["memcheck", "racecheck"]
    assert found["tools"]["memcheck"]["said"] == ["caching off: 1"]


@pytest.mark.parametrize(("status", "reason"), [(77, "it found errors"), (3, "exit status 3")])
def test_what_it_finds_is_a_failure(tool, monkeypatch, status, reason):
    path = tool(f'echo "========= Invalid __global__ read of size 2 for $3"; test $2 = memcheck || exit {status}')
    monkeypatch.setattr(sanitizer, "find", lambda: path)
    found = sanitizer.run("triton", GPU, Deadline())
    assert found["outcome"] == "failed"
    assert found["tools"]["memcheck"]["outcome"] == "passed"
    race = found["tools"]["racecheck"]
    assert race["reason"] == reason and "Invalid __global__ read" in race["said"][0]


def test_it_is_given_the_time_that_is_left(tool, monkeypatch):
    path = tool("sleep 5")
    found = sanitizer.watch(path, "memcheck", "triton", "cuda:0", 1.0)
    assert found == {"outcome": "incomplete", "reason": "not done after 1 s"}
