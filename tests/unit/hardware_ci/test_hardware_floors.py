"""A floor is missed exactly where a figure is on the wrong side of it."""

from __future__ import annotations

import pytest

from hardware_ci import floors
from hardware_ci.matrix import Floor
from portable_gla.testing import cases

SHAPES = [case for case in cases.select("hardware") if "shape" in case.tags and case.gate == "channel"]


def timed(case, seconds=1.0, copy_fraction=0.6, passes=("forward", "forward + backward"), **peers):
    times = {"ours": {"median": seconds, "samples": [seconds]}}
    times |= {name: {"median": value, "samples": [value]} for name, value in peers.items()}
    step = {"times": times, "bytes": 10**9, "copy_fraction": copy_fraction}
    return {"case": case.name, "passes": dict.fromkeys(passes, step)}


def only(floor, shapes):
    entry, = floors.evaluate([floor], shapes, "ours")
    return entry


def test_every_row_of_a_peer_has_to_reach_each():
    floor = Floor("f", "peer", peer="peer", tag="shape", passes=("forward",), each=2.0)
    shapes = [timed(case, peer=2.0) for case in SHAPES]
    assert only(floor, shapes)["outcome"] == "held"
    shapes[3] = timed(SHAPES[3], peer=1.9)
    entry = only(floor, shapes)
    assert entry["outcome"] == "missed"
    assert entry["missed"] == [f"{SHAPES[3].name}, forward: 1.9"]


def test_the_mean_is_geometric():
    floor = Floor("f", "peer", peer="peer", tag="shape", passes=("forward",), mean=3.0)
    values = [1.0, 9.0] * (len(SHAPES) // 2)
    assert len(values) == len(SHAPES)
    assert only(floor, [timed(case, peer=value + 0.01) for case, value in zip(SHAPES, values, strict=True)])[
        "outcome"] == "held"
    entry = only(floor, [timed(case, peer=value - 0.01) for case, value in zip(SHAPES, values, strict=True)])
    assert entry["outcome"] == "missed" and entry["missed"][0].startswith("geometric mean: 2.9")


def test_a_shape_that_was_not_timed_leaves_the_floor_open():
    floor = Floor("f", "peer", peer="peer", tag="shape", passes=("forward",), mean=3.0, each=1.0)
    shapes = [timed(case, peer=2.0) for case in SHAPES[1:]]
    entry = only(floor, shapes)
    assert entry["outcome"] == "not measured" and list(entry["not_measured"]) == [f"{SHAPES[0].name}, forward"]
    shapes[0] = timed(SHAPES[1], peer=0.5)  # but what is there may miss it already
    assert only(floor, shapes)["outcome"] == "missed"


def test_a_peer_that_cannot_do_a_shape_is_left_out_of_it_and_an_absent_one_measures_nothing():
    floor = Floor("f", "peer", peer="peer", tag="shape", passes=("forward",), each=1.0)
    shapes = [timed(case, peer=2.0) for case in SHAPES[1:]] + [timed(SHAPES[0])]
    shapes[-1]["passes"]["forward"]["absent"] = {"peer": "needs K = V"}
    entry = only(floor, shapes)
    assert entry["outcome"] == "held" and entry["not_measured"] == {f"{SHAPES[0].name}, forward": "needs K = V"}
    assert only(floor, [timed(case) for case in SHAPES])["outcome"] == "not measured"


def test_tokens_and_bytes_choose_rows():
    at_4096 = Floor("f", "peer", peer="peer", tokens=(4096, 4096), passes=("forward",), each=1.0)
    assert {row.split(",")[0] for row in only(at_4096, [])["not_measured"]} == {
        case.name for case in cases.select("hardware") if case.tokens == 4096 and case.gate == "channel"}
    large = Floor("f", "copy", tag="shape", passes=("forward",), least_bytes=2e9, each=0.9)
    entry = only(large, [timed(case, copy_fraction=0.1) for case in SHAPES])
    assert entry["found"] == {} and entry["outcome"] == "not measured"


@pytest.mark.parametrize(("fraction", "outcome"), [(0.5, "held"), (0.49, "missed")])
def test_the_fraction_of_a_copy(fraction, outcome):
    floor = Floor("f", "copy", tag="shape", passes=("forward",), each=0.5)
    assert only(floor, [timed(case, copy_fraction=fraction) for case in SHAPES])["outcome"] == outcome


@pytest.mark.parametrize(("head", "outcome"), [(0.99, "held"), (1.01, "missed")])
def test_per_head_gates_against_their_twins(head, outcome):
    floor = Floor("f", "gate", each=1.0)
    shapes = [timed(case, head if case.gate == "head" else 1.0) for case in cases.select("hardware")]
    assert only(floor, shapes)["outcome"] == outcome


@pytest.mark.parametrize(("fraction", "outcome"), [(0.8, "held"), (0.7, "missed")])
def test_decode_is_at_most(fraction, outcome):
    floor = Floor("f", "decode", each=1.3)
    shapes = [timed(case, copy_fraction=fraction, passes=("forward",)) for case in cases.select("hardware")
              if "decode" in case.tags]
    assert only(floor, shapes)["outcome"] == outcome
