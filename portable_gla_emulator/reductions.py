"""``tl.reduce`` and ``tl.associative_scan`` on numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core, standard
from triton.runtime.interpreter import TensorHandle

from .floats import Array, from_bfloat16, to_bfloat16
from .tensors import EmulatedTensor, aligned, numpy_dtype

# By identity: Triton's hash of a function reads all that the function uses.
_REDUCTIONS: dict[int, Any] = {
    id(standard._sum_combine): np.add.reduce,
    id(standard._elementwise_max): np.fmax.reduce,
    id(standard._elementwise_min): np.fmin.reduce,
}
_ACCUMULATIONS: dict[int, Any] = {
    id(standard._sum_combine): np.add.accumulate,
    id(standard._prod_combine): np.multiply.accumulate,
}


def _axes(data: Array, axis: int | None) -> int | tuple[int, ...]:
    """Return the axis of ``data`` [programs, *shape] that is ``axis`` of the shape, or all of the shape's."""
    return tuple(range(1, data.ndim)) if axis is None else axis % (data.ndim - 1) + 1


def _wrap(data: Array, scalar: Any) -> EmulatedTensor:
    shape = list(data.shape[1:])
    data = np.asarray(data, dtype=numpy_dtype(scalar))
    return EmulatedTensor(TensorHandle(data, scalar), tl.block_type(scalar, shape) if shape else scalar)


def _through(operation: Any, tensor: EmulatedTensor, data: Array, **options: Any) -> EmulatedTensor:
    """``operation`` of numpy along an axis; bfloat16 is accumulated in float32 and rounded at the end."""
    if tensor.dtype == tl.bfloat16:
        return _wrap(to_bfloat16(np.asarray(operation(from_bfloat16(data), **options))), tensor.dtype)
    return _wrap(np.asarray(operation(data, dtype=data.dtype, **options)), tensor.dtype)


def _steps(inputs: tuple[EmulatedTensor, ...], axis: int, combine: Any, reverse: bool) -> list[list[Array]]:
    """Every partial result along ``axis`` of a combination that numpy does not have, a slice at a time."""
    slices = [np.moveaxis(t.handle.data, axis + 1, 0) for t in inputs]
    order = range(slices[0].shape[0])
    done: list[list[Array]] = []
    carried: tuple[EmulatedTensor, ...] | None = None
    for i in reversed(order) if reverse else order:
        here = tuple(_wrap(np.asarray(s[i]), t.dtype) for s, t in zip(slices, inputs, strict=True))
        if carried is None:
            carried = here
        else:
            result = combine(*carried, *here)
            carried = result if isinstance(result, tuple) else (result,)
        done.append([c.handle.data for c in carried])
    return done


def _as_tuple(values: Any) -> tuple[EmulatedTensor, ...]:
    return (values,) if isinstance(values, EmulatedTensor) else tuple(values)


def reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False) -> Any:
    """``tl.reduce``: ``input`` a tensor or a tuple of them; ``axis`` None reduces all dimensions."""
    inputs = _as_tuple(input)
    axis, keep_dims = core._unwrap_if_constexpr(axis), core._unwrap_if_constexpr(keep_dims)
    rank = len(inputs[0].shape)
    if axis is not None and not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank} dimensions")
    fast = _REDUCTIONS.get(id(combine_fn.jit))
    if fast is not None and len(inputs) == 1:
        (tensor,) = inputs
        data = tensor.handle.data
        return _through(fast, tensor, data, axis=_axes(data, axis), keepdims=bool(keep_dims))
    if axis is None:
        inputs = tuple(_wrap(t.handle.data.reshape(t.handle.data.shape[0], -1), t.dtype) for t in inputs)
    last = _steps(inputs, 0 if axis is None else axis % rank, combine_fn, reverse=False)[-1]
    if keep_dims:
        last = [aligned(d, rank + 1) if axis is None else np.expand_dims(d, axis % rank + 1) for d in last]
    results = tuple(_wrap(d, t.dtype) for d, t in zip(last, inputs, strict=True))
    return results[0] if isinstance(input, EmulatedTensor) else results


def reduce_with_indices(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False) -> Any:
    """Find the largest or smallest value along ``axis`` and its index."""
    axis = core._unwrap_if_constexpr(axis)
    data = input.handle.data
    along = [1] * data.ndim
    place = axis % (data.ndim - 1) + 1
    along[place] = count = data.shape[place]
    index = np.broadcast_to(np.arange(count, dtype=np.int32).reshape(along), (1, *data.shape[1:]))
    return reduce((input, _wrap(index, tl.int32)), axis, combine_fn, keep_dims)


def associative_scan(input: Any, axis: Any, combine_fn: Any, reverse: Any = False) -> Any:
    """``tl.associative_scan``: ``input`` a tensor or a tuple of them."""
    inputs = _as_tuple(input)
    axis, reverse = core._unwrap_if_constexpr(axis), bool(core._unwrap_if_constexpr(reverse))
    fast = _ACCUMULATIONS.get(id(combine_fn.jit))
    if fast is not None and len(inputs) == 1:
        (tensor,) = inputs
        along = _axes(tensor.handle.data, axis)
        data = np.flip(tensor.handle.data, along) if reverse else tensor.handle.data
        result = _through(fast, tensor, data, axis=along)
        if reverse:
            result.handle.data = np.flip(result.handle.data, along)
        return result
    axis %= len(inputs[0].shape)
    steps = _steps(inputs, axis, combine_fn, reverse)
    if reverse:
        steps.reverse()
    columns = zip(*steps, strict=True)
    results = tuple(_wrap(np.stack(np.broadcast_arrays(*parts), axis + 1), t.dtype)
                    for parts, t in zip(columns, inputs, strict=True))
    return results[0] if isinstance(input, EmulatedTensor) else results
