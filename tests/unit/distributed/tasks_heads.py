"""A layer whose heads are sharded: projections to heads, attention, the projection from them."""

from __future__ import annotations

import torch
from torch.nn import functional

from portable_gla import attention
from portable_gla.distributed import head_parallel_input, row_parallel_projection

BATCH, TOKENS, WIDTH, HEADS, KEY, VALUE = 2, 23, 10, 4, 3, 5
DTYPE = torch.float64


def draw(seed):
    """Return x, the weights [H, ·, D] of q, k, v and g, that of the output [D, H, V], its bias, and dy."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=DTYPE)

    return (normal(BATCH, TOKENS, WIDTH), normal(HEADS, KEY, WIDTH), normal(HEADS, KEY, WIDTH),
            normal(HEADS, VALUE, WIDTH), normal(HEADS, KEY, WIDTH), normal(WIDTH, HEADS, VALUE), normal(WIDTH),
            normal(BATCH, TOKENS, WIDTH))


def layer(x, q_weight, k_weight, v_weight, g_weight, project):
    q, k, v, g = (torch.einsum("btd,hkd->bthk", x, weight) for weight in (q_weight, k_weight, v_weight, g_weight))
    return project(attention(q, k, v, functional.logsigmoid(g), backend="eager").flatten(2))


def whole(seed):
    """Return y and the gradients of x, the weights and the bias on one process."""
    *drawn, dy = draw(seed)
    x, q, k, v, g, o, bias = leaves = [leaf.requires_grad_() for leaf in drawn]
    y = layer(x, q, k, v, g, lambda heads: functional.linear(heads, o.flatten(1), bias))
    return [y.detach(), *torch.autograd.grad((y * dy).sum(), leaves)]


def run(rank, size, seed, heads, pieces):
    """Return the same of this rank's heads; ``heads`` are their numbers on each rank."""
    *drawn, dy = draw(seed)
    mine = slice(sum(heads[:rank]), sum(heads[:rank + 1]))
    x, q, k, v, g, o, bias = drawn
    leaves = [leaf.clone().requires_grad_() for leaf in (x, q[mine], k[mine], v[mine], g[mine], o[:, mine], bias)]
    x, q, k, v, g, o, bias = leaves
    y = layer(head_parallel_input(x, pieces=pieces), q, k, v, g,
              lambda found: row_parallel_projection(found, o.flatten(1), bias, pieces=pieces))
    return [y.detach(), *torch.autograd.grad((y * dy).sum(), leaves)]


def refuse(rank, size, change):
    x, weight, bias = torch.zeros(1, 4, 6), torch.zeros(5, 6), None
    pieces = 2
    if change == "weight":
        weight = weight[:, 1:]
    elif change == "dtype":
        weight = weight.double()
    elif change == "bias":
        bias = torch.zeros(4)
    else:
        pieces = change
    row_parallel_projection(x, weight, bias, pieces=pieces)


