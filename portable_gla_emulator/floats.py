"""Number formats that numpy lacks: bfloat16 (held as its 16 bits) and TF32 (held as float32)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_TF32 = np.uint32(0xFFFFE000)  # sign, exponent and the upper 10 of 23 mantissa bits


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 values of bfloat16 ``bits`` (uint16); exact."""
    values: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def to_bfloat16(values: Array, truncate: bool = False) -> Array:
    """Return ``values`` (float32) as bfloat16 bits (uint16), rounded to nearest even or truncated; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if truncate:
        rounded: Array = bits >> np.uint32(16)
    else:
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    nan = np.isnan(values)
    if nan.any():  # a NaN whose mantissa is all low bits, or all ones, would round to an infinity or wrap to zero
        rounded = np.where(nan, (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    result: Array = rounded.astype(np.uint16).reshape(values.shape)
    return result


def tf32(values: Array) -> Array:
    """Return ``values`` (float32) cut to TF32's 10 mantissa bits, as tensor cores read operands that nobody rounded."""
    cut = (np.ascontiguousarray(values).view(np.uint32) & _TF32).view(np.float32)
    return np.where(np.isnan(values), values, cut)


def tf32x3_product(a: Array, b: Array) -> Array:
    """Return ``a @ b`` (float32) as three products of TF32 operands: high by high, plus both mixed terms."""
    a_high, b_high = tf32(a), tf32(b)
    a_low, b_low = tf32(a - a_high), tf32(b - b_high)
    mixed = np.matmul(a_low, b_high) + np.matmul(a_high, b_low)
    # The low part of an infinity is NaN; Triton drops NaNs of the mixed terms, so that the high term decides.
    product: Array = np.where(np.isnan(mixed), np.float32(0), mixed) + np.matmul(a_high, b_high)
    return product


def bf16x6_product(a: Array, b: Array) -> Array:
    """Return ``a @ b`` (float32) as six products of bfloat16 operands, the smallest first.

    Three bfloat16 hold a float32's 24 bits; the products that are left out are below 2⁻²⁴ of the whole.
    """
    first, second = _three(a), _three(b)
    total: Array = np.matmul(first[1], second[1])
    for i, j in ((2, 0), (0, 2), (1, 0), (0, 1)):
        total = total + np.matmul(first[i], second[j])
    product: Array = np.where(np.isnan(total), np.float32(0), total) + np.matmul(first[0], second[0])
    return product


def _three(values: Array) -> tuple[Array, Array, Array]:
    high = from_bfloat16(to_bfloat16(values))
    middle = from_bfloat16(to_bfloat16(values - high))
    return high, middle, from_bfloat16(to_bfloat16(values - high - middle))
