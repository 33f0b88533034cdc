"""Launches an emulated function on a grid: arguments as it sees them, and what is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import traffic
from .errors import EmulationError
from .language import EmulatedFunction
from .lock import LOCK
from .memory import Memory
from .semantics import as_tensor, builder, pointer, scalar, semantic
from .tensors import own
from .traffic import Traffic
from .ways import Run

_ELEMENTS = {
    torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
    torch.int64: tl.int64, torch.int32: tl.int32, torch.int16: tl.int16, torch.int8: tl.int8,
    torch.uint64: tl.uint64, torch.uint32: tl.uint32, torch.uint16: tl.uint16, torch.uint8: tl.uint8,
    torch.bool: tl.int1,
}
_OPTIONS = frozenset({"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion", "launch_cooperative_grid",
                      "launch_pdl", "debug", "sanitize_overflow"})


def _argument(value: Any, tensors: list[torch.Tensor]) -> Any:
    """``value`` as the function sees it; tensors met on the way are added to ``tensors``."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise EmulationError(f"an emulated launch takes CPU tensors, not one on {value.device}")
        if value.dtype not in _ELEMENTS:
            raise EmulationError(f"tensors of {value.dtype} are not emulated")
        tensors.append(value)
        return pointer(value.data_ptr(), _ELEMENTS[value.dtype])
    if isinstance(value, tuple):
        made = [_argument(item, tensors) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, TensorDescriptor):
        strides = [as_tensor(int(s)) for s in value.strides[:-1]] + [tl.constexpr(1)]
        return own(semantic.make_tensor_descriptor(
            _argument(value.base, tensors), [as_tensor(int(s)) for s in value.shape], strides,
            [tl.constexpr(b) for b in value.block_shape], value.padding))
    if isinstance(value, bool):
        return scalar(value, tl.int1)
    if isinstance(value, int | float):
        return as_tensor(value)
    return value


def _sizes(grid: Any) -> tuple[int, int, int]:
    given = [int(n) for n in grid] if isinstance(grid, tuple | list) else [int(grid)]
    if not 1 <= len(given) <= 3:
        raise ValueError(f"a grid has one to three dimensions, not {len(given)}")
    x, y, z = given + [1] * (3 - len(given))
    return x, y, z


def launch(function: EmulatedFunction, grid: Any, *args: Any, **kwargs: Any) -> None:
    """Run every program of ``grid``; see :func:`portable_gla_emulator.load` for what is checked."""
    names = {p.name for p in function.jit.params}
    options = {k for k in kwargs if k not in names}
    if options - _OPTIONS:
        raise TypeError(f"{function.__name__} has no parameter {', '.join(sorted(options - _OPTIONS))}")
    bound = function.jit.signature.bind(*args, **{k: v for k, v in kwargs.items() if k in names})
    bound.apply_defaults()
    if callable(grid):
        grid = grid(dict(bound.arguments))
    sizes = _sizes(grid)

    with LOCK, np.errstate(all="ignore"):
        outer = builder.memory, builder.grid_idx, builder.grid_dim, builder.pieces
        tensors: list[torch.Tensor] = []
        try:
            values = {
                p.name: bound.arguments[p.name] if p.is_constexpr else _argument(bound.arguments[p.name], tensors)
                for p in function.jit.params
            }
            counting = traffic.counting()
            builder.grid_dim = sizes
            run = Run(function, values, sizes, lambda together: Memory(function.__name__, tensors, counting,
                                                                       together=together))
            memory = run.by_any_way(counting)
            if counting:
                traffic.note(Traffic(function.__name__, sizes, memory.loaded, memory.stored,
                                     memory.unique_loaded, memory.unique_stored))
        finally:
            builder.memory, builder.grid_idx, builder.grid_dim, builder.pieces = outer
