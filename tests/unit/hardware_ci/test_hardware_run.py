"""A run: what it records, what it refuses to time, how it ends and goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers_hardware import ROOT, TINY

from hardware_ci import benchmark, conformance, matrix, results, runner
from portable_gla import devices
from portable_gla.cli import peers, timing
from portable_gla.testing import cases

CPU_ROW = matrix.recognise(devices.of(torch.device("cpu")))


def test_a_run_as_a_user_starts_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hardware_ci", "run", "--quick", "--cases", "gate-channel-f32", "--only",
         "*-decode-8x*", "--device", "cpu", "--out", str(tmp_path), "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    path, = tmp_path.glob("*.yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert json.loads(done.stdout)["steps"] == found["steps"]
    assert found["row"] == CPU_ROW.key and found["backend"] == "cpu" and found["device"]["type"] == "cpu"
    assert found["versions"]["packages"]["torch"] == str(torch.__version__)
    assert set(found["commit"]) == {"sha", "changed"}
    held = found["steps"]["conformance"]
    assert held["outcome"] == "passed" and held["poisoned"] == "NaN" and held["failed"] == 0 < held["checks"]
    assert {"o", "dq", "dk", "dv", "dg", "final_state"} <= {row["quantity"] for row in held["worst"]}
    assert all(row["dtype"] == "float32" and row["ratio"] < 1 for row in held["worst"])
    assert found["steps"]["sanitizer"] == {
        "outcome": "skipped", "reason": "compute-sanitizer watches NVIDIA GPUs, not cpu"}
    entry, = found["steps"]["benchmarks"]["shapes"]
    step = entry["passes"]["forward"]
    assert step["served_by"] == "cpu" and set(step["times"]) == {"cpu", "eager"}
    assert all(len(figure["samples"]) >= 1 for figure in step["times"].values())
    assert step["absent"]["flash-linear-attention"]
    assert step["copy_fraction"] > 0 and found["steps"]["benchmarks"]["copies"][0]["gb_s"] > 0
    assert found["steps"]["graphs"]["outcome"] == "skipped"
    assert found["verdict"] == "incomplete"  # some cases, some shapes
    assert str(ROOT) not in path.read_text(encoding="utf-8")


def test_a_wrong_result_fails_and_is_not_timed(tiny, broken):
    result, found = tiny("--backend", "broken")
    assert result.exit_code == 1 and found["verdict"] == "failed"
    step = found["steps"]["conformance"]
    assert step["outcome"] == "failed" and step["failed"] > 0
    assert any(row["case"] == "tokens-1" and row["quantity"] == "o" for row in step["failures"])
    assert "tokens-1: o: error" in result.stderr
    assert found["steps"]["benchmarks"]["outcome"] == "skipped"
    assert "conformance is failed" in found["steps"]["benchmarks"]["reason"]
    assert "shapes" not in found["steps"]["benchmarks"]


def test_memory_that_was_not_written_shows(tiny, broken):
    broken.fault = torch.empty_like
    result, found = tiny("--backend", "broken")
    assert result.exit_code == 1
    assert any(row["error"] == float("inf") for row in found["steps"]["conformance"]["failures"])


def test_a_backend_that_raises_is_a_failure_with_its_words(tiny, broken):
    def fault(o):
        raise RuntimeError("kernel 7 does not compile")

    broken.fault = fault
    result, found = tiny("--backend", "broken")
    assert result.exit_code == 1
    assert "kernel 7 does not compile" in found["steps"]["conformance"]["failures"][0]["note"]


def test_a_failure_while_timing_is_the_runs(tiny, monkeypatch):
    def prepare(name):
        def contestant(shape, inputs):
            def fail():
                raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB\nmore")

            return peers.Work(fail, fail)

        return contestant

    monkeypatch.setattr(peers, "backend", prepare)
    monkeypatch.setattr(cases, "CASES", (*cases.CASES, dataclasses.replace(
        cases.named("hardware-8x1024x8x64"), name="hardware-tiny", tokens=16, batch=1)))
    result, found = tiny("--only", "hardware-tiny")
    assert result.exit_code == 1 and found["steps"]["benchmarks"]["outcome"] == "failed"
    entry, = found["steps"]["benchmarks"]["shapes"]
    assert entry["failed"] == "RuntimeError: forward: OutOfMemoryError: out of memory: tried to allocate 9 GiB"
    assert "hardware-tiny: FAILED" in result.stderr


def test_a_peer_that_fails_is_absent_and_the_run_goes_on(monkeypatch):
    def broken_peer(shape, inputs):
        def fail():
            raise ValueError("no such kernel")

        return peers.Work(fail, fail)

    monkeypatch.setattr(peers, "HARDWARE_PEERS", {"peer": broken_peer})
    case = dataclasses.replace(cases.named("hardware-8x1024x8x64"), tokens=16, batch=1)
    effort = benchmark.Effort("eager", torch.device("cpu"), quick=True)
    entry = benchmark._measure(case, effort, 10.0)
    assert "failed" not in entry
    for step in entry["passes"].values():
        assert step["absent"] == {"peer": "ValueError: no such kernel"} and list(step["times"]) == ["eager"]


def test_a_case_that_the_backend_refuses_is_not_served_by_another(monkeypatch):
    effort = benchmark.Effort("cpu", torch.device("cpu"), quick=True)
    case = dataclasses.replace(cases.named("hardware-8x1024x8x64"), tokens=16, batch=1, dtype=torch.float64)
    entry = benchmark._measure(case, effort, 10.0)
    assert "UnsupportedProblem" in entry["failed"] and "float64" in entry["failed"]


def test_a_missed_floor_fails_the_run_and_names_the_row(tiny, monkeypatch):
    floor = matrix.Floor("ten times faster than light", "decode", each=1e-9)
    row = dataclasses.replace(CPU_ROW, backend="eager", floors=(floor,))
    monkeypatch.setattr(matrix, "recognise", lambda device, backend: row)
    result, found = tiny()
    assert result.exit_code == 1 and found["verdict"] == "failed"
    assert found["floors"][0]["outcome"] == "missed"
    assert "missed: ten times faster than light" in result.stderr and "hardware-decode-8x1x16x128" in result.stderr


def test_floors_are_for_the_backend_that_is_due(tiny, monkeypatch):
    row = dataclasses.replace(CPU_ROW, backend="cpu", floors=(matrix.Floor("f", "decode", each=1e-9),))
    monkeypatch.setattr(matrix, "recognise", lambda device, backend: row)
    result, found = tiny("--backend", "eager")
    assert result.exit_code == 0 and "floors" not in found
    assert "not the one that has to serve this device" in result.stderr


def test_an_unknown_device_is_unverified_and_runs(tiny, monkeypatch):
    monkeypatch.setattr(matrix, "recognise", lambda device, backend: None)
    result, found = tiny(base=TINY[:-2])
    assert result.exit_code == 0 and "UNVERIFIED" in result.stderr
    assert found["row"] is None and found["steps"]["conformance"]["outcome"] == "passed"
    assert found["backend"] == "cpu"  # as a plan chooses
    assert found["steps"]["benchmarks"]["shapes"]


def test_a_backend_that_is_due_and_missing_is_no_other(tiny, monkeypatch):
    row = dataclasses.replace(CPU_ROW, backend="to-come")
    monkeypatch.setattr(matrix, "recognise", lambda device, backend: row)
    result, found = tiny(base=TINY[:-2])
    assert result.exit_code == 1
    assert "to-come has to serve this device and is not installed" in found["steps"]["conformance"]["reason"]
    assert found["steps"]["benchmarks"]["outcome"] == "skipped"


def test_a_run_goes_on_where_it_stopped(hardware_ci, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    two = (*TINY, "--cases", "tokens-[01]")
    assert hardware_ci("run", *two, "--skip-bench", "--out", a).exit_code == 0
    path, = a.glob("*.yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found["steps"]["benchmarks"] == {"outcome": "skipped", "reason": "not asked for"}
    whole = found["steps"]["conformance"]["checks"]
    found["steps"]["conformance"] |= {"outcome": "incomplete", "remaining": ["tokens-1"], "checks": 1000}
    path.write_text(yaml.safe_dump(found), encoding="utf-8")

    second = hardware_ci("run", *two, "--resume", path, "--out", b)
    assert second.exit_code == 0, second.stderr
    after = yaml.safe_load((b / path.name).read_text(encoding="utf-8"))
    step = after["steps"]["conformance"]
    assert step["outcome"] == "passed" and "remaining" not in step
    assert 1000 < step["checks"] < 1000 + whole  # tokens-0 is not done again
    timed = after["steps"]["benchmarks"]["shapes"]
    assert [entry["case"] for entry in timed] == ["hardware-decode-8x1x16x128"]

    third = hardware_ci("run", *two, "--resume", b / path.name, "--out", b)
    assert "conformance  passed already" in third.stderr
    kept = yaml.safe_load((b / path.name).read_text(encoding="utf-8"))
    assert kept["steps"]["benchmarks"]["shapes"] == timed


def test_results_of_two_never_mix(hardware_ci, tiny, tmp_path):
    tiny("--steps", "conformance")
    path, = tmp_path.glob("*.yaml")
    result = hardware_ci("run", *TINY[:-1], "cpu", "--resume", path, "--out", tmp_path)
    assert result.exit_code == 2 and "the same backend" in " ".join(result.stderr.replace("│", " ").split())


def test_time_that_runs_out_is_3_and_says_what_is_left(monkeypatch, tiny):
    monkeypatch.setattr(runner, "Deadline", lambda seconds: type("Spent", (), {"passed": True, "left": 0.0})())
    result, found = tiny()
    assert result.exit_code == 3 and found["verdict"] == "incomplete"
    assert found["steps"]["conformance"] == found["steps"]["conformance"] | {
        "outcome": "incomplete", "remaining": ["tokens-1"]}


class Bomb:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_a_failing_row():
    (name, rows), = conformance._parallel([("eager", Bomb(), "tokens-1", 0)], 1, conformance.Deadline())
    assert name == "tokens-1" and not rows[0].ok and "a process died" in rows[0].note


@pytest.mark.parametrize(("arguments", "words"), [
    (["--device", "cuda:9"], ["--device", "'cuda:9'"]),
    (["--backend", "cudnn"], ["--backend", "'cudnn'"]),
    (["--cases", "nothing*"], ["--cases", "'nothing*'"]),
    (["--only", "nothing*"], ["--only", "hardware-8x1024x8x64", "'nothing*'"]),
    (["--steps", "conformance,dance"], ["--steps", "sanitizer", "'conformance,dance'"]),
    (["--steps", "graphs", "--skip-bench"], ["--steps", "both"]),
    (["--jobs", "0"], ["--jobs", "'0'"]),
    (["--timeout", "soon"], ["--timeout", "'soon'"]),
    (["--resume", "no/such.yaml"], ["--resume", "no/such.yaml"]),
    (["--out", __file__], ["--out", "folder"]),
])
def test_a_wrong_argument_is_2_and_named(hardware_ci, tmp_path, arguments, words):
    result = hardware_ci("run", "--out", tmp_path, *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("command", ["run", "small", "long", "compile", "report", "workflow"])
def test_help(hardware_ci, command):
    assert "Usage" in hardware_ci(command, "--help").stdout


def test_the_small_calls(hardware_ci):
    result = hardware_ci("small", "--device", "cpu", "--backend", "eager")
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [f"gate {gate}" for gate in cases.GATES]
    assert all("dq" in line and "decoded state" in line for line in result.stdout.splitlines())


def test_cold_samples_empty_the_cache_before_every_call(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("mark")

        def elapsed_time(self, other):
            return 2.0

    monkeypatch.setattr(timing.torch, "get_device_module", lambda device: type("Module", (), {"Event": Event}))
    monkeypatch.setattr(timing, "_synchronise", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "zero_", lambda self: log.append("flush"))
    device = torch.device("meta")
    assert timing.cold(device)(lambda: log.append("call"), device, 2) == pytest.approx(0.002)
    assert log == ["flush", "mark", "call", "mark"] * 2


def test_the_flash_kernel_is_named():
    shape = peers.Shape(1, 2, 8, 8, torch.float32, "channel", torch.device("cpu"), seed=0)
    inputs = shape.inputs(12)
    torch.testing.assert_close(peers.sdpa_flash(shape, inputs).forward(), peers.sdpa(shape, inputs).forward())
    with pytest.raises(peers.Absent, match="needs K = V"):
        peers.sdpa_flash(dataclasses.replace(shape, value_dim=12), inputs)


def test_a_result_is_never_half_written(tmp_path):
    result = results.Result(tmp_path / "r.yaml", {"format": 1, "steps": {}})
    result.save()
    before = result.path.read_text(encoding="utf-8")
    result.what["object"] = object()
    with pytest.raises(yaml.YAMLError):
        result.save()
    assert result.path.read_text(encoding="utf-8") == before
