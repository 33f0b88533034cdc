"""What ``bishengir-compile`` says: sizes of memories and what was allotted, from the code that it keeps; its errors."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

MEMORIES = {"ub": "unified buffer", "cc": "L0C", "cbuf": "L1"}
_SIZES = {"ub": "UB_SIZE", "cc": "L0C_SIZE", "cbuf": "L1_SIZE"}
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "ui8": 8, "i1": 1}
_FUNCTION = re.compile(r"^  func\.func ", re.MULTILINE)
_CONSTANT = re.compile(r"(%[\w-]+) = (?:arith\.constant |llvm\.mlir\.constant\()(-?\d+) : i64")
_BUFFER = re.compile(r"hivm\.hir\.pointer_cast\(([^)]*)\)[^:\n]*: memref<((?:\d+x)*)(\w+), "
                     r"(?:strided<\[([-\d, ]+)\][^>]*>, )?#hivm\.address_space<(\w+)>>")
_SPECIFIED = re.compile(r'dl_entry<"(\w+)", (\d+) : i32>')
_WORKSPACE = re.compile(r"_infer_workspace_shape_function\(\).*?arith\.constant (\d+) : index", re.DOTALL)
_PRODUCT = re.compile(r"^ *(?:func\.)?call @mma_tile_", re.MULTILINE)
_UNPLANNED = re.compile(r"memref\.alloc\(\)[^\n]*: memref<[^\n]*#hivm\.address_space<(ub|cc|cbuf)>")
_OVERFLOW = re.compile(r"(\w+) overflow, requires (\d+) bits while (\d+) bits")


class Overflow(NamedTuple):
    """A memory that does not hold what a kernel needs; bytes."""

    memory: str
    needed: int
    available: int

    def __str__(self) -> str:
        name = MEMORIES.get(self.memory, self.memory)
        return f"{name} overflow: needs {self.needed / 1024:g} KiB, of {self.available / 1024:g}"


def used(text: str) -> dict[str, int]:
    """Return how many bytes of each memory are allotted: the largest end of a buffer. Names are a function's own."""
    ends: dict[str, int] = {}
    for function in _FUNCTION.split(text):
        constants = {found[1]: int(found[2]) for found in _CONSTANT.finditer(function)}
        for addresses, sizes, kind, strides, memory in _BUFFER.findall(function):
            size = _extent([int(size) for size in sizes.split("x") if size], strides) * _BITS.get(kind, 32)
            for name in addresses.split(","):
                if name.strip() in constants:
                    end = constants[name.strip()] + math.ceil(size / 8)
                    ends[memory] = max(ends.get(memory, 0), end)
    return ends


def _extent(sizes: list[int], strides: str) -> int:
    if not strides:
        return math.prod(sizes)
    return 1 + sum((size - 1) * int(stride) for size, stride in zip(sizes, strides.split(","), strict=True))


def limits(text: str) -> dict[str, int]:
    """Return the bytes of each memory, as the compiler takes the target to have."""
    entries = {name: int(value) for name, value in _SPECIFIED.findall(text)}
    return {memory: entries[name] // 8 for memory, name in _SIZES.items() if name in entries}


def workspace(text: str) -> int:
    """Return the bytes of global memory through which a core's cube and vector units exchange tiles."""
    found = _WORKSPACE.search(text)
    return int(found[1]) if found else 0


def lost(lowered: str, kept: str) -> str:
    """Say what a kernel has lost on its way through the compiler, which says nothing of it; ``""``: nothing.

    Where a carried sum of products is also stored within its loop, the compiler may drop the products, and store from a
    buffer that nothing wrote and that has no address.
    """
    wanted, found = lowered.count(" linalg.matmul "), len(_PRODUCT.findall(kept))
    if found < wanted:
        return f"miscompiled: {found} of {wanted} products are left"
    unplanned = _UNPLANNED.search(kept)
    return f"miscompiled: a buffer without an address in {MEMORIES[unplanned[1]]}" if unplanned else ""


def split(said: str) -> bool:
    """Tell whether both vector cores beside a cube share the work, from what was said on stderr."""
    return "[hivm-bind-sub-block] revert" not in said


def overflows(said: str) -> list[Overflow]:
    """Return what does not fit: of several tries the last one's figures."""
    found = {name: Overflow(name, int(needed) // 8, int(available) // 8)
             for name, needed, available in _OVERFLOW.findall(said)}
    return list(found.values())


def error(said: str, code: int) -> str:
    """Say in a line what went wrong."""
    over = overflows(said)
    if over:
        return "; ".join(map(str, over))
    lines = [re.sub(r"^.*?(error: )", r"\1", re.sub(r"loc\([^)]*\):? ?", "", line)).strip()
             for line in said.splitlines() if re.search(r"error|ERROR|Assertion|LLVM", line)]
    telling = [line for line in dict.fromkeys(lines) if "Failed to run" not in line] or lines[:1]
    return "; ".join(telling)[:600] or f"bishengir-compile ended with {code} and said nothing"
