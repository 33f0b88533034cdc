"""The compilers' own environment: made once from the package index, and kept outside the checkout.

Triton-Ascend installs a package ``triton`` in the place of the usual one, so it cannot live beside it. What it needs is
little: the lowering takes neither PyTorch nor CANN. The last step, CANN's closed ``hivmc``, is replaced by a program
that does nothing, so that ``bishengir-compile`` ends well once it has planned the memories and written its code.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from portable_gla_ascend.offline import store

PINS = ("triton-ascend==3.2.0", "ascendnpu-ir==1.2.0", "numpy==1.26.4", "pybind11==3.0.1")
"""All that is installed, without dependencies."""
VERSIONS = ((3, 11), (3, 10))
"""The Pythons that the pinned wheels are for."""
_STUBS = ("hivmc", "hivmc-a5")
_STUB = """#!/bin/sh
# Stands in for CANN's code generator: says a version, makes nothing.
case "$*" in *-version*) echo "hivmc 1.2.0" ;; esac
"""
_SECONDS = 1800.0  # for an installation


class MissingEnvironment(RuntimeError):
    """The environment cannot be made; the message says why."""


class Environment(NamedTuple):
    """A virtual environment with the compilers."""

    home: Path

    @property
    def python(self) -> Path:
        """Return its interpreter."""
        return self.home / "bin" / "python"

    @property
    def stubs(self) -> Path:
        """Return the folder of programs that stand in for CANN's."""
        return self.home / "stubs"

    def tool(self, name: str) -> Path:
        """Return a program of ascendnpu-ir's."""
        found = sorted(self.home.glob(f"lib/python3.*/site-packages/ascendnpuir/bin/{name}"))
        if not found:
            raise MissingEnvironment(f"{self.home} has no {name}: remove the folder, it is made again")
        return found[0]


def compiler() -> str:
    """Say which compilers it has."""
    return ", ".join(pin.replace("==", " ") for pin in PINS[:2])


@functools.cache
def ensure() -> Environment:
    """Return the environment; make it where there is none.

    Raises
    ------
    MissingEnvironment
        If there is no Python for it, or the installation fails.
    """
    return make(python(), store.folder())


def python() -> str:
    """Find a Python that the wheels are for.

    Raises
    ------
    MissingEnvironment
        If there is none.
    """
    if sys.version_info[:2] in VERSIONS:
        return sys.executable
    for major, minor in VERSIONS:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return found
    names = " or ".join(f"python{major}.{minor}" for major, minor in VERSIONS)
    raise MissingEnvironment(f"{PINS[0]} has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}, and "
                             f"there is no {names} on PATH")


def make(interpreter: str, folder: Path) -> Environment:
    """Make the environment of the pins with an interpreter, unless it is there."""
    made = Environment(folder / f"compilers-{store.digest(PINS, _STUB, interpreter)[:12]}")
    ready = made.home / "ready"
    if ready.exists():
        return made
    with store.locked(folder / "compilers.lock"):
        if not ready.exists():
            print(f"making an environment with {compiler()} in {made.home}", file=sys.stderr)
            shutil.rmtree(made.home, ignore_errors=True)
            _run(interpreter, "-m", "venv", str(made.home))
            _run(str(made.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                 "--only-binary", ":all:", *PINS)
            made.stubs.mkdir()
            for name in _STUBS:
                path = made.stubs / name
                path.write_text(_STUB, encoding="utf-8")
                path.chmod(0o755)
            ready.touch()
    return made


def _run(*command: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=variables, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingEnvironment(f"cannot make the compilers' environment: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-600:]
        raise MissingEnvironment(f"cannot make the compilers' environment: {' '.join(command[1:4])}: {said}")
