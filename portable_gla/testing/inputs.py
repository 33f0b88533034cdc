"""The numbers of a case: drawn from (case, seed), in float64, then rounded to the case's dtypes."""

from __future__ import annotations

import itertools
import math
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from portable_gla.backend import Call
from portable_gla.testing.cases import Case

HUGE = -1e5  # a gate beside which a float32 cumulative sum forgets its neighbours


def fresh_seed() -> int:
    """Return a seed that no earlier run had: print it, so that a failure can be repeated."""
    return secrets.randbelow(2**31)


@dataclass(frozen=True)
class Inputs:
    """The tensors of one case in layout BTHD, and the gradients ``do`` and ``dfinal_state`` that come back to it."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor | None
    initial_state: Tensor | None
    bonus: Tensor | None
    cu_seqlens: Tensor | None
    do: Tensor
    dfinal_state: Tensor | None

    @property
    def scale(self) -> float:
        """The factor on o that applies."""
        return self.case.key_dim ** -0.5 if self.case.scale is None else self.case.scale

    def changed(self, **fields: Any) -> Inputs:
        """Return a copy with some fields replaced."""
        return replace(self, **fields)

    def call(self) -> Call:
        """Return what a backend is given."""
        return Call(self.q, self.k, self.v, self.g, self.initial_state, self.bonus, self.cu_seqlens, self.scale,
                    self.case.reverse, self.case.final_state, {})


def make(case: Case, seed: int, device: torch.device | str = "cpu") -> Inputs:
    """Draw the inputs of a case; equal (case, seed) give equal numbers on every device."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{case.name}/{seed}".encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    batch, tokens, heads = case.batch, case.tokens, case.heads
    q, k, v = (magnitude * normal(batch, tokens, count, size) for magnitude, count, size in zip(
        case.magnitudes, (case.q_heads, case.k_heads, case.v_heads), (case.key_dim, case.key_dim, case.value_dim),
        strict=True))
    g = _gate(case, draw)
    state_shape = (case.sequences, heads, case.key_dim, case.value_dim)
    initial = None
    if case.initial_state != "none":
        rows = 1 if case.initial_state == "broadcast" else case.sequences
        initial = normal(rows, *state_shape[1:]).to(device, case.initial_dtype or case.state_dtype)
    q, k, v = (x.to(device, case.dtype) for x in (q, k, v))
    if g is not None:
        g = g.to(device, case.gate_dtype or case.dtype)
    bonus = normal(heads, case.key_dim).to(device, case.dtype) if case.bonus else None
    q, k, v, g, initial, bonus = _restride(case, q, k, v, g, initial, bonus)
    cu_seqlens = None
    if case.lengths is not None:
        cu_seqlens = torch.tensor([0, *itertools.accumulate(case.lengths)], dtype=case.cu_dtype, device=device)
    return Inputs(
        case, q, k, v, g, initial, bonus, cu_seqlens,
        normal(batch, tokens, heads, case.value_dim).to(device, case.dtype),
        normal(*state_shape).to(device, case.state_dtype) if case.final_state else None)


def _gate(case: Case, draw: torch.Generator) -> Tensor | None:
    if case.gate == "none":
        return None
    if case.gate == "constant":
        return _decays(case.regime, (1, case.gate_heads), draw)[0]
    shape: tuple[int, ...] = (case.batch, case.tokens, case.gate_heads)
    if case.gate == "channel":
        shape = (*shape, case.key_dim)
    lengths = [case.tokens] if case.lengths is None else list(case.lengths)
    parts = [_decays(case.regime, (shape[0], length, *shape[2:]), draw) for length in lengths]
    return torch.cat(parts, 1) if parts else torch.zeros(shape, dtype=torch.float64)


def _decays(regime: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Draw gates; the tokens of one sequence lie along dimension 1 (a constant gate has its heads there)."""
    uniform = torch.rand(shape, generator=draw, dtype=torch.float64)
    usual = torch.nn.functional.logsigmoid(torch.randn(shape, generator=draw, dtype=torch.float64))
    place = torch.arange(shape[1]).reshape(-1, *[1] * (len(shape) - 2))  # of the token
    if regime == "usual":
        return usual
    if regime == "slow":
        return -1e-2 * uniform - 1e-4
    if regime == "zero":
        return torch.zeros_like(uniform)
    if regime == "strong":
        return -30 * uniform
    if regime == "extreme":
        return -300 * uniform
    if regime == "range":
        return -torch.exp(math.log(1e-4) + math.log(1e8) * uniform)
    if regime == "huge":
        spot = torch.randint(max(1, shape[1]), (shape[0], 1, *shape[2:]), generator=draw)
        return torch.where(place == spot, HUGE, 0.05 * usual)
    if regime == "resets":
        return torch.where(uniform < 0.125, -math.inf, usual)
    if regime == "edges":
        edge = (place % 16 == 0) | (place % 16 == 15) | (place == shape[1] - 1)
        return torch.where(edge.expand(shape), -math.inf, 0.1 * usual)
    if regime == "all-resets":
        return torch.full_like(uniform, -math.inf)
    if regime == "positive":
        return 0.2 * uniform
    if regime == "growth":
        return 0.9 + 0.2 * uniform
    if regime == "mixed":
        walk = 2 * torch.cat([uniform, uniform[:, :1]], 1)
        return walk[:, 1:] - walk[:, :-1]
    if regime == "spikes":
        return torch.where((place % 2 == 0).expand(shape), 25.0, -30.0) * (0.9 + 0.1 * uniform)
    raise ValueError(f"no such regime: {regime}")


def _restride(case: Case, q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Lay the same numbers out in another way ("expanded" repeats some of them)."""
    kind, (g, initial, bonus) = case.strides, others
    if kind == "contiguous":
        return q, k, v, g, initial, bonus
    if kind == "fused":
        sizes = [x.shape[2] * x.shape[3] for x in (q, k, v)]
        whole = torch.cat([x.flatten(2) for x in (q, k, v)], 2)
        q, k, v = (torch.unflatten(part, 2, x.shape[2:])
                   for part, x in zip(torch.split(whole, sizes, 2), (q, k, v), strict=True))
        return q, k, v, g, initial, bonus
    if kind == "expanded":
        if g is not None and g.dim() > 1:
            g = g[:1].expand(g.shape)
        if initial is not None:
            initial = initial[:1].expand(initial.shape)
        return (q[:1].expand(q.shape), k[:, :1].expand(k.shape), v[:, :, :1].expand(v.shape), g, initial, bonus)
    return tuple(None if x is None else _laid_out(x, kind) for x in (q, k, v, g, initial, bonus))


def _laid_out(x: Tensor, kind: str) -> Tensor:
    if kind == "heads-first":
        return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() > 2 else x
    if kind == "channels-first":
        return x.movedim(-1, 1).contiguous().movedim(1, -1) if x.dim() > 1 else x
    if kind == "stepped":
        larger = x.new_full([2 * size for size in x.shape], math.nan)
        view = larger[tuple(slice(1, None, 2) for _ in x.shape)]
    else:  # offset
        view = x.new_full([x.numel() + 1], math.nan)[1:].view(x.shape)
    return view.copy_(x)


def tensors(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating inputs that are present, by name: those that receive a gradient."""
    for name in ("q", "k", "v", "g", "initial_state", "bonus"):
        value = getattr(inputs, name)
        if value is not None:
            yield name, value
