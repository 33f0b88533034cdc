"""Tile sizes: the reader of ``tiles.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from portable_gla_ascend.socs import Soc


@dataclass(frozen=True)
class Pass:
    """The tiles of a pass: chunks of ``chunk`` tokens, of which a kept state has ``span``, and blocks of K and V."""

    chunk: int
    span: int
    block_k: int
    sweep_v: int  # of the sweeps along a sequence
    block_v: int  # of outputs, or of dv
    loop_k: int  # of dq, dk and dg
    loop_v: int  # of their loops over V


@dataclass(frozen=True)
class Tiles:
    """The tiles of a call."""

    forward: Pass
    backward: Pass


def choose(soc: Soc, kind: str, gate: str, key_dim: int, value_dim: int) -> Tiles:
    """Return the tiles of a problem."""
    k = min(64, _up(key_dim))
    v = min(64, _up(value_dim))
    return Tiles(Pass(64, 2, k, v, v, k, v), Pass(64, 1, k, v, v, min(k, 32), v))


def _up(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
