"""The exchange as autograd sees it: a run's states depart in one node, and what comes in arrives in another.

::

    q, g ── Tap ── local attention ── Depart ─ ─ Arrive ── o, final states
      └─────────────────────────────────────────────┘

Nodes of their own, so that other work runs between them in both directions: forward, the local pass of further heads,
and the weighted queries; backward, the gradients of q and g, and the local pass of further heads. Depart and Arrive are
tied by a tensor without elements; what they exchange lies in the :class:`Flight`. The gradients that Arrive has for q
and g are left there too, and Tap adds them to those that come out of the local pass, in place and only where there are
any: autograd's own sum would go over every token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from portable_gla.distributed.decays import tile_bytes
from portable_gla.distributed.enter import Entry
from portable_gla.distributed.exchange import Flight, Sent

PREPARED_BYTES = 2**26  # of weighted queries that are made while the states fly


class Tap(torch.autograd.Function):
    """Let q and g through to the local pass; on the way back add what the incoming states mean for them."""

    @staticmethod
    def forward(ctx: Any, flight: Flight, entries: list[Entry], q: Tensor,
                g: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return views."""
        ctx.flight, ctx.entries = flight, entries
        flight.tapped = any(ctx.needs_input_grad[2:])
        ctx.set_materialize_grads(False)
        return q.view_as(q), None if g is None else g.view_as(g)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor | None, dg: Tensor | None) -> tuple[Tensor | None, ...]:
        """Add; the gradients are the local pass's own, and nobody else holds them."""
        found, ctx.flight.input_gradients = ctx.flight.input_gradients, []
        dq, dg = _writable(dq), _writable(dg)
        for entry, (more_q, more_g) in zip(ctx.entries, found, strict=True):
            here = slice(entry.tiles.start, entry.tiles.stop)
            if dq is not None:
                dq[:, here] += more_q
            if dg is not None and more_g is not None:
                _add_to_gate(dg, entry, more_g, ctx.flight.ddecays)
        return None, None, dq, dg


class Depart(torch.autograd.Function):
    """Send the states; the result only ties this node to :class:`Arrive`."""

    @staticmethod
    def forward(ctx: Any, flight: Flight, anchor: Tensor, decays: Tensor | None, slots: Tensor, inner: Tensor | None,
                empty: Tensor | None, *unused: Tensor | None) -> Tensor:
        """Start the gather; ``unused`` are inputs that this rank may not read, whose gradient is then zero."""
        flight.depart(Sent(slots, decays, inner, empty))
        ctx.flight = flight
        ctx.unused = [None if x is None else (x.shape, x.dtype, x.device) for x in unused]
        return anchor.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Wait for the gradients, which :class:`Arrive` has sent off."""
        found = ctx.flight.land_backward()
        ctx.flight.ddecays = found.decays
        zeros = [None if x is None else torch.zeros((), dtype=x[1], device=x[2]).expand(x[0]) for x in ctx.unused]
        return (None, None, None, found.slots, found.inner, found.empty, *zeros)


class Arrive(torch.autograd.Function):
    """Add to o, in place, what the incoming states give; return o and the final state (empty unless wanted)."""

    @staticmethod
    def forward(ctx: Any, flight: Flight, entries: list[Entry], o: Tensor, q: Tensor, g: Tensor | None,
                token: Tensor) -> tuple[Tensor, Tensor]:
        """Weight queries while the states fly, wait, and add."""
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        left, prepared = max(1, PREPARED_BYTES // tile_bytes(q.device)), []
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
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        """Send the states' gradients off, and compute the others while they fly."""
        q, g = ctx.saved_tensors
        flight, entries = ctx.flight, ctx.entries
        if do is None:
            do = q.new_zeros(()).expand(ctx.shape)
        dincoming: list[Tensor | None] = [None] * len(flight.incoming)
        for entry in entries:
            dincoming[entry.run] = entry.state_gradient(q, g, do, flight.incoming[entry.run])
        flight.depart_backward(dincoming, dfinal)
        if flight.tapped:
            flight.input_gradients = [
                entry.input_gradients(q, g, do, flight.incoming[entry.run]) for entry in entries]
        return None, None, do, None, None, q.new_zeros(0)


def _writable(x: Tensor | None) -> Tensor | None:
    """Copy what is expanded: its elements share memory."""
    if x is not None and any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        return x.clone(memory_format=torch.contiguous_format)
    return x


def _add_to_gate(dg: Tensor, entry: Entry, more: Tensor, ddecays: Tensor) -> None:
    """Add to g's gradient, in its own shape, at the tiles ``more`` and at the whole piece that of its decay."""
    assert entry.decay is not None
    whole = entry.decay * ddecays[entry.run]  # by the sum of the logarithms: the same for every token
    if dg.dim() == 1:
        dg += more.sum((0, 1, 3)) + (entry.stop - entry.start) * whole.flatten()
        return
    if dg.dim() == 3:
        more, whole = more[..., 0], whole[..., 0]
    dg[:, entry.tiles.start:entry.tiles.stop] += more
    if whole.device.type != "cpu" or bool(whole.any()):  # over a long run everything is forgotten
        dg[:, entry.start:entry.stop] += whole[:, None]
