"""How a call is cut into segments: enough programs for the chip, and never more bytes than the budget has.

A segment is walked twice but the last, and every boundary moves its states four times: segments no shorter than the
bytes allow hold whatever the number of them. Sizes may be symbolic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from portable_gla import segments
from portable_gla.backend import Call
from portable_gla.problem import Problem
from portable_gla.segments import GRAIN, Segments

SHORTEST = 256
"""Tokens: a shorter segment gains nothing."""


class Traffic(NamedTuple):
    """Bytes of a forward pass: of a token's rows, of those that summing a segment reads again, of a boundary."""

    rows: Any
    again: Any
    boundary: Any


class Sizes(NamedTuple):
    """What of a call decides how it is cut."""

    batch: Any
    tokens: Any
    heads: Any
    key_dim: Any
    value_dim: Any
    single: bool  # float32
    packed: bool
    traffic: Traffic


def of_problem(problem: Problem) -> Sizes:
    """Return the sizes of a problem."""
    p = problem
    gates = {"channel": p.gate_heads * p.key_dim, "head": p.gate_heads}.get(p.gate, 0)
    traffic = _traffic(p.heads, (p.q_heads, p.k_heads, p.v_heads), p.key_dim, p.value_dim, p.dtype.itemsize,
                       gates * (p.gate_dtype or p.dtype).itemsize, p.gate == "channel")
    return Sizes(p.batch, p.tokens, p.heads, p.key_dim, p.value_dim, p.dtype == torch.float32, p.packed, traffic)


def of_call(call: Call) -> Sizes:
    """Return the sizes of a call."""
    batch, tokens, q_heads, key_dim = call.q.shape
    g, value_dim = call.g, call.v.shape[3]
    gates = 0 if g is None or g.dim() == 1 else g.shape[2] * (key_dim if g.dim() == 4 else 1) * g.element_size()
    traffic = _traffic(call.heads, (q_heads, call.k.shape[2], call.v.shape[2]), key_dim, value_dim,
                       call.q.element_size(), gates, g is not None and g.dim() == 4)
    return Sizes(batch, tokens, call.heads, key_dim, value_dim, call.q.dtype == torch.float32,
                 call.cu_seqlens is not None, traffic)


def _traffic(heads: Any, shared: tuple[Any, Any, Any], key_dim: Any, value_dim: Any, size: int, gates: Any,
             channel: bool) -> Traffic:
    q, k, v = (count * width * size for count, width in zip(shared, (key_dim, key_dim, value_dim), strict=True))
    again = k + v + gates
    # States are written, summed (read and written) and read; their decays written and read.
    boundary = heads * (16 * key_dim * value_dim + 8 * (key_dim if channel else 1))
    return Traffic(q + again + heads * value_dim * size, again, boundary)


def choose(sizes: Sizes, cores: int, pinned: int) -> Segments:
    """Cut so that all cores have two programs of the forward pass, as far as the bytes allow; a batch that gives each
    core one program is not cut.
    """
    if pinned:
        return segments.choose(sizes.batch, sizes.tokens, sizes.heads, sizes.value_dim, cores, pinned)
    tiles = _ceil(sizes.value_dim, 32) if sizes.single else _ceil(sizes.value_dim * _ceil(sizes.key_dim, 128), 128)
    programs = segments.larger(sizes.batch * sizes.heads * tiles, 1)  # of each token
    blocks = 1 + -segments.larger(-1, -((cores - 1) // programs))
    unit = segments.larger(_ceil(sizes.tokens * programs, cores * blocks), shortest(sizes))
    if not sizes.packed:  # all of about one length
        unit = _ceil(sizes.tokens, segments.larger(sizes.tokens // unit, 1))
    return segments.whole(sizes.tokens, unit)


def shortest(sizes: Sizes) -> Any:
    """Return the tokens of the shortest segment with which a forward pass moves at most 1.8 times its compulsory bytes.

    The rest of the budget, 4/5 of the rows less what is read again, has to hold the boundaries. Where rows that are
    shared leave next to nothing, only so many segments are allowed that few enough tokens are walked twice.
    """
    rows, again, boundary = sizes.traffic
    rest = 4 * rows - 5 * again
    if 4 * rest >= rows:
        return segments.larger(_ceil(5 * boundary, rest) + GRAIN, SHORTEST)
    if sizes.packed:  # of a sequence a little longer than a segment nearly all is walked twice
        return segments.larger(sizes.tokens, 1)
    most = (20 * again) // (20 * again - 13 * rows)
    least = segments.larger(_ceil(20 * boundary, rows) + GRAIN, SHORTEST)
    return segments.larger(_ceil(sizes.tokens, most), least)


def _ceil(a: Any, b: Any) -> Any:
    return (a + b - 1) // b
