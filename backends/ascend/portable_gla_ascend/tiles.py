"""Tile sizes: the reader of ``tiles.yaml``, which ``tune.py`` makes."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass, replace
from typing import Any

import yaml

from portable_gla_ascend.socs import Soc

CHIPS = {"910": (192, 128), "950": (248, 256)}
"""Kinds of chips, and what a row wants of one: KiB of a vector core's unified buffer, and of L0C."""


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
    whole: bool = False  # all gradients in one launch
    own_masks: bool = False  # which loads the masks anew for each half: more work, and room


@dataclass(frozen=True)
class Tiles:
    """The tiles of a call."""

    forward: Pass
    backward: Pass


def choose(soc: Soc, kind: str, gate: str, key_dim: int, value_dim: int) -> Tiles:
    """Return the tiles of a problem: its row, with blocks of K and V no larger than they need be."""
    shared = "channel" if gate == "channel" else "other"
    forward, backward = (within(table()[which, chip(soc), kind, shared], key_dim, value_dim)
                         for which in ("forward", "backward"))
    return Tiles(forward, backward)


def chip(soc: Soc) -> str:
    """Name the kind of a chip: the largest whose memories it has."""
    return max((name for name, (unified, l0c) in CHIPS.items() if soc.unified_kib >= unified and soc.l0c_kib >= l0c),
               key=lambda name: CHIPS[name])


def within(tile: Pass, key_dim: int, value_dim: int) -> Pass:
    """Return tiles with blocks of K and V no larger than the power of two at or above these."""
    k, v = _up(key_dim), _up(value_dim)
    return replace(tile, block_k=min(k, tile.block_k), loop_k=min(k, tile.loop_k), sweep_v=min(v, tile.sweep_v),
                   block_v=min(v, tile.block_v), loop_v=min(v, tile.loop_v))


@functools.cache
def table() -> dict[tuple[str, ...], Pass]:
    """Read the table: tiles by pass, chip, kind of product and gate."""
    return {key: tile for key, (tile, _) in rows().items()}


@functools.cache
def rows() -> dict[tuple[str, ...], tuple[Pass, bool]]:
    """Read the table's rows: tiles, and whether the search has found that all better ones are refused."""
    text = importlib.resources.files("portable_gla_ascend").joinpath("tiles.yaml").read_text(encoding="utf-8")
    read: list[dict[str, Any]] = yaml.safe_load(text)
    return {tuple(row.pop(name) for name in ("pass", "chip", "kind", "gate")): (
        Pass(**{name: row[name] for name in row if name != "searched"}), row["searched"]) for row in read}


def _up(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
