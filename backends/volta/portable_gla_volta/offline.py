"""Compiles every kernel of the table of configurations without a device, and says what each takes.

Registers and spills are what the assembler inside NVRTC says; matrix instructions are counted in the machine code and
held against those that the PTX asks for, so that none was replaced by scalar arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from portable_gla.errors import KernelError
from portable_gla_volta import configurations, images, nvrtc, sass, sources
from portable_gla_volta.kernel import Kernel
from portable_gla_volta.targets import PORTABLE, TARGETS, limits

__all__ = ["TARGETS", "Build", "Compiled", "builds", "compile_kernel", "compile_one", "key"]

LEAST_BLOCKS = 2
_STEPS = 4  # HMMA.884 instructions of one mma with float32 sums


@dataclasses.dataclass(frozen=True)
class Build:
    """One kernel with its constants, for one target."""

    kernel: str
    target: str
    configuration: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a build; ``spills`` in bytes a thread, ``shared`` in bytes a block.

    ``extra`` has the number of matrix instructions in the machine code and what the code is made of: the key under
    which a cache would keep it.
    """

    build: Build
    registers: int | None
    spills: int | None
    shared: int
    shared_limit: int
    warps: int
    occupancy: float | None  # blocks that one multiprocessor holds, by registers, shared memory and threads
    seconds: float
    error: str
    extra: dict[str, Any]


def builds(targets: Iterable[str] = TARGETS, sample: bool = False) -> Iterator[Build]:
    """Yield every kernel in every configuration, or of each kernel the first few."""
    for target in targets:
        seen: dict[str, int] = {}
        for kernel in dict.fromkeys(configurations.kernels(target)):
            seen[kernel.entry] = seen.get(kernel.entry, 0) + 1
            if not sample or seen[kernel.entry] == 1:
                yield Build(kernel.entry, target, dict(kernel.defines))


def find(build: Build) -> Kernel:
    """Return the kernel that a build is of.

    Raises
    ------
    ValueError
        If the table of configurations has no such kernel.
    """
    for kernel in configurations.kernels(build.target):
        if kernel.entry == build.kernel and dict(kernel.defines) == build.configuration:
            return kernel
    raise ValueError(f"{build.kernel}: no kernel of {build.configuration}")


def key(build: Build) -> str:
    """Return a hash of all that a build is made of, the compiler aside."""
    return images.key(find(build), build.target)


def compile_one(build: Build) -> Compiled:
    """Compile one build, and hold it to the rules: no spills, two blocks a multiprocessor, every mma in hardware."""
    return compile_kernel(find(build), build.target)


def compile_kernel(kernel: Kernel, target: str) -> Compiled:
    """Compile a kernel for a target."""
    build = Build(kernel.entry, target, dict(kernel.defines))
    source, limit = sources.read(kernel.source), limits(target)
    begin = time.perf_counter()
    warps = kernel.threads // 32
    try:
        made = nvrtc.find(target).compile(source.name, source.text, source.headers,
                                          (*sources.options(kernel, target), "--ptxas-options=-v"))
        products = _products(kernel, source.digest())
    except KernelError as error:
        return Compiled(build, None, None, kernel.shared, limit.shared, warps, None, time.perf_counter() - begin,
                        str(error), {})
    registers, spills = usage(made.log)
    blocks = limit.blocks(registers, kernel.shared, kernel.threads)
    counted = sass.operations(made.code, kernel.entry)
    steps = counted[sass.HMMA_884]
    wrong = []
    if spills or any(counted[code] for code in sass.LOCAL):
        wrong.append(f"{spills} bytes of spills")
    if blocks < LEAST_BLOCKS:
        wrong.append(f"{blocks} block a multiprocessor, expected {LEAST_BLOCKS}")
    if steps < _STEPS * products or (steps and not products):
        wrong.append(f"{steps} HMMA.884 for {products} mma")
    return Compiled(build, registers, spills, kernel.shared, limit.shared, warps, blocks, time.perf_counter() - begin,
                    "; ".join(wrong), {"hmma": steps, "mma": products, "key": images.key(kernel, target)})


@functools.lru_cache(maxsize=512)
def _products(kernel: Kernel, digest: str) -> int:
    """Count the mma instructions of a kernel's PTX, whose source has that hash."""
    source = sources.read(kernel.source)
    assert source.digest() == digest
    text = nvrtc.find(PORTABLE).compile(source.name, source.text, source.headers, sources.options(kernel, PORTABLE))
    return len(re.findall(rb"^\s*(?:@!?%p\d+\s+)?mma\.sync", text.code, re.MULTILINE))


def usage(log: str) -> tuple[int, int]:
    """Return registers and the bytes of local memory a thread, from what the assembler said.

    Raises
    ------
    KernelError
        If it said nothing of the kind.
    """
    registers = re.search(r"Used (\d+) registers", log)
    local = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or local is None:
        raise KernelError(f"the assembler does not say what a kernel takes:\n{log}")
    return int(registers[1]), max(map(int, local.groups()))
