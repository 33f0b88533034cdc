"""The search for tiles, on a stand-in for the compilers."""

from __future__ import annotations

import pytest
import yaml
from portable_gla_ascend import tune
from portable_gla_ascend.tiles import Pass


def limited(**most: int):
    """Make a compiler that refuses kernels whose tiles have more than so many numbers."""
    asked = []

    def refused(tile: Pass) -> set[str]:
        asked.append(tile)
        sizes = {"sweep": tile.block_k * tile.sweep_v, "outputs": tile.chunk * tile.block_v,
                 "gradients_k": tile.block_k * tile.loop_v, "gradients_v": tile.chunk * tile.block_v}
        return {kernel for kernel, size in most.items() if sizes[kernel] > size}

    return refused, asked


def test_the_largest_that_fits_is_found() -> None:
    refused, _ = limited(sweep=128 * 128, outputs=64 * 128)
    found = tune.search("forward", refused)
    assert found is not None and not refused(found)
    every = [Pass(start.chunk, start.span, start.block_k, sweep_v, block_v, tune.BLOCKS[0])
             for start in tune.candidates("forward") for sweep_v in tune.BLOCKS for block_v in tune.BLOCKS]
    assert tune.traffic("forward", found) == min(tune.traffic("forward", tile) for tile in every if not refused(tile))


def test_a_kernel_that_does_not_fit_has_its_own_block_made_smaller() -> None:
    refused, _ = limited(gradients_k=128 * 32)
    found = tune.search("backward", refused)
    assert found is not None and found.sweep_v == found.block_v == tune.BLOCKS[0]
    assert found.block_k * found.loop_v <= 128 * 32


def test_where_all_fits_one_try_is_enough() -> None:
    refused, asked = limited()
    assert tune.search("forward", refused) == asked[0] == next(tune.candidates("forward")) and len(asked) == 1


def test_where_nothing_fits_there_are_no_tiles() -> None:
    refused, _ = limited(sweep=1)
    assert tune.search("forward", refused) is None


@pytest.mark.parametrize("which", tune.PASSES)
def test_smaller_blocks_move_more(which: str) -> None:
    start = Pass(64, 1, 128, 128, 128, 128)
    for smaller in (Pass(32, 1, 128, 128, 128, 128), Pass(64, 1, 64, 128, 128, 128), Pass(64, 1, 128, 64, 128, 128),
                    Pass(64, 1, 128, 128, 64, 128)):
        assert tune.traffic(which, smaller) > tune.traffic(which, start)


def test_rows_are_lines_of_yaml() -> None:
    rows = tune.rows()
    assert len(rows) == len(set(rows)) == 2 * 2 * 3 * 2
    assert yaml.safe_load(tune.line(tune.Row("910", "forward", "bf16", "channel"), Pass(64, 2, 128, 128, 64, 32))) == [
        {"chip": "910", "pass": "forward", "kind": "bf16", "gate": "channel", "chunk": 64, "span": 2, "block_k": 128,
         "sweep_v": 128, "block_v": 64, "loop_v": 32}]


def test_blocks_are_no_larger_than_k_and_v() -> None:
    tile = Pass(64, 2, 128, 256, 128, 32)
    assert tune.within(tile, 72, 40) == Pass(64, 2, 128, 64, 64, 32)
    assert tune.within(tile, 1, 1) == Pass(64, 2, 16, 16, 16, 16) and tune.within(tile, 512, 512) == tile
