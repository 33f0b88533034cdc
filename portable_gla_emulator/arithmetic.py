"""Short cuts for arithmetic and comparisons of equal types and of integers, which are most of a kernel's operations.

They give what Triton's semantics would; everything else goes that way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from .floats import Array
from .semantics import builder
from .tensors import EmulatedTensor, aligned

_KINDS = {"fp32": np.float32, "int32": np.int32, "int64": np.int64}
_INTEGERS = ("int32", "int64")
_ARITHMETIC = {"__add__": np.add, "__sub__": np.subtract, "__mul__": np.multiply}
_COMPARISONS = {"__lt__": np.less, "__le__": np.less_equal, "__gt__": np.greater, "__ge__": np.greater_equal,
                "__eq__": np.equal, "__ne__": np.not_equal}
_BITWISE = {"__and__": np.bitwise_and, "__or__": np.bitwise_or, "__xor__": np.bitwise_xor}


def _quotient(a: Array, b: Array) -> Array:
    """Divide integers as the hardware does, towards zero."""
    found: Array = (a - np.fmod(a, b)) // b
    return found


_DIVISIONS = {"__floordiv__": _quotient, "__mod__": np.fmod}


_blocks: dict[tuple[str, tuple[int, ...]], Any] = {}


def _block(scalar: Any, shape: tuple[int, ...]) -> Any:
    kind = _blocks.get((scalar.name, shape))
    if kind is None:
        kind = _blocks[scalar.name, shape] = tl.block_type(scalar, list(shape))
    return kind


def _typed(data: Array, scalar: Any, block: bool) -> EmulatedTensor:
    return EmulatedTensor(TensorHandle(data, scalar), _block(scalar, data.shape[1:]) if block else scalar)


def _pair(a: Array, b: Array) -> tuple[Array, Array]:
    """Return two operands with equally many axes."""
    axes = max(a.ndim, b.ndim)
    return aligned(a, axes), aligned(b, axes)


def _operand(tensor: EmulatedTensor, other: Any) -> Array | None:
    """``other`` as numbers of ``tensor``'s type, or None if types have to be promoted first."""
    name = tensor.dtype.name
    if type(other) is EmulatedTensor:
        data: Array | None = other.handle.data if other.dtype.name == name and name in _KINDS else None
        return data
    if type(other) is int:
        fits = name != "int32" or -(2**31) <= other < 2**31
        return np.full(1, other, _KINDS[name]) if name in _KINDS and fits and abs(other) < 2**63 else None
    return np.full(1, other, np.float32) if type(other) is float and name == "fp32" else None


def _operands(mine: EmulatedTensor, other: Any) -> tuple[Array, Array, Any] | None:
    """Return both operands and their type; None if types have to be promoted otherwise than from int32 to int64."""
    numbers = _operand(mine, other)
    if numbers is not None:
        return *_pair(mine.handle.data, numbers), mine.dtype
    if type(other) is EmulatedTensor and mine.dtype.name in _INTEGERS and other.dtype.name in _INTEGERS:
        a, b = _pair(mine.handle.data, other.handle.data)
        return a.astype(np.int64, copy=False), b.astype(np.int64, copy=False), tl.int64
    return None


def _short(operation: Callable[[Array, Array], Array], long: Callable[..., Any], swapped: bool, result: Any = None,
           integers: bool = False) -> Any:
    def method(self: EmulatedTensor, other: Any, _semantic: Any = None) -> Any:
        found = None if integers and self.dtype.name not in _INTEGERS else _operands(self, other)
        if found is None:
            return long(self, other)
        mine, numbers, kind = found
        data = operation(numbers, mine) if swapped else operation(mine, numbers)
        block = self.type.is_block() or (type(other) is EmulatedTensor and other.type.is_block())
        return _typed(data, result or kind, block)

    return method


