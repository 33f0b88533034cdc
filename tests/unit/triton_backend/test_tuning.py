"""The script that makes the table of tiles: what it would time, and how it chooses."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from portable_gla_triton import tiles, tune

ROW = ("sm_90", "forward", "bf16", "channel", False, 128)


def test_shapes_come_from_the_case_table():
    found = tune.shapes(ROW)
    assert {(case.key_dim, case.gate) for case in found} == {(128, "channel")}
    assert {case.gate for case in tune.shapes(("sm_90", "gradients", "tf32", "head", True, 128))} == {"head"}
    assert all(case.bonus for case in tune.shapes(("sm_90", "gradients", "tf32", "head", True, 128)))


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
    key, tile, note = tune.search(("sm_90", "states", "bf16", "head", True, 128))
    assert key == "sm_90 states bf16 head+bonus any"
    assert tile == tune.candidates("states", "bf16")[0]
    assert note.endswith("registers")
