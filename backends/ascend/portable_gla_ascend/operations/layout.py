"""How tokens become rows of chunks: [B, T, Hx, D] to [rows, Hx, 64, D], in the recurrence's order.

Rows count steps first and sequences second, the longest sequence first: so the sequences that are still running at a
step are the first of the step before, and a state moves on by whole slices, packed or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.backend import Call

CHUNK = 64
ELEMENTS = 2**23
"""Elements of the largest tensor of a slab, about: some of these fit an NPU's L2 cache (192 MiB)."""


@dataclass(frozen=True)
class Block:
    """Sequences that run side by side: (index, first token, length) of each, the longest first."""

    call: Call
    sequences: tuple[tuple[int, int, int], ...]

    @property
    def order(self) -> Tensor | slice:
        """What picks the block's states out of [N, ...]."""
        if self.call.cu_seqlens is None:
            return slice(self.sequences[0][0], self.sequences[-1][0] + 1)
        return torch.tensor([index for index, _, _ in self.sequences], device=self.call.q.device)

    def slabs(self, rows: int) -> list[Slab]:
        """Cut the steps into slabs of ``rows`` rows, about, in the recurrence's order."""
        steps = -(-self.sequences[0][2] // CHUNK)
        active = [sum(length > step * CHUNK for _, _, length in self.sequences) for step in range(steps)]
        cuts, inside = [0], 0
        for step, count in enumerate(active):
            if inside and inside + count > rows:
                cuts.append(step)
                inside = 0
            inside += count
        return [Slab(self, first, tuple(active[first:last])) for first, last in itertools.pairwise([*cuts, steps])
                if last > first]


@dataclass(frozen=True)
class Slab:
    """Some steps of a block: the first, and how many sequences run at each."""

    block: Block
    first: int
    active: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many chunks it has."""
        return sum(self.active)

    def steps(self) -> list[tuple[int, int]]:
        """List (first row, end) of every step."""
        return list(itertools.pairwise(itertools.accumulate(self.active, initial=0)))

    def load(self, x: Tensor) -> Tensor:
        """Load [B, T, Hx, D] as [rows, Hx, 64, D], contiguous, zeros past a sequence's end."""
        if self.block.call.cu_seqlens is None:
            batch, tokens = self._part()
            x = x[batch, tokens]
            x = x.flip(1) if self.block.call.reverse else x
            missing = len(self.active) * CHUNK - x.shape[1]
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x  # a copy even of nothing
            x = torch.unflatten(x, 1, (-1, CHUNK)).permute(1, 0, 3, 2, 4)
            return x.contiguous().flatten(0, 1)
        places, inside = self._places(x.device)
        x = torch.unflatten(x[0].index_select(0, places.flatten()), 0, (-1, CHUNK)).transpose(1, 2)
        return x.masked_fill(~inside[:, None, :, None], 0).contiguous()

    def store(self, whole: Tensor, x: Tensor) -> None:
        """Store [rows, Hx, 64, D] into its place of [B, T, Hx, D]."""
        if self.block.call.cu_seqlens is None:
            batch, tokens = self._part()
            x = torch.unflatten(x, 0, (len(self.active), -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)
            x = x[:, :tokens.stop - tokens.start]
            whole[batch, tokens] = (x.flip(1) if self.block.call.reverse else x).to(whole.dtype)
            return
        places, inside = self._places(torch.device("cpu"))
        kept = inside.flatten().nonzero()[:, 0]
        x = x.transpose(1, 2).flatten(0, 1).index_select(0, kept.to(x.device))
        whole[0].index_copy_(0, places.flatten()[kept].to(x.device), x.to(whole.dtype))

    def _part(self) -> tuple[slice, slice]:
        """Return the batch rows and the tokens of an unpacked slab."""
        sequences, length = self.block.sequences, self.block.sequences[0][2]
        start, end = self.first * CHUNK, min(length, (self.first + len(self.active)) * CHUNK)
        tokens = slice(length - end, length - start) if self.block.call.reverse else slice(start, end)
        return slice(sequences[0][0], sequences[-1][0] + 1), tokens

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the token of each place [rows, 64] of a packed slab, and whether there is one (else some other)."""
        sequences = [sequence for count in self.active for sequence in self.block.sequences[:count]]
        start, end = (torch.tensor([sequence[which] for sequence in sequences]) for which in (1, 2))
        step = torch.tensor([self.first + i for i, count in enumerate(self.active) for _ in range(count)])
        done = step[:, None] * CHUNK + torch.arange(CHUNK)
        inside = done < end[:, None]
        done = torch.where(inside, done, 0)
        places = start[:, None] + (end[:, None] - 1 - done if self.block.call.reverse else done)
        return places.to(device), inside.to(device)


def rows_at_once(call: Call) -> int:
    """Choose how many rows a slab may have, by the shapes of a row alone."""
    key_dim, value_dim = call.q.shape[3], call.v.shape[3]
    return max(1, ELEMENTS // (call.heads * max(CHUNK * key_dim, CHUNK * value_dim, key_dim * value_dim)))


def blocks(call: Call) -> Iterator[Block]:
    """Yield the sequences in blocks whose steps fit a slab; of packed ones the host has to know the lengths."""
    rows = rows_at_once(call)
    if call.cu_seqlens is None:
        sequences = [(index, 0, call.q.shape[1]) for index in range(call.q.shape[0])]
    else:
        ends = call.cu_seqlens.cpu().tolist()  # a host synchronisation, this path's only one
        sequences = sorted(((index, start, end - start) for index, (start, end) in enumerate(itertools.pairwise(ends))),
                           key=lambda sequence: (-sequence[2], sequence[0]))
    for first in range(0, len(sequences), rows):
        yield Block(call, tuple(sequences[first:first + rows]))
