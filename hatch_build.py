"""Compiles the CPU kernels while a wheel is built: one shared library, its sources once per instruction set.

Where there is no compiler, or no kernels for the machine, the wheel is built without the library and says so; the CPU
backend then gives that as its reason, and the eager one serves. A compiler that fails stops the build.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("backends/cpu/portable_gla_cpu")
COMMON = ("library.c", "threads.c")  # for any processor of the architecture
KERNELS = ("forward.c", "backward.c", "decode.c")  # once per instruction set
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
         "-ffp-contract=off",  # one rounding where the source says so: equal results on every instruction set
         "-fno-math-errno", "-pthread")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_X86 = {
    "avx2": _AVX2,
    "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
}
_ARM: dict[str, tuple[str, ...]] = {"neon": ()}
ISAS = {"x86_64": _X86, "amd64": _X86, "aarch64": _ARM, "arm64": _ARM}  # by platform.machine()


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: ``$CC``, else cc, gcc or clang; None if there is none."""
    if os.environ.get("CC"):
        command = shlex.split(os.environ["CC"])
        return command if shutil.which(command[0]) else None
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [found] if found else None


def why_not(compiler: list[str] | None) -> str:
    """Say why no library can be built on this machine; empty where one can."""
    if sys.platform == "win32":
        return "the CPU kernels are not built on Windows"
    if platform.machine().lower() not in ISAS:
        return f"there are no CPU kernels for {platform.machine()}"
    if compiler is None:
        return "no C compiler was found (set CC, or install gcc or clang)"
    return ""


def compile_library(compiler: list[str], sources: Path, target: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile ``sources`` into the shared library ``target``.

    Raises
    ------
    RuntimeError
        With the compiler's words, if it fails.
    """
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[tuple[str, str, tuple[str, ...]]] = [(name, name, ()) for name in COMMON]
        for isa, isa_flags in ISAS[platform.machine().lower()].items():
            jobs += [(name, f"{isa}-{name}", (*isa_flags, f"-DGLA_ISA={isa}")) for name in KERNELS]

        def build(job: tuple[str, str, tuple[str, ...]]) -> str:
            name, label, options = job
            out = str(Path(folder, label).with_suffix(".o"))
            _run([*compiler, *FLAGS, *options, *flags, *extra, "-c", str(sources / name), "-o", out])
            return out

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(build, jobs))
        built = Path(folder, target.name)
        _run([*compiler, "-shared", "-pthread", *objects, *extra, "-o", str(built)])
        # Never half a library, nor one changed under a running process; of two builds at once each has its own.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as beside:
            Path(shutil.copy2(built, beside)).replace(target)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"compiling the CPU kernels failed:\n{shlex.join(command)}\n{result.stderr}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)


class NativeBuildHook(BuildHookInterface[Any]):
    """Adds the library to the wheel and gives the wheel the platform's tag."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before the wheel's files are gathered; ``version`` is "standard" or "editable"."""
        package = Path(self.root) / PACKAGE
        library = package / "_native.so"
        compiler = find_compiler()
        reason = why_not(compiler)
        if reason or compiler is None:
            library.unlink(missing_ok=True)  # a stale one would go into a wheel that claims any platform
            self.app.display_warning(f"portable-gla: {reason}: building without the fast CPU kernels; CPU tensors "
                                     "will be served by the eager backend")
            return
        compile_library(compiler, package / "csrc", library)
        build_data["artifacts"].append(f"/{(PACKAGE / library.name).as_posix()}")
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"  # loaded through ctypes: no Python ABI

    def clean(self, versions: list[str]) -> None:
        """Remove the library, for ``hatch clean``."""
        (Path(self.root) / PACKAGE / "_native.so").unlink(missing_ok=True)
