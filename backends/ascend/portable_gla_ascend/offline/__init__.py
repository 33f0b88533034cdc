"""Compiles the kernels for devices that are not here, by Triton-Ascend's and AscendNPU IR's own compilers.

A kernel is lowered to Linalg by a child process in an environment of the compilers' own, and taken through
``bishengir-compile``, whose memory planning knows each chip's limits. What lowers to the same text is planned once for
all chips that the compiler describes alike, their numbers of cores aside.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from portable_gla_ascend import socs
from portable_gla_ascend.offline import environment, lowering, planning, recording, store
from portable_gla_ascend.offline.dump import MEMORIES
from portable_gla_ascend.offline.environment import compiler
from portable_gla_ascend.offline.recording import Launch
from portable_gla_ascend.socs import Soc

__all__ = ["MEMORY", "TARGETS", "Build", "Compiled", "builds", "compile_launch", "compile_one", "compiler", "kernels",
           "key", "prepare", "summed"]

TARGETS = {name: name for name in ("Ascend910B2", "Ascend910B4", "Ascend910_9391")} | {"Ascend950": "Ascend950PR_9589"}
"""Architectures as ``devices.yaml`` has them, and the compiler's names of their chips."""
MEMORY = "unified buffer"
"""What ``shared`` is of."""
KERNELS = "portable_gla_ascend.kernels"
_SIZES = "K x V"
_HOME = Path(__file__).parents[2]  # of the package


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel for one target; ``configuration`` says what kind of call launches it, and for which K and V."""

    kernel: str
    target: str
    configuration: dict[str, str]

    @property
    def call(self) -> dict[str, Any]:
        """Return the kind of call with the first of its K and V, as ``recording.record`` takes it."""
        kind = dict(self.configuration)
        key_dim, value_dim = kind.pop(_SIZES).split()[0].split("x")
        return {**kind, "K": int(key_dim), "V": int(value_dim)}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compilers say of a build; ``shared`` in bytes of a vector core's unified buffer."""

    build: Build
    registers: None
    spills: None
    shared: int
    shared_limit: int
    warps: None
    occupancy: None
    seconds: float
    error: str
    extra: dict[str, Any]


def prepare() -> None:
    """Make the compilers' environment; a RuntimeError says why that cannot be."""
    environment.ensure()


def kernels() -> ModuleType:
    """Return the module of the kernels, which needs a Triton, but not Ascend's."""
    return importlib.import_module(KERNELS)


def soc(target: str) -> Soc:
    """Return the chip that a target is compiled for."""
    found = socs.of(target)
    assert found is not None, target
    return found


def builds(targets: Iterable[str] = tuple(TARGETS), sample: bool = False) -> Iterator[Build]:
    """Yield every kernel in every kind of call, or a sample; sizes that launch the same are one build."""
    for target in targets:
        for kind, sizes in recording.kinds(sample):
            served: dict[tuple[str, str], list[str]] = {}
            for key_dim, value_dim in sizes:
                launched: dict[str, set[str]] = {}
                for one in _recorded(target, tuple({**kind, "K": key_dim, "V": value_dim}.items())):
                    launched.setdefault(one.kernel, set()).add(store.digest(one.plain()))
                for kernel, names in launched.items():
                    served.setdefault((kernel, store.digest(sorted(names))), []).append(f"{key_dim}x{value_dim}")
            for (kernel, _), pairs in served.items():
                yield Build(kernel, target, {**kind, _SIZES: " ".join(pairs)})


@functools.lru_cache(maxsize=4096)
def _recorded(target: str, configuration: tuple[tuple[str, Any], ...]) -> list[Launch]:
    return recording.record(kernels(), soc(target), dict(configuration))


def _launches(build: Build) -> list[Launch]:
    found = {store.digest(one.plain()): one for one in _recorded(build.target, tuple(build.call.items()))
             if one.kernel == build.kernel}
    if not found:
        raise ValueError(f"{build.kernel}: not launched by {build.configuration}")
    return list(found.values())


