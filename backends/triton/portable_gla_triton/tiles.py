"""The static table of tile sizes: none is searched for while a user waits. ``tune.py`` writes ``tiles.yaml``."""

from __future__ import annotations

import functools
import importlib.resources
from typing import NamedTuple

import yaml

from portable_gla_triton.operands import EXACT


class Tile(NamedTuple):
    """One kernel's tile: positions of a chunk, channels of K and of V, warps, pipeline stages.

    ``near`` positions are taken at once where their range is small (``kernels/pairs.py``).
    """

    chunk: int
    block_k: int
    block_v: int
    warps: int
    stages: int = 1
    near: int = 16


class Tiles(NamedTuple):
    """The tiles of every kernel for one kind of call."""

    states: Tile  # summarize and chunk_states
    scan: Tile
    forward: Tile
    gradients: Tile

    @property
    def longest(self) -> int:
        """The longest chunk."""
        return max(tile.chunk for tile in self)


WIDTHS = (64, 128, 256, 512)
"""Up to which K the rows of the table's forward tiles reach: the forward pass holds a state's K whole."""

_LIKE = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_120": "sm_80", "sm_100": "sm_90", "gfx90a": "sm_90", "gfx942": "sm_90"}
_LIKE_KIND = {"ieee": "tf32"}  # of AMD: tiles of float32 as well


def family(target: str) -> str:
    """Return the target whose rows of the table a target uses."""
    return _LIKE.get(target, target)


@functools.cache
def table() -> dict[str, Tile]:
    """Read ``tiles.yaml``: "target kernel operands gate[+bonus] K [odd]" to tiles."""
    text = importlib.resources.files(__package__).joinpath("tiles.yaml").read_text(encoding="utf-8")
    return {key: Tile(*row) for key, row in yaml.safe_load(text).items()}


def row_name(target: str, kernel: str, kind: str, gate: str, bonus: bool, key_dim: int, odd: bool = False) -> str:
    """Return the key of a row; only the forward pass depends on K, and not where it takes K slice by slice.

    ``odd``: K or V is no multiple of 16, so that addresses take more registers. Such a row stands in the table only
    where the other spills.
    """
    whole = kernel == "forward" and kind != EXACT
    width = next(width for width in WIDTHS if key_dim <= width) if whole else "any"
    gates = "channel" if gate == "channel" else "head"
    return (f"{family(target)} {kernel} {_LIKE_KIND.get(kind, kind)} {gates}{'+bonus' if bonus else ''} {width}"
            f"{' odd' if odd else ''}")


@functools.cache
def choose(target: str, kind: str, gate: str, bonus: bool, key_dim: int, value_dim: int) -> Tiles:
    """Return the tiles for a target ("sm_90", "gfx942"), operands ("bf16", "tf32", ...), gate, K and V."""
    def fitted(kernel: str) -> Tile:
        row = target, kernel, kind, gate, bonus, key_dim
        usual, odd = table()[row_name(*row)], bool((key_dim | value_dim) % 16)
        tile = table().get(row_name(*row, odd=True), usual) if odd else usual
        return tile._replace(block_k=min(tile.block_k, _power(key_dim)), block_v=min(tile.block_v, _power(value_dim)))

    gradients = fitted("gradients")
    states = fitted("states")._replace(block_v=gradients.block_v)  # the scales of kept states are per tile of V
    return Tiles(states, Tile(0, min(64, _power(key_dim)), min(64, _power(value_dim)), 4), fitted("forward"),
                 gradients)


def _power(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
