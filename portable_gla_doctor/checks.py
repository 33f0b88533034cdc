"""The known breakages, one function each: facts in, at most one finding out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from portable_gla_doctor.facts import Facts
from portable_gla_doctor.finding import Finding, Severity

Check = Callable[[Facts], Finding | None]

_CU126 = ("pip install torch --index-url https://download.pytorch.org/whl/cu126 "
          "(the CUDA 12.6 builds, up to torch 2.14, are the last with code for sm_50 to sm_70; their last driver is "
          "R580)")


def torch_missing(facts: Facts) -> Finding | None:
    """Report that PyTorch is not installed."""
    if "torch" in facts.packages:
        return None
    return Finding("torch-missing", Severity.ERROR, "PyTorch is not installed", "pip install torch (2.7 or newer)")


def torch_old(facts: Facts) -> Finding | None:
    """Report a PyTorch older than 2.7."""
    version = facts.packages.get("torch")
    if version is None or _version(version) >= (2, 7):
        return None
    return Finding("torch-old", Severity.ERROR, f"PyTorch {version} is older than 2.7", "pip install --upgrade torch")


def cann_missing(facts: Facts) -> Finding | None:
    """Report torch-npu without CANN: ``import torch`` loads torch-npu, and fails."""
    if not _cann_unloadable(facts) or facts.cann_home is not None:
        return None
    text = "torch-npu is installed, and CANN, which it needs, is not"
    if facts.torch_error is not None:
        text += ": `import torch` itself fails, because it loads torch-npu"
    return Finding(
        "cann-missing", _npu_severity(facts), text,
        "on a machine with an Ascend NPU install CANN and source its set_env.sh; elsewhere `pip uninstall torch-npu`, "
        "or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, with which `import torch` leaves torch-npu alone")


def cann_not_sourced(facts: Facts) -> Finding | None:
    """Report a CANN whose libraries are not on the loader's path."""
    if not _cann_unloadable(facts) or facts.cann_home is None:
        return None
    return Finding(
        "cann-not-sourced", _npu_severity(facts),
        f"CANN is installed in {facts.cann_home}, and this shell does not know its libraries",
        f"source its set_env.sh (in {facts.cann_home} or the folder above), then start Python again")


def _cann_unloadable(facts: Facts) -> bool:
    # A PyTorch that was imported with its extensions has loaded torch-npu, wherever CANN may be.
    loaded = facts.torch_error is None and facts.autoload
    return "torch-npu" in facts.packages and not facts.cann_on_path and not loaded


def _npu_severity(facts: Facts) -> Severity:
    return Severity.WARNING if facts.torch_error is None else Severity.ERROR


def torch_broken(facts: Facts) -> Finding | None:
    """Report an ``import torch`` that fails for another reason than a known one."""
    if facts.torch_error is None or "torch" not in facts.packages:
        return None
    if cann_missing(facts) or cann_not_sourced(facts):
        return None
    remedy = "reinstall PyTorch: pip install --force-reinstall torch"
    if "backend extension" in facts.torch_error:
        remedy = ("a device extension fails to load: mend or uninstall it, or set TORCH_DEVICE_BACKEND_AUTOLOAD=0, "
                  "with which `import torch` leaves it alone")
    return Finding("torch-broken", Severity.ERROR, f"`import torch` fails: {facts.torch_error}", remedy)


def numpy_missing(facts: Facts) -> Finding | None:
    """Report that NumPy is not installed."""
    if "numpy" in facts.packages:
        return None
    return Finding("numpy-missing", Severity.ERROR, "NumPy is not installed; portable_gla and parts of PyTorch need it",
                   "pip install numpy")


def cpu_build_with_gpu(facts: Facts) -> Finding | None:
    """Report an NVIDIA GPU with its driver under a build of PyTorch without CUDA."""
    if "torch" not in facts.packages or facts.torch_error or not facts.nvidia_gpus or facts.cuda_build:
        return None
    return Finding(
        "cpu-build-with-gpu", Severity.WARNING,
        f"this machine has {facts.nvidia_gpus[0]}, and this build of PyTorch has no CUDA",
        "install a CUDA build: see pytorch.org/get-started; a V100 or older needs one of CUDA 12.6 (cu126)")


