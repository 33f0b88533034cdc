"""Every known breakage, from made-up facts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from portable_gla_doctor import CHECKS, DeviceFacts, Facts, Severity, examine

HEALTHY = Facts(python="3.11.7", system="Linux x86_64", packages={"torch": "2.13.0", "numpy": "2.1.0"}, cores=16,
                threads=16)
H100 = DeviceFacts("cuda", "NVIDIA H100 80GB HBM3", "sm_90", "h100")
V100 = DeviceFacts("cuda", "Tesla V100-SXM2-16GB", "sm_70", "v100")
MI300 = DeviceFacts("cuda", "AMD Instinct MI300X", "gfx942", "mi300")
NPU = DeviceFacts("npu", "Ascend910B2", "Ascend910B2", "910b")
AUTOLOAD = "RuntimeError: Failed to load the backend extension: torch_npu. You can disable extension ..."


def packages(**versions: str | None) -> dict[str, str]:
    """The healthy packages with some changed (None: removed); underscores stand for hyphens."""
    changed = {**HEALTHY.packages, **{name.replace("_", "-"): version for name, version in versions.items()}}
    return {name: version for name, version in changed.items() if version is not None}


def codes(**facts: object) -> list[str]:
    return [finding.code for finding in examine(dataclasses.replace(HEALTHY, **facts))]


CUDA = {"cuda_build": "12.6", "cuda_available": True, "nvidia_driver": "560.35.03"}
BROKEN = {
    "torch-missing": {"packages": packages(torch=None)},
    "torch-old": {"packages": packages(torch="2.6.0+cu124")},
    "cann-missing": {"packages": packages(torch="2.7.1", torch_npu="2.7.1"), "torch_error": AUTOLOAD},
    "cann-not-sourced": {"packages": packages(torch="2.7.1", torch_npu="2.7.1"), "cann_home": "/usr/local/Ascend/cann",
                         "torch_error": AUTOLOAD},
    "torch-broken": {"torch_error": "OSError: libcudnn.so.9: cannot open shared object file"},
    "numpy-missing": {"packages": packages(numpy=None)},
    "cpu-build-with-gpu": {"nvidia_gpus": ("NVIDIA H100 80GB HBM3",), "nvidia_driver": "560.35.03"},
    "cuda-no-driver": {"cuda_build": "12.6"},
    "cuda-unavailable": {"cuda_build": "12.6", "nvidia_driver": "470.82"},
    "cuda13-volta": {**CUDA, "cuda_build": "13.0", "devices": (V100,)},
    "arch-not-built": {**CUDA, "cuda_build": "12.8", "built_archs": ("sm_75", "sm_80", "sm_90"), "devices": (V100,)},
    "triton-missing": {**CUDA, "devices": (H100,)},
    "triton-bad": {**CUDA, "devices": (H100,), "packages": packages(triton="3.5.1")},
    "triton-ascend-missing": {"devices": (NPU,), "packages": packages(torch="2.7.1", torch_npu="2.7.1"),
                              "cann_on_path": True},
    "torch-npu-missing": {"npus": 8},
    "torch-npu-mismatch": {"packages": packages(torch="2.8.0", torch_npu="2.7.1.post4"), "cann_on_path": True},
    "npu-unknown": {"packages": packages(torch="2.7.1", torch_npu="2.7.1", triton_ascend="3.2.0"), "cann_on_path": True,
                    "devices": (DeviceFacts("npu", "Ascend310P3", "Ascend310P3"),), "triton_ascend": True},
    "triton-ascend-overwritten": {"packages": packages(triton="3.3.1", triton_ascend="3.2.0"), "triton_ascend": False},
    "cpu-library-missing": {"refusals": {"cpu": "libportable_gla_cpu.so is not there"}},
    "one-thread": {"threads": 1, "omp_num_threads": "1"},
}


def test_every_check_has_a_breakage_here():
    assert sorted(BROKEN) == sorted(check.__name__.replace("_", "-") for check in CHECKS)


def test_every_finding_stands_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [code for code in BROKEN if f"`{code}`" not in text] == []


def test_a_healthy_machine_has_no_finding():
    assert codes() == []


@pytest.mark.parametrize("code", BROKEN)
def test_a_breakage_is_found_alone_and_has_a_remedy(code):
    (finding,) = examine(dataclasses.replace(HEALTHY, **BROKEN[code]))
    assert finding.code == code
    assert finding.text and finding.remedy


@pytest.mark.parametrize("facts", [
    {**CUDA, "devices": (H100,), "packages": packages(triton="3.7.1"), "built_archs": ("sm_80", "sm_90")},
    {**CUDA, "devices": (V100,), "built_archs": ("sm_70", "sm_90")},
    {**CUDA, "devices": (V100,), "built_archs": ("compute_60",)},  # PTX runs on newer devices
    {**CUDA, "devices": (DeviceFacts("cuda", "A10", "sm_86"),), "packages": packages(triton="3.5.0"),
     "built_archs": ("sm_80",)},  # sm_80 code runs on sm_86; the Triton fault is Hopper's
    {"rocm_build": "6.4", "cuda_available": True, "devices": (MI300,), "packages": packages(pytorch_triton_rocm="3.4")},
    {"packages": packages(torch="2.7.1", torch_npu="2.7.1", triton_ascend="3.2.0"), "cann_on_path": True,
     "devices": (NPU,)},
    {"packages": packages(torch="2.7.1+cpu", torch_npu="2.7.1.post4", triton_ascend="3.2.0"), "cann_on_path": True,
     "devices": (NPU,), "triton_ascend": True, "npus": 1},
    {"packages": packages(torch="2.7.1", torch_npu="2.7.1")},  # imported with its extensions: CANN is somewhere
    {"threads": 1, "cores": 2},
    {"threads": 2, "cores": 64},
    {"packages": packages(torch="2.10.0a0+git1234")},
])
def test_what_works_is_not_called_broken(facts):
    assert codes(**facts) == []


def test_amd_without_triton_is_told():
    assert codes(rocm_build="6.4", cuda_available=True, devices=(MI300,)) == ["triton-missing"]


def test_the_remedy_for_torch_npu_without_cann_is_the_variable_that_lets_torch_import():
    (finding,) = examine(dataclasses.replace(HEALTHY, **BROKEN["cann-missing"]))
    assert finding.severity is Severity.ERROR
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in finding.remedy and "`import torch` itself fails" in finding.text


@pytest.mark.parametrize(("home", "code"), [(None, "cann-missing"), ("/usr/local/Ascend/cann", "cann-not-sourced")])
def test_torch_npu_without_cann_is_a_warning_where_autoload_is_off(home, code):
    (finding,) = examine(dataclasses.replace(HEALTHY, packages=packages(torch="2.7.1", torch_npu="2.7.1"),
                                             autoload=False, cann_home=home))
    assert (finding.code, finding.severity) == (code, Severity.WARNING)


@pytest.mark.parametrize("facts", [
    BROKEN["cuda13-volta"],
    {"cuda_build": "13.0", "nvidia_driver": "580.65.06", "nvidia_gpus": ("Tesla V100-SXM2-16GB",)},
    BROKEN["arch-not-built"],
])
def test_the_remedy_for_a_v100_names_the_builds_that_work(facts):
    found = examine(dataclasses.replace(HEALTHY, **facts))
    for words in ("whl/cu126", "torch 2.14", "R580"):  # as the refusal of the volta backend says
        assert any(words in finding.remedy for finding in found)


@pytest.mark.parametrize(("version", "bad"), [
    ("3.3.1", False), ("3.4.0", True), ("3.6.0", True), ("3.7.0", True), ("3.7.1", False), ("3.8.0", False),
])
def test_the_versions_of_triton_that_are_bad_on_hopper(version, bad):
    found = codes(**CUDA, devices=(H100,), packages=packages(triton=version))
    assert found == (["triton-bad"] if bad else [])
