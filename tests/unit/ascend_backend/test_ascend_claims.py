"""What the Ascend backend takes and refuses, which path it chooses, and what it makes of a kernel's error."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import subprocess
import types

import pytest
import torch
from portable_gla_ascend import launch, paths, socs
from portable_gla_ascend.backend import AscendBackend, backend

import portable_gla
from portable_gla import devices, registry
from portable_gla.problem import Device, Problem
from portable_gla.testing import cases, emulate, inputs

PROBLEM = Problem(tokens=4096, heads=16, key_dim=128, value_dim=128, dtype=torch.bfloat16,
                  device=devices.named("910b"), training=True)
HERE = Device("npu", "910b", "Ascend910B2")


@pytest.fixture(autouse=True)
def fresh():
    paths.triton_ascend.cache_clear()
    yield
    paths.triton_ascend.cache_clear()


@pytest.mark.parametrize("kind", ["910b", "910c", "950", "950dt"])
def test_devices_that_it_serves(kind):
    plan = portable_gla.plan(PROBLEM, device=kind)
    assert plan.backend == "ascend" and not plan.fallback
    assert "path: kernels: as with triton-ascend installed there" in str(plan)


@pytest.mark.parametrize("name", ["Ascend910B1", "Ascend910B4-1", "Ascend910B2C", "Ascend910_9391", "Ascend910_9362",
                                  "Ascend910_9589", "Ascend950PR_958a", "Ascend950DT_95A2", "Ascend950"])
def test_chips_are_known_by_every_name(name):
    kind = devices._kind("npu", name)
    assert devices.table()[kind].type == "npu"
    soc = socs.of(name)
    assert soc is not None and socs.of(name.removeprefix("Ascend")) is soc
    assert (soc.unified_kib, soc.l0c_kib) == ((248, 256) if kind.startswith("950") else (192, 128))
    assert soc.vector_cores == 2 * soc.cube_cores


@pytest.mark.parametrize("arch", ["Ascend910A", "Ascend310P3", "Ascend910B", "", "Ascend910_93"])
def test_unknown_chips_are_not_guessed(arch):
    assert socs.of(arch) is None


@pytest.mark.parametrize(("changed", "code"), [
    ({"device": devices.named("h200")}, "device"),
    ({"device": devices.named("cpu")}, "device"),
    ({"device": Device("npu", "", "Ascend310P3", present=False)}, "arch"),
    ({"device": Device("npu", "", "")}, "arch"),
    ({"dtype": torch.float64}, "dtype"),
    ({"key_dim": 513}, "size"),
    ({"value_dim": 1024}, "size"),
    ({"pins": (("segments", 2),)}, "pin"),
    ({"pins": (("operations", 2),)}, "pin"),
    ({"pins": (("chunk", 64),)}, "pin"),
])
def test_refusals(changed, code):
    reasons = backend.reasons_against(dataclasses.replace(PROBLEM, **changed))
    assert [reason.code for reason in reasons] == [code]
    assert all(reason.hint for reason in reasons)


def test_pins_that_it_has():
    for name in ("segments", "operations"):
        assert backend.reasons_against(dataclasses.replace(PROBLEM, pins=((name, 1),))) == []


def found_triton(monkeypatch, folder):
    spec = None
    if folder is not None:
        spec = importlib.machinery.ModuleSpec("triton", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: spec if name == "triton" else None)


def test_kernels_are_taken_where_triton_ascend_is(monkeypatch, tmp_path):
    (tmp_path / "backends" / "ascend").mkdir(parents=True)
    found_triton(monkeypatch, tmp_path)
    path = paths.choose(HERE, pinned=False, emulating=False)
    assert path.kernels and str(path) == "path: kernels: triton-ascend is installed"
    assert not backend.plain_for(dataclasses.replace(PROBLEM, device=HERE))
    assert not paths.choose(HERE, pinned=True, emulating=False).kernels


@pytest.mark.parametrize("other", [False, True])
def test_operations_are_taken_where_it_is_not(monkeypatch, tmp_path, other):
    found_triton(monkeypatch, tmp_path if other else None)
    path = paths.choose(HERE, pinned=False, emulating=False)
    assert not path.kernels and path.forced
    assert "triton-ascend is not installed" in path.why and "pip install triton-ascend" in path.why
    assert ("overwritten by another triton" in path.why) == other
    assert backend.plain_for(dataclasses.replace(PROBLEM, device=HERE))
    assert not backend.plain_for(dataclasses.replace(PROBLEM, device=HERE, pins=(("operations", 1),)))


def test_without_an_npu_it_says_what_is_missing(monkeypatch):
    monkeypatch.delattr(torch, "npu", raising=False)
    for installed, words, way_out in (
            (False, "torch-npu is not installed", "CANN first"),
            (True, "torch-npu is installed and is not loaded", "set_env.sh")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_, there=installed: object() if there else None)
        reason, = backend.unavailable()
        assert words in reason.text and way_out in reason.hint
    monkeypatch.setattr(torch, "npu", types.SimpleNamespace(is_available=lambda: False), raising=False)
    reason, = backend.unavailable()
    assert "finds no NPU" in reason.text and "npu-smi" in reason.hint
    monkeypatch.setattr(torch.npu, "is_available", lambda: True)
    assert backend.unavailable() == ()
    monkeypatch.setattr(torch, "__version__", "2.6.0a0+git1")
    reason, = backend.unavailable()
    assert "older than 2.7" in reason.text and "2.7.1" in reason.hint


def test_cpu_tensors_are_not_its():
    q = torch.randn(1, 8, 1, 16)
    with pytest.raises(portable_gla.UnsupportedProblem, match="serves npu tensors, not cpu"):
        portable_gla.attention(q, q, q, backend="ascend")


def test_emulation_says_so():
    q = torch.randn(1, 8, 1, 16)
    with emulate("ascend"):
        plan = portable_gla.plan(q, q, q)
    assert plan.backend == "ascend" and plan.emulated
    assert "ascend (emulated)" in str(plan) and "path: kernels: run by the emulator" in str(plan)


def raised_below_triton(error):
    """A function of a module of Triton's that raises."""
    module = types.ModuleType("triton.backends.ascend.made_up")
    exec("def fail(error): raise error", module.__dict__)
    return lambda *_, **__: module.fail(error)


