"""Compiles the kernels for devices that are not here: what a launch would compile, from the launcher itself.

A call on meta tensors goes through the launcher with kernels that only write down how they were launched. So what is
compiled has the launch's own constants, strides and tile sizes, and a new kernel or constant is never forgotten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from portable_gla import segments
from portable_gla.backend import Call, DecodeCall
from portable_gla_triton import kernels, launch, tiles
from portable_gla_triton.operands import kind
from portable_gla_triton.targets import TARGETS, limits

__all__ = ["TARGETS", "Build", "Compiled", "builds", "compile_one"]

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_GATES = ("channel", "head", "constant", "none")
_SIZES = ((64, 64), (128, 128), (256, 256), (256, 512), (512, 512), (40, 72))
_TOKENS = 4096
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel for one target; ``configuration`` says what kind of call launches it."""

    kernel: str
    target: str
    configuration: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a build; ``spills`` in bytes a thread, ``shared`` in bytes a program."""

    build: Build
    registers: int | None
    spills: int | None
    shared: int
    shared_limit: int
    warps: int
    occupancy: float | None  # programs that one multiprocessor holds, by registers, shared memory and threads
    seconds: float
    error: str


class _Recorder:
    """Stands in for the kernels, and writes down how they are launched."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        function = getattr(kernels, name)

        class Kernel:
            def __getitem__(_, grid: Any) -> Any:
                def record(*args: Any, **kwargs: Any) -> None:
                    options: dict[str, Any] = {
                        key: kwargs.pop(key) for key in ("num_warps", "num_stages") if key in kwargs}
                    bound = function.signature.bind(*args, **kwargs)
                    self.launches.append((name, dict(bound.arguments), options))
                return record

        return Kernel()


def builds(targets: Iterable[str] = TARGETS, sample: bool = False) -> Iterator[Build]:
    """Yield every kernel in every configuration of the table, or a sample that spans kernels, gates and targets."""
    for target in targets:
        for configuration in _configurations(sample):
            seen = set()
            for name, _, _ in record(target, configuration):
                seen.add(name)
            for name in sorted(seen):
                yield Build(name, target, configuration)


def _configurations(sample: bool) -> Iterator[dict[str, Any]]:
    """Yield kinds of calls: "plain" has no feature, "all" every one at once but a bonus, "bonus" that too."""
    for dtype in _DTYPES:
        yield {"dtype": dtype, "gate": "channel", "K": 128, "V": 128, "features": "plain"}
    yield {"dtype": "bf16", "gate": "head", "K": 64, "V": 64, "features": "bonus"}
    if sample:
        return
    for dtype, gate, (key_dim, value_dim) in itertools.product(_DTYPES, _GATES, _SIZES):
        yield {"dtype": dtype, "gate": gate, "K": key_dim, "V": value_dim, "features": "all"}
    for dtype, gate in itertools.product(_DTYPES, _GATES):
        yield {"dtype": dtype, "gate": gate, "K": 128, "V": 128, "features": "bonus"}


