"""From a kernel to machine code: from the cache where it may, else compiled and kept.

Machine code for one architecture depends on the sources, the options and the compiler, not on the driver: so it can be
made on a machine without one. A key is the sources, the options and the target; a key's entries are named after the
compiler that made them.

- This machine's compiler made one: taken. Another NVRTC here makes its own, so an upgrade takes effect.
- Another compiler made one ahead of time (``portable-gla build``), or none is here: taken, if the driver's CUDA is of
  the same major version or newer, which is what NVIDIA promises to run.
- What the driver itself translates (compute_70 on a newer GPU) is kept under that driver's very version.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from portable_gla.errors import KernelError
from portable_gla_volta import nvrtc, sources
from portable_gla_volta.cache import Cache, Entry
from portable_gla_volta.kernel import Kernel


class Image(NamedTuple):
    """Machine code, or PTX; where it is kept; whether it was made for this call."""

    code: bytes
    key: str
    name: str
    path: Path | None
    compiled: bool


@functools.cache
def key(kernel: Kernel, target: str) -> str:
    """Return what code depends on, the compiler aside, as a name that is readable at its start."""
    digest = hashlib.sha256("\n".join(
        (sources.read(kernel.source).digest(), kernel.entry, *sources.options(kernel, target))).encode()).hexdigest()
    return f"{kernel.entry}-{target}-{digest[:32]}"


class Images:
    """Gives kernels' code; ``find`` returns this machine's compiler for a target, or raises KernelError."""

    def __init__(self, cache: Cache | None = None, find: Callable[[str], nvrtc.Nvrtc] = nvrtc.find) -> None:
        self.cache = Cache() if cache is None else cache
        self._find = find

    def get(self, kernel: Kernel, target: str, cuda: int | None = None, *, ahead: bool = False) -> Image:
        """Return a kernel's code for a target.

        Parameters
        ----------
        kernel, target
            What for what.
        cuda
            The major version of the CUDA that this machine's driver has; None: there is no driver.
        ahead
            Mark what is compiled as made ahead of time: to be used on machines with another compiler, or none.

        Raises
        ------
        portable_gla.errors.KernelError
            If it must be compiled, and cannot be.
        """
        where = key(kernel, target)
        try:
            compiler, missing = self._find(target), None
        except KernelError as error:
            compiler, missing = None, error
        own = None if compiler is None else _name(compiler.version)
        for name in sorted(self.cache.names(where), key=lambda name: (name == own, _version(name)), reverse=True):
            entry = self.cache.get(where, name)
            if entry is None or not (name == own or compiler is None or entry.facts.get("ahead")):
                continue
            if ahead and name != own:  # what is asked for is this compiler's
                continue
            if cuda is not None and _version(name)[0] > cuda:
                continue
            if ahead and not entry.facts.get("ahead"):
                self.cache.put(where, name, entry.code, **_facts(kernel, target, ahead=True))
            return Image(entry.code, where, name, self.cache.path(where, name), False)
        if compiler is None or own is None:
            raise KernelError(f"{sources.title(kernel)} is not in the cache for {target} ({self.cache.folder}), and "
                              f"cannot be compiled: {missing} -> {nvrtc.HINT}") from missing
        source = sources.read(kernel.source)
        made = compiler.compile(source.name, source.text, source.headers, sources.options(kernel, target))
        self.cache.put(where, own, made.code, **_facts(kernel, target, ahead))
        return Image(made.code, where, own, self.cache.path(where, own), True)

    def translated(self, image: Image, arch: str, driver: str, translate: Callable[[bytes], bytes]) -> Image:
        """Return the driver's machine code for PTX: kept under the driver's version, made by ``translate``."""
        where = f"{arch}-{hashlib.sha256(image.code).hexdigest()[:32]}"
        name = "driver-" + re.sub(r"[^\w.]", "_", driver)
        entry: Entry | None = self.cache.get(where, name)
        if entry is None:
            code = translate(image.code)
            self.cache.put(where, name, code, target=arch, driver=driver, of=image.key)
            return Image(code, where, name, self.cache.path(where, name), True)
        return Image(entry.code, where, name, self.cache.path(where, name), False)

    def drop(self, image: Image) -> None:
        """Forget code that turned out to be bad."""
        self.cache.drop(image.key, image.name)


def _facts(kernel: Kernel, target: str, ahead: bool) -> dict[str, object]:
    return {"kernel": kernel.entry, "defines": dict(kernel.defines), "target": target, "ahead": ahead}


def _name(version: tuple[int, int]) -> str:
    return f"nvrtc-{version[0]}.{version[1]}"


def _version(name: str) -> tuple[int, int]:
    found = re.fullmatch(r"nvrtc-(\d+)\.(\d+)", name)
    return (int(found[1]), int(found[2])) if found else (0, 0)
