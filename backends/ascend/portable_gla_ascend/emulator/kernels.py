"""The kernels as attributes, each launched with ``kernel[grid](...)`` on tensors of the host or of a device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from portable_gla_ascend.emulator.errors import RuleError
from portable_gla_ascend.emulator.host import on_host

MOST_PROGRAMS = 65_535


class Kernel:
    """One kernel, under the device's rules.

    - A product may overwrite its left operand: here it always does, with NaN. Of float32 it multiplies all bits.
    - A grid's product of 65,536 or more is refused.
    """

    def __init__(self, emulated: Any) -> None:
        self._emulated = emulated

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            import portable_gla_emulator

            check_grid(grid)
            constants.pop("multibuffer", None)  # an option of the compiler
            with portable_gla_emulator.matrix_unit(tf32=False, spoils_left=True), on_host(args) as given:
                self._emulated[grid](*given, **constants)

        return launch


class Kernels:
    """All kernels, as attributes."""

    def __init__(self, kernels: dict[str, Any]) -> None:
        for name, kernel in kernels.items():
            setattr(self, name, kernel)


def check_grid(grid: tuple[int, ...]) -> None:
    """Refuse a grid that the device's launcher refuses."""
    if math.prod(grid) > MOST_PROGRAMS:
        raise RuleError(f"grid {grid}: {math.prod(grid):,} programs, of {MOST_PROGRAMS:,} that a launch may have")


@functools.cache
def load() -> Any:
    """Return the kernels; Triton's own, were they imported, stay as they are.

    Where ``TRITON_INTERPRET=1`` was set before Triton was imported, they run in Triton's own interpreter.
    """
    import triton

    if triton.knobs.runtime.interpret:
        from portable_gla_ascend.emulator import interpreted

        return Kernels(interpreted.load())
    import portable_gla_emulator

    found = portable_gla_emulator.load(Path(__file__).parents[1] / "kernels")
    return Kernels({name: Kernel(getattr(found, name)) for name in found.__all__})
