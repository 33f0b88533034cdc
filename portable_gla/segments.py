"""How backends cut sequences into segments that run side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

GRAIN = 64  # tokens: a multiple of every backend's chunks, so that a segment is whole chunks
_VALUES = 64  # channels of V that a program of the forward pass takes, about
_SHORTEST = 256  # tokens: a shorter segment costs more in states than it gains


class Segments(NamedTuple):
    """Segments of ``unit`` tokens each, of every sequence; ``several``: whether the longest may have more than one."""

    unit: Any  # int, or a symbolic one while tracing
    several: bool


def choose(batch: Any, tokens: Any, heads: Any, value_dim: Any, cores: int, pinned: int) -> Segments:
    """Cut so that every core has a program of the forward pass, if the sequences are long enough.

    Only T decides the length of a pinned segment; unpinned, the whole batch does, so that a batch which fills the
    device runs in one segment and a pack is balanced whatever its lengths are. Sizes may be symbolic.
    """
    if pinned:
        unit = _ceil(tokens, pinned)
    else:
        programs = batch * heads * _ceil(value_dim, _VALUES)  # of each token
        unit = larger(_ceil(tokens * programs, cores), _SHORTEST)
    cut = whole(tokens, unit)
    return cut._replace(several=pinned != 1 and cut.several)


def whole(tokens: Any, unit: Any) -> Segments:
    """Return segments of ``unit`` tokens, rounded up to whole chunks."""
    unit = larger(_ceil(unit, GRAIN) * GRAIN, GRAIN)
    return Segments(unit, _more(tokens, unit))


def larger(a: Any, b: Any) -> Any:
    """Return the larger of two sizes, one of which may be symbolic."""
    return torch.sym_max(a, b)  # type: ignore[no-untyped-call]


def _ceil(a: Any, b: Any) -> Any:
    return (a + b - 1) // b


def _more(tokens: Any, unit: Any) -> bool:
    return bool(tokens > unit) if isinstance(tokens, int) and isinstance(unit, int) else True
