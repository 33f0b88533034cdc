"""The two paths, and which one a call takes: asked of what is installed, with nothing imported."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path as File
from typing import NamedTuple

import torch

from portable_gla.problem import Device, Reason
from portable_gla_ascend import socs
from portable_gla_ascend.socs import Soc

OPERATIONS = "operations"
"""The pin that asks for PyTorch operations where the kernels could run: ``portable_gla.override(operations=1)``."""

SOC = "PORTABLE_GLA_ASCEND_SOC"
"""The environment variable that says which known chip an unknown one is to be taken for."""

_INSTALL = ("pip uninstall triton, then pip install triton-ascend in the version that goes with this CANN and "
            "torch-npu")
_assumed = os.environ.get(SOC, "")


class Path(NamedTuple):
    """How calls are run: by the kernels, or by PyTorch operations; ``forced``: because the kernels cannot run."""

    kernels: bool
    why: str
    forced: bool = False

    def __str__(self) -> str:
        return f"path: {'kernels' if self.kernels else 'PyTorch operations'}: {self.why}"


def choose(device: Device, pinned: bool, emulating: bool) -> Path:
    """Choose the path on a device."""
    if pinned:
        return Path(False, f"{OPERATIONS}=1 is pinned")
    if emulating:
        return Path(True, "run by the emulator")
    if not device.present:
        return Path(True, "as with triton-ascend installed there")
    missing = triton_ascend()
    return Path(False, f"{missing.text} -> {missing.hint}", forced=True) if missing else Path(
        True, "triton-ascend is installed")


@functools.cache
def triton_ascend() -> Reason | None:
    """Return why Triton-Ascend's kernels cannot be built here; None where it is installed."""
    found = importlib.util.find_spec("triton")
    if found is None:
        return Reason("library", "triton-ascend is not installed", _INSTALL)
    # The submodule's own spec would import triton.
    folders = found.submodule_search_locations or ()
    if not any(File(folder, "backends", "ascend").is_dir() for folder in folders):
        return Reason("library", "the triton installed here has no Ascend backend: triton-ascend is not installed, or "
                                 "was overwritten by another triton", _INSTALL)
    return None


def torch_npu() -> Reason | None:
    """Return why PyTorch has no NPU here; None where it has one."""
    version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])
    if version < (2, 7):
        return Reason("library", f"PyTorch {torch.__version__} is older than 2.7",
                      "pip install torch==2.7.1 torch-npu==2.7.1.post2")
    npu = getattr(torch, "npu", None)
    if npu is None:
        if importlib.util.find_spec("torch_npu") is None:
            return Reason("library", "torch-npu is not installed",
                          "on a machine with an Ascend NPU: CANN first, then torch 2.7.1 and the torch-npu of its "
                          "version; testing.emulate('ascend') runs the kernels on CPU tensors, slowly")
        return Reason("library", "torch-npu is installed and is not loaded: it fails without CANN's libraries, or "
                                 "TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it out",
                      "source CANN's set_env.sh, then `python -c 'import torch, torch_npu'` says what is missing; "
                      "`portable-gla doctor` looks for CANN")
    if not npu.is_available():
        return Reason("device", "torch-npu is loaded and finds no NPU",
                      "npu-smi info; in a container: start it with the devices (/dev/davinci0, "
                      "/dev/davinci_manager, /dev/devmm_svm, /dev/hisi_hdc)")
    return None


def soc(device: Device) -> Soc | None:
    """Return the chip of a device, or the one that the user takes an unknown one for."""
    return socs.of(device.arch) or (socs.of(_assumed) if _assumed else None)


def emulated() -> Soc | None:
    """Return the chip whose tiles the emulator runs: 910B2, or the one that the user names."""
    return socs.of(_assumed or "Ascend910B2")


def unknown_soc(device: Device) -> Reason:
    """Say that a chip is unknown, and what to do."""
    if device.type != "npu":
        return Reason("arch", f"emulates no chip {_assumed!r}, which {SOC} names; it knows {socs.known()}",
                      f"set {SOC} to one of these, or unset it: then it is 910B2")
    given = f", nor the {_assumed!r} of {SOC}" if _assumed else ""
    return Reason("arch", f"does not know the chip {device.arch or '(nameless)'!r}{given}; it knows {socs.known()}",
                  f"set {SOC} to the known chip that is most like it (Ascend910B2), check with `portable-gla verify "
                  "--device npu`, and report the name")
