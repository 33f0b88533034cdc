"""What the device does and Triton's interpreter does not.

- A product may overwrite its left operand: here it always does, with NaN.
- A grid's product of 65,536 or more is refused.
- Products of bfloat16 multiply values, and casts to it round to nearest (the interpreter multiplies the 16 bits as
  integers, and cuts).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle, _patch_lang

MOST_PROGRAMS = 65_535


class RuleError(RuntimeError):
    """A launch that the device would refuse."""


def check_grid(grid: tuple[int, ...]) -> None:
    """Refuse a grid that the device's launcher refuses."""
    if math.prod(grid) > MOST_PROGRAMS:
        raise RuleError(f"grid {grid}: {math.prod(grid):,} programs, of {MOST_PROGRAMS:,} that a launch may have")


_dot, _cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def _widened(x: Any) -> Any:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    found = _dot(self, _widened(a), _widened(b), *rest)
    if a.data.flags.writeable:
        a.data[...] = 0x7FC0 if a.dtype.scalar == tl.bfloat16 else np.nan
    return found


def _cast_impl(self: Any, value: Any, kind: Any) -> Any:
    if value.dtype.scalar != tl.bfloat16 and kind.scalar == tl.bfloat16:
        exact = np.ascontiguousarray(value.data, dtype=np.float32)
        bits = exact.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return TensorHandle(np.where(np.isnan(exact), np.uint16(0x7FC0), rounded), tl.bfloat16)
    if value.dtype.scalar == tl.bfloat16 and kind.scalar == tl.float32:
        return _widened(value)
    return _cast(self, value, kind)


class Helper(InterpretedFunction):  # type: ignore[misc]
    """A function that kernels call; the interpreter would patch the language anew at each call, as for a kernel."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, within a kernel."""
        return self.rewrite()(*args, **kwargs)


def as_helpers(modules: Mapping[str, ModuleType]) -> None:
    """Let the functions of freshly loaded modules be called as helpers."""
    for module in modules.values():
        for value in vars(module).values():
            if isinstance(value, InterpretedFunction):
                value.__class__ = Helper


@functools.cache
def _language() -> list[tuple[Any, str, Any, Any]]:
    """List Triton's own functions (``tl.sum``, ...), which are interpreted only if Triton was imported to interpret."""
    if importlib.util.find_spec("triton.experimental.gluon"):
        importlib.import_module("triton.experimental.gluon")  # a launch would, and it takes them as it finds them
    return [(module, name, value, Helper(value.fn)) for module in (tl, tl.standard)
            for name, value in vars(module).items() if isinstance(value, JITFunction)]


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Within the context the interpreter follows the rules."""
    before = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = _create_dot, _cast_impl
    for module, name, _, interpreted in _language():
        setattr(module, name, interpreted)
    patched = _patch_lang(tl.standard.zeros.fn)  # what Triton's own functions call
    try:
        yield
    finally:
        patched.restore()
        for module, name, compiled, _ in _language():
            setattr(module, name, compiled)
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = before
