"""What this path launches and moves, about: PyTorch chooses the kernels."""

from __future__ import annotations

import torch

from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla_ascend.operations.layout import CHUNK, ELEMENTS
from portable_gla_ascend.operations.levels import LEVELS
from portable_gla_ascend.socs import Soc

_NOTE = "launches and bytes are estimates: PyTorch's operations choose their own kernels"


def schedule(problem: Problem, soc: Soc | None) -> Schedule:
    """Describe how PyTorch operations run a problem."""
    p, figures = problem, cost(problem)
    if p.mode == "decode":
        return Schedule(tiles={"tokens": p.tokens}, launches_forward=4 + 14 * p.tokens, launches_backward=0,
                        bytes_forward=figures.compulsory_forward + 4 * p.tokens * _states(p, p.batch), bytes_backward=0,
                        residual_bytes=0, workspace_bytes=3 * _states(p, p.batch), notes=(_NOTE,))
    size = 2 if p.dtype == torch.bfloat16 else 4
    chunks = p.batch * -(-p.tokens // CHUNK) + (p.sequences if p.packed else 0)
    row = p.heads * max(CHUNK * p.key_dim, CHUNK * p.value_dim, p.key_dim * p.value_dim)
    together = max(1, min(chunks, ELEMENTS // row))
    slabs = -(-chunks // together)
    keys, values = (chunks * CHUNK * p.heads * width for width in (p.key_dim, p.value_dim))
    scores = chunks * CHUNK * CHUNK * p.heads * size
    if p.gate == "channel":
        pairs = keys * (20 + LEVELS * (12 + 3 * size)) + (LEVELS + 8) * scores // 2
        pairs_backward, calls, calls_backward = keys * LEVELS * (22 + 4 * size), 14 + 7 * LEVELS, 14 * LEVELS
    else:
        pairs, pairs_backward = 12 * keys + 6 * scores, 20 * keys + 10 * scores
        calls, calls_backward = (12 + 6 * LEVELS, 8 * LEVELS) if p.gate != "none" else (12, 6)
    states = _states(p, chunks)
    each = keys * 6 * size + values * 4 * size
    forward = each + pairs + 5 * states
    backward = forward + each * 2 + pairs_backward + 9 * states
    steps = -(-p.tokens // CHUNK)
    operands = LEVELS if p.gate == "channel" else 1
    workspace = together * p.heads * (CHUNK * p.key_dim * (24 + operands * size) + CHUNK * p.value_dim * 4 * size
                                      + 3 * CHUNK * CHUNK * size + 8 * p.key_dim * p.value_dim)
    return Schedule(
        tiles={"chunk": CHUNK, "segments": 1, "rows": together},
        launches_forward=slabs * (20 + calls) + steps,
        launches_backward=(slabs * (60 + 2 * calls + calls_backward) + 3 * steps) if p.training else 0,
        bytes_forward=figures.compulsory_forward + forward,
        bytes_backward=figures.compulsory_backward + backward if p.training else 0,
        residual_bytes=0,
        workspace_bytes=workspace * (3 if p.training else 1) + (slabs + 2) * _states(p, p.sequences),
        notes=(f"products of {'bfloat16' if size == 2 else 'float32'}, float32 states", _NOTE))


def _states(p: Problem, count: int) -> int:
    return count * p.heads * p.key_dim * p.value_dim * 4