def cuda_no_driver(facts: Facts) -> Finding | None:
    """Report a CUDA build of PyTorch on a machine without an NVIDIA driver."""
    if facts.cuda_build is None or facts.cuda_available or facts.nvidia_driver is not None:
        return None
    return Finding(
        "cuda-no-driver", Severity.WARNING,
        f"this is a CUDA {facts.cuda_build} build of PyTorch, and there is no NVIDIA driver: only the CPU is used",
        "install the driver if this machine has a GPU (in a container: start it with the GPUs, --gpus all); otherwise "
        "the CPU build is smaller: pip install torch --index-url https://download.pytorch.org/whl/cpu")


def cuda_unavailable(facts: Facts) -> Finding | None:
    """Report a driver that PyTorch cannot use."""
    if facts.cuda_build is None or facts.cuda_available or facts.nvidia_driver is None:
        return None
    return Finding(
        "cuda-unavailable", Severity.ERROR,
        f"the NVIDIA driver ({facts.nvidia_driver}) is here, and PyTorch (CUDA {facts.cuda_build}) cannot use it",
        "python -c 'import torch; torch.cuda.init()' says why; usual causes: a driver older than the CUDA build needs "
        "(upgrade it, or install an older build), CUDA_VISIBLE_DEVICES hiding the GPUs, a container without them")


def cuda13_volta(facts: Facts) -> Finding | None:
    """Report a V100 or older GPU with a build of PyTorch whose CUDA no longer knows it."""
    if facts.cuda_build is None or _version(facts.cuda_build) < (13,):
        return None
    old = [device for device in facts.devices if (0, 0) < _sm(device.arch) < (7, 5)]
    names = [f"{device.name} ({device.arch})" for device in old]
    if not names and not facts.cuda_available:  # CUDA 13's driver may not list the GPU at all
        names = [name for name in facts.nvidia_gpus if re.search(r"\b(V100|P100|P40|P4|GTX 10)", name)]
    if not names:
        return None
    return Finding("cuda13-volta", Severity.ERROR,
                   f"{names[0]} cannot run this build of PyTorch: CUDA {facts.cuda_build} dropped every GPU before "
                   "sm_75", _CU126)


def arch_not_built(facts: Facts) -> Finding | None:
    """Report a GPU for which the build of PyTorch carries no code."""
    if not facts.built_archs or cuda13_volta(facts):
        return None
    for device in facts.devices:
        have = _sm(device.arch)
        if have == (0, 0) or any(_runs_on(built, have) for built in facts.built_archs):
            continue
        return Finding(
            "arch-not-built", Severity.ERROR,
            f"this build of PyTorch has no code for {device.name} ({device.arch}); it has "
            f"{', '.join(facts.built_archs)}",
            _CU126 if have < (7, 5) else "install a newer build of PyTorch: see pytorch.org/get-started")
    return None


def triton_missing(facts: Facts) -> Finding | None:
    """Report a GPU that Triton serves, without Triton."""
    if {"triton", "pytorch-triton-rocm"} & set(facts.packages):
        return None
    for device in facts.devices:
        if device.type == "cuda" and (device.arch.startswith("gfx") or _sm(device.arch) >= (8, 0)):
            return Finding(
                "triton-missing", Severity.WARNING,
                f"{device.name} is here and Triton is not: without it calls fall to plain PyTorch operations",
                "pip install triton (the CUDA builds of PyTorch name the version that fits them)")
    return None


def triton_bad(facts: Facts) -> Finding | None:
    """Report Triton 3.4 to 3.7.0 on Hopper: said to give wrong gradients in gated kernels."""
    version = facts.packages.get("triton")
    if version is None or not (3, 4) <= _version(version) < (3, 7, 1):
        return None
    if not any(_sm(device.arch)[0] == 9 for device in facts.devices):
        return None
    return Finding(
        "triton-bad", Severity.WARNING,
        f"Triton {version} on Hopper: 3.4 to 3.7.0 were reported to give wrong gradients in gated kernels "
        "(flash-linear-attention issues 640 and 984)",
        "pip install 'triton>=3.7.1', then portable-gla verify --full")


def torch_npu_missing(facts: Facts) -> Finding | None:
    """Report Ascend NPUs that PyTorch cannot see, torch-npu not being there."""
    if not facts.npus or "torch-npu" in facts.packages or "torch" not in facts.packages:
        return None
    return Finding(
        "torch-npu-missing", Severity.WARNING,
        f"this machine has {facts.npus} Ascend NPU{'s' * (facts.npus > 1)}, and torch-npu, by which PyTorch uses them, "
        "is not installed",
        "install CANN and source its set_env.sh, then pip install torch-npu in PyTorch's own version "
        f"({facts.packages['torch'].split('+')[0]}), then triton-ascend")


