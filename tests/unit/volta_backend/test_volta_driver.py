"""Loading and launching against a stand-in for libcuda: no GPU was at hand."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import helpers_volta_images as helpers
import pytest
import torch
from portable_gla_volta import cache, driver, nvrtc, targets
from portable_gla_volta.cache import Cache
from portable_gla_volta.device_runner import DeviceRunner
from portable_gla_volta.images import Images

from portable_gla.errors import KernelError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """PyTorch as it is on a machine with a GPU; ``capability`` and ``stream`` may be set."""
    here = SimpleNamespace(capability=(7, 0), stream=77, device=0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: here.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: here.capability)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=here.stream))
    return here


class Machine:
    """A runner with a compiler, a cache and a driver of a machine that is not there."""

    def __init__(self, folder: Path, cuda: helpers.FakeCuda | None = None) -> None:
        self.compiler, self.cuda = helpers.FakeNvrtc(), cuda or helpers.FakeCuda()
        self.images = Images(Cache(folder), self.compiler.find)
        self.driver = driver.Driver(self.cuda)
        self.runner = DeviceRunner(self.images, lambda: self.driver)

    def launch(self, kernel=None, grid: int = 5) -> None:
        self.runner.launch(kernel or helpers.kernel(), grid, helpers.Arguments(0, 9), ())


@pytest.fixture
def machine(own_sources: Path, tmp_path: Path, gpu: SimpleNamespace) -> Machine:
    return Machine(tmp_path / "cache")


def test_a_launch_on_the_current_stream(machine: Machine, gpu: SimpleNamespace) -> None:
    machine.launch()
    gpu.stream = 0
    machine.launch(grid=2)
    assert machine.cuda.launched == [(101, 5, 64, 0, 77, 9), (101, 2, 64, 0, None, 9)]
    assert b"sm_70" in machine.cuda.loaded[0]


def test_each_kernel_is_loaded_once_on_each_device(machine: Machine, gpu: SimpleNamespace) -> None:
    for _ in range(3):
        machine.launch()
        machine.launch(helpers.kernel(4))
    gpu.device = 1
    machine.launch()
    assert len(machine.cuda.loaded) == 3 and len(machine.compiler.compiled) == 2


def test_nothing_waits_for_the_device(machine: Machine) -> None:
    machine.launch()
    machine.launch()
    assert not [name for name in machine.cuda.calls if "Sync" in name or "Memcpy" in name or "MemAlloc" in name]


def test_the_first_launch_may_be_captured(machine: Machine) -> None:
    """A capture forbids loading in its thread, unless its mode is relaxed for as long; it is put back."""
    machine.launch()
    assert machine.cuda.modes_while_loading == [2] and machine.cuda.mode == 0
    before = len(machine.cuda.calls)
    machine.launch()
    assert machine.cuda.calls[before:] == ["cuLaunchKernel"]


def test_much_shared_memory_is_asked_for(machine: Machine) -> None:
    machine.launch(helpers.kernel(shared=48 * 1024))
    assert machine.cuda.attributes == []
    machine.launch(helpers.kernel(shared=48 * 1024 + 16))
    assert machine.cuda.attributes == [(8, 48 * 1024 + 16)]
    assert machine.cuda.launched[-1][3] == 48 * 1024 + 16


def test_a_thread_without_a_context_gets_pytorchs(machine: Machine) -> None:
    machine.cuda.context = None
    machine.launch()
    assert machine.cuda.context == 7 and machine.cuda.launched


def test_threads_load_a_kernel_once(machine: Machine) -> None:
    threads = [threading.Thread(target=machine.launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.cuda.launched) == 8 and len(machine.cuda.loaded) == 1


def test_a_launch_that_fails_says_what_of(machine: Machine) -> None:
    with pytest.raises(KernelError, match=r"scaled \(FACTOR 3\).*0 blocks of 64 threads.*CUDA_ERROR_INVALID_VALUE"):
        machine.launch(grid=0)


def test_a_file_that_the_driver_refuses_is_made_again(own_sources: Path, tmp_path: Path, gpu: SimpleNamespace) -> None:
    first = Machine(tmp_path / "cache")
    first.launch()
    bad = first.cuda.loaded[0]
    refused: list[bytes] = []

    def once(code: bytes) -> bool:
        refused.append(code)
        return len(refused) == 1

    again = Machine(tmp_path / "cache", helpers.FakeCuda(refused=once))
    again.launch()
    assert refused == [bad, bad] and len(again.compiler.compiled) == 1 and again.cuda.launched


def test_code_that_the_driver_refuses_for_good(machine: Machine) -> None:
    machine.cuda.refused = lambda code: True
    with pytest.raises(KernelError, match=r"scaled \(FACTOR 3\) cannot be loaded on sm_70.*INVALID_IMAGE"):
        machine.launch()
    assert len(machine.compiler.compiled) == 1
    with pytest.raises(KernelError):  # a file made by another launch is tried, and made again once
        machine.launch()
    assert len(machine.compiler.compiled) == 2


def test_another_gpu_is_refused(machine: Machine, gpu: SimpleNamespace) -> None:
    gpu.capability = (9, 0)
    with pytest.raises(KernelError, match="no kernels for sm_90, there are for sm_70, sm_75"):
        machine.launch()


def test_a_newer_gpu_on_request_takes_what_its_driver_translates(
        machine: Machine, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "ELSEWHERE", True)
    gpu.capability = (9, 0)
    machine.launch()
    assert machine.cuda.loaded == [b"machine code of (12, 6) --gp"]
    assert "--gpu-architecture=compute_70" in machine.compiler.compiled[0]
    machine.runner = DeviceRunner(machine.images, lambda: machine.driver)
    machine.launch()
    assert machine.cuda.calls.count("cuLinkComplete") == 1  # the second time it came from the cache
    machine.cuda.version = 13000  # another driver
    machine.driver = driver.Driver(machine.cuda)
    machine.runner = DeviceRunner(machine.images, lambda: machine.driver)
    machine.launch()
    assert machine.cuda.calls.count("cuLinkComplete") == 2 and len(machine.compiler.compiled) == 1


def test_what_the_driver_cannot_translate_has_its_log() -> None:
    with pytest.raises(KernelError, match="cuLinkAddData_v2: CUDA_ERROR_INVALID_PTX"):
        driver.Driver(helpers.FakeCuda()).translate(b"unknown")


@pytest.mark.parametrize(("arch", "elsewhere", "target"), [
    ("sm_70", False, "sm_70"), ("sm_75", False, "sm_75"), ("sm_72", False, None), ("sm_60", True, None),
    ("sm_90", False, None), ("sm_90", True, "compute_70"), ("sm_75", True, "sm_75"), ("gfx942", True, None), ("", True,
                                                                                                        None)])
def test_what_is_compiled_for_a_device(arch: str, elsewhere: bool, target: str | None,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "ELSEWHERE", elsewhere)
    assert targets.of(arch) == target


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu() -> None:
    reason, = driver.unavailable()
    assert reason.code == "device" and "emulate" in reason.hint


def test_no_libcuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(driver.ctypes, "CDLL", missing)
    driver.get.cache_clear()
    with pytest.raises(KernelError, match=r"libcuda\.so\.1 cannot be loaded"):
        driver.get()


CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def test_a_v100_under_cuda_13_is_refused_with_the_builds_that_work() -> None:
    reason, = driver.against_build(["sm_70"], "13.0", CU130)
    assert reason.code == "build" and "CUDA 13.0" in reason.text and "dropped" in reason.text
    for words in ("whl/cu126", "2.14", "R580"):
        assert words in reason.hint


def test_a_v100_under_a_cuda_12_build_without_it_is_refused_too() -> None:
    reason, = driver.against_build(["sm_70"], "12.9", [arch for arch in CU126 if arch != "sm_70"])
    assert "was left out" in reason.text and "whl/cu126" in reason.hint


@pytest.mark.parametrize(("devices", "cuda", "built"), [
    (["sm_70"], "12.6", CU126), (["sm_75"], "13.0", CU130), (["sm_70", "sm_75"], "13.0", CU130), ([], "13.0", CU130)])
def test_what_can_work_is_not_refused(devices: list[str], cuda: str, built: tuple[str, ...]) -> None:
    assert not driver.against_build(devices, cuda, built)


def test_a_machine_with_a_v100_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(CU130))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert [reason.code for reason in driver.unavailable()] == ["build"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(CU126))
    assert not driver.unavailable()


def test_neither_a_compiler_nor_built_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvrtc, "find", helpers.no_compiler)
    monkeypatch.setattr(cache, "FOLDER", tmp_path)
    driver.without_code.cache_clear()
    reason, = driver.without_code(("sm_70",))
    assert reason.code == "compiler" and "no NVRTC" in reason.text
    assert "nvidia-cuda-nvrtc-cu12" in reason.hint and "PORTABLE_GLA_CACHE" in reason.hint
    assert not driver.without_code(("sm_90",))  # which planning refuses for its own sake
    driver.without_code.cache_clear()
    Cache(tmp_path).put("forward-sm_70-0", "nvrtc-12.9", b"code")
    assert not driver.without_code(("sm_70",))
    assert driver.without_code(("sm_75",))
    driver.without_code.cache_clear()
