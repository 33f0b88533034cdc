"""Inputs and outputs in host memory, read and written segment by segment: tensors, numpy arrays, safetensors slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_SAFETENSORS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


class Source:
    """One of q, k, v, g, do: anything that has a shape and a dtype and can be sliced along its tokens.

    A read-only memory map stays read-only: its slices are copied, never wrapped.
    """

    def __init__(self, name: str, value: Any, layout: str) -> None:
        self.name, self._value, self._heads_first = name, value, layout == "BHTD"
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                raise ValueError(f"{name}: expected in host memory, got a tensor on {value.device}")
            shape, self.dtype = list(value.shape), value.dtype
        elif isinstance(value, np.ndarray):
            shape, self.dtype = list(value.shape), _numpy_dtype(name, value)
        elif hasattr(value, "get_shape") and hasattr(value, "get_dtype"):
            shape, kind = list(value.get_shape()), str(value.get_dtype())
            if kind not in _SAFETENSORS:
                raise TypeError(f"{name}: expected a safetensors slice of {', '.join(_SAFETENSORS)}, got {kind}")
            self.dtype = _SAFETENSORS[kind]
        else:
            raise TypeError(f"{name}: expected a tensor, a numpy array or a safetensors slice, "
                            f"got {type(value).__name__}")
        self.given_shape = tuple(shape)
        if self._heads_first and len(shape) > 2:
            shape[1:3] = shape[2], shape[1]
        self.shape = tuple(shape)
        """In layout BTHD."""

    def meta(self) -> Tensor:
        """Return a stand-in without memory, in the layout given: what validation looks at."""
        return torch.empty(self.given_shape, dtype=self.dtype, device="meta")

    def pinned(self, start: int, end: int) -> Tensor | None:
        """Return the tokens from ``start`` to ``end`` where they lie, if a device can copy from there as they are."""
        if not isinstance(self._value, Tensor) or self._heads_first or not self._value.is_pinned():
            return None
        part = self._value[:, start:end]
        return part if part.is_contiguous() else None

    def read(self, start: int, end: int, into: Tensor) -> None:
        """Copy the tokens from ``start`` to ``end`` into a tensor [B, end - start, ...]."""
        part = self._value[:, :, start:end] if self._heads_first else self._value[:, start:end]
        if isinstance(part, Tensor):
            into.copy_(part.transpose(1, 2) if self._heads_first else part)
        else:
            dense = into if into.device.type == "cpu" else torch.empty_like(into, device="cpu")
            np.copyto(dense.numpy(), np.swapaxes(part, 1, 2) if self._heads_first else part)
            if dense is not into:
                into.copy_(dense)


class Target:
    """One of o and the gradients, written segment by segment."""

    def __init__(self, name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
        """``shape`` is in layout BTHD; ``value`` None allocates."""
        heads_first = layout == "BHTD"
        given = list(shape)
        if heads_first:
            given[1:3] = shape[2], shape[1]
        if value is None:
            value = torch.empty(given, dtype=dtype)
        if isinstance(value, np.ndarray):
            _numpy_dtype(name, value)
            if not value.flags.writeable:
                raise ValueError(f"{name}: expected a writable array, got one that is read-only")
            value = torch.from_numpy(value)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor or a numpy array to write to, got {type(value).__name__}")
        if value.device.type != "cpu":
            raise ValueError(f"{name}: expected in host memory, got a tensor on {value.device}")
        if value.requires_grad:
            raise ValueError(f"{name}: expected a tensor that requires no gradient: it is written in place")
        if tuple(value.shape) != tuple(given):
            raise ValueError(f"{name}: expected shape {given}, got {list(value.shape)}")
        if value.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {str(dtype).removeprefix('torch.')}, "
                            f"got {str(value.dtype).removeprefix('torch.')}")
        self.name, self.tensor = name, value
        self._view = value.transpose(1, 2) if heads_first else value

    def write(self, start: int, end: int, found: Tensor) -> None:
        """Copy a host tensor [B, end - start, ...] to the tokens from ``start`` to ``end``."""
        self._view[:, start:end].copy_(found)

    def read(self, start: int, end: int) -> Tensor:
        """Return what stands at the tokens from ``start`` to ``end``, in layout BTHD."""
        return self._view[:, start:end]


def overlap(left: Any, right: Any) -> bool:
    """Whether two values share memory, as far as can be known."""
    ranges = []
    for value in (left, right):
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            ranges.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        elif isinstance(value, np.ndarray):
            ranges.append(np.lib.array_utils.byte_bounds(value) if hasattr(np.lib, "array_utils")
                          else np.byte_bounds(value))  # type: ignore[attr-defined]
        else:
            return False
    (a, b), (c, d) = ranges
    return bool(a < d and c < b)


def _numpy_dtype(name: str, value: Any) -> torch.dtype:
    try:
        return torch.from_numpy(np.empty(0, value.dtype)).dtype
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected an array of a dtype that PyTorch has, in the machine's byte order, "
                        f"got {value.dtype}") from None
