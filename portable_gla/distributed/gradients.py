"""The gradients of parameters that every rank holds, of which each rank has computed its share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from portable_gla.distributed import collectives
from portable_gla.distributed.groups import resolve


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], *, group: Any = None) -> None:
    """Replace every parameter's gradient by its sum over the ranks, in one all-reduce per dtype.

    Parameters
    ----------
    parameters
        The same on every rank, in the same order. One without a gradient on a rank counts as zero there, and has one
        afterwards.
    group
        As in :func:`portable_gla.distributed.attention`.

    Raises
    ------
    RankFailure
        If a rank dies or stays away.
    """
    found = resolve(group)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for held in by_dtype.values():
        flat = torch.cat([(torch.zeros_like(x) if x.grad is None else x.grad).flatten() for x in held])
        summed = collectives.all_reduce(found, flat, "the sum of gradients").wait()
        for parameter, part in zip(held, torch.split(summed, [x.numel() for x in held]), strict=True):
            parameter.grad = part.view_as(parameter)
