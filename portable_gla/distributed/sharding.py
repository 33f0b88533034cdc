"""The agreed shape of a sharded call: which documents each run holds, and which of them cross its ends.

Everything here is said in *processing order*: along the sequence, or against it with ``reverse``. A document is a
packed sequence; without ``cu_seqlens`` the whole batch is one document of B rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """The tokens of one document in one run: positions within the run, along the sequence."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Run:
    """A stretch of the sequence on one rank, with its pieces in processing order.

    ``enters`` and ``leaves`` tell whether a document comes in over the run's first end, in processing order, and goes
    on over its last.
    """

    rank: int
    place: int  # among the rank's runs
    offset: int  # in the rank's shard
    length: int
    pieces: tuple[Piece, ...]
    enters: bool
    leaves: bool

    @property
    def through(self) -> bool:
        """Whether one document comes in and goes on, so that the run hands on what it was given."""
        return self.enters and self.leaves and len(self.pieces) <= 1

    @property
    def ends_first(self) -> bool:
        """Whether the document that comes in ends here."""
        return self.enters and bool(self.pieces) and not self.through

    def finished(self) -> list[int]:
        """List the pieces with which a document ends, by their index."""
        return list(range(len(self.pieces) - 1 if self.leaves else len(self.pieces)))


@dataclass(frozen=True)
class Sharding:
    """What the ranks of a group have agreed on for one shape of call; :func:`portable_gla.distributed.agree` makes it.

    Passing it to :func:`portable_gla.distributed.attention` saves the gather of the descriptions. It holds for every
    call with the same shapes, dtypes and options, on the same group.
    """

    rank: int
    ranks: int
    tokens: int  # T of the whole sequence
    batch: int
    cu_seqlens: tuple[int, ...] | None
    reverse: bool
    runs: tuple[Run, ...]  # in processing order
    facts: dict[str, object] = field(repr=False)  # this rank's description, which later calls must repeat
    _tensors: dict[object, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def documents(self) -> int:
        """N: the number of packed sequences, or B."""
        return self.batch if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @property
    def rows(self) -> int:
        """Return the rows of the state that crosses an end: B, or 1 of a packed sequence."""
        return self.batch if self.cu_seqlens is None else 1

    @property
    def mine(self) -> list[Run]:
        """Return this rank's runs, in the order in which its shard holds them."""
        return sorted((run for run in self.runs if run.rank == self.rank), key=lambda run: run.place)

    @property
    def most_runs(self) -> int:
        """The most runs that a rank has: each message has room for as many."""
        return max((run.place + 1 for run in self.runs), default=0)

    @property
    def most_inner(self) -> int:
        """The most documents that end inside a rank's runs with a state of their own to send (see :meth:`inner`)."""
        return max((sum(len(self.inner(run)) for run in self.runs if run.rank == rank) for rank in range(self.ranks)),
                   default=0)

    def inner(self, run: Run) -> list[int]:
        """List the pieces of a run whose final state is not the run's last one, by their index."""
        return list(range(len(run.pieces) - 1))

    def empty_documents(self) -> list[int]:
        """List the documents (rows of the batch without ``cu_seqlens``) that have no token at all."""
        if self.cu_seqlens is None:
            return [] if self.tokens else list(range(self.batch))
        return [n for n in range(self.documents) if self.cu_seqlens[n] == self.cu_seqlens[n + 1]]

    def rows_of(self, document: int) -> slice:
        """Return a document's rows of initial and final states [N, H, K, V]."""
        return slice(0, self.batch) if self.cu_seqlens is None else slice(document, document + 1)

    def local_cu_seqlens(self, run: Run, device: torch.device) -> Tensor | None:
        """Return the ends of a run's pieces, [pieces + 1] int32, for a packed call on that run alone."""
        if self.cu_seqlens is None or not run.pieces:
            return None
        key = run.rank, run.place, device
        if key not in self._tensors:
            ends = [0, *sorted(piece.stop for piece in run.pieces)]
            self._tensors[key] = torch.tensor(ends, dtype=torch.int32, device=device)
        return self._tensors[key]


def build(rank: int, lengths: Sequence[Sequence[int]], order: Sequence[Sequence[int]], batch: int,
          cu_seqlens: tuple[int, ...] | None, reverse: bool, facts: dict[str, object]) -> Sharding:
    """Lay the runs of all ranks along the sequence; ``lengths[r][i]`` is that of run ``order[r][i]``."""
    where = {run: (owner, place) for owner, runs in enumerate(order) for place, run in enumerate(runs)}
    tokens = sum(map(sum, lengths))
    ends = (0, tokens) if cu_seqlens is None else cu_seqlens
    found, start = [], 0
    for index in range(len(where)):
        owner, place = where[index]
        length = lengths[owner][place]
        found.append(_run(owner, place, sum(lengths[owner][:place]), start, length, ends, reverse))
        start += length
    sharding = Sharding(rank, len(order), tokens, batch, cu_seqlens, reverse, tuple(found), facts)
    return dataclasses.replace(sharding, runs=tuple(reversed(found))) if reverse else sharding


def _run(rank: int, place: int, offset: int, start: int, length: int, ends: Sequence[int], reverse: bool) -> Run:
    stop = start + length
    pieces = [Piece(n, max(left, start) - start, min(right, stop) - start)
              for n, (left, right) in enumerate(itertools.pairwise(ends)) if max(left, start) < min(right, stop)]
    left, right = (any(a < end < b for a, b in itertools.pairwise(ends)) for end in (start, stop))
    if reverse:
        pieces.reverse()
        left, right = right, left
    return Run(rank, place, offset, length, tuple(pieces), left, right)
