"""Which sums a backward pass leaves to be done: all in one launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from portable_gla_volta.arguments import KINDS, FoldArguments, FoldJob
from portable_gla_volta.configurations import FOLD
from portable_gla_volta.kernel import Runner

_OUTPUTS = 32  # a program's


class Folds:
    """Collects the sums of one backward pass, then launches them together."""

    def __init__(self) -> None:
        self.jobs: list[FoldJob] = []
        self.tensors: list[Tensor] = []
        self.programs = 0

    def add(self, source: Tensor, dtype: torch.dtype, shape: tuple[int, ...], over: tuple[int, ...]) -> Tensor:
        """Return the tensor of ``shape`` that will hold the sum of a contiguous float32 source over two dimensions.

        The dimensions before, between and after those of ``over`` must be one, contiguous run each at most two in all.
        """
        kept = [d for d in range(source.dim()) if d not in over and source.shape[d] != 1]
        summed = [d for d in over if source.shape[d] != 1]
        outer, inner = _merged(source, kept)
        terms, count = _merged(source, summed)
        if not summed:
            return source.to(dtype).view(shape)
        single = dtype if dtype in KINDS else torch.float32
        target = source.new_empty(shape, dtype=single)
        programs = math.ceil(target.numel() / _OUTPUTS)
        self.jobs.append(FoldJob(
            source.data_ptr(), target.data_ptr(), target.numel(), inner[0], outer[1], inner[1], terms[0] * count[0],
            count[0], terms[1], count[1], self.programs, programs, KINDS[single], 0))
        self.tensors += [source, target]
        self.programs += programs
        return target

    def launch(self, runner: Runner) -> None:
        """Do the sums."""
        if self.programs:
            arguments = FoldArguments()
            arguments.jobs[: len(self.jobs)] = self.jobs
            runner.launch(FOLD, self.programs, arguments, self.tensors)


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