@pytest.fixture
def on_device(monkeypatch):
    """The backend as on a device, with tensors of the CPU: what its kernels raise is all that matters."""
    device = AscendBackend()
    monkeypatch.setattr(device, "_current", lambda q: contextlib.nullcontext())
    monkeypatch.setattr(device, "_path", lambda *_: paths.Path(True, "in a test"))
    monkeypatch.setattr(device, "_kernels", lambda: None)
    return device


def call():
    return inputs.make(cases.named("gate-channel-f32"), 1).call()


@pytest.mark.parametrize("error", [
    OSError("no bishengir-compile"), RuntimeError("Failed to compile"), ImportError("libtriton.so"),
    subprocess.CalledProcessError(1, "bishengir-compile", stderr=b"ub overflow, requires 2000000 bits")])
def test_what_is_raised_below_triton_is_a_kernel_error(on_device, monkeypatch, error):
    monkeypatch.setattr(launch, "forward", raised_below_triton(error))
    with pytest.raises(portable_gla.KernelError, match=r"could not be built or launched(.|\n)*operations=1") as raised:
        on_device.forward(call(), save=False)
    assert raised.value.__cause__ is error
    if isinstance(error, subprocess.CalledProcessError):
        assert "ub overflow" in str(raised.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("NPU out of memory"), ValueError("our own")])
def test_other_errors_pass(on_device, monkeypatch, error):
    below = raised_below_triton(error) if isinstance(error, torch.OutOfMemoryError) else None

    def fail(*_):
        if below:
            below()
        raise error

    monkeypatch.setattr(launch, "forward", fail)
    with pytest.raises(type(error)):
        on_device.forward(call(), save=False)


def test_in_emulation_only_tritons_own_errors_are(monkeypatch):
    """A fault that the emulator finds must reach whoever looks for it."""
    handle = registry.emulated_handle("ascend")
    emulated = registry.get(handle)
    monkeypatch.setattr(emulated, "_kernels", lambda: None)
    monkeypatch.setattr(launch, "forward", raised_below_triton(RuntimeError("a race")))
    with pytest.raises(RuntimeError, match="a race") as raised:
        emulated.forward(call(), save=False)
    assert not isinstance(raised.value, portable_gla.KernelError)
