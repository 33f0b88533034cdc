"""The exchange as autograd sees it: a run's states depart in one node, and what comes in arrives in another.

Two nodes, so that other work runs between them in both directions: forward, the local pass of further heads, and the
weighted queries; backward, the gradients of q and g, and the local pass of further heads. They are tied by a tensor
without elements; what they exchange lies in the :class:`Flight`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from portable_gla.distributed.enter import Entry
from portable_gla.distributed.exchange import Flight, Sent

PREPARED_TILES = 8  # weighted queries that are made while the states fly: 64 MiB at most


class Decays(torch.autograd.Function):
    """The decay over the first piece of each of this rank's runs: [runs, rows or 1, Hg, K or 1]; 1 without an entry."""

    @staticmethod
    def forward(ctx: Any, entries: list[Entry], runs: int, like: Tensor, g: Tensor) -> Tensor:
        """Collect what the entries have."""
        found = like.new_ones(runs, *_gate_shape(g))
        for entry in entries:
            assert entry.before is not None
            found[entry.run] = entry.before[-1]
        ctx.save_for_backward(g, found)
        ctx.entries = entries
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        """Give every token of an entry the same gradient."""
        g, found = ctx.saved_tensors
        slope = (found * gradients[0]).to(g.dtype)  # by the sum of the logarithms
        if g.dim() == 1:
            dg = torch.zeros_like(g)
            for entry in ctx.entries:
                dg += (entry.tiles.stop - entry.tiles.start) * slope[entry.run].flatten()
            return None, None, None, dg
        if g.dim() == 3:
            slope = slope[..., 0]
        if len(ctx.entries) == 1:
            entry = ctx.entries[0]
            if (entry.tiles.start, entry.tiles.stop) == (0, g.shape[1]):
                return None, None, None, slope[entry.run][:, None].expand(g.shape)
        dg = torch.zeros_like(g)
        for entry in ctx.entries:
            dg[:, entry.tiles.start:entry.tiles.stop] = slope[entry.run][:, None]
        return None, None, None, dg


class Depart(torch.autograd.Function):
    """Send the states; the result only ties this node to :class:`Arrive`."""

    @staticmethod
    def forward(ctx: Any, flight: Flight, anchor: Tensor, slots: Tensor, decays: Tensor | None, inner: Tensor | None,
                empty: Tensor | None, *unused: Tensor | None) -> Tensor:
        """Start the gather; ``unused`` are inputs that this rank may not read, whose gradient is then zero."""
        flight.depart(Sent(slots, decays, inner, empty))
        ctx.flight = flight
        ctx.unused = [None if x is None else (x.shape, x.dtype, x.device) for x in unused]
        return anchor.new_zeros(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Wait for the gradients, which :class:`Arrive` has sent off."""
        zeros = [None if x is None else torch.zeros((), dtype=x[1], device=x[2]).expand(x[0]) for x in ctx.unused]
        return (None, None, *ctx.flight.land_backward(), *zeros)


class Arrive(torch.autograd.Function):
    """Add to o, in place, what the incoming states give; return o and the final state (empty unless wanted)."""

    @staticmethod
    def forward(ctx: Any, flight: Flight, entries: list[Entry], o: Tensor, q: Tensor, g: Tensor | None,
                token: Tensor) -> tuple[Tensor, Tensor]:
        """Weight queries while the states fly, wait, and add."""
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        left, prepared = PREPARED_TILES, []
        for entry in entries:
            prepared.append(entry.prepare(q, g, o.shape[2], dtype, left))
            left -= len(prepared[-1])
        final = flight.land()
        for entry, queries in zip(entries, prepared, strict=True):
            state = flight.incoming[entry.run]
            assert state is not None
            entry.add(o, q, g, state, queries)
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(o)
        ctx.save_for_backward(q, g)
        ctx.flight, ctx.entries, ctx.shape = flight, entries, o.shape
        if final is None:
            final = o.new_zeros(0)
            ctx.mark_non_differentiable(final)
        return o, final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Send the states' gradients off, and compute the others while they fly."""
        q, g = ctx.saved_tensors
        flight, entries = ctx.flight, ctx.entries
        do, dfinal = gradients
        if do is None:
            do = q.new_zeros(()).expand(ctx.shape)
        dincoming: list[Tensor | None] = [None] * len(flight.incoming)
        for entry in entries:
            dincoming[entry.run] = entry.state_gradient(q, g, do, flight.incoming[entry.run])
        flight.depart_backward(dincoming, dfinal)
        dq = torch.zeros_like(q)
        dg = None
        if g is not None and entries:
            rows = q.shape[0]
            dg = flight.incoming[entries[0].run].new_zeros(rows, q.shape[1], *_gate_shape(g)[1:])
        for entry in entries:
            entry.input_gradients(q, g, do, flight.incoming[entry.run], dq, dg)
        return None, None, do, dq, None if g is None or dg is None else _folded(dg, g), q.new_zeros(0)


def _gate_shape(g: Tensor) -> tuple[int, int, int]:
    """Return [rows or 1, Hg, K or 1], the shape of a decay."""
    if g.dim() == 1:
        return 1, g.shape[0], 1
    return g.shape[0], g.shape[2], g.shape[3] if g.dim() == 4 else 1


def _folded(dg: Tensor, g: Tensor) -> Tensor:
    """Bring a gate's gradient [B, T, Hg, K or 1] to g's own shape and dtype."""
    if g.dim() == 1:
        return dg.sum((0, 1, 3)).to(g.dtype)
    return (dg if g.dim() == 4 else dg[..., 0]).to(g.dtype)


