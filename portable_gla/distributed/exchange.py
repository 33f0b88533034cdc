"""The states that cross from run to run: one gather forward, one backward, and the scan that each rank makes of them.

Forward, every rank sends for each of its runs the state after the run's last piece, as computed from zero (or from the
initial state, where the document begins in the run), and the decay over the run's first piece; with final states, also
those of the documents that end inside. Each rank then walks the runs in processing order::

    S ← S_run + D_run ⊙ S          where a document comes in and goes on
    S ← S_run                      where another one goes on

Backward, every rank sends the gradient of each state that came in, and of the final states, and each walks the runs
the other way::

    R ← dS_run + D_run ⊙ R         dD_run = Σ_V S_in ⊙ R
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from portable_gla.distributed import collectives
from portable_gla.distributed.collectives import Pending
from portable_gla.distributed.decays import from_heads, to_heads
from portable_gla.distributed.groups import Group
from portable_gla.distributed.sharding import Run, Sharding

FORWARD = "the forward exchange of states"
BACKWARD = "the backward exchange of states"


class Sent(NamedTuple):
    """What a rank sends forward, or the gradients of that.

    ``slots`` [runs, rows, H, K, V]: the state after each run's last piece. ``decays`` [runs, rows or 1, Hg, K or 1]:
    over each run's first piece; None without a gate. ``inner`` [m, H, K, V]: the final states of all other pieces, run
    after run; None unless final states are wanted. ``empty`` [n, H, K, V] is not sent: the states of documents without
    a token, which every rank has.
    """

    slots: Tensor
    decays: Tensor | None
    inner: Tensor | None
    empty: Tensor | None


class Flight:
    """One call's exchange: what was sent, what came, and what the way back needs."""

    def __init__(self, group: Group, sharding: Sharding) -> None:
        self._group, self._sharding = group, sharding
        self._pending: Pending | None = None
        self._sent: Sent | None = None
        self._decays: Tensor | None = None  # [P, runs, rows or 1, Hg, K or 1] of all ranks
        self.incoming: list[Tensor | None] = [None] * len(sharding.mine)  # by own run; None: nothing comes in
        self._final_shape: torch.Size | None = None
        self.tapped = False  # whether q or g wants a gradient
        self.input_gradients: list[tuple[Tensor, Tensor | None]] = []  # of q and g, from Arrive to Tap
        self.ddecays: Tensor | None = None  # from Depart to Tap

    def depart(self, sent: Sent) -> None:
        """Start the gather."""
        self._sent = sent = Sent(*(None if x is None else x.detach() for x in sent))  # type: ignore[arg-type]
        parts = [_padded(sent.slots, self._sharding.most_runs)]
        if sent.decays is not None:
            parts.append(_padded(sent.decays, self._sharding.most_runs))
        if sent.inner is not None:
            parts.append(_padded(sent.inner, self._sharding.most_inner))
        self._pending = collectives.all_gather(self._group, torch.cat([x.flatten() for x in parts]), FORWARD)

    def land(self) -> Tensor | None:
        """Wait for the others' runs; fill ``incoming``, and return the final states if they are wanted."""
        sent, sharding = self._sent, self._sharding
        assert self._pending is not None and sent is not None
        rest = self._pending.wait().view(self._group.size, -1)
        self._pending = None
        slots, rest = _take(rest, sharding.most_runs, sent.slots.shape[1:])
        if sent.decays is not None:
            self._decays, rest = _take(rest, sharding.most_runs, sent.decays.shape[1:])
        final = None
        inner: dict[Run, Tensor] = {}
        if sent.inner is not None:
            inner = self._by_run(_take(rest, sharding.most_inner, sent.inner.shape[1:])[0])
            final = slots.new_zeros(sharding.documents, *slots.shape[3:])
            if sent.empty is not None:
                final[sharding.empty_documents()] = sent.empty.to(final.dtype)
        state: Tensor | None = None
        for run in sharding.runs:
            if run.rank == sharding.rank:
                self.incoming[run.place] = state
            decayed = None if state is None else self._decayed(run, state)
            slot = slots[run.rank, run.place]
            if final is not None:
                for index in run.finished():
                    rows = sharding.rows_of(run.pieces[index].document)
                    found = slot if index == len(run.pieces) - 1 else inner[run][index:index + 1]
                    final[rows] = found if index or decayed is None else found + decayed
            state = slot if run.leaves else None
            if run.through and decayed is not None:
                state = slot + decayed
        self._final_shape = None if final is None else final.shape
        return final

    def depart_backward(self, dincoming: Sequence[Tensor | None], dfinal: Tensor | None) -> None:
        """Start the gather of the gradients of ``incoming`` and of the final states, None being zero."""
        assert self._sent is not None
        slots = self._sent.slots
        zero = slots.new_zeros(slots.shape[1:])
        message = [zero if x is None else x for x in dincoming]
        message += [zero] * (self._sharding.most_runs - len(message))
        if self._final_shape is not None:
            message.append(slots.new_zeros(self._final_shape) if dfinal is None else dfinal)
        self._pending = collectives.all_gather(self._group, torch.cat([x.flatten() for x in message]), BACKWARD)

    def land_backward(self) -> Sent:
        """Wait for the others' gradients; return those of what this rank sent."""
        sent, sharding = self._sent, self._sharding
        assert self._pending is not None and sent is not None
        rest = self._pending.wait().view(self._group.size, -1)
        self._pending = None
        entering, rest = _take(rest, sharding.most_runs, sent.slots.shape[1:])
        dfinal = None if self._final_shape is None else rest.sum(0).view(self._final_shape)
        dslots = torch.zeros_like(sent.slots)
        ddecays = None if sent.decays is None else torch.zeros_like(sent.decays)
        dinner: dict[int, list[Tensor]] = {}
        later: Tensor | None = None  # of the state that the run hands on
        for run in reversed(sharding.runs):
            mine = run.rank == sharding.rank
            first = later if run.through else None  # of what the incoming state has become at the end of its piece
            if later is not None and mine:
                dslots[run.place] += later
            if dfinal is not None:
                for index in run.finished():
                    gradient = dfinal[sharding.rows_of(run.pieces[index].document)]
                    if index == 0 and run.enters:
                        first = gradient
                    if mine and index == len(run.pieces) - 1:
                        dslots[run.place] += gradient
                if mine:
                    dinner[run.place] = [dfinal[piece.document] for piece in run.pieces[:-1]]
            later = None
            if run.enters:
                later = entering[run.rank, run.place]
                if first is not None:
                    later = later + self._decayed(run, first)
                    if mine and ddecays is not None:
                        ddecays[run.place] = self._decay_gradient(run, first)
        return Sent(dslots, ddecays, self._inner_gradient(dinner), self._empty_gradient(dfinal))

    def _decayed(self, run: Run, state: Tensor) -> Tensor:
        if self._decays is None:
            return state
        return state * to_heads(self._decays[run.rank, run.place], state.shape[1])[..., None]

    def _decay_gradient(self, run: Run, first: Tensor) -> Tensor:
        assert self._sent is not None and self._sent.decays is not None
        state = self.incoming[run.place]
        shape = self._sent.decays.shape[1:]  # [rows or 1, Hg, K or 1]
        if state is None:
            return first.new_zeros(shape)
        return from_heads((state * first).sum(-1), shape[1]).sum_to_size(shape)

    def _by_run(self, inner: Tensor) -> dict[Run, Tensor]:
        """Split the inner states [P, m, H, K, V] of all ranks by run."""
        taken = [0] * self._group.size
        found = {}
        for run in sorted(self._sharding.runs, key=lambda run: run.place):
            count = len(self._sharding.inner(run))
            found[run] = inner[run.rank, taken[run.rank]:taken[run.rank] + count]
            taken[run.rank] += count
        return found

    def _inner_gradient(self, dinner: dict[int, list[Tensor]]) -> Tensor | None:
        assert self._sent is not None
        if self._sent.inner is None:
            return None
        parts = [gradient for place in sorted(dinner) for gradient in dinner[place]]
        return torch.stack(parts) if parts else torch.zeros_like(self._sent.inner)

    def _empty_gradient(self, dfinal: Tensor | None) -> Tensor | None:
        """Give the gradient of a document without tokens to rank 0 alone: shares add up to the whole."""
        assert self._sent is not None
        if self._sent.empty is None or dfinal is None:
            return None
        if self._sharding.rank:
            return torch.zeros_like(self._sent.empty)
        return dfinal[self._sharding.empty_documents()].to(self._sent.empty.dtype)


def _padded(x: Tensor, count: int) -> Tensor:
    return x if x.shape[0] == count else torch.cat([x, x.new_zeros(count - x.shape[0], *x.shape[1:])])


def _take(message: Tensor, count: int, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Take ``count`` tensors of a shape from the front of every rank's message [P, n]."""
    size = count * torch.Size(shape).numel()
    return message[:, :size].view(message.shape[0], count, *shape), message[:, size:]
