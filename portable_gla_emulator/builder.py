"""The operations of Triton's language on numpy arrays: Triton's interpreter with what is wrong in it put right.

Written against Triton 3.7. What differs from its interpreter: bfloat16 is calculated with as numbers (there its 16 bits
are taken for integers) and rounded to nearest even; TF32 products cut their operands; comparisons have type int1;
``minimum`` and ``maximum`` prefer a number to NaN as the hardware's do; memory is reached through ``memory``; every
array has a leading axis for the programs that run together, see ``programs``.
"""

# ruff: noqa: D102 (methods are named by Triton or by ast, and mean what they mean there)

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorDescHandle, TensorHandle

from .errors import EmulationError
from .floats import Array, bf16x6_product, from_bfloat16, tf32, tf32x3_product, to_bfloat16
from .memory import Memory
from .programs import NotTogether
from .tensors import aligned, numpy_dtype
from .units import spoil, unit

_Operation = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class _Options(InterpreterOptions):  # type: ignore[misc]
    sanitize_overflow: bool = False  # Triton acts on it in debug builds only; here it would double integer arithmetic
    allowed_dot_input_precisions: tuple[str, ...] = ("tf32", "tf32x3", "bf16x6", "ieee")


def _number(handle: Any) -> Array:
    data: Array = handle.data
    return from_bfloat16(data) if handle.dtype.scalar == tl.bfloat16 else data


def _handle(data: Array, scalar: Any) -> Any:
    """Hold ``data``, the result of an operation on numbers, as a value of type ``scalar``."""
    if data.dtype == np.bool_:
        return TensorHandle(data, tl.int1)
    if scalar == tl.bfloat16:
        return TensorHandle(to_bfloat16(data), scalar)
    wanted = numpy_dtype(scalar)
    return TensorHandle(data if data.dtype.itemsize <= wanted.itemsize else data.astype(wanted), scalar)