@functools.cache
def _sources() -> str:
    home = Path(kernels().__file__ or "").parent
    return store.digest([path.read_text(encoding="utf-8") for path in sorted(home.glob("*.py"))])


def key(build: Build) -> str:
    """Return a hash of all that a build is made of, the compilers aside."""
    return store.digest(_sources(), TARGETS[build.target], [one.plain() for one in _launches(build)])


def compile_one(build: Build) -> Compiled:
    """Compile one build, every way in which its kind of call launches that kernel; return the worst."""
    found = summed(build, [compile_launch(one, build.target) for one in _launches(build)])
    return dataclasses.replace(found, extra={**found.extra, "key": key(build)})


def summed(build: Build, found: Sequence[dict[str, Any]]) -> Compiled:
    """Make a build's row of what ``compile_launch`` gave for each of its launches: the worst one's figures."""
    worst = max(found, key=lambda one: (bool(one["error"]), one["used"].get("ub", 0), one["used"].get("cc", 0)))
    return Compiled(build, None, None, worst["used"].get("ub", 0), worst["limits"]["ub"], None, None,
                    sum(one["seconds"] for one in found), worst["error"], _figures(worst))


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    sizes = {MEMORIES[name]: f"{found['used'].get(name, 0) / 1024:g} of {found['limits'][name] / 1024:g} KiB"
             for name in ("cc", "cbuf")}
    return {**sizes, "workspace": f"{found['workspace'] / 1024:g} KiB",
            "vector cores": "both" if found["split"] else "one"}


def compile_launch(launch: Launch, target: str, module: str = KERNELS, path: tuple[Path, ...] = (),
                   limit: float = planning.SECONDS) -> dict[str, Any]:
    """Lower a launch and plan its memories: ``used``, ``limits``, ``workspace`` (bytes), ``split``, ``error``.

    The kernels may be another module's, in a folder of ``path``. Planning has ``limit`` seconds.
    """
    made, name, options = environment.ensure(), TARGETS[target], dict(launch.options)
    if planning.fifth(name):
        options.setdefault("compile_on_910_95", True)
    chip = soc(target)
    usual = {"ub": chip.unified_kib * 1024, "cc": chip.l0c_kib * 1024, "cbuf": chip.l1_kib * 1024}
    begin = time.perf_counter()
    request = {**launch.plain(), "module": module, "options": options}
    child = _child(made, (_HOME, *path))
    if module == KERNELS:  # whose sources are known
        lowered = store.Store(store.folder() / "lowered").get(
            store.digest(_sources(), request, compiler()), lambda: child.ask(request))
    else:
        lowered = child.ask(request)
    seconds = time.perf_counter() - begin
    if "error" in lowered:
        return {"used": {}, "limits": usual, "workspace": 0, "split": True, "seconds": seconds,
                "error": f"does not lower: {_told(lowered['error'])}"}
    text = lowered["text"]
    flags = [flag for flag in planning.arguments(name, options) if not flag.startswith("--target=")]
    planned = store.Store(store.folder() / "planned").get(
        store.digest(text, flags, planning.chip(made, name), compiler(), planning.RULES),
        lambda: planning.plan(made, text, name, options, limit))
    return {**planned, "limits": {**usual, **planned["limits"]}, "seconds": planned["seconds"] + seconds}


@functools.cache
def _child(made: environment.Environment, path: tuple[Path, ...]) -> lowering.Child:
    return lowering.Child([str(made.python), str(lowering.SCRIPT)], path)


def _told(said: str) -> str:
    if "Stack dump:" in said:
        return "triton-adapter-opt crashed"
    lines = [line.strip() for line in said.splitlines() if "rror" in line] or said.strip().splitlines()[-1:]
    return "; ".join(dict.fromkeys(lines))[:600]
