"""compute-sanitizer's memcheck and racecheck over ``python -m hardware_ci small``, where the tool is installed."""

from __future__ import annotations

import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hardware_ci import places
from hardware_ci.deadline import Deadline
from hardware_ci.results import FAILED, INCOMPLETE, PASSED, SKIPPED

TOOLS = ("memcheck", "racecheck")
_NAME = "compute-sanitizer"
_TOOLKIT = "/usr/local/cuda"
_FOUND = 77  # the exit status that we ask for where the tool finds something
_LONGEST = 300.0  # seconds for one tool: it slows kernels by 10 to 100 times
_KEPT = 40  # lines of what it says


def find(environment: Mapping[str, str] | None = None) -> Path | None:
    """Find the tool: on PATH, in a CUDA toolkit, or in a wheel."""
    environment = os.environ if environment is None else environment
    on_path = shutil.which(_NAME, path=environment.get("PATH", ""))
    if on_path:
        return Path(on_path)
    homes = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    candidates = [Path(home) / "bin" / _NAME for home in [*homes, _TOOLKIT]]
    candidates += [path for folder in _packages() for pattern in (f"nvidia/*/bin/{_NAME}", f"nvidia/**/{_NAME}")
                   for path in sorted(Path(folder).glob(pattern))]
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


def run(backend: str, device: torch.device, deadline: Deadline, before: Mapping[str, Any] | None = None,
        dtype: str = "bfloat16") -> dict[str, Any]:
    """Run both tools, those aside that passed in an earlier part of the run (``before``); return the step."""
    if device.type != "cuda" or torch.version.hip:
        if device.type == "npu":
            return {"outcome": SKIPPED, "reason": "compute-sanitizer watches NVIDIA GPUs; CANN has one for NPUs, to be "
                                                  "run by hand: mssanitizer --tool=racecheck python -m "
                                                  f"hardware_ci small --device npu --backend {backend}"}
        kind = "AMD GPUs" if torch.version.hip else device.type
        return {"outcome": SKIPPED, "reason": f"compute-sanitizer watches NVIDIA GPUs, not {kind}"}
    tool = find()
    if tool is None:
        return {"outcome": SKIPPED, "reason": "compute-sanitizer was not found: not on PATH, in CUDA_HOME, in "
                                              "/usr/local/cuda/bin, or in a wheel's nvidia/*/bin"}
    known: Mapping[str, Any] = (before or {}).get("tools", {})
    found = {name: known[name] if known.get(name, {}).get("outcome") == PASSED
             else watch(tool, name, backend, str(device), min(_LONGEST, deadline.left), dtype) for name in TOOLS}
    outcomes = [each["outcome"] for each in found.values()]
    outcome = next((each for each in (FAILED, INCOMPLETE) if each in outcomes), PASSED)
    return {"outcome": outcome, "tools": found}


def watch(tool: Path, name: str, backend: str, device: str, seconds: float,
          dtype: str = "bfloat16") -> dict[str, Any]:
    """Run the small script under one tool."""
    command = [str(tool), "--tool", name, "--error-exitcode", str(_FOUND), "--target-processes", "application-only",
               sys.executable, "-m", "hardware_ci", "small", "--device", device, "--backend", backend,
               "--dtype", dtype]
    # Each tensor in an allocation of its own: inside PyTorch's large blocks memcheck sees no bounds.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.perf_counter()
    try:
        process = subprocess.Popen(command, cwd=places.ROOT, env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
    except OSError as error:
        return {"outcome": FAILED, "reason": f"{tool.name} cannot be started: {error}"}
    try:
        text, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the script too, which would go on holding the device
        process.communicate()
        return {"outcome": INCOMPLETE, "reason": f"not done after {seconds:.0f} s"}
    status = process.returncode
    outcome = {"outcome": PASSED if status == 0 else FAILED, "seconds": round(time.perf_counter() - start, 1)}
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if status == 0:
        return outcome | {"said": lines[-1:]}
    what = "it found errors" if status == _FOUND else f"exit status {status}"
    return outcome | {"reason": what, "said": [_without_home(line) for line in lines[-_KEPT:]]}


def _packages() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages(), *(path for path in sys.path if "packages" in path)]


def _without_home(line: str) -> str:
    """Leave the checkout's place out of what is written to a file that others read."""
    return line.replace(str(places.ROOT), ".")
