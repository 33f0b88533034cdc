"""A rank that dies, hangs or describes another call: the others say so, all alike, and none waits for ever."""

from __future__ import annotations

import pytest
import torch
from worlds import Error, World

TIMEOUT = 4.0  # of the groups that are going to fail, in seconds
LONG = 8.0  # of one where those beside the dead rank notice at once, and the others when they have waited so long
GRACE = 8.0  # to tell who is missing, and for a busy machine

DESCRIPTIONS, FORWARD, BACKWARD = (
    "the gather of descriptions", "the forward exchange of states", "the backward exchange of states")

# name: (ranks, the lost one, task, its arguments, the collective that the others are in)
DOOMED = {
    "killed before": (4, 1, "tasks_failures:timed", (1, "killed", "before"), DESCRIPTIONS),
    "killed in backward": (3, 1, "tasks_failures:timed", (1, "killed", "backward"), BACKWARD),
    "hanging before": (3, 1, "tasks_failures:timed", (1, "hanging", "before"), DESCRIPTIONS),
    "hanging in backward": (3, 2, "tasks_failures:timed", (2, "hanging", "backward"), BACKWARD),
    "killed host of the store": (2, 0, "tasks_failures:timed", (0, "killed", "before"), DESCRIPTIONS),
    "stopped host of the store": (2, 0, "tasks_failures:timed", (0, "stopped", "backward"), BACKWARD),
    "refusing an agreed call": (3, 1, "tasks_failures:stays_away", (), FORWARD),
    "in another group": (3, 1, "tasks_failures:another_group", (), DESCRIPTIONS),
}


def timeout(name):
    return LONG if name == "killed before" else TIMEOUT


@pytest.fixture(scope="module")
def outcomes():
    """What each rank of each doomed world ended with; they wait side by side."""
    worlds = {name: World(size, timeout(name)) for name, (size, *_) in DOOMED.items()}
    try:
        for name, (_, _, task, arguments, _) in DOOMED.items():
            worlds[name].start(task, *arguments)
        yield {name: {rank: worlds[name].result(rank, 2 * (LONG + GRACE)) for rank in range(size)
                      if rank != lost or name in ("refusing an agreed call", "in another group")}
               for name, (size, lost, *_) in DOOMED.items()}
    finally:
        for found in worlds.values():
            for process in found.processes:
                process.kill()
            found.close()


@pytest.mark.parametrize("name", DOOMED)
def test_a_lost_rank_is_named(outcomes, name):
    _, lost, _, _, collective = DOOMED[name]
    for rank, error in outcomes[name].items():
        if rank == lost:
            continue
        assert isinstance(error, Error), error
        assert error.kind == "RankFailure", error.trace
        assert error.attributes["missing"] == (lost,), f"rank {rank}: {error.message}"
        assert error.attributes["collective"] == collective
        assert collective in error.message
        assert f"missing: rank {lost}:" in error.message or name == "in another group"
        assert error.attributes["seconds"] < timeout(name) + GRACE


def test_a_rank_that_refuses_an_agreed_call_says_why(outcomes):
    error = outcomes["refusing an agreed call"][1]
    assert error.kind == "ValueError"
    assert "agreed on for tokens = 12, this call has 13" in error.message


def test_different_groups_are_told_on_every_rank(outcomes):
    for rank, error in outcomes["in another group"].items():
        other, ranks = (0, [0, 1, 2]) if rank == 1 else (1, [0, 1])
        assert error.kind == "RankFailure", error.trace
        assert error.attributes["missing"] == (other,)
        assert f"rank {other} waits in the gather of descriptions (collective 1) of another group, " \
               f"of ranks {ranks}, instead" in error.message, error.message


def test_a_lost_store_is_told(outcomes):
    assert "the store of the processes does not answer" in outcomes["killed host of the store"][1].message


@pytest.mark.parametrize("change, said", [
    ({"heads": 4}, 'heads of q: 2 on ranks 0, 1, 4 on rank 2'),
    ({"dtype": torch.float64}, 'dtype: "float32" on ranks 0, 1, "float64" on rank 2'),
    ({"key": 8}, "K: 4 on ranks 0, 1, 8 on rank 2"),
    ({"value": 5}, "V: 6 on ranks 0, 1, 5 on rank 2"),
    ({"batch": 2}, "B: 1 on ranks 0, 1, 2 on rank 2"),
    ({"gate": "head"}, 'gate: "per channel" on ranks 0, 1, "per head" on rank 2'),
    ({"gate": "none"}, 'gate: "per channel" on ranks 0, 1, "none" on rank 2'),
    ({"scale": 0.3}, "scale: 0.5 on ranks 0, 1, 0.3 on rank 2"),
    ({"reverse": True}, "reverse: false on ranks 0, 1, true on rank 2"),
    ({"output_final_state": False}, "output_final_state: true on ranks 0, 1, false on rank 2"),
    ({"stateful": True}, "initial_state: null on ranks 0, 1"),
    ({"detached": True}, "gradients: true on ranks 0, 1, false on rank 2"),
    ({"order": "head-tail"}, 'order: "contiguous" on ranks 0, 1, "head-tail" on rank 2'),
    ({"overlap": 2}, "overlap: 1 on ranks 0, 1, 2 on rank 2"),
    ({"ends": [0, 5, 9]}, "cu_seqlens: null on ranks 0, 1"),
    ({"ends": [0, 6, 36], "everyone": True}, "cu_seqlens: \"3 entries, digest "),
    ({"broken": True}, "rank 2 refuses its shard with ValueError: k: expected T = 12"),
    ({"backend": "triton"}, "rank 2 refuses its shard with UnsupportedProblem: "),
    ({"ends": [1, 2]}, "rank 2 refuses its shard with ValueError: cu_seqlens: expected to start at 0"),
    ({"order": "tail-head"}, "rank 2 refuses its shard with ValueError: order: "),
    ({"runs": [3, 3]}, "rank 2 refuses its shard with ValueError: runs: expected 1 lengths"),
    ({"overlap": 3}, "rank 2 refuses its shard with ValueError: overlap: expected a divisor of every head count"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_a_disagreement_is_one_error_on_every_rank(world, change, said):
    found = world(3)
    found.start("tasks_failures:describe", 2, change)
    errors = [found.result(rank) for rank in range(3)]
    assert [error.kind for error in errors] == ["Disagreement"] * 3, [vars(error) for error in errors]
    assert len({error.message for error in errors}) == 1
    assert said in errors[0].message and "no rank computes" in errors[0].message


def test_a_malformed_call_on_every_rank_is_the_plain_error(world):
    found = world(2)
    found.start("tasks_failures:malformed", "bonus")
    assert [found.result(rank).kind for rank in range(2)] == ["ValueError"] * 2
    found.start("tasks_failures:malformed", "ends")
    errors = [found.result(rank) for rank in range(2)]
    assert [error.kind for error in errors] == ["ValueError"] * 2
    assert all("expected to end at the whole sequence's T = 24, got 23" in error.message for error in errors)


def test_what_is_no_group_is_refused(world):
    found = world(2)
    found.start("tasks_failures:malformed", "group")
    assert [found.result(rank).kind for rank in range(2)] == ["TypeError"] * 2
    found.start("tasks_failures:malformed", "mesh")
    errors = [found.result(rank) for rank in range(2)]
    assert all("expected a device mesh of one dimension, got 2" in error.message for error in errors)


def test_a_rank_outside_the_group_is_refused(world):
    first, second = world(2).run("tasks_failures:outsider")
    assert first == [1, 12, 2, 6]
    assert "global rank 1 is not in it" in second
