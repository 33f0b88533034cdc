"""Under ``TRITON_INTERPRET=1`` kernels run in Triton's own interpreter; the device's rules are put into it here.

Products of bfloat16 multiply values, and casts to it round to nearest (the interpreter multiplies the 16 bits as
integers, and cuts).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle, _patch_lang

from portable_gla_ascend.emulator.kernels import check_grid

_SOURCES = "portable_gla_ascend.kernels"
_lock = threading.RLock()  # the interpreter patches Triton's language while a kernel runs
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


class Kernel:
    """One kernel; ``kernel[grid](...)`` runs it."""

    def __init__(self, interpreted: Any) -> None:
        self._interpreted = interpreted

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            check_grid(grid)
            constants.pop("multibuffer", None)  # an option of the compiler
            with _lock, _rules():
                self._interpreted[grid](*args, **constants)

        return launch


def _as_helpers(modules: dict[str, ModuleType]) -> None:
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
def _rules() -> Iterator[None]:
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


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name == _SOURCES or name.startswith(f"{_SOURCES}.")}


@functools.cache
def load() -> dict[str, Kernel]:
    """Load the kernels' sources a second time, for the interpreter; Triton's own, were they imported, stay."""
    import triton

    with _lock:
        ours = _loaded()
        for name in ours:
            del sys.modules[name]
        try:
            with triton.knobs.runtime.scope():
                triton.knobs.runtime.interpret = True
                module = importlib.import_module(_SOURCES)
            _as_helpers(_loaded())
        finally:
            for name in _loaded():
                del sys.modules[name]
            sys.modules.update(ours)
        return {name: Kernel(getattr(module, name)) for name in module.__all__}
