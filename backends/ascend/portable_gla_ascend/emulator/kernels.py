"""The kernels' sources, loaded a second time for Triton's interpreter."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from portable_gla_ascend.emulator import rules

_SOURCES = "portable_gla_ascend.kernels"
_lock = threading.RLock()  # the interpreter patches Triton's language while a kernel runs


class Kernel:
    """One kernel; ``kernel[grid](...)`` runs it."""

    def __init__(self, interpreted: Any) -> None:
        self._interpreted = interpreted

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            rules.check_grid(grid)
            constants.pop("multibuffer", None)  # an option of the compiler
            with _lock, rules.applied():
                self._interpreted[grid](*args, **constants)

        return launch


class Kernels:
    """All kernels, as attributes."""

    def __init__(self, module: ModuleType) -> None:
        for name in module.__all__:
            setattr(self, name, Kernel(getattr(module, name)))


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name == _SOURCES or name.startswith(f"{_SOURCES}.")}


@functools.cache
def load() -> Any:
    """Return the kernels; Triton's own, were they imported, stay as they are."""
    import triton

    with _lock:
        ours = _loaded()
        for name in ours:
            del sys.modules[name]
        try:
            with triton.knobs.runtime.scope():
                triton.knobs.runtime.interpret = True
                module = importlib.import_module(_SOURCES)
            rules.as_helpers(_loaded())
        finally:
            for name in _loaded():
                del sys.modules[name]
            sys.modules.update(ours)
        return Kernels(module)
