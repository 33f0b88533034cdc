"""The facts that the checks judge, and how they are gathered: without PyTorch first, then from it where it imports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

_PACKAGES = ("portable-gla", "torch", "numpy", "triton", "pytorch-triton-rocm", "torch-npu", "triton-ascend",
             "flash-linear-attention")
_CANN_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_CANN_USUAL = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann", "/usr/local/Ascend/latest")


@dataclass(frozen=True)
class DeviceFacts:
    """A device as PyTorch sees it; ``arch`` is ``sm_90``, ``gfx942``, ``Ascend910B2``, ..."""

    type: str
    name: str
    arch: str
    kind: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of a machine; every default is "nothing there"."""

    python: str = ""
    system: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)  # installed distribution -> version
    autoload: bool = True  # whether `import torch` loads device extensions (TORCH_DEVICE_BACKEND_AUTOLOAD)
    cann_home: str | None = None  # where CANN is installed
    cann_on_path: bool = False  # whether its libraries can be loaded: its set_env.sh was sourced
    npus: int = 0  # Ascend NPUs that the driver shows
    triton_ascend: bool | None = None  # whether the `triton` that Python finds has an Ascend backend; None: no triton
    nvidia_driver: str | None = None  # version, "present", or None
    nvidia_gpus: tuple[str, ...] = ()  # as the driver lists them
    cores: int = 1  # that this process may use
    omp_num_threads: str | None = None  # the environment variable

    torch_error: str | None = None  # why `import torch` failed
    cuda_build: str | None = None  # "12.6" for a CUDA build of PyTorch
    rocm_build: str | None = None
    cuda_available: bool = False
    built_archs: tuple[str, ...] = ()  # "sm_70", ..., "compute_90": what a CUDA build carries
    devices: tuple[DeviceFacts, ...] = ()
    threads: int | None = None
    refusals: Mapping[str, str] = field(default_factory=dict)  # unavailable backend -> why


def gather() -> Facts:
    """Gather what can be known without PyTorch."""
    cann_home = _cann_home()
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=_packages(),
        autoload=os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1",
        cann_home=cann_home,
        cann_on_path=_loadable("libascendcl.so"),
        npus=len([path for path in Path("/dev").glob("davinci*") if path.name.removeprefix("davinci").isdigit()]),
        triton_ascend=_triton_ascend(),
        nvidia_driver=_nvidia_driver(),
        nvidia_gpus=_nvidia_gpus(),
        cores=_cores(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
    )


def with_torch(facts: Facts, torch: ModuleType) -> Facts:
    """Add what an imported PyTorch says, its devices' kinds and the backends' refusals aside."""
    cuda = torch.cuda
    return replace(
        facts,
        cuda_build=torch.version.cuda,
        rocm_build=torch.version.hip,
        cuda_available=cuda.is_available(),
        built_archs=tuple(cuda.get_arch_list()) if torch.version.cuda and cuda.is_available() else (),
        threads=torch.get_num_threads(),
    )


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cann_home() -> str | None:
    homes = [os.environ.get(name) for name in _CANN_HOMES]
    return next((home for home in [*homes, *_CANN_USUAL] if home and Path(home).is_dir()), None)


def _triton_ascend() -> bool | None:
    found = importlib.util.find_spec("triton")
    if found is None:
        return None
    return any(Path(folder, "backends", "ascend").is_dir() for folder in found.submodule_search_locations or ())


def _loadable(library: str) -> bool:
    """Look for a library where the loader would, without loading it."""
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), "/usr/lib", "/usr/lib64", "/usr/local/lib"]
    return any((Path(folder) / library).exists() for folder in folders if folder)


def _nvidia_driver() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return "present" if _loadable("libcuda.so.1") else None
    return next((word for word in words if word[:1].isdigit() and "." in word), "present")


def _nvidia_gpus() -> tuple[str, ...]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return tuple(names)