def torch_npu_mismatch(facts: Facts) -> Finding | None:
    """Report a torch-npu for another PyTorch: it was compiled against that one."""
    torch, npu = facts.packages.get("torch"), facts.packages.get("torch-npu")
    if torch is None or npu is None or _version(torch) == _version(npu):
        return None
    return Finding(
        "torch-npu-mismatch", Severity.ERROR if facts.torch_error else Severity.WARNING,
        f"torch-npu {npu} is for another PyTorch than {torch}: their first three numbers must be the same",
        f"pip install torch-npu in version {'.'.join(map(str, _version(torch)))} (a .post of it), or PyTorch "
        f"{'.'.join(map(str, _version(npu)))}")


def npu_unknown(facts: Facts) -> Finding | None:
    """Report an NPU whose chip the tables do not have."""
    device = next((device for device in facts.devices if device.type == "npu" and not device.kind), None)
    if device is None:
        return None
    return Finding(
        "npu-unknown", Severity.WARNING,
        f"{device.name}: this chip is not in the tables, so the Ascend backend refuses it and calls fall to plain "
        "PyTorch operations",
        "set PORTABLE_GLA_ASCEND_SOC to the known chip that is most like it (Ascend910B2), check with `portable-gla "
        "verify --device npu`, and report the name")


def triton_ascend_missing(facts: Facts) -> Finding | None:
    """Report an Ascend NPU without Triton-Ascend."""
    if "triton-ascend" in facts.packages or not any(device.type == "npu" for device in facts.devices):
        return None
    return Finding("triton-ascend-missing", Severity.WARNING,
                   "an Ascend NPU is here and triton-ascend is not: without it calls fall to plain PyTorch operations",
                   "pip uninstall triton, then pip install triton-ascend in the version that goes with this CANN and "
                   "torch-npu")


def triton_ascend_overwritten(facts: Facts) -> Finding | None:
    """Report a Triton-Ascend whose files another Triton has taken the place of."""
    if "triton-ascend" not in facts.packages or facts.triton_ascend is not False:
        return None
    return Finding(
        "triton-ascend-overwritten", Severity.ERROR,
        "triton-ascend is installed, and the `triton` that Python finds is not it: another Triton was installed after "
        "it (both bring a package of that name), and its kernels cannot be built",
        "pip uninstall triton triton-ascend, then pip install triton-ascend alone")


def cpu_library_missing(facts: Facts) -> Finding | None:
    """Report that the fast CPU backend cannot run."""
    reason = facts.refusals.get("cpu")
    if reason is None:
        return None
    return Finding("cpu-library-missing", Severity.WARNING,
                   f"the fast CPU backend cannot run ({reason}): CPU tensors fall to plain PyTorch operations",
                   "install the wheel, which brings the compiled library: pip install --force-reinstall portable-gla; "
                   "from a checkout: pip install -e . with gcc at hand")


def one_thread(facts: Facts) -> Finding | None:
    """Report one thread on a machine with many cores."""
    if facts.threads != 1 or facts.cores < 4:
        return None
    because = f" (OMP_NUM_THREADS={facts.omp_num_threads})" if facts.omp_num_threads else ""
    return Finding("one-thread", Severity.WARNING,
                   f"PyTorch uses 1 thread{because} of {facts.cores} cores: CPU tensors are computed on one core",
                   "unset OMP_NUM_THREADS, or torch.set_num_threads(...)")


CHECKS: tuple[Check, ...] = (
    torch_missing, torch_old, cann_missing, cann_not_sourced, torch_broken, numpy_missing, cpu_build_with_gpu,
    cuda_no_driver, cuda_unavailable, cuda13_volta, arch_not_built, triton_missing, triton_bad, torch_npu_missing,
    torch_npu_mismatch, npu_unknown, triton_ascend_missing, triton_ascend_overwritten, cpu_library_missing, one_thread)


def examine(facts: Facts, checks: Iterable[Check] = CHECKS) -> list[Finding]:
    """Run the checks; the findings in their order."""
    return [finding for check in checks if (finding := check(facts)) is not None]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0])[:3])


def _sm(arch: str) -> tuple[int, int]:
    """``sm_90`` as (9, 0), ``sm_120`` as (12, 0); (0, 0) for what is no NVIDIA arch."""
    found = re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[af]?", arch)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _runs_on(built: str, have: tuple[int, int]) -> bool:
    """Machine code runs on its own major version, minor or above; PTX on everything from its version on."""
    version = _sm(built)
    return version <= have and (built.startswith("compute_") or version[0] == have[0])
