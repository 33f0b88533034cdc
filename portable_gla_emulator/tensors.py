"""The tensor type of emulated functions: Triton's own, with its builtin methods bound to the emulator's semantics."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.runtime.interpreter import TensorHandle, _get_np_dtype

from .floats import Array
from .programs import agreed

_UNSIGNED = {np.dtype(f"int{bits}"): np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)}

_UNSIGNED_NAMES = frozenset({"uint8", "uint16", "uint32", "uint64"})


@functools.lru_cache(maxsize=4096)
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    count = 1
    for size in sizes:
        count *= size
    return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(count)


@functools.lru_cache(maxsize=256)
def numpy_dtype(scalar: Any) -> np.dtype[Any]:
    """Return the numpy type that holds values of Triton's type ``scalar``; bfloat16 is held as its bits."""
    kind: np.dtype[Any] = _get_np_dtype(scalar)
    return kind


def aligned(data: Array, axes: int) -> Array:
    """Give ``data`` [programs, ...] so many axes as blocks are broadcast: new ones go before the block's own."""
    if data.ndim == axes:
        return data
    found: Array = data.reshape(data.shape[:1] + (1,) * (axes - data.ndim) + data.shape[1:])
    return found


class EmulatedTensor(tl.tensor):  # type: ignore[misc]
    """A value of an emulated function; ``handle.data`` is a numpy array: [programs or 1, *shape]."""

    def __init__(self, handle: Any, type: Any) -> None:
        self.handle = handle
        self.type = type
        self.dtype = scalar = type.scalar
        self.shape, self.numel = _shape(tuple(map(int, type.shape)) if type.is_block() else ())
        # Triton's types name no signedness when they pass through a builder; this type does.
        if scalar.name in _UNSIGNED_NAMES and handle.data.dtype in _UNSIGNED:
            handle.data = handle.data.view(_UNSIGNED[handle.data.dtype])

    def __index__(self) -> int:
        return int(agreed(self.numbers))

    @property
    def numbers(self) -> Array:
        """A scalar's value in each program, or the one of all: [programs or 1]."""
        found: Array = self.handle.data.reshape(self.handle.data.shape[0], -1)[:, 0]
        return found

    def __repr__(self) -> str:
        return f"{self.dtype}{[int(size) for size in self.shape]}: {self.handle.data}"

    __str__ = __repr__
    __hash__ = object.__hash__

    @property
    def T(self) -> EmulatedTensor:
        """The transpose of a matrix."""
        rows, columns = self.type.shape
        kind = tl.block_type(self.dtype, [columns, rows])
        return EmulatedTensor(TensorHandle(self.handle.data.swapaxes(1, 2), self.dtype), kind)


class EmulatedDescriptor(core.tensor_descriptor):  # type: ignore[misc]
    """A tensor descriptor made by an emulated function."""


_OWN = {tl.tensor: EmulatedTensor, core.tensor_descriptor: EmulatedDescriptor}


def own(value: Any) -> Any:
    """Change ``value`` of one of Triton's types, which some of its builtins name directly, to the emulator's."""
    kind = _OWN.get(type(value))
    if kind is not None:
        value.__class__ = kind
    return value
