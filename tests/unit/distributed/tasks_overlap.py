"""Write down in what order a rank computes, starts exchanges and waits for them."""

from __future__ import annotations

import functools

import torch
from torch.utils.checkpoint import checkpoint

from portable_gla import registry
from portable_gla.distributed import api, attention
from portable_gla.distributed.enter import Entry, entry
from portable_gla.distributed.exchange import Flight


def order_of_events(rank, size, overlap):
    events = []

    def noted(genuine, name):
        @functools.wraps(genuine)
        def wrapper(*arguments, **options):
            found = genuine(*arguments, **options)
            events.append(name)
            return found
        return wrapper

    backend = registry.get("eager")
    patches = [(api, "local_attention", "local"), (Flight, "depart", "depart"), (Flight, "land", "land"),
               (Flight, "depart_backward", "depart back"), (Flight, "land_backward", "land back"),
               (Entry, "prepare", "weight"), (Entry, "add", "add"), (Entry, "state_gradient", "dS"),
               (Entry, "input_gradients", "dq, dg"), (type(backend), "backward", "local back")]
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in patches]
    for owner, name, told in patches:
        setattr(owner, name, noted(vars(owner)[name], told))
    try:
        leaves = [torch.randn(1, 40, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        g = torch.full((1, 40, 2, 4), -0.1, dtype=torch.float64, requires_grad=True)
        attention(*leaves, g, overlap=overlap, backend="eager").sum().backward()
    finally:
        for owner, name, genuine in kept:
            setattr(owner, name, genuine)
    return events


def checkpointed(rank, size, seed):
    """Return the gradients with and without recomputation in the backward pass, and of two passes over one graph."""
    def leaves():
        draw = torch.Generator().manual_seed(seed + rank)
        found = [torch.randn(1, 20, 2, 4, dtype=torch.float64, generator=draw) for _ in range(4)]
        found[3] = -found[3].abs()
        return [x.requires_grad_() for x in found]

    def call(*tensors):
        return attention(*tensors, backend="eager")

    first, second = leaves(), leaves()
    plain = torch.autograd.grad(call(*first).square().sum(), first)
    again = torch.autograd.grad(checkpoint(call, *second, use_reentrant=False).square().sum(), second)
    loss = call(*first).square().sum()
    twice = [torch.autograd.grad(loss, first, retain_graph=True) for _ in range(2)]
    return plain, again, *twice


def only_some_inputs_want_gradients(rank, size, seed):
    """Return dq where q alone wants a gradient, and dv where v alone does."""
    found = []
    for chosen in (0, 2):
        draw = torch.Generator().manual_seed(seed + rank)
        leaves = [torch.randn(1, 20, 2, 4, dtype=torch.float64, generator=draw) for _ in range(4)]
        leaves[3] = -leaves[3].abs()
        leaves[chosen].requires_grad_()
        attention(*leaves, backend="eager").square().sum().backward()
        assert [x.grad is not None for x in leaves] == [index == chosen for index in range(4)]
        found.append(leaves[chosen].grad)
    return found


def largest_temporary(rank, size, tokens):
    """Return the bytes of the largest tensor made in an entry's forward passes, by pass, with tiles of 64 KiB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from portable_gla.distributed import decays

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            held = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            for x in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in held:
                    self.most = max(self.most, x.untyped_storage().nbytes())
            return found

    q, g = torch.randn(1, tokens, 2, 8), torch.full((1, tokens, 2, 8), -1e-5)
    o = do = torch.randn(1, tokens, 2, 8)
    state = torch.randn(1, 2, 8, 8)
    genuine, decays.tile_bytes = decays.tile_bytes, lambda device: 2**16
    sizes = {}
    try:
        with Largest() as seen:
            found = entry(0, 0, tokens, q, g, (2, 8, 8), torch.float32, 1.0, reverse=bool(rank), exclusive=False)
            for name, work in (("add", lambda: found.add(o, q, g, state, [])),
                               ("dS", lambda: found.state_gradient(q, g, do, state))):
                seen.most = 0
                work()
                sizes[name] = seen.most
    finally:
        decays.tile_bytes = genuine
    return sizes
