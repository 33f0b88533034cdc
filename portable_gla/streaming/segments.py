"""How a long sequence, or a pack of documents, is cut into segments."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

_SLOT_BYTES = 64 * 2**20  # of a segment's inputs and outputs: copies of this size run at the bus's full rate
_GRAIN = 256


@dataclass(frozen=True)
class Segment:
    """Tokens ``start`` to ``end``, in the order in which the recurrence meets segments.

    ``carried_in``: its first sequence began in an earlier segment; ``carried_out``: its last goes on in a later one
    (first and last in the order of the recurrence). ``documents`` are the packed sequences that have tokens here, as
    (index, start, end) from left to right; None where nothing is packed, and then all B sequences go through.
    """

    number: int
    start: int
    end: int
    carried_in: bool
    carried_out: bool
    documents: tuple[tuple[int, int, int], ...] | None = None
    row_in: int = 0
    row_out: int = 0

    @property
    def tokens(self) -> int:
        """Length."""
        return self.end - self.start

    @property
    def offsets(self) -> list[int]:
        """``cu_seqlens`` of this segment alone."""
        assert self.documents is not None
        return [0, *(end - self.start for _, _, end in self.documents)]

    def begins(self, row: int) -> bool:
        """Whether the sequence of a row has its initial state here."""
        return not (self.carried_in and row == self.row_in)

    def ends(self, row: int) -> bool:
        """Whether the sequence of a row has its final state here."""
        return not (self.carried_out and row == self.row_out)


def default_tokens(token_bytes: int) -> int:
    """Choose a segment's length: from the sizes of a token alone, so that it does not depend on T."""
    return max(_GRAIN, _SLOT_BYTES // max(1, token_bytes) // _GRAIN * _GRAIN)


def cut(tokens: int, length: int, offsets: Sequence[int] | None, reverse: bool) -> list[Segment]:
    """Cut T tokens; with ``offsets`` (``cu_seqlens``), into parts of documents. Reversed, the last segment is first."""
    count = -(-tokens // length)
    places = [(start, min(start + length, tokens)) for start in range(0, tokens, length)]
    if reverse:
        places.reverse()
    if offsets is None:
        return [Segment(n, start, end, n > 0, n + 1 < count) for n, (start, end) in enumerate(places)]
    full = [(n, left, right) for n, (left, right) in enumerate(itertools.pairwise(offsets)) if right > left]
    starts, ends = [left for _, left, _ in full], [right for _, _, right in full]
    found = []
    for number, (start, end) in enumerate(places):
        here = full[bisect.bisect_right(ends, start):bisect.bisect_left(starts, end)]
        parts = tuple((n, max(left, start), min(right, end)) for n, left, right in here)
        before, after = here[0][1] < start, here[-1][2] > end
        last = len(parts) - 1
        found.append(Segment(number, start, end, after if reverse else before, before if reverse else after, parts,
                             last if reverse else 0, 0 if reverse else last))
    return found
