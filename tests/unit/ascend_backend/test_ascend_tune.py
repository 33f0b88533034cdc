"""The search for tiles, on a stand-in for the compilers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import yaml
from portable_gla_ascend import socs, tiles, tune
from portable_gla_ascend.tiles import Pass


def limited(**most: int):
    """Make a compiler that refuses kernels whose tiles have more than so many numbers."""
    asked = []

    def refused(tile: Pass) -> set[str]:
        asked.append(tile)
        sizes = {"sweep": tile.block_k * tile.sweep_v, "outputs": tile.chunk * tile.block_v,
                 "gradients_k": tile.loop_k * tile.loop_v, "gradients_v": tile.chunk * tile.block_v}
        return {kernel for kernel, size in most.items() if sizes[kernel] > size}

    return refused, asked


def test_the_largest_that_fits_is_found() -> None:
    refused, _ = limited(sweep=128 * 128, outputs=64 * 128)
    found = tune.search("forward", refused)
    assert found is not None and not refused(found)
    every = [replace(start, sweep_v=sweep_v, block_v=block_v) for start in tune.candidates("forward")
             for sweep_v in (128, 64, 32) for block_v in (128, 64, 32)]
    assert tune.traffic("forward", found) == min(tune.traffic("forward", tile) for tile in every if not refused(tile))


def test_a_kernel_that_does_not_fit_has_its_own_block_made_smaller() -> None:
    refused, _ = limited(gradients_k=128 * 32)
    found = tune.search("backward", refused)
    assert found is not None and found.sweep_v == found.block_v == 128
    assert (found.loop_k, found.loop_v) == (128, 32)


def test_where_all_fits_one_try_is_enough() -> None:
    refused, asked = limited()
    assert tune.search("forward", refused) == asked[0] == next(tune.candidates("forward")) and len(asked) == 1


def test_where_nothing_fits_there_are_no_tiles() -> None:
    refused, _ = limited(sweep=1)
    assert tune.search("forward", refused) is None


@pytest.mark.parametrize("which", tune.PASSES)
def test_smaller_blocks_move_more(which: str) -> None:
    start = Pass(64, 1, 128, 128, 128, 128, 128)
    for field in ("chunk", "block_k", "sweep_v", "block_v"):
        smaller = replace(start, **{field: getattr(start, field) // 2})
        assert tune.traffic(which, smaller) > tune.traffic(which, start)


def test_rows_are_lines_of_yaml() -> None:
    rows = tune.rows()
    assert len(rows) == len(set(rows)) == 2 * 2 * 3 * 2
    line = tune.line(tune.Row("910", "forward", "bf16", "channel"), Pass(64, 2, 128, 128, 64, 16, 32))
    assert yaml.safe_load(line) == [
        {"chip": "910", "pass": "forward", "kind": "bf16", "gate": "channel", "chunk": 64, "span": 2, "block_k": 128,
         "sweep_v": 128, "block_v": 64, "loop_k": 16, "loop_v": 32}]


@pytest.mark.parametrize("kind", tune.DTYPES)
def test_blocks_are_no_larger_than_k_and_v(kind: str) -> None:
    for name, gate in itertools.product(("Ascend910B2", "Ascend910B4", "Ascend950"), ("channel", "head", "none")):
        soc = socs.of(name)
        assert soc is not None
        large = tiles.choose(soc, kind, gate, 512, 512)
        row = (tiles.chip(soc), kind, "channel" if gate == "channel" else "other")
        assert large == tiles.Tiles(*(tiles.table()[(which, *row)] for which in tune.PASSES))
        for one in (tiles.choose(soc, kind, gate, 1, 1).forward, tiles.choose(soc, kind, gate, 1, 1).backward):
            assert (one.block_k, one.sweep_v, one.block_v, one.loop_k, one.loop_v) == (16,) * 5
        small = tiles.choose(soc, kind, gate, 40, 512).backward
        assert small.block_k == min(64, large.backward.block_k) and small.block_v == large.backward.block_v


def test_the_table_has_all_rows_and_no_other() -> None:
    assert set(tiles.table()) == {(row.which, row.chip, row.kind, row.gate) for row in tune.rows()}


def test_a_chip_has_the_tiles_of_the_largest_kind_that_it_holds() -> None:
    for name, kind in (("Ascend910B1", "910"), ("Ascend910_9391", "910"), ("Ascend950", "950")):
        soc = socs.of(name)
        assert soc is not None and tiles.chip(soc) == kind
