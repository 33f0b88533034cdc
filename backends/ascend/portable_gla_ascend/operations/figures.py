"""What this path launches and moves: operands and results of PyTorch's operations, as counted by a test."""

from __future__ import annotations

from typing import NamedTuple

import torch

from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla_ascend.operations.layout import CHUNK, ELEMENTS
from portable_gla_ascend.operations.levels import LEVELS
from portable_gla_ascend.socs import Soc

_NOTE = "launches and bytes count PyTorch's operations, each operand and result once; an NPU may fuse or copy"


class _Counted(NamedTuple):
    """Bytes of a token and head per element of K, of V, of a row of scores and of the state; operations of a slab."""

    key: float
    value: float
    score: float
    state: float
    operations: int


# By gate and the operands' size: forward, backward. Linear in these sizes; test_ascend_figures.py counts again.
_COUNTED = {
    ("channel", 2): (_Counted(248, 32, 17.4, 34, 86), _Counted(813, 50, 35, 86.2, 242)),
    ("channel", 4): (_Counted(312, 64, 34.5, 26, 80), _Counted(887, 100, 69, 72.2, 216)),
    ("head", 2): (_Counted(48, 32, 46.3, 34, 70), _Counted(214, 66, 108, 86.2, 176)),
    ("head", 4): (_Counted(64, 64, 46.3, 26, 64), _Counted(228, 100, 106, 72.2, 158)),
    ("none", 2): (_Counted(54, 32, 16.8, 34, 30), _Counted(172, 50, 35, 86.2, 67)),
    ("none", 4): (_Counted(76, 64, 16.8, 26, 25), _Counted(200, 100, 37, 72.2, 54)),
}


def schedule(problem: Problem, soc: Soc | None) -> Schedule:
    """Describe how PyTorch operations run a problem."""
    p, figures = problem, cost(problem)
    state = p.heads * p.key_dim * p.value_dim * 4
    if p.mode == "decode":
        return Schedule(
            tiles={"tokens": p.tokens}, launches_forward=4 + 14 * p.tokens, launches_backward=0,
            bytes_forward=figures.compulsory_forward + 8 * p.tokens * p.batch * state, bytes_backward=0,
            residual_bytes=0, workspace_bytes=4 * p.batch * state, notes=("the recurrence, in float32", _NOTE))
    size = 2 if p.dtype == torch.bfloat16 else 4
    chunks = p.batch * -(-p.tokens // CHUNK) + (p.sequences if p.packed else 0)
    row = p.heads * max(CHUNK * p.key_dim, CHUNK * p.value_dim, p.key_dim * p.value_dim)
    together = max(1, min(chunks, ELEMENTS // row))
    slabs, steps = -(-chunks // together), -(-p.tokens // CHUNK)
    forward, backward = _COUNTED["head" if p.gate == "constant" else p.gate, size]
    operands = LEVELS if p.gate == "channel" else 1
    workspace = together * p.heads * (
        CHUNK * p.key_dim * (28 + operands * size) + CHUNK * p.value_dim * 4 * size + CHUNK * CHUNK * (4 + 3 * size)
        + 12 * p.key_dim * p.value_dim)
    return Schedule(
        tiles={"chunk": CHUNK, "segments": 1, "rows": together},
        launches_forward=slabs * forward.operations + steps,
        launches_backward=slabs * backward.operations + 2 * steps if p.training else 0,
        bytes_forward=max(figures.compulsory_forward, _bytes(forward, p, chunks)),
        bytes_backward=max(figures.compulsory_backward, _bytes(backward, p, chunks)) if p.training else 0,
        residual_bytes=0,
        workspace_bytes=workspace * (3 if p.training else 1) + (slabs + 2) * p.sequences * state,
        notes=(f"products of {'bfloat16' if size == 2 else 'float32'}, float32 states", _NOTE))


def _bytes(counted: _Counted, p: Problem, chunks: int) -> int:
    each = (counted.key * p.key_dim + counted.value * p.value_dim + counted.score * CHUNK
            + counted.state * p.key_dim * p.value_dim / CHUNK)
    return int(chunks * CHUNK * p.heads * each)
