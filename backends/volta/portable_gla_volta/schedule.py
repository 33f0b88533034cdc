"""What a call launches, moves and multiplies, and what should bound it: figures for the plan, all of them predictions.

Bytes are modelled launch by launch, each address once. What happens inside a multiprocessor was counted in the emulator
(``counts.yaml``). Rates are those of ``devices.yaml``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from portable_gla import devices
from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla.segments import Segments
from portable_gla_volta import configurations, counting, launch
from portable_gla_volta.configurations import CHUNK
from portable_gla_volta.counting import Work

STEPS = 4
"""HMMA.884 instructions of one mma with float32 sums; a multiprocessor takes two in a cycle."""
_PER_CYCLE = 1024
"""float16 operations that a multiprocessor's eight tensor cores do in a cycle: 8 x 64 multiply-adds."""
_ISSUED = 4
"""Instructions of warps that a multiprocessor begins in a cycle."""
_SHARED = {"sm_70": 1, "sm_75": 2}
"""Cycles of a wavefront: Volta moves 128 bytes a cycle between a core and its shared memory, Turing 64."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: bytes loaded and stored."""

    kernel: str
    loaded: int
    stored: int


class Model:
    """The launches of one problem, in order."""

    def __init__(self, problem: Problem, segments: Segments) -> None:
        self.problem, self.segments = problem, segments
        p, size = problem, problem.dtype.itemsize
        self.single = p.dtype == torch.float32
        self.shape = configurations.sweep(p.device.arch, p.key_dim, p.value_dim, p.gate == "channel")
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
        # Of the tokens, by a walk over all segments but the last, or against time but the first.
        self.swept = min(1.0, (pieces - 1) * unit / p.tokens) if pieces else 0.0
        self.swept_back = max(0.0, 1 - unit / p.tokens) if pieces else 0.0
        self.links = self.boundaries * self.state
        self.decays = self.boundaries * p.heads * (p.key_dim if p.gate == "channel" else 1) * 4
        slots = p.tokens // CHUNK + p.sequences if p.packed else p.batch * -(-p.tokens // CHUNK)
        self.slots = slots
        groups = -(-p.value_dim // 16)
        self.kept = slots * p.heads * groups * 16 * self.shape.keys * size  # of one direction
        self.units = 0 if self.single else slots * p.heads * groups * self.shape.warps_k * 4

    def _linked(self, tensors: float, edge: int) -> Iterator[Launch]:
        if self.segments.several:
            walk = "exact" if self.single else "states"
            yield Launch(walk, int(tensors), self.links + self.decays)
            yield Launch("scan", self.links + self.decays + edge, self.links)

    def forward(self) -> Iterator[Launch]:
        """Yield the forward pass's launches."""
        p = self.problem
        if p.batch * p.tokens:
            yield from self._linked((self.k + self.v + self.g) * self.swept, self.edge * p.initial_state)
            yield Launch("exact" if self.single else "forward", self.q + self.k + self.v + self.g + self.links
                         + self.edge * p.initial_state + self._bonus(), self.o + self.edge * p.final_state)

    def backward(self) -> Iterator[Launch]:
        """Yield the backward pass's launches."""
        p, walk = self.problem, "exact" if self.single else "states"
        if not p.batch * p.tokens:
            return
        yield from self._linked((self.q + self.o + self.g) * self.swept_back, self.edge * p.final_state)
        one = self.kept + self.units
        yield Launch(walk, self.k + self.v + self.g + self.links + self.edge * p.initial_state, one)
        yield Launch(walk, self.q + self.o + self.g + self.links + self.edge * p.final_state,
                     one + self.edge * p.initial_state)
        partial, folded = self.folds()
        direct = self.q + self.k + self.v + (self.g if p.gate == "channel" else 0) - folded
        yield Launch("gradients", self.q + self.k + self.v + self.g + self.o + 2 * one + self._bonus(),
                     direct + partial)
        if partial:
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
        parts = -(-p.key_dim // configurations.gradient_width(p.key_dim))
        if p.gate == "channel" and p.gate_heads != p.heads:
            partial, folded = partial + rows * p.key_dim, folded + self.g
        elif p.gate == "head":
            partial += parts * rows
        elif p.gate == "constant":
            partial += parts * self.slots * p.heads * 4
        if p.bonus:
            partial += self.slots * p.heads * p.key_dim * 4
        return partial, folded

    def _bonus(self) -> int:
        return self.problem.heads * self.problem.key_dim * 4 * self.problem.bonus


@dataclasses.dataclass(frozen=True)
class Bound:
    """How long the parts of a device would need for a pass, in seconds, each on its own; the longest bounds it."""

    seconds: dict[str, float]

    @property
    def by(self) -> str:
        """Name the part that needs longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def line(self, name: str, token_heads: int, floor: float | None) -> str:
        """Say so, in nanoseconds a token and head."""
        parts = ", ".join(f"{part} {seconds / token_heads * 1e9:.3g}" for part, seconds in self.seconds.items())
        compulsory = "" if floor is None else f"; floor {floor / token_heads * 1e9:.3g}"
        left_out = "" if "tensor cores" not in self.seconds or "instructions" in self.seconds else (
            " (instructions were not counted)")
        return f"predicted, not measured: {name} ns per token-head: {parts}: bound by {self.by}{left_out}{compulsory}"


def work(problem: Problem, segments: Segments, backward: bool) -> Work | None:
    """Return what a pass costs inside the multiprocessors in all, or None where that was not counted."""
    p = problem
    if p.dtype != torch.float16 or p.mode == "decode":
        return None
    row = counting.table().get(str(counting.kind_of(p.device.arch, p.key_dim, p.value_dim, p.gate)))
    if row is None:
        return None
    model = Model(p, segments)
    walks = 2 + model.swept_back * segments.several if backward else model.swept * segments.several
    last = row["gradients" if backward else "forward"]
    chunks = model.slots * p.heads
    return Work(*(round(chunks * (walks * one + other)) for one, other in zip(row["states"], last, strict=True)))


def bound(problem: Problem, moved: int, inside: Work | None, programs: int, operations: int) -> Bound | None:
    """Predict a pass on the problem's device; None where ``devices.yaml`` does not have it."""
    figures = devices.table().get(problem.device.kind)
    if figures is None or figures.arch not in _SHARED:
        return None
    seconds = {"DRAM": moved / (figures.bandwidth_gb_s * 1e9)}
    clock = figures.matrix_tflop_s * 1e12 / (figures.cores * _PER_CYCLE)
    busy = clock * min(figures.cores, max(1, programs))  # cycles a second of the multiprocessors that have work
    if inside is not None:
        cycles = _SHARED[figures.arch]
        seconds["shared memory"] = inside.wavefronts * cycles / busy
        # What global memory brings takes the same path, an access at a time.
        seconds["shared and global accesses"] = (inside.wavefronts + inside.accesses) * cycles / busy
        seconds["tensor cores"] = inside.mma * STEPS / 2 / busy
        if inside.instructions:
            seconds["instructions"] = inside.instructions / _ISSUED / busy
    elif problem.dtype == torch.float32:
        seconds["multiply-adds"] = operations / (figures.vector_tflop_s * 1e12)
    return Bound(seconds)


def schedule(problem: Problem, segments: Segments) -> Schedule:
    """Describe how a problem runs."""
    if problem.mode == "decode":
        return _decode(problem)
    model = Model(problem, segments)
    forward = list(model.forward())
    backward = list(model.backward()) if problem.training else []
    pieces = -(-problem.tokens // int(segments.unit)) if segments.several else 1
    partial, _ = model.folds()
    sums = sum(launch.loaded + launch.stored for launch in forward), sum(
        launch.loaded + launch.stored for launch in backward)
    if not problem.token_heads:  # PyTorch copies the states
        wanted = cost(problem)
        sums = wanted.compulsory_forward, wanted.compulsory_backward if problem.training else 0
    chosen = {"segments": max(1, pieces), "chunk": CHUNK, "keys": model.shape.keys,
              "values": 32 if model.single else model.shape.wide, "warps": 8 if model.single else model.shape.warps}
    return Schedule(
        tiles=chosen, launches_forward=len(forward), launches_backward=len(backward), bytes_forward=sums[0],
        bytes_backward=sums[1], residual_bytes=model.links if problem.training else 0,
        workspace_bytes=model.decays + (2 * (model.kept + model.units) + model.links + partial if problem.training
                                        else model.links),
        notes=(_products(problem), *_inside(problem, segments), *_bounds(problem, segments, sums)))


def _products(problem: Problem) -> str:
    if problem.dtype == torch.float32:
        return "products of float32 on the vector unit: multiply-adds bound wide heads"
    return "products of float16 on the tensor cores (mma.m8n8k4), float32 sums and states"


def _inside(problem: Problem, segments: Segments) -> Iterator[str]:
    for backward in (False, True)[:1 + problem.training]:
        found = work(problem, segments, backward)
        chunks = Model(problem, segments).slots * problem.heads
        if found is not None and chunks:
            yield (f"{'backward' if backward else 'forward'}, per head and {CHUNK} tokens, counted in the emulator: "
                   f"{found.wavefronts / chunks:,.0f} wavefronts of shared memory ({found.least / chunks:,.0f} at "
                   f"least), {found.mma * STEPS / chunks:,.0f} tensor-core steps")


def _bounds(problem: Problem, segments: Segments, moved: tuple[int, int]) -> Iterator[str]:
    if not problem.token_heads:
        return
    wanted = cost(problem)
    programs = max((grid for _, grid in launch.planned(problem, segments)[0]), default=1)
    for backward in (False, True)[:1 + problem.training]:
        found = bound(problem, moved[backward], work(problem, segments, backward), programs,
                      wanted.operations_backward if backward else wanted.operations_forward)
        if found is not None:
            yield found.line("backward" if backward else "forward", problem.token_heads,
                             wanted.floor_backward if backward else wanted.floor_forward)


def _decode(problem: Problem) -> Schedule:
    return Schedule(tiles={"tokens": problem.tokens}, launches_forward=1, launches_backward=0,
                    bytes_forward=cost(problem).compulsory_forward, bytes_backward=0, residual_bytes=0,
                    workspace_bytes=0, notes=("the recurrence, in float32",
                                              "predicted, not measured: bound by DRAM, which holds the states"))
