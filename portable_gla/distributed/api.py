"""The call whose sequence is sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portable_gla import ops
from portable_gla.api import _autocast
from portable_gla.api import attention as local_attention
from portable_gla.distributed.agreement import agree, check_again, describe, ends_again
from portable_gla.distributed.decays import shape
from portable_gla.distributed.enter import Entry, entry
from portable_gla.distributed.exchange import Flight
from portable_gla.distributed.function import Arrive, Depart, Tap
from portable_gla.distributed.groups import Group, resolve
from portable_gla.distributed.order import Order
from portable_gla.distributed.sharding import Run, Sharding


class _Inputs(NamedTuple):
    """One call's tensors in layout BTHD, or a group of its heads."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    initial_state: Tensor | None
    bonus: Tensor | None

    @property
    def heads(self) -> int:
        counts = [self.q.shape[2], self.k.shape[2], self.v.shape[2]]
        return max(counts if self.g is None else [*counts, self.g.shape[0 if self.g.dim() == 1 else 2]])

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    @property
    def state_shape(self) -> tuple[int, int, int]:
        return self.heads, self.q.shape[3], self.v.shape[3]

    def groups(self, count: int) -> Iterator[_Inputs]:
        """Cut the heads into neighbouring groups; which head reads which does not change."""
        if count == 1:
            yield self
            return
        dims = (2, 2, 2, 0 if self.g is not None and self.g.dim() == 1 else 2, 1, 0)
        yield from (_Inputs(*parts) for parts in zip(*(
            [None] * count if x is None else x.chunk(count, dim) for x, dim in zip(self, dims, strict=True)),
            strict=True))

    def runs(self, lengths: Sequence[int]) -> Iterator[_Inputs]:
        """Cut the tokens into runs."""
        if len(lengths) == 1:
            yield self  # a split into one would copy the gradient
            return

        def cut(x: Tensor | None) -> Sequence[Tensor | None]:
            return [x] * len(lengths) if x is None or x.dim() == 1 else torch.split(x, list(lengths), 1)

        for q, k, v, g in zip(*map(cut, self[:4]), strict=True):
            assert q is not None and k is not None and v is not None
            yield _Inputs(q, k, v, g, self.initial_state, self.bonus)


