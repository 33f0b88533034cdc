"""Heads sharded over ranks: attention needs no exchange then, and the output projection adds the ranks' parts up.

Every rank computes its own heads of q, k, v, g and o. Around that, :func:`head_parallel_input` stands before the
projections to heads, and :func:`row_parallel_projection` is the one from heads; they are each other's adjoint. What
comes out is the same on every rank, and so is the loss: each rank computes the whole of it, and gradients of what every
rank holds are whole, those of shards are the shards'. (A sequence-sharded call is different: there each rank's loss is
its share.) The scheme is that of Shoeybi et al., "Megatron-LM" (2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from portable_gla.distributed import collectives
from portable_gla.distributed.groups import Group, resolve


def row_parallel_projection(x: Tensor, weight_shard: Tensor, bias: Tensor | None = None, *, group: Any = None,
                            pieces: int = 4) -> Tensor:
    """Project from the heads of all ranks: y = Σ_r x_r W_rᵀ + bias, piece by piece of the sequence.

    Each piece's sum over the ranks flies while the next one is multiplied; the last is waited for at the end. Equal to
    one product and one sum up to the order in which the ranks' parts are added.

    Parameters
    ----------
    x
        [..., T, D_r]: this rank's heads, side by side. D_r may differ between ranks, the other sizes and the dtype may
        not; they are not compared.
    weight_shard
        [D, D_r], in x's dtype: the columns of the projection's weight [D, Σ D_r] that read this rank's heads.
    bias
        [D], in x's dtype and the same on every rank; added once.
    group
        As in :func:`portable_gla.distributed.attention`.
    pieces
        Into how many the T tokens are cut, the same number on every rank; at most T are made.

    Returns
    -------
    Tensor
        y [..., T, D] in x's dtype, the same on every rank.

    Raises
    ------
    TypeError, ValueError
        If sizes or dtypes do not fit together on this rank.
    RankFailure
        If a rank dies or stays away.
    """
    _check_pieces(pieces)
    if x.dim() < 2 or weight_shard.dim() != 2 or weight_shard.shape[1] != x.shape[-1]:
        raise ValueError(f"weight_shard: expected shape [D, {x.shape[-1]}] for x of shape {list(x.shape)}, "
                         f"got {list(weight_shard.shape)}")
    for name, other in (("weight_shard", weight_shard), ("bias", bias)):
        if other is not None and other.dtype != x.dtype:
            raise TypeError(f"{name}: expected dtype {x.dtype} as x, got {other.dtype}")
    if bias is not None and tuple(bias.shape) != (weight_shard.shape[0],):
        raise ValueError(f"bias: expected shape [{weight_shard.shape[0]}], got {list(bias.shape)}")
    y: Tensor = _RowParallel.apply(x, weight_shard, resolve(group), pieces)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


def head_parallel_input(x: Tensor, *, group: Any = None, pieces: int = 1) -> Tensor:
    """Return x [..., T, D], the same on every rank, to the projections of this rank's heads.

    Its gradient is the sum of the ranks' gradients, which are added up in ``pieces`` of the sequence.

    Raises
    ------
    RankFailure
        From the backward pass, if a rank dies or stays away.
    """
    _check_pieces(pieces)
    if x.dim() < 2:
        raise ValueError(f"x: expected shape [..., T, D], got {list(x.shape)}")
    y: Tensor = _HeadInput.apply(x, resolve(group), pieces)  # type: ignore[no-untyped-call]
    return y


class _RowParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, group: Group, pieces: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        under_way = [
            collectives.all_reduce(group, functional.linear(part, weight).contiguous(), "the output projection")
            for part in _cut(x, pieces)]
        return torch.cat([pending.wait() for pending in under_way], -2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        dweight = dy.flatten(0, -2).mT @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return dx, dweight, None, None


class _HeadInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, pieces: int) -> Tensor:
        ctx.group, ctx.pieces = group, pieces
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        under_way = [collectives.all_reduce(ctx.group, part.clone(memory_format=torch.contiguous_format),
                                            "the gradient of the heads' input")
                     for part in _cut(gradients[0], ctx.pieces)]
        return torch.cat([pending.wait() for pending in under_way], -2), None, None


def _cut(x: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Cut the tokens into at most ``pieces``, equal but for the last."""
    return torch.split(x, max(1, -(-x.shape[-2] // pieces)), -2)


def _check_pieces(pieces: object) -> None:
    if isinstance(pieces, bool) or not isinstance(pieces, int):
        raise TypeError(f"pieces: expected an integer, got {type(pieces).__name__}")
    if pieces < 1:
        raise ValueError(f"pieces: expected 1 or more, got {pieces}")
