"""The facts that a result file starts with: device, driver, versions, commit. No host's or user's name."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hardware_ci import places
from portable_gla import devices
from portable_gla_doctor import facts as doctor


def device_facts(device: torch.device) -> dict[str, Any]:
    """Describe the device that is measured."""
    here = devices.of(device)
    found: dict[str, Any] = {"type": here.type, "kind": here.kind, "arch": here.arch, "name": device_name(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"memory_gib": round(properties.total_memory / 2**30, 1),
                  "processors": properties.multi_processor_count}
    if device.type == "cpu":
        found |= {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return found


def device_name(device: torch.device) -> str:
    """Return what the device calls itself."""
    if device.type == "cpu":
        return _processor() or f"{platform.machine()} CPU"
    get_name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(get_name(device)) if get_name else device.type


def software() -> dict[str, Any]:
    """Tell the versions of what a time depends on."""
    facts = doctor.gather()
    found: dict[str, Any] = {
        "python": facts.python, "system": facts.system, "cores": facts.cores, "packages": dict(facts.packages)}
    found["packages"]["torch"] = str(torch.__version__)  # with the build, which its metadata may lack
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.version.hip:
        found["rocm"] = torch.version.hip
    driver = _nvidia_driver() or facts.nvidia_driver or _amd_driver() or _ascend_driver()
    if driver:
        found["driver"] = driver
    if facts.cann_home:
        found["cann"] = Path(facts.cann_home).resolve().name  # "8.5.0", "cann-9.1.0"
    return found


def load() -> list[float] | None:
    """Tell how busy the machine is, averaged over 1, 5 and 15 minutes; None where the system does not say."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def commit() -> dict[str, Any]:
    """Tell which sources run: the commit, and whether tracked files differ from it (None: not known)."""
    sha = _output("git", "-C", str(places.ROOT), "rev-parse", "HEAD")
    if not sha:
        return {"sha": "unknown", "changed": None}
    return {"sha": sha, "changed": bool(_output("git", "-C", str(places.ROOT), "status", "--porcelain",
                                                "--untracked-files=no"))}


def _nvidia_driver() -> str:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0].strip() if lines else ""


def _amd_driver() -> str:
    path = Path("/sys/module/amdgpu/version")
    return f"amdgpu {path.read_text(encoding='utf-8').strip()}" if path.exists() else ""


def _ascend_driver() -> str:
    path = Path("/usr/local/Ascend/driver/version.info")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((f"ascend {line.partition('=')[2].strip()}" for line in lines if line.startswith("Version=")), "")


def _output(*command: str) -> str:
    """Return what a command prints; ``""`` where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