class _Leading:
    """A block pointer whose addresses and masks have the leading axis."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    def materialize_pointers(self, boundary_check: Any) -> tuple[Any, Array]:
        pointers, masks = self._pointer.materialize_pointers(boundary_check)
        return TensorHandle(pointers.data[None], pointers.dtype), masks[None]


class _Descriptor(TensorDescHandle):  # type: ignore[misc]
    """A tensor descriptor whose addresses and masks have the leading axis."""

    def materialize_pointers(self, offsets: Any) -> tuple[Any, Array]:
        pointers, masks = super().materialize_pointers(offsets)
        return TensorHandle(pointers.data[None], pointers.dtype), masks[None]


class Builder(InterpreterBuilder):  # type: ignore[misc]
    """One operation per method, as Triton's semantics call them; ``memory`` is the running launch's."""

    def __init__(self) -> None:
        super().__init__()
        self.options = _Options()
        self.codegen_fns["convert_custom_types"] = self._convert_custom_types
        self.memory: Memory | None = None
        self.grid_idx: tuple[Array, Array, Array] | None = None  # each [programs or 1]
        self.grid_dim: tuple[int, int, int] = (1, 1, 1)
        self.pieces: Array | None = None  # the numbers of those that run, where programs walk pieces

    def create_get_program_id(self, axis: int) -> Any:
        if self.grid_idx is None:
            raise EmulationError("a program's number is asked for outside of a launch")
        return TensorHandle(self.grid_idx[axis], tl.int32)

    # Arithmetic

    def binary_op(self, lhs: Any, rhs: Any, op: _Operation) -> Any:
        scalar = lhs.dtype.scalar
        if scalar == tl.bfloat16:
            return _handle(op(_number(lhs), _number(rhs)), scalar)
        return _handle(op(lhs.data, rhs.data), scalar)

    def unary_op(self, arg: Any, op: _Operation) -> Any:
        return _handle(op(_number(arg)), arg.dtype.scalar)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: _Operation) -> Any:
        return _handle(op(_number(lhs), _number(rhs), _number(other)), other.dtype.scalar)

    def create_select(self, cond: Any, lhs: Any, rhs: Any) -> Any:
        return TensorHandle(np.where(aligned(cond.data, lhs.data.ndim), lhs.data, rhs.data), rhs.dtype.scalar)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        return self.ternary_op(x, y, z, lambda a, b, c: a * b + c)

    def create_rsqrt(self, arg: Any) -> Any:
        return self.unary_op(arg, lambda x: np.reciprocal(np.sqrt(x)))

    def create_minnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_maxnumf(self, lhs: Any, rhs: Any) -> Any:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_clampf(self, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
        if propagate_nans == ir.PROPAGATE_NAN.ALL:
            return self.ternary_op(arg, lo, hi, np.clip)
        return self.ternary_op(arg, lo, hi, lambda x, low, high: np.fmin(np.fmax(x, low), high))

    def create_fabs(self, arg: Any) -> Any:
        if arg.dtype.scalar == tl.bfloat16:
            return TensorHandle(arg.data & np.uint16(0x7FFF), arg.dtype.scalar)
        return TensorHandle(np.abs(arg.data), arg.dtype.scalar)

    def get_bf16(self, value: float) -> Any:
        return TensorHandle(to_bfloat16(np.array([value], dtype=np.float32)), tl.bfloat16)

    # Shapes

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        numbers = arg.data.reshape(arg.data.shape[0], -1)[:, 0]
        return self._broadcast(aligned(numbers, 1 + len(ret_ty.shape)), ret_ty.shape, arg.dtype.scalar)

    def create_unsplat(self, arg: Any) -> Any:
        return TensorHandle(arg.data.reshape(arg.data.shape[0], -1)[:, 0], arg.dtype.scalar)

    def create_broadcast(self, arg: Any, shape: Any) -> Any:
        return self._broadcast(arg.data, shape, arg.dtype.scalar)

    @staticmethod
    def _broadcast(data: Array, shape: Any, scalar: Any) -> Any:
        return TensorHandle(np.broadcast_to(data, (data.shape[0], *shape)), scalar)

    def create_expand_dims(self, arg: Any, axis: int) -> Any:
        return TensorHandle(np.expand_dims(arg.data, axis + 1), arg.dtype.scalar)

    def create_reshape(self, arg: Any, shape: Any, allow_reorder: bool) -> Any:
        return TensorHandle(arg.data.reshape(arg.data.shape[0], *shape), arg.dtype.scalar)

    def create_trans(self, arg: Any, perm: Any) -> Any:
        return TensorHandle(np.transpose(arg.data, (0, *(axis + 1 for axis in perm))), arg.dtype.scalar)

    def create_make_range(self, ret_ty: Any, start: int, stop: int) -> Any:
        return TensorHandle(np.arange(start, stop, dtype=np.int32)[None], tl.int32)

    def create_cat(self, lhs: Any, rhs: Any) -> Any:
        programs = max(lhs.data.shape[0], rhs.data.shape[0])
        parts = [np.broadcast_to(x.data, (programs, *x.data.shape[1:])) for x in (lhs, rhs)]
        return TensorHandle(np.concatenate(parts, axis=1), lhs.dtype.scalar)

    def create_join(self, lhs: Any, rhs: Any) -> Any:
        return TensorHandle(np.stack(np.broadcast_arrays(lhs.data, rhs.data), axis=-1), lhs.dtype.scalar)

    def create_gather(self, src: Any, indices: Any, axis: int) -> Any:
        return TensorHandle(np.take_along_axis(src.data, indices.data, axis=axis + 1), src.dtype.scalar)

    def create_histogram(self, data: Any, bins: Any, mask: Any) -> Any:
        self._alone()
        found = super().create_histogram(data, bins, mask)
        return TensorHandle(found.data[None], found.dtype)

    def _alone(self) -> None:
        if self._reach().programs.size > 1:
            raise NotTogether

    # Conversions

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        return self._convert(src, dst_type.scalar)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        return self._convert(src, dst_type.scalar, truncate=rounding_mode == ir.ROUNDING_MODE.RTZ)

    def _convert(self, src: Any, to: Any, truncate: bool = False) -> Any:
        if src.dtype.scalar == to:
            return src
        if any(kind.is_fp8() for kind in (src.dtype.scalar, to)):
            raise EmulationError("8-bit floating point is not emulated")
        if truncate and not (to == tl.bfloat16 and src.dtype.scalar == tl.float32):
            raise EmulationError(f"rounding towards zero from {src.dtype.scalar} to {to} is not emulated")
        numbers = _number(src)
        if to == tl.bfloat16:
            return TensorHandle(to_bfloat16(numbers.astype(np.float32, copy=False), truncate), to)
        return TensorHandle(numbers.astype(numpy_dtype(to), copy=False), to)

    @staticmethod
    def _convert_custom_types(value: Any, dst_ty: Any, rounding: Any, _semantic: Any) -> Any:
        raise EmulationError(f"conversion of {value.dtype} to {dst_ty} is not emulated")

    # Products

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: int) -> Any:
        found = self._product(a, b, d, input_precision)
        if unit().spoils_left:
            spoil(a)
        return found

    @staticmethod
    def _product(a: Any, b: Any, d: Any, input_precision: Any) -> Any:
        if a.dtype.scalar.is_fp8() or b.dtype.scalar.is_fp8():
            raise EmulationError("8-bit floating point is not emulated")
        x, y = _number(a), _number(b)
        wide = np.dtype(np.float32) if d.data.dtype == np.float16 else d.data.dtype
        exact = input_precision == ir.INPUT_PRECISION.IEEE or not unit().tf32
        if a.dtype.scalar != tl.float32 or exact:
            product = np.matmul(x.astype(wide, copy=False), y.astype(wide, copy=False))
        elif input_precision == ir.INPUT_PRECISION.TF32:
            product = np.matmul(tf32(x), tf32(y))
        elif input_precision == ir.INPUT_PRECISION.TF32x3:
            product = tf32x3_product(x, y)
        elif input_precision == ir.INPUT_PRECISION.BF16x6:
            product = bf16x6_product(x, y)
        else:
            raise EmulationError(f"input_precision {input_precision} is not emulated")
        return TensorHandle((product + d.data).astype(d.data.dtype, copy=False), d.dtype.scalar)

    # Memory

    def _reach(self) -> Memory:
        if self.memory is None:
            raise EmulationError("memory is reached outside of a launch")
        return self.memory

    def create_load(self, ptr: Any, *_: Any) -> Any:
        return self.create_masked_load(ptr, None, None, None, None, False)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *_: Any, **__: Any) -> Any:
        scalar = ptrs.get_element_ty()
        where = mask.data if isinstance(mask, TensorHandle) else mask
        fill = None if other is None else other.data
        return TensorHandle(self._reach().load(ptrs.data, where, fill, numpy_dtype(scalar)), scalar)

    def create_store(self, ptr: Any, val: Any, *_: Any) -> Any:
        return self.create_masked_store(ptr, val, None, None, None)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *_: Any, **__: Any) -> Any:
        where = mask.data if isinstance(mask, TensorHandle) else mask
        self._reach().store(ptrs.data, value.data, where, numpy_dtype(ptrs.get_element_ty()))

    # Pointers to blocks, and descriptors, hold scalars of one program.

    def create_make_block_ptr(self, *args: Any) -> Any:
        self._alone()
        return super().create_make_block_ptr(*args)

    def create_tensor_pointer_load(self, ptr: Any, *rest: Any) -> Any:
        return super().create_tensor_pointer_load(_Leading(ptr), *rest)

    def create_tensor_pointer_store(self, ptr: Any, *rest: Any) -> Any:
        super().create_tensor_pointer_store(_Leading(ptr), *rest)

    def create_make_tensor_descriptor(self, base: Any, shape: Any, strides: Any, tensor_shape: Any, is_signed: bool,
                                      padding: Any = "zero") -> Any:
        self._alone()
        made = _Descriptor(base, shape, strides, tensor_shape, padding)
        made.validate()
        return made

    def create_descriptor_gather(self, desc: Any, x_offsets: Any, y_offset: Any, type: Any) -> Any:
        found = super().create_descriptor_gather(desc, TensorHandle(x_offsets.data[0], x_offsets.dtype), y_offset, type)
        return TensorHandle(found.data[None], found.dtype)

    def create_descriptor_scatter(self, desc: Any, value: Any, x_offsets: Any, y_offset: Any) -> None:
        super().create_descriptor_scatter(desc, TensorHandle(value.data[0], value.dtype),
                                          TensorHandle(x_offsets.data[0], x_offsets.dtype), y_offset)

    # What is not emulated

    def create_atomic_cas(self, *_: Any) -> Any:
        raise EmulationError("atomics are not emulated: every address has one writer")

    def create_atomic_rmw(self, *_: Any) -> Any:
        raise EmulationError("atomics are not emulated: every address has one writer")

    def create_inline_asm(self, *_: Any) -> Any:
        raise EmulationError("inline assembly is not emulated")

    def create_extern_elementwise(self, *_: Any) -> Any:
        raise EmulationError("functions of device libraries are not emulated")