def record(target: str, configuration: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return the launches of one kind of call, forward, backward and decode."""
    dtype = _DTYPES[configuration["dtype"]]
    key_dim, value_dim, gate = configuration["K"], configuration["V"], configuration["gate"]
    full, bonus = configuration["features"] != "plain", configuration["features"] == "bonus"
    heads, shared = 16, (4 if full else 16)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    g = {"channel": empty(1, _TOKENS, heads, key_dim), "head": empty(1, _TOKENS, heads),
         "constant": empty(heads, dtype=torch.float32), "none": None}[gate]
    call = Call(
        empty(1, _TOKENS, heads, key_dim), empty(1, _TOKENS, shared, key_dim), empty(1, _TOKENS, shared, value_dim), g,
        empty(3, heads, key_dim, value_dim, dtype=torch.float32) if full else None,
        empty(heads, key_dim) if bonus else None, empty(4, dtype=torch.int32) if full else None, 0.1, full, full, {})
    recorder = _Recorder()
    chosen = tiles.choose(target, kind(dtype, target), gate, bonus, key_dim, value_dim)
    cut = segments.choose(1, _TOKENS, heads, value_dim, 1, 2 if full else 1)
    launcher = launch.Launcher(recorder, call, chosen, cut, kind(dtype, target))
    links = empty(_TOKENS // cut.unit, heads, key_dim, value_dim, dtype=torch.float32)
    launcher.forward(links)
    launcher.backward(links, empty(1, _TOKENS, heads, value_dim),
                      empty(3, heads, key_dim, value_dim, dtype=torch.float32) if full else None)
    one = [None if x is None else x if x.dim() == 1 else empty(1, 1, *x.shape[2:]) for x in (call.q, call.k, call.v, g)]
    assert one[0] is not None and one[1] is not None and one[2] is not None
    launch.decode(recorder, DecodeCall(
        one[0], one[1], one[2], one[3], empty(8, heads, key_dim, value_dim, dtype=torch.float32),
        empty(1, dtype=torch.int64) if full else None, call.bonus, 0.1, empty(1, 1, heads, value_dim)))
    return recorder.launches


def compile_one(build: Build) -> Compiled:
    """Compile one build, every way in which its kind of call launches that kernel; return the worst."""
    found = [_compile(build, arguments, options) for name, arguments, options in record(
        build.target, build.configuration) if name == build.kernel]
    if not found:
        raise ValueError(f"{build.kernel}: not launched by {build.configuration}")
    return max(found, key=lambda one: (bool(one.error), one.spills or 0, one.registers or 0, one.shared))


@contextlib.contextmanager
def table_with(changed: dict[str, tiles.Tile]) -> Iterator[None]:
    """Within the context, some rows of the table of tiles are others: to try candidates."""
    rows = tiles.table()
    before = dict(rows)
    rows.update(changed)
    tiles.choose.cache_clear()
    try:
        yield
    finally:
        rows.clear()
        rows.update(before)
        tiles.choose.cache_clear()


def _target(name: str) -> GPUTarget:
    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)


def source(kernel: str, arguments: dict[str, Any]) -> ASTSource:
    """Describe a launch as the compiler wants it: types, constants, and what is divisible by 16."""
    function = getattr(kernels, kernel)
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    hints: dict[tuple[int, ...], Any] = {}

    def describe(value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(part, (*path, index)) for index, part in enumerate(value))
        if isinstance(value, Tensor):
            hints[path] = [["tt.divisibility", 16]]
            return f"*{_NAMES[value.dtype]}"
        if isinstance(value, float):
            return "fp32"
        if value == 1:
            constants[path] = 1
            return "constexpr"
        if value % 16 == 0:
            hints[path] = [["tt.divisibility", 16]]
        return "i32" if abs(value) < 2**31 else "i64"

    for index, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            constants[index,] = value
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = describe(value, (index,))
    return ASTSource(function, signature, constants, hints)


def _compile(build: Build, arguments: dict[str, Any], options: dict[str, Any]) -> Compiled:
    limit = limits(build.target)
    warps = options.get("num_warps", 4)
    begin = time.perf_counter()
    try:
        compiled = triton.compile(source(build.kernel, arguments), target=_target(build.target), options=options)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is this build's result
        return Compiled(build, None, None, 0, limit.shared, warps, None, time.perf_counter() - begin,
                        f"{type(error).__name__}: {error}"[-2000:])
    registers, spills = usage(compiled, build.target)
    shared = int(compiled.metadata.shared)
    held = limit.programs(registers, shared, warps)
    return Compiled(build, registers, spills, shared, limit.shared, warps, held, time.perf_counter() - begin, "")


def usage(compiled: Any, target: str) -> tuple[int, int]:
    """Return registers a thread and bytes of them that live in memory."""
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        numbers = {key: int(re.findall(rf"\.{key}:\s*(\d+)", text)[0])
                   for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")}
        return numbers["vgpr_count"], max(4 * numbers["vgpr_spill_count"], numbers["private_segment_fixed_size"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True,
                              text=True).stdout
    rows = [(int(registers), int(stack)) for registers, stack in re.findall(r"REG:(\d+) STACK:(\d+)", text)]
    return max(row[0] for row in rows), max(row[1] for row in rows)
