"""The script that makes the table of tiles: what it would time, and how it chooses."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from portable_gla_triton import offline, tiles, tune

ROW = ("sm_90", "forward", "bf16", "channel", False, 128, False)


def test_shapes_come_from_the_case_table():
    found = tune.shapes(ROW)
    assert {(case.key_dim, case.gate) for case in found} == {(128, "channel")}
    assert {case.gate for case in tune.shapes(("sm_90", "gradients", "tf32", "head", True, 128, False))} == {"head"}
    assert all(case.bonus for case in tune.shapes(("sm_90", "gradients", "tf32", "head", True, 128, False)))


def test_the_fastest_over_all_shapes_is_chosen():
    among = list(tune.candidates("forward", "bf16"))[:3]
    key = tiles.row_name(*ROW)

    def time(case, backward):
        assert not backward
        place = among.index(tiles.table()[key])
        return (3.0, 1.0, 2.0)[place] * case.tokens

    before = tiles.table()[key]
    assert tune.fastest(ROW, among, time) == among[1]
    assert tiles.table()[key] == before


def test_without_a_gpu_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    assert tune.main(["--measure"]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_a_search_takes_the_first_that_does_not_spill():
    key, tile, note = tune.search(("sm_90", "states", "bf16", "head", True, 128, False))
    assert key == "sm_90 states bf16 head+bonus any"
    assert tile == tune.candidates("states", "bf16")[0]
    assert note.endswith("registers")


def test_an_odd_row_stands_only_where_the_usual_tile_spills(monkeypatch):
    """Searched on a table of its own: the usual tile of the first row serves odd sizes too, the second's does not."""
    written = {}
    monkeypatch.setattr(tune, "_write", lambda found: written.update(dict.fromkeys(found)))
    monkeypatch.setattr(tune, "search", searched)
    assert tune.main(["sm_90", "--only", "sm_90 states * head any*", "--jobs", "1"]) == 0
    odd = {key for key in written if key.endswith("odd") and "sm_90 states" in key and " head any" in key}
    assert odd == {"sm_90 states tf32 head any odd"}


def searched(row):
    key = tiles.row_name(*row)
    tile = tiles.table()[tiles.row_name(*row[:6])]
    return key, (tile._replace(warps=16) if row[2] == "tf32" and row[6] else tile), ""


def test_odd_sizes_take_their_own_row_where_there_is_one():
    usual = "sm_90 states bf16 channel any"
    tile = tiles.table()[usual]._replace(warps=16)
    with offline.table_with({f"{usual} odd": tile}):
        def warps(key_dim, value_dim):
            return tiles.choose("sm_90", "bf16", "channel", False, key_dim, value_dim).states.warps
        assert warps(40, 64) == warps(64, 72) == 16
        assert warps(64, 128) == tiles.table()[usual].warps != 16
