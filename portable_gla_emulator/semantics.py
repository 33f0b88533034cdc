"""Triton's semantics over the emulator's operations, and the values that a launch begins with."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import TensorHandle

from .builder import Builder
from .tensors import EmulatedTensor, own


class _Semantic(TritonSemantic):  # type: ignore[misc]
    tensor = EmulatedTensor

    def to_tensor(self, x: Any, check_type: bool = True) -> Any:
        """Make a tensor of a number; raise TypeError for what cannot be one, or return it as it is."""
        return super().to_tensor(own(x), check_type)


builder = Builder()
semantic = _Semantic(builder)


def as_tensor(value: Any) -> Any:
    """Make a tensor of ``value`` if it is a Python number; else return it as it is."""
    return semantic.to_tensor(value, False)


def scalar(value: int | float, kind: Any) -> Any:
    """Make a scalar of Triton type ``kind``, such as ``tl.int32``."""
    return semantic.scalar_constant(value, kind)


def pointer(address: int, element: Any) -> EmulatedTensor:
    """Point to elements of Triton type ``element``."""
    kind = tl.pointer_type(element)
    return EmulatedTensor(TensorHandle(np.array([address], dtype=np.uint64), kind), kind)