def _of_truths(operation: Callable[[Array, Array], Array], long: Callable[..., Any]) -> Any:
    def method(self: EmulatedTensor, other: Any, _semantic: Any = None) -> Any:
        if type(other) is not EmulatedTensor or not self.dtype.name == other.dtype.name == "int1":
            return long(self, other)
        block = self.type.is_block() or other.type.is_block()
        return _typed(operation(*_pair(self.handle.data, other.handle.data)), tl.int1, block)

    return method


def _add(long: Callable[..., Any]) -> Any:
    def method(self: EmulatedTensor, other: Any, _semantic: Any = None) -> Any:
        if not (self.dtype.is_ptr() and type(other) is EmulatedTensor and other.dtype.name in ("int32", "int64")):
            return long(self, other)
        size = np.uint64(max(1, self.dtype.element_ty.primitive_bitwidth // 8))
        mine, offsets = _pair(self.handle.data, other.handle.data)
        block = self.type.is_block() or other.type.is_block()
        return _typed(mine + size * offsets.astype(np.uint64), self.dtype, block)

    return method


def _getitem(long: Callable[..., Any]) -> Any:
    def method(self: EmulatedTensor, places: Any, _semantic: Any = None) -> Any:
        if not (self.type.is_block() and type(places) is tuple
                and all(p is None or (type(p) is slice and p == slice(None)) for p in places)
                and sum(p is not None for p in places) == len(self.shape)):
            return long(self, places)
        within = (slice(None), *places)
        return _typed(self.handle.data[within], self.dtype, True)

    return method


_CASTS = {("fp32", "bf16"), ("fp32", "fp16"), ("bf16", "fp32"), ("fp16", "fp32"), ("int32", "int64"), ("int1", "fp32"),
          ("int32", "fp32")}


def cast(long: Callable[..., Any]) -> Callable[..., Any]:
    """Put a short cut before ``tl.cast`` and ``Tensor.to``."""

    def to(x: Any, dtype: Any, *options: Any, _semantic: Any = None, **more: Any) -> Any:
        if options or more or type(x) is not EmulatedTensor or type(dtype) is not tl.dtype:
            return long(x, dtype, *options, **more)
        if x.dtype.name == dtype.name:
            return x
        if (x.dtype.name, dtype.name) not in _CASTS:
            return long(x, dtype)
        handle = builder.cast_impl(x.handle, dtype)
        return EmulatedTensor(handle, _block(dtype, handle.data.shape[1:]) if x.type.is_block() else dtype)

    return to


def where(long: Callable[..., Any]) -> Callable[..., Any]:
    """Put a short cut before ``tl.where``."""

    def choose(condition: Any, x: Any, y: Any) -> Any:
        short = type(condition) is EmulatedTensor and condition.type.is_block() and condition.dtype.name == "int1"
        model = x if type(x) is EmulatedTensor else y
        if not short or type(model) is not EmulatedTensor:
            return long(condition, x, y)
        yes, no = _operand(model, x), _operand(model, y)
        if yes is None or no is None:
            return long(condition, x, y)
        axes = max(condition.handle.data.ndim, yes.ndim, no.ndim)
        data = np.where(aligned(condition.handle.data, axes), aligned(yes, axes), aligned(no, axes))
        return _typed(data, model.dtype, True)

    return choose


def install() -> None:
    """Put the short cuts before the methods that :class:`EmulatedTensor` has."""
    def put(name: str, short: Callable[[Any], Any]) -> None:
        setattr(EmulatedTensor, name, short(getattr(EmulatedTensor, name)))

    put("__add__", _add)
    put("__getitem__", _getitem)
    put("to", cast)
    put("cast", cast)
    kinds: list[tuple[dict[str, Any], bool]] = [(_ARITHMETIC, False), (_BITWISE, True), (_DIVISIONS, True)]
    for operations, integers in kinds:
        for name, operation in operations.items():
            for swapped, method in ((False, name), (True, "__r" + name[2:])):
                put(method, functools.partial(_short, operation, swapped=swapped, integers=integers))
    for name, operation in _BITWISE.items():
        put(name, functools.partial(_of_truths, operation))
    for name, operation in _COMPARISONS.items():
        put(name, functools.partial(_short, operation, swapped=False, result=tl.int1))
