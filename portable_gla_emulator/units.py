"""What matrix units do that depends on the machine."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton.language as tl

from .lock import LOCK

_BFLOAT16_NAN = np.uint16(0x7FC0)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A matrix unit: whether it has TF32 (else float32 is multiplied as it is), and what it leaves of operands."""

    tf32: bool = True
    spoils_left: bool = False


_unit = Unit()


def unit() -> Unit:
    """Return the unit on which products run."""
    return _unit


@contextlib.contextmanager
def matrix_unit(*, tf32: bool = True, spoils_left: bool = False) -> Iterator[None]:
    """Run products within the context as another unit does; launches of other threads wait meanwhile.

    Parameters
    ----------
    tf32
        Whether products of float32 cut their operands where a kernel does not ask for more. If not, all are IEEE's.
    spoils_left
        Whether a product leaves NaN in its left operand, as a unit that may overwrite it.
    """
    global _unit
    with LOCK:
        before, _unit = _unit, Unit(tf32, spoils_left)
        try:
            yield
        finally:
            _unit = before


def spoil(operand: Any) -> None:
    """Leave NaN in a product's operand, and in what else was made of the same numbers: a transpose, say."""
    if not operand.dtype.scalar.is_floating():
        return
    nan = _BFLOAT16_NAN if operand.dtype.scalar == tl.bfloat16 else np.nan
    if operand.data.flags.writeable:
        operand.data[...] = nan
    else:
        operand.data = np.full_like(operand.data, nan)