class _Options(NamedTuple):
    scale: float
    backend: str | None
    final: bool


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    *,
    group: Any = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    bonus: Tensor | None = None,
    layout: str = "BTHD",
    backend: str | None = None,
    order: Order = "contiguous",
    runs: Sequence[int] | None = None,
    overlap: int = 1,
    sharding: Sharding | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute :func:`portable_gla.attention` of one sequence whose tokens are sharded over the ranks of a group.

    Every rank of the group makes the call, and later goes through the backward pass. One gather of states goes each
    way, B · H · (K · V + K) numbers per rank and run whatever T is (:mod:`portable_gla.distributed.volume` counts
    them); all else is local, on any backend.

    Parameters
    ----------
    q, k, v, g
        This rank's tokens, as :func:`portable_gla.attention` takes them: [B, T_r, Hq, K] and so on. T_r may differ
        between ranks, and be 0. A constant gate [Hg] is the same on every rank.
    group
        A ``ProcessGroup``, a ``DeviceMesh`` of one dimension, or None for all ranks; backends NCCL, HCCL and Gloo.
    scale, reverse, layout, backend
        As in :func:`portable_gla.attention`; the first two are the same on every rank.
    initial_state
        [N or 1, H, K, V], the same on every rank: the state before the first token of each document of the whole
        sequence (after the last with ``reverse``).
    output_final_state
        Return the final states of the whole sequence too, on every rank.
    cu_seqlens
        int32 or int64 [N + 1], the same on every rank: the documents of the whole sequence, from 0 to T = Σ T_r. They
        may cross the shards' ends. Its values are read, which synchronises where it is on an accelerator; with
        ``sharding`` they are not.
    bonus
        [H, K], the same on every rank.
    order
        Which runs of the sequence this rank's shard holds, one after the other: ``"contiguous"``: run r of P;
        ``"head-tail"``: runs r and 2P − 1 − r of 2P, the balanced order of causal softmax layers, for models that have
        both; or a sequence of run numbers for each rank.
    runs
        The lengths of this rank's runs; by default its tokens in equal parts, the first ones longer by one.
    overlap
        Number of groups that the heads are cut into: the exchange of one flies while the next is computed, forward and
        backward, in as many gathers of as much less each. It divides every head count. Worth it where the exchange
        takes long; with 1 only the weighting of queries, and the gradients of q and g, hide it.
    sharding
        What :func:`agree` returned for this shape of call. Without it every call begins with that gather. With it a
        call that differs from the agreed one raises on this rank alone, and the others notice when it does not come.

    Returns
    -------
    o : Tensor
        [B, T_r, H, V] in v's dtype (BHTD: [B, H, T_r, V]): the outputs of this rank's tokens.
    final_state : Tensor
        [N, H, K, V] in float32 (float64 for float64 inputs), the same on every rank; only with ``output_final_state``.

    Raises
    ------
    Disagreement
        Before any work, on every rank and with the same message: if the ranks differ in what must be the same, or if
        one of them refuses its shard.
    TypeError, ValueError, portable_gla.UnsupportedProblem
        If every rank refuses its shard for the same reason.
    RankFailure
        If a rank dies, hangs or stays away: within the group's timeout and some seconds; the message names the
        collective and the missing ranks. The group is of no use afterwards.

    Notes
    -----
    The loss is the sum of the ranks' losses. So each rank's gradient of what all ranks hold (initial_state, bonus, a
    constant gate, as the parameters of the model around the call) is its share, and the shares' sum is the gradient;
    gradients that reach final_state on several ranks are added up. Every rank goes through the backward pass, also one
    without a token: make its loss ``(o * 0).sum()``.

    From zero states each rank r computes o, S_r and the decay D_r over its run; then S_in = Σ_{j<r} Π_{j<i<r} D_i S_j,
    and o_t += scale · (q_t ⊙ d_t)ᵀ S_in with d_t the decay from the run's start to t: the chunked form of Yang et al.
    (2023) with a rank's run for a chunk, as Sun et al., "Linear Attention Sequence Parallelism" (2024) have it.
    In 16 bits o is rounded twice, by the backend and after the addition.

    Examples
    --------
    On each of the processes that torchrun started::

        o = portable_gla.distributed.attention(q, k, v, g, group=mesh["sequence"])
    """
    found = resolve(group)
    if isinstance(q, Tensor) and ops.autocasting(q.device.type):
        q, k, v, g = _autocast(q, k, v, g)
    if sharding is None:
        sharding = agree(
            q, k, v, g, group=group, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
            cu_seqlens=cu_seqlens, reverse=reverse, bonus=bonus, layout=layout, backend=backend, order=order, runs=runs,
            overlap=overlap)
    else:
        check_again(sharding, describe(
            q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state,
            ends=ends_again(sharding, cu_seqlens), reverse=reverse, bonus=bonus, layout=layout, backend=backend,
            order=order, runs=runs, overlap=overlap, ranks=found.size, rank=found.rank), found)
    if layout == "BHTD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        g = g.transpose(1, 2) if g is not None and g.dim() > 1 else g
    if g is not None and g.dtype.itemsize == 2:
        g = g.float()  # three passes add to its gradient, which is then rounded once
    inputs = _Inputs(q, k, v, g, initial_state, bonus)
    options = _Options(q.shape[-1] ** -0.5 if scale is None else float(scale), backend, bool(output_final_state))
    calls = [_Call(found, sharding, part, options) for part in inputs.groups(overlap)]
    outputs = [call.arrive() for call in calls]
    o = outputs[0][0] if overlap == 1 else torch.cat([o for o, _ in outputs], 2)
    if layout == "BHTD":
        o = o.transpose(1, 2)
    if not output_final_state:
        return o
    return o, outputs[0][1] if overlap == 1 else torch.cat([final for _, final in outputs], 1)


class _Call:
    """A group of heads: its local pass and the exchange's departure at once, the rest in :meth:`arrive`."""

    def __init__(self, group: Group, sharding: Sharding, inputs: _Inputs, options: _Options) -> None:
        self._sharding, self._inputs, self._options = sharding, inputs, options
        self._runs = sharding.mine
        self._flight = Flight(group, sharding)
        self._entries = self._find_entries()
        q, g = Tap.apply(self._flight, self._entries, inputs.q, inputs.g)  # type: ignore[no-untyped-call]
        self._o, slots, inner = self._local(inputs._replace(q=q, g=g))
        self._token: Tensor = Depart.apply(  # type: ignore[no-untyped-call]
            self._flight, self._anchor(), self._decays(), slots, inner, self._empty(),
            *([inputs.initial_state] if self._runs else inputs))

    def arrive(self) -> tuple[Tensor, Tensor]:
        """Wait for what comes in; return o, and the final state (empty unless wanted)."""
        found: tuple[Tensor, Tensor] = Arrive.apply(  # type: ignore[no-untyped-call]
            self._flight, self._entries, self._o, self._inputs.q, self._inputs.g, self._token)
        return found

    def _local(self, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run every run from its own documents' states; return o, the runs' last states, and the others."""
        outputs, slots, inner = [], [], []
        for run, part in zip(self._runs, inputs.runs([run.length for run in self._runs]), strict=True):
            o, states = self._run(run, part)
            outputs.append(o)
            slots.append(states[-self._sharding.rows:])
            if len(run.pieces) > 1:
                inner.append(states[:-1])
        nothing = inputs.q.new_zeros(0, self._sharding.rows, *inputs.state_shape, dtype=inputs.state_dtype)
        if not self._runs:
            outputs.append(inputs.v.new_zeros(inputs.q.shape[0], 0, inputs.heads, inputs.v.shape[3]))
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1),
                torch.stack(slots) if slots else nothing,
                (torch.cat(inner) if inner else nothing[:, 0]) if self._options.final else None)

    def _run(self, run: Run, part: _Inputs) -> tuple[Tensor, Tensor]:
        """Return o and the states of a run's pieces in processing order: [pieces, H, K, V], or [B, H, K, V]."""
        o, states = local_attention(
            part.q, part.k, part.v, part.g, scale=self._options.scale, initial_state=self._initial(run),
            output_final_state=True, cu_seqlens=self._sharding.local_cu_seqlens(run, part.q.device),
            reverse=self._sharding.reverse, bonus=part.bonus, backend=self._options.backend)
        if self._sharding.cu_seqlens is not None and self._sharding.reverse:
            states = states.flip(0)
        return o, states

    def _initial(self, run: Run) -> Tensor | None:
        """Return the states from which a run's pieces begin, along the sequence; one that comes in begins from zero."""
        state = self._inputs.initial_state
        if state is None or not run.pieces:
            return None
        if self._sharding.cu_seqlens is None:
            return None if run.enters else state
        rows = state.expand(self._sharding.documents, *state.shape[1:])
        parts = [rows[piece.document:piece.document + 1] for piece in run.pieces]
        if run.enters:
            parts[0] = torch.zeros_like(parts[0])
        return torch.cat(parts[::-1] if self._sharding.reverse else parts)

    def _find_entries(self) -> list[Entry]:
        inputs, found = self._inputs, []
        for run in self._runs:
            if run.enters and run.pieces:
                first = run.pieces[0]
                found.append(entry(
                    run.place, run.offset + first.start, run.offset + first.stop, inputs.q, inputs.g,
                    inputs.state_shape, inputs.state_dtype, self._options.scale, reverse=self._sharding.reverse,
                    exclusive=inputs.bonus is not None))
        return found

    def _decays(self) -> Tensor | None:
        """Return the decay over each run's first piece where a state comes in, and 1 elsewhere."""
        g = self._inputs.g
        if g is None:
            return None
        found = g.new_ones(len(self._runs), *shape(g), dtype=self._inputs.state_dtype)
        for each in self._entries:
            assert each.decay is not None
            found[each.run] = each.decay
        return found

    def _empty(self) -> Tensor | None:
        """Return the states of documents without a token, which final states show."""
        state, rows = self._inputs.initial_state, self._sharding.empty_documents()
        if not self._options.final or state is None or not rows:
            return None
        return state.expand(self._sharding.documents, *state.shape[1:])[rows]

    def _anchor(self) -> Tensor:
        """Return what keeps the exchange in every rank's graph, whichever of its inputs want a gradient."""
        wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in self._inputs)
        return torch.empty(0, device=self._inputs.q.device, requires_grad=wanted)
