"""What the kernels launch and move: every launch's loads and stores, each address counted once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla_ascend.launch import KINDS, swept
from portable_gla_ascend.socs import Soc
from portable_gla_ascend.tiles import Pass, Tiles, choose

_PRODUCTS = {"bf16": "bfloat16", "split": "float16, its operands as two bfloat16 each", "f32": "float32"}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: bytes loaded and stored."""

    kernel: str
    loaded: int
    stored: int


class Model:
    """The launches of one problem, in order."""

    def __init__(self, problem: Problem, soc: Soc) -> None:
        p, size = problem, problem.dtype.itemsize
        self.problem, self.soc = problem, soc
        self.tiles: Tiles = choose(soc, KINDS[p.dtype], p.gate, p.key_dim, p.value_dim)
        rows = p.batch * p.tokens
        self.q = rows * p.q_heads * p.key_dim * size
        self.k = rows * p.k_heads * p.key_dim * size
        self.v = rows * p.v_heads * p.value_dim * size
        self.o = rows * p.heads * p.value_dim * size
        gates = {"channel": rows * p.gate_heads * p.key_dim, "head": rows * p.gate_heads, "constant": p.gate_heads,
                 "none": 0}[p.gate]
        # Gates that channels share are read as float32, tokens side by side.
        self.g = gates * ((p.gate_dtype or p.dtype).itemsize if p.gate == "channel" else 4)
        self.edge = p.sequences * p.heads * p.key_dim * p.value_dim * 4  # the initial or the final state
        self.bonus = p.heads * p.key_dim * size * p.bonus

    def slots(self, unit: int) -> int:
        """Count the pieces of ``unit`` tokens that sequences may have."""
        p = self.problem
        return p.tokens // unit + p.sequences if p.packed else p.batch * math.ceil(p.tokens / unit)

    def kept(self, tiles: Pass, span: int | None = None) -> int:
        """Return the bytes of the states that a sweep keeps, and of their scales, for each ``span`` chunks."""
        p = self.problem
        block = swept(self.soc, tiles, p.sequences * p.heads, p.key_dim, p.value_dim, p.dtype)
        scales = p.key_dim * 4 * math.ceil(p.value_dim / block) if p.dtype == torch.float16 else 0
        each = p.key_dim * p.value_dim * p.dtype.itemsize + scales
        return self.slots(tiles.chunk * (span or tiles.span)) * p.heads * each

    def depths(self, tiles: Pass) -> int:
        """Return the bytes that say how many levels each chunk takes."""
        p = self.problem
        return self.slots(tiles.chunk) * p.heads * math.ceil(p.key_dim / tiles.block_k) * 4 * (p.gate == "channel")

    def forward(self) -> Iterator[Launch]:
        """Yield the forward pass's launches."""
        p, tiles = self.problem, self.tiles.forward
        yield Launch("sweep", self.k + self.v + self.g + self.edge * p.initial_state,
                     self.kept(tiles) + self.depths(tiles) + self.edge * p.final_state)
        yield Launch("outputs", self.q + self.k + self.v + self.g + self.kept(tiles) + self.depths(tiles) + self.bonus,
                     self.o)

    def backward(self) -> Iterator[Launch]:
        """Yield the backward pass's launches; sums over shared heads and the like are PyTorch's and follow them."""
        p, tiles = self.problem, self.tiles.backward
        edges = self.edge * p.initial_state, self.edge * p.final_state
        kept, adjoints, depths = self.kept(tiles), self.kept(tiles, 1), self.depths(tiles)
        read = self.q + self.k + self.v + self.o + self.g
        of_k = (self.gradient(p.q_heads, p.key_dim, self.q) + self.gradient(p.k_heads, p.key_dim, self.k)
                + self.gate_gradient() + self.slots(tiles.chunk) * p.heads * p.key_dim * 4 * p.bonus)
        of_v = self.gradient(p.v_heads, p.value_dim, self.v)
        yield Launch("sweep_both", read + sum(edges), kept + adjoints + depths + edges[0])
        loaded = read + kept + adjoints + self.bonus
        if tiles.whole:
            yield Launch("gradients", loaded + depths, of_k + of_v)
            return
        yield Launch("gradients", loaded, of_k)
        yield Launch("gradients", self.q + self.k + self.o + self.g + adjoints + depths + self.bonus, of_v)

    def gradient(self, heads: int, width: int, direct: int) -> int:
        """Return the bytes of a gradient: in float32 for each output head where heads are shared."""
        p = self.problem
        return direct if heads == p.heads else p.batch * p.tokens * p.heads * width * 4

    def gate_gradient(self) -> int:
        """Return the bytes of dg."""
        p = self.problem
        if p.gate == "none":
            return 0
        if p.gate == "channel":
            return self.gradient(p.gate_heads, p.key_dim, self.g)
        return p.batch * p.tokens * p.heads * 4


def schedule(problem: Problem, soc: Soc) -> Schedule:
    """Describe how the kernels run a problem."""
    if problem.mode == "decode":
        return Schedule(tiles={"tokens": problem.tokens}, launches_forward=1, launches_backward=0,
                        bytes_forward=cost(problem).compulsory_forward, bytes_backward=0, residual_bytes=0,
                        workspace_bytes=0, notes=("the recurrence, in float32, on the vector cores",))
    if not problem.batch * problem.tokens:  # as the launcher has it
        figures = cost(problem)
        return Schedule(tiles={"chunk": 0}, launches_forward=1, launches_backward=int(problem.training),
                        bytes_forward=figures.compulsory_forward, bytes_backward=figures.compulsory_backward,
                        residual_bytes=0, workspace_bytes=0, notes=("no token: the final state is the initial one",))
    model = Model(problem, soc)
    forward = list(model.forward())
    backward = list(model.backward()) if problem.training else []
    tiles = model.tiles
    kept = model.kept(tiles.forward)
    if problem.training:
        kept = max(kept, model.kept(tiles.backward) + model.kept(tiles.backward, 1))
    return Schedule(
        tiles={"chunk": tiles.forward.chunk, "chunks_a_state": tiles.forward.span, "block_k": tiles.forward.block_k,
               "block_v": tiles.forward.block_v, "chunk_backward": tiles.backward.chunk},
        launches_forward=len(forward), launches_backward=len(backward),
        bytes_forward=sum(launch.loaded + launch.stored for launch in forward),
        bytes_backward=sum(launch.loaded + launch.stored for launch in backward),
        residual_bytes=0, workspace_bytes=kept + model.depths(tiles.forward),
        notes=(f"products of {_PRODUCTS[KINDS[problem.dtype]]}, float32 sums; states kept in the inputs' dtype",
               f"{soc.cube_cores} programs, one a cube core, walk the work",
               "bytes count each address once a launch; cube and vector unit exchange tiles through memory besides"))
