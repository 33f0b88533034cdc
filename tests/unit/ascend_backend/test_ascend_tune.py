"""The search for tiles, on a stand-in for the compilers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import yaml
from portable_gla_ascend import socs, tiles, tune
from portable_gla_ascend.offline import recording
from portable_gla_ascend.tiles import Pass

STANDING = Pass(64, 1, 32, 32, 32, 16, 32)


def sizes(kernel: str, tile: Pass) -> int:
    state = tile.block_k * tile.sweep_v
    return {"sweep": state, "sweep_both": state, "outputs": tile.chunk * tile.block_v,
            "keys": tile.loop_k * tile.loop_v, "values": tile.chunk * tile.block_v,
            "gradients": tile.loop_k * tile.loop_v + tile.chunk * tile.block_v}[kernel]


def limited(**most: int):
    """Make compilers that refuse kernels whose tiles have more than so many numbers."""
    asked: list[tuple[str, Pass]] = []

    def refuses(kernel: str, tile: Pass) -> str:
        asked.append((kernel, tile))
        return "too large" if sizes(kernel, tile) > most.get(kernel, 1 << 30) else ""

    return refuses, asked


@pytest.mark.parametrize(("which", "most"), [
    ("forward", {"sweep": 128 * 128, "outputs": 64 * 64}), ("forward", {"sweep": 64 * 64}),
    ("backward", {"keys": 64 * 32, "values": 64 * 64, "sweep_both": 64 * 128}), ("backward", {}),
    ("whole", {"gradients": 64 * 96, "sweep_both": 64 * 128})])
def test_what_moves_the_least_of_those_that_fit_is_found(which: str, most: dict[str, int]) -> None:
    standing = replace(STANDING, whole=which == "whole")
    which = "backward" if standing.whole else which
    found = tune.search(which, standing, limited(**most)[0])
    every = [replace(standing, **dict(zip(tune.BLOCKS, blocks, strict=True)))
             for blocks in itertools.product(*tune.BLOCKS.values())]
    fitting = [tile for tile in every if all(sizes(kernel, tile) <= most.get(kernel, 1 << 30)
                                             for kernel in tune.kernels(which, tile))]
    assert tune.traffic(which, found) == min(tune.traffic(which, tile) for tile in fitting if tile.chunk == 64)


def test_chunks_become_no_smaller() -> None:
    refuses, _ = limited(sweep=64 * 64, outputs=32 * 64)  # which only chunks of 32 pass, with wider tiles of V
    assert tune.search("forward", STANDING, refuses).chunk == STANDING.chunk
    assert tune.search("forward", replace(STANDING, chunk=32), refuses).block_v == 64


def test_a_row_that_stands_takes_few_compilations() -> None:
    standing = Pass(64, 1, 64, 64, 64, 32, 64)
    asked: list[tuple[object, ...]] = []

    def refuses(kernel: str, tile: Pass) -> str:
        blocks = [(getattr(tile, field), getattr(standing, field)) for field in tune.kernels("backward", tile)[kernel]]
        asked.append((kernel, *blocks))
        return "too large" if any(size > most for size, most in blocks) else ""

    assert tune.search("backward", standing, refuses) == standing
    assert len(asked) == len(set(asked)) <= 12


def test_the_first_refusal_ends_a_candidate() -> None:
    refuses, asked = limited(outputs=1)
    assert tune.search("forward", STANDING, refuses) != STANDING  # with outputs as they are, a sweep may be better
    refuses, asked = limited(outputs=1, sweep=1)
    assert tune.search("forward", STANDING, refuses) == STANDING
    assert all(refuses(kernel, tile) for kernel, tile in tuple(asked))  # which asking makes longer


def test_what_cannot_be_kept_is_not_compiled(monkeypatch) -> None:
    monkeypatch.setattr(tune.offline, "compile_launch", None)
    row = tune.Row("910", "forward", "bf16", "channel")
    assert "L0C" in tune.refusal(row, "sweep", replace(row.standing, block_k=256, sweep_v=256))


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
         "sweep_v": 128, "block_v": 64, "loop_k": 16, "loop_v": 32, "searched": True}]
    whole = tune.line(tune.Row("910", "backward", "f32", "other"), Pass(64, 2, 64, 64, 64, 32, 64, whole=True))
    assert yaml.safe_load(whole)[0]["whole"] is True


@pytest.mark.parametrize("kind", tune.DTYPES)
def test_blocks_are_no_larger_than_k_and_v(kind: str) -> None:
    for name, gate in itertools.product(("Ascend910B2", "Ascend910B4", "Ascend950"), ("channel", "head", "none")):
        soc = socs.of(name)
        assert soc is not None
        large = tiles.choose(soc, kind, gate, 512, 512)
        row = (tiles.chip(soc), kind, "channel" if gate == "channel" else "other")
        assert large == tiles.Tiles(*(tiles.table()[(which, *row)] for which in tune.PASSES))
        tiny = tiles.choose(soc, kind, gate, 1, 1)
        for one in (tiny.forward, tiny.backward):
            assert (one.block_k, one.sweep_v, one.block_v, one.loop_k, one.loop_v) == (16,) * 5
        small = tiles.choose(soc, kind, gate, 40, 512).backward
        assert small.block_k == min(64, large.backward.block_k) and small.block_v == large.backward.block_v


def test_a_row_is_searched_by_the_launches_it_has() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    soc = socs.of("Ascend910B2")
    for dtype, kind in (("bf16", "bf16"), ("f32", "f32")):
        call = {"dtype": dtype, "gate": "channel", "features": "plain", "K": 128, "V": 128}
        for which in tune.PASSES:
            found = [tune.part(one) for one in recording.record(tune.offline.kernels(), soc, call, (which,))]
            wanted = set(tune.kernels(which, tiles.table()[which, "910", kind, "channel"]))
            assert len(found) == len(set(found))
            assert set(found) == (wanted - {"keys", "values"} if "gradients" in wanted else wanted)


def test_the_table_has_all_rows_and_no_other() -> None:
    assert set(tiles.table()) == {(row.which, row.chip, row.kind, row.gate) for row in tune.rows()}


def test_a_chip_has_the_tiles_of_the_largest_kind_that_it_holds() -> None:
    for name, kind in (("Ascend910B1", "910"), ("Ascend910_9391", "910"), ("Ascend950", "950")):
        soc = socs.of(name)
        assert soc is not None and tiles.chip(soc) == kind
