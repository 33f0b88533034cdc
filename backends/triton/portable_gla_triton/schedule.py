"""What a call launches and moves: every launch's loads and stores, each address counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla.segments import Segments
from portable_gla_triton.operands import EXACT
from portable_gla_triton.tiles import Tiles


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: bytes loaded and stored."""

    kernel: str
    loaded: int
    stored: int


class Model:
    """The launches of one problem, in order."""

    def __init__(self, problem: Problem, tiles: Tiles, segments: Segments, kind: str) -> None:
        self.problem, self.tiles, self.segments = problem, tiles, segments
        p, size = problem, problem.dtype.itemsize
        self.sliced = kind == EXACT and p.key_dim > tiles.forward.block_k
        rows = p.batch * p.tokens
        self.q = rows * p.q_heads * p.key_dim * size
        self.k = rows * p.k_heads * p.key_dim * size
        self.v = rows * p.v_heads * p.value_dim * size
        self.o = rows * p.heads * p.value_dim * size
        gates = {"channel": rows * p.gate_heads * p.key_dim, "head": rows * p.gate_heads,
                 "constant": p.gate_heads, "none": 0}[p.gate]
        self.g = gates * (p.gate_dtype or p.dtype).itemsize
        self.state = p.heads * p.key_dim * p.value_dim * 4
        self.edge = p.sequences * self.state  # the initial or the final state
        unit = int(segments.unit)
        pieces = -(-p.tokens // unit)
        self.boundaries = 0
        if segments.several:
            self.boundaries = p.tokens // unit if p.packed else p.sequences * max(0, pieces - 1)
        self.swept = (pieces - 1) / pieces if pieces else 0.0  # of the tokens, by a sweep over all segments but one
        self.links = self.boundaries * self.state
        self.decays = self.boundaries * p.heads * (p.key_dim if p.gate == "channel" else 1) * 4
        grain = tiles.states.chunk
        slots = p.tokens // grain + p.sequences if p.packed else p.batch * -(-p.tokens // grain)
        self.slots = slots
        scaled = p.dtype == torch.float16
        self.kept = 2 * slots * p.heads * (p.key_dim * p.value_dim * size + (
            p.key_dim * 4 * -(-p.value_dim // tiles.states.block_v) if scaled else 0))

    def _linked(self, tensors: int, edge: int) -> Iterator[Launch]:
        if self.segments.several:
            yield Launch("summarize", int(tensors * self.swept), self.links + self.decays)
            yield Launch("scan", self.links + self.decays + edge, self.links)

    def forward(self) -> Iterator[Launch]:
        """Yield the forward pass's launches."""
        p = self.problem
        yield from self._linked(self.k + self.v + self.g, self.edge * p.initial_state)
        # Slices of K read v again, and o: but each address counts once.
        again = self.o if self.sliced else 0
        yield Launch("forward", self.q + self.k + self.v + self.g + self.links + self.edge * p.initial_state
                     + self._bonus() + again, self.o + self.edge * p.final_state)

    def backward(self) -> Iterator[Launch]:
        """Yield the backward pass's launches."""
        p, inputs = self.problem, self.q + self.k + self.v + self.g + self.o
        yield from self._linked(self.q + self.o + self.g, self.edge * p.final_state)
        yield Launch("chunk_states", inputs + 2 * self.links + self.edge * (p.initial_state + p.final_state),
                     self.kept + self.edge * p.initial_state)
        partial, folded = self.folds()
        direct = self.q + self.k + self.v + (self.g if p.gate == "channel" else 0) - folded
        yield Launch("gradients", inputs + self.kept + self._bonus(), direct + partial)
        if partial or p.bonus:  # without a token, zeros
            yield Launch("fold", partial, folded + (self.g if p.gate in ("head", "constant") else 0) + self._bonus())

    def folds(self) -> tuple[int, int]:
        """Return the bytes of what is summed at the end, and of those sums that have q's, k's, v's or g's shape."""
        p = self.problem
        rows = p.batch * p.tokens * p.heads * 4
        partial = folded = 0
        for heads, width, size in ((p.q_heads, p.key_dim, self.q), (p.k_heads, p.key_dim, self.k),
                                   (p.v_heads, p.value_dim, self.v)):
            if heads != p.heads:
                partial, folded = partial + rows * width, folded + size
        parts = -(-p.key_dim // self.tiles.gradients.block_k)
        if p.gate == "channel" and p.gate_heads != p.heads:
            partial, folded = partial + rows * p.key_dim, folded + self.g
        elif p.gate == "head":
            partial += parts * rows
        elif p.gate == "constant":
            partial += parts * 2 * self.slots * p.heads * 4
        if p.bonus:
            partial += 2 * self.slots * p.heads * p.key_dim * 4
        return partial, folded

    def _bonus(self) -> int:
        return self.problem.heads * self.problem.key_dim * self.problem.dtype.itemsize * self.problem.bonus


def schedule(problem: Problem, tiles: Tiles, segments: Segments, kind: str) -> Schedule:
    """Describe how a problem runs."""
    if problem.mode == "decode":
        return _decode(problem)
    model = Model(problem, tiles, segments, kind)
    forward = list(model.forward())
    backward = list(model.backward()) if problem.training else []
    pieces = -(-problem.tokens // int(segments.unit)) if segments.several else 1
    partial, _ = model.folds()
    return Schedule(
        tiles={"segments": max(1, pieces), "chunk": tiles.forward.chunk, "block_k": tiles.forward.block_k,
               "block_v": tiles.forward.block_v, "warps": tiles.forward.warps, "chunk_kept": tiles.states.chunk,
               "chunk_backward": tiles.gradients.chunk},
        launches_forward=len(forward), launches_backward=len(backward),
        bytes_forward=sum(launch.loaded + launch.stored for launch in forward),
        bytes_backward=sum(launch.loaded + launch.stored for launch in backward),
        residual_bytes=model.links if problem.training else 0,
        workspace_bytes=max(model.decays + (0 if problem.training else model.links),
                            model.kept + model.links + model.decays + partial if problem.training else 0),
        notes=(f"products of {_PRODUCTS[kind]}, float32 sums and states",
               "bytes count each address once a launch: tiles of V that share q, k and g meet in the cache"))


def _decode(problem: Problem) -> Schedule:
    return Schedule(tiles={"tokens": problem.tokens}, launches_forward=1, launches_backward=0,
                    bytes_forward=cost(problem).compulsory_forward, bytes_backward=0, residual_bytes=0,
                    workspace_bytes=0, notes=("the recurrence, in float32",))


_PRODUCTS = {"bf16": "bfloat16", "tf32": "TF32", "bf16x6": "float32, as six of bfloat16", "ieee": "float32"}
