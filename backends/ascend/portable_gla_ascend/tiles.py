"""Tile sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from portable_gla_ascend.socs import Soc


@dataclass(frozen=True)
class Tiles:
    """Large blocks for the cube: chunks of ``chunk`` tokens, tiles of K and V; ``span`` chunks to a kept state."""

    chunk: int
    span: int
    block_k: int
    block_v: int
    gradient_v: int

    def swept(self, programs: int, value_dim: int, cores: int) -> int:
        """Return the tile of V of a sweep: smaller while cores would idle."""
        block = self.block_v
        while block > 32 and programs * -(-value_dim // block) < cores:
            block //= 2
        return block


def choose(soc: Soc, dtype: torch.dtype, gate: str, key_dim: int, value_dim: int) -> Tiles:
    """Return the tiles of a problem."""
    block_k = max(16, min(128, 1 << (key_dim - 1).bit_length()))
    block_v = max(16, min(128, 1 << (value_dim - 1).bit_length()))
    return Tiles(64, 2, block_k, block_v, block_v)
