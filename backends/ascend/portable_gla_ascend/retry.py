"""Starts kernels a second time where Triton-Ascend's lowering crashed: 3.2.0 does at random, one time in fifty or so.

A pass over masks spoils its own memory. Nothing of a crash is kept, and the next compilation is a new process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MARKS = ("Stack dump:", "died with <Signals.")


class Retrying:
    """A module of kernels; ``kernels.NAME[grid](...)`` as there."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return _Kernel(getattr(self._kernels, name))


class _Kernel:
    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        start = self._kernel[grid]

        def launch(*args: Any, **kwargs: Any) -> None:
            try:
                start(*args, **kwargs)
            except Exception as error:
                if not crashed(error):
                    raise
                start(*args, **kwargs)

        return launch


def crashed(error: Exception) -> bool:
    """Tell whether Triton-Ascend says that a compiler died, which says nothing of the kernel."""
    return type(error).__name__ == "MLIRCompilationError" and any(mark in str(error) for mark in _MARKS)
