"""The kernels on CPU tensors: ``portable_gla_emulator`` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import portable_gla_emulator
from portable_gla_emulator import EmulationError, OutOfBoundsError, RaceError, Traffic, checking, counted, together

__all__ = ["EmulationError", "OutOfBoundsError", "RaceError", "Traffic", "checking", "counted", "load", "together"]


def load(package_dir: Path | None = None) -> Any:
    """Return the kernels of a package, by default this backend's, to be launched on CPU tensors."""
    return portable_gla_emulator.load(package_dir or Path(__file__).parent / "kernels")
