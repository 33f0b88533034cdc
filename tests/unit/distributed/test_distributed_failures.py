"""A rank that dies, hangs or describes another call: the others say so, all alike, and none waits for ever."""

from __future__ import annotations

import contextlib
import time

import pytest
from worlds import Error, World

TIMEOUT = 4.0  # of the groups that are going to fail
GRACE = 8.0  # to tell who is missing, and for a busy machine


@contextlib.contextmanager
def doomed(size=3):
    found = World(size, TIMEOUT)
    try:
        yield found
    finally:
        for process in found.processes:
            process.kill()
        found.close()


def survivors(found, victim, task, *arguments):
    """Start a task in which a rank is lost; return what the others raised."""
    begun = time.monotonic()
    found.start(task, *arguments)
    errors = {}
    for rank in range(found.size):
        if rank != victim:
            errors[rank] = found.result(rank, 3 * (TIMEOUT + GRACE))
            assert isinstance(errors[rank], Error), errors[rank]
    assert time.monotonic() - begun < 2 * (TIMEOUT + GRACE)
    return errors


@pytest.mark.parametrize("when, name", [("before", "the gather of descriptions"),
                                        ("backward", "the backward exchange of states")])
@pytest.mark.parametrize("how", ("killed", "hanging"))
def test_a_lost_rank_is_named(how, when, name):
    with doomed() as found:
        errors = survivors(found, 1, "tasks_failures:timed", 1, how, when)
        for rank, error in errors.items():
            assert error.kind == "RankFailure", error.trace
            assert name in error.message
            assert error.attributes["missing"] == (1,), f"rank {rank}: {error.message}"
            assert "missing: rank 1:" in error.message
            assert error.attributes["seconds"] < TIMEOUT + GRACE


def test_the_host_of_the_store_is_lost():
    with doomed(2) as found:
        error = survivors(found, 0, "tasks_failures:timed", 0, "killed", "before")[1]
        assert error.kind == "RankFailure", error.trace
        assert error.attributes["missing"] == (0,), error.message
        assert "does not answer" in error.message


def test_a_stopped_host_of_the_store():
    with doomed(2) as found:
        error = survivors(found, 0, "tasks_failures:timed", 0, "stopped", "backward")[1]
        assert error.kind == "RankFailure", error.trace
        assert error.attributes["missing"] == (0,), error.message


def test_a_rank_that_refuses_an_agreed_call_is_missed():
    with doomed() as found:
        found.start("tasks_failures:stays_away")
        errors = [found.result(rank, 30) for rank in range(3)]
        assert errors[1].kind == "ValueError"
        assert "agreed on for tokens = 12, this call has 13" in errors[1].message
        for rank in (0, 2):
            assert errors[rank].attributes["missing"] == (1,), errors[rank].message
            assert "the forward exchange of states" in errors[rank].message


@pytest.mark.parametrize("change, said", [
    ({"heads": 4}, 'heads of q: 2 on ranks 0, 1, 4 on rank 2'),
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
