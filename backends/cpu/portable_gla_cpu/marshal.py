"""Packs a call into the flat record that ``csrc/gla.h`` declares: eight bytes per field."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

_TENSORS = 18  # of gla_call
_DECODE_TENSORS = 8  # of gla_decode_call
CALL = struct.Struct(f"12q d {7 * _TENSORS}q")
DECODE_CALL = struct.Struct(f"8q d {7 * _DECODE_TENSORS}q")
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.int32: 4, torch.int64: 5}
GATES = {"none": 0, "constant": 1, "head": 2, "channel": 3}

Record = tuple[int, ...]  # of one tensor: address, dtype, heads, four strides
ABSENT: Record = (0,) * 7


class Plan(NamedTuple):
    """How a call is cut up: the fields of ``gla_call`` that do not come from its tensors."""

    segments: int
    value_tiles: int
    interval: int
    threads: int


def tokens(x: Tensor) -> Record:
    """Describe [B, T, Hx, D]."""
    return x.data_ptr(), DTYPES[x.dtype], x.size(2), *x.stride()


def state(x: Tensor | None) -> Record:
    """Describe [N, H, K, V]; one state for all N has stride 0."""
    if x is None:
        return ABSENT
    n, *rest = x.stride()
    return x.data_ptr(), DTYPES[x.dtype], 0, n if x.size(0) != 1 else 0, *rest


def matrix(x: Tensor | None) -> Record:
    """Describe [H, K]."""
    return ABSENT if x is None else (x.data_ptr(), DTYPES[x.dtype], 0, *x.stride(), 0, 0)


def vector(x: Tensor | None) -> Record:
    """Describe [N]."""
    return ABSENT if x is None else (x.data_ptr(), DTYPES[x.dtype], 0, x.stride(0), 0, 0, 0)


def gate(x: Tensor | None) -> tuple[int, Record]:
    """Describe g of any kind: the kind, and its record as [B, T, Hg, K] with stride 0 where it does not vary."""
    if x is None:
        return 0, ABSENT
    if x.dim() == 4:
        return 3, tokens(x)
    if x.dim() == 3:
        return 2, (x.data_ptr(), DTYPES[x.dtype], x.size(2), *x.stride(), 0)
    return 1, (x.data_ptr(), DTYPES[x.dtype], x.size(0), 0, 0, x.stride(0), 0)
