"""From Linalg to machine code but for the last step: ``bishengir-compile`` plans the memories of a core."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portable_gla_ascend.offline import dump
from portable_gla_ascend.offline.environment import Environment, MissingEnvironment

SECONDS = 900.0  # for one kernel
RULES = 2
"""What is read from the compiler's code, by number: plans that are kept from another are made again."""
_TRIES = 3  # now and then it crashes without a word, and does not the next time
FLAGS = {"multibuffer": "enable-auto-multi-buffer", "enable_auto_bind_sub_block": "enable-auto-bind-sub-block",
         "unit_flag": "enable-hivm-unit-flag-sync", "sync_solver": "enable-hivm-graph-sync-solver",
         "enable_hivm_auto_cv_balance": "enable-hivm-auto-cv-balance", "set_workspace_multibuffer":
         "set-workspace-multibuffer", "tile_mix_vector_loop": "tile-mix-vector-loop", "tile_mix_cube_loop":
         "tile-mix-cube-loop", "limit_auto_multi_buffer_only_for_local_buffer":
         "limit-auto-multi-buffer-only-for-local-buffer", "limit_auto_multi_buffer_of_local_buffer":
         "limit-auto-multi-buffer-of-local-buffer"}
"""Launch options of Triton-Ascend and the compiler's flags for them."""
_USUAL = {"multibuffer": True, "enable_auto_bind_sub_block": True}


def fifth(target: str) -> bool:
    """Tell whether a target is of the fifth architecture, the 950's, which has a compiler of its own."""
    return target.startswith(("Ascend950", "Ascend910_95"))


def arguments(target: str, options: Mapping[str, Any]) -> list[str]:
    """Return the compiler's options, as Triton-Ascend gives them for a launch's options."""
    given = {**_USUAL, **options}
    return [f"--target={target}", *(f"--{flag}={given[name]}" for name, flag in FLAGS.items() if name in given),
            "--enable-hfusion-compile=true", *(() if fifth(target) else ("--enable-hivm-compile=true",)),
            "--enable-triton-kernel-compile=true"]


@functools.cache
def chip(environment: Environment, target: str) -> str:
    """Return what the compiler takes a target to be, but for the number of cores: equal for chips that it treats alike.

    Raises
    ------
    MissingEnvironment
        If it knows no such target.
    """
    tool = environment.tool("bishengir-opt-a5" if fifth(target) else "bishengir-opt")
    done = subprocess.run([str(tool), f"--hacc-append-device-spec=target={target}", "-"], input="module {}",
                          capture_output=True, text=True, timeout=SECONDS, check=False)
    found = re.search(r"#hacc\.target_device_spec<(.*)>>", done.stdout)
    if done.returncode or found is None:
        raise MissingEnvironment(f"{tool.name} does not know {target}: {done.stderr.strip()[-300:]}")
    return re.sub(r'#dlti\.dl_entry<"\w*CORE_COUNT", \d+ : i32>,? ?', "", found[1])


def plan(environment: Environment, text: str, target: str, options: Mapping[str, Any],
         seconds: float = SECONDS) -> dict[str, Any]:
    """Return what a kernel takes: plain data, ``error`` being empty where it compiles within so many seconds."""
    tool = environment.tool("bishengir-compile-a5" if fifth(target) else "bishengir-compile")
    begin = time.perf_counter()
    code: int | None = None
    said = kept = ""
    for _ in range(_TRIES):
        code, said, kept = _run(tool, environment.stubs, text, arguments(target, options), seconds)
        if code in (0, None) or "rror" in said:
            break
    crashed = code is not None and code < 0
    error = dump.error(said, code) if code else dump.lost(text, kept)
    found: dict[str, Any] = {"used": dump.used(kept), "limits": dump.limits(kept), "workspace": dump.workspace(kept),
                             "split": dump.split(said), "error": error}
    for over in dump.overflows(said) if code else ():
        found["used"][over.memory] = over.needed
        found["limits"][over.memory] = over.available
    if crashed:
        found["transient"] = True
    elif code is None:
        found |= {"transient": True, "error": f"bishengir-compile took more than {seconds:g} s"}
    elif not code and not found["used"]:
        found["error"] = "bishengir-compile kept no code that tells what it allotted"
    return {**found, "seconds": round(time.perf_counter() - begin, 2)}


def _run(tool: Path, stubs: Path, text: str, options: list[str], seconds: float) -> tuple[int | None, str, str]:
    """Return the exit status (None: out of time), stderr and the code before ``hivmc``."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        source, kept = home / "kernel.mlir", home / "kept"
        source.write_text(text, encoding="utf-8")
        kept.mkdir()
        try:
            done = subprocess.run(
                [str(tool), str(source), *options, f"--save-temps={kept}", "-o", str(home / "kernel")],
                capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
                env={**os.environ, "PATH": f"{stubs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"})
        except subprocess.TimeoutExpired:
            return None, "", ""
        return done.returncode, done.stderr, "".join(
            path.read_text(encoding="utf-8", errors="replace") for path in sorted(kept.rglob("*.mlir")))
