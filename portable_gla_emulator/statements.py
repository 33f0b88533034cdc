"""What Python's statements and builtins mean inside a Triton function, where that differs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.runtime.interpreter import TensorHandle

from .errors import EmulationError
from .floats import Array
from .programs import Walk, agreed
from .rewriting import AND, AS_TENSOR, NOT, OR, PIECE, TRUTH
from .semantics import as_tensor, builder, semantic
from .tensors import EmulatedTensor, numpy_dtype


def _truth(value: Any) -> bool:
    if isinstance(value, EmulatedTensor):
        if value.type.is_block() and value.handle.data[0].size != 1:
            raise EmulationError(f"a block of shape {list(value.handle.data.shape[1:])} has no truth value")
        return bool(agreed(value.numbers.astype(np.bool_)))
    return bool(core._unwrap_if_constexpr(value))


def _not(value: Any) -> Any:
    return semantic.not_(value) if isinstance(value, EmulatedTensor) else not _truth(value)


def _and(*values: Callable[[], Any]) -> Any:
    result = values[0]()
    for value in values[1:]:
        if isinstance(result, EmulatedTensor):
            result = semantic.logical_and(result, as_tensor(value()))
        elif not _truth(result):
            return result
        else:
            result = value()
    return result


def _or(*values: Callable[[], Any]) -> Any:
    result = values[0]()
    for value in values[1:]:
        if isinstance(result, EmulatedTensor):
            result = semantic.logical_or(result, as_tensor(value()))
        elif _truth(result):
            return result
        else:
            result = value()
    return result


def _extreme(of_numbers: Callable[..., Any], of_tensors: str, *values: Any) -> Any:
    values = tuple(core._unwrap_if_constexpr(v) for v in values)
    if not any(isinstance(v, EmulatedTensor) for v in values):
        return of_numbers(*values)
    operation = getattr(core, of_tensors)
    return functools.reduce(lambda x, y: operation(x, y, _semantic=semantic), values)


def _bounds(first: Any, second: Any, step: Any) -> list[Any]:
    step = 1 if step is None else step
    return [core._unwrap_if_constexpr(x) for x in ((0, first, step) if second is None else (first, second, step))]


def loop_range(arg1: Any, arg2: Any = None, step: Any = None, **_: Any) -> Iterator[Any]:
    """``range`` and ``tl.range``: the loop variable is a scalar tensor, as in a compiled kernel.

    Programs that take equally many turns stay together, wherever each one begins.
    """
    values = _bounds(arg1, arg2, step)
    kind = _integer(*values)
    start, end, by = (x.numbers.astype(np.int64) if isinstance(x, EmulatedTensor) else np.array([x.__index__()])
                      for x in values)
    if not by.all():
        raise ValueError("a loop's step is 0")
    turns = agreed(np.maximum(-((start - end) // by), 0))
    for turn in range(int(turns)):
        yield _scalar(start + turn * by, kind)


def _integer(*values: Any) -> Any:
    wide = any(isinstance(x, EmulatedTensor) and x.dtype.primitive_bitwidth == 64 for x in values)
    return tl.int64 if wide else tl.int32


def _scalar(numbers: Array, kind: Any) -> EmulatedTensor:
    return EmulatedTensor(TensorHandle(numbers.astype(numpy_dtype(kind)), kind), kind)


def _piece(items: Any) -> EmulatedTensor:
    """Return the numbers of the pieces that run, of so many in all."""
    if builder.pieces is None:
        raise Walk(int(items.__index__()))
    return _scalar(builder.pieces, _integer(items))


def static_range(arg1: Any, arg2: Any = None, step: Any = None) -> range:
    """``tl.static_range``: the loop variable is a Python number."""
    return range(*(x.__index__() for x in _bounds(arg1, arg2, step)))


def static_assert(cond: Any, msg: Any = "") -> None:
    """``tl.static_assert``."""
    if not _truth(cond):
        raise AssertionError(core._unwrap_if_constexpr(msg))


GLOBALS: dict[str, Any] = {
    AS_TENSOR: as_tensor,
    TRUTH: _truth,
    NOT: _not,
    AND: _and,
    OR: _or,
    PIECE: _piece,
    "range": loop_range,
    "min": functools.partial(_extreme, min, "minimum"),
    "max": functools.partial(_extreme, max, "maximum"),
}
