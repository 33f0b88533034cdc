"""Compiles the emulator and kernels for it, and keeps what it compiled."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from portable_gla_volta import cache
from portable_gla_volta.kernel import Kernel
from portable_gla_volta.sources import Source

FOLDER = Path(__file__).with_name("csrc")
_TARGET = "target.cuh"
_UNROLLED = ("-O1", "-DEMULATOR_UNROLL", "-fno-crossjumping", "-fno-tree-tail-merge", "-fno-optimize-sibling-calls")
_OPTIONS = ("-std=c++17", "-march=native", "-ffp-contract=off", "-fPIC", "-shared", "-fno-gnu-unique",
            "-fvisibility=hidden")


class BuildError(RuntimeError):
    """The compiler is missing, or refused a source."""


def missing() -> str:
    """Say why nothing can be compiled here, or nothing."""
    try:
        _compiler()
    except BuildError as error:
        return str(error)
    return ""


@functools.cache
def _compiler() -> tuple[str, str]:
    """Find the compiler, and what its output depends on beside its input: its version and the processor."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if not sys.platform.startswith("linux"):
        raise BuildError("the Volta emulator runs on Linux")
    if not found:
        raise BuildError("the Volta emulator compiles kernels with g++, and there is none: install it")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return found, f"{version}{platform.machine()}{_processor()}"


@functools.cache
def _poison() -> tuple[str, ...]:
    """Have local variables that nothing was stored to hold huge numbers, where the compiler can do that."""
    option = "-ftrivial-auto-var-init=pattern"  # GCC 12, clang 8
    found = subprocess.run([_compiler()[0], option, "-x", "c++", "-fsyntax-only", os.devnull], capture_output=True,
                           check=False)
    return () if found.returncode else (option,)


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return line
    return platform.processor()


@functools.cache
def _folder() -> Path:
    """Return where libraries are kept: with other compiled kernels, else in a folder that lasts as long as we do."""
    if cache.FOLDER is not None:
        with contextlib.suppress(OSError):
            (chosen := cache.FOLDER / "emulator").mkdir(parents=True, exist_ok=True)
            if os.access(chosen, os.W_OK):
                return chosen
    return Path(tempfile.mkdtemp(prefix="portable-gla-volta-"))


@functools.cache
def _own() -> str:
    """Return a hash of the emulator's own files."""
    found = hashlib.sha256()
    for path in sorted(FOLDER.iterdir()):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def machine() -> Path:
    """Compile the machine, or find it compiled."""
    return _library("machine", "", ("-O3", "-Wno-psabi"), lambda folder: FOLDER / "machine.cpp")


def kernel(kernel: Kernel, source: Source, unrolled: bool = False) -> Path:
    """Compile a kernel, or find it compiled; ``unrolled``: for counts, an instruction for every turn of a loop."""
    def stage(folder: Path) -> Path:
        # A quoted include looks beside the includer first, so the emulator's primitives have to stand there.
        for name, text in ((source.name, source.text), *source.headers.items()):
            (folder / name).write_text(text, encoding="utf-8")
        (folder / _TARGET).write_text(f'#include "{FOLDER / _TARGET}"\n', encoding="utf-8")
        return folder / source.name

    defines = tuple(f"-D{name}={value}" for name, value in kernel.defines)
    # Less optimised is faster here: more takes longer to compile, and kernels wait for the machine anyway.
    level = _UNROLLED if unrolled else ("-O1",)
    return _library(kernel.entry, source.digest(), (*level, *_poison(), *defines, "-x", "c++"), stage)


def _library(name: str, digest: str, options: Sequence[str], stage: Callable[[Path], Path]) -> Path:
    """Compile what ``stage`` puts into a folder, ``digest`` being its hash, or find it compiled."""
    compiler, depends = _compiler()
    everything = "\0".join((digest, _own(), depends, *_OPTIONS, *options))
    path = _folder() / f"{name}-{hashlib.sha256(everything.encode()).hexdigest()[:32]}.so"
    if path.exists():
        return path
    with _alone(path.with_suffix(".lock")):
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            with tempfile.TemporaryDirectory(prefix="portable-gla-volta-") as folder:
                command = [compiler, *_OPTIONS, *options, "-o", str(part), str(stage(Path(folder)))]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise BuildError(f"{' '.join(command)}\n{ran.stderr}")
            part.replace(path)
    return path


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Keep other processes from compiling the same at the same time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()
