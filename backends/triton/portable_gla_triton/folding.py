"""Which sums a backward pass leaves to be done: all in one launch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_OUTPUTS = 64  # a program's
_TERMS = 16  # summed at once


class Folds:
    """Collects the sums of one backward pass, then launches them together."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, ...]] = []
        self.programs = 0

    def add(self, source: Tensor, dtype: torch.dtype, shape: tuple[int, ...], over: tuple[int, ...]) -> Tensor:
        """Return the tensor of ``shape`` that will hold the sum of a contiguous source over two dimensions at most.

        The dimensions before, between and after those of ``over`` must be one, contiguous run each at most two in all.
        """
        kept = [d for d in range(source.dim()) if d not in over and source.shape[d] != 1]
        summed = [d for d in over if source.shape[d] != 1]
        outer, inner = _merged(source, kept)
        terms, count = _merged(source, summed)
        if not summed:
            return source.to(dtype).view(shape)
        target = source.new_empty(shape, dtype=dtype)
        outputs = target.numel()
        programs = math.ceil(outputs / _OUTPUTS)
        self.jobs.append((source, target, self.programs, programs, outputs, inner[0], outer[1], inner[1],
                          terms[0] * count[0], count[0], terms[1], count[1]))
        self.programs += programs
        return target

    def launch(self, kernels: Any) -> None:
        """Do the sums."""
        if self.programs:
            kernels.fold[(self.programs,)](tuple(self.jobs), JOBS=len(self.jobs), OUT=_OUTPUTS, TERMS=_TERMS,
                                           num_warps=4)


def _merged(source: Tensor, dims: list[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Merge dimensions of a contiguous tensor that follow one another; return two of (size, stride), outer first."""
    found: list[tuple[int, int]] = []
    for d in dims:
        size, stride = source.shape[d], source.stride(d)
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    if len(found) > 2:
        raise ValueError(f"more than two runs of dimensions: {dims} of {list(source.shape)}")
    found = [(1, 0)] * (2 - len(found)) + found
    return found[0], found[1]
