"""What is computed while the states fly, that temporaries stay small, and what autograd asks besides."""

from __future__ import annotations

import pytest
import torch


def test_work_that_needs_no_state_stands_between_departure_and_landing(world):
    first, last = world(2).run("tasks_overlap:order_of_events", 1)
    assert last == ["local", "depart", "weight", "land", "add",
                    "dS", "depart back", "dq, dg", "land back", "local back"]
    assert first == ["local", "depart", "land", "depart back", "land back", "local back"]


def test_an_exchange_flies_while_the_next_heads_are_computed(world):
    for events in world(2).run("tasks_overlap:order_of_events", 2):
        main = [event for event in events if event.split()[0] in ("local", "depart", "land")]
        assert main == ["local", "depart", "local", "depart", "land", "land",
                        "depart back", "depart back", "land back", "local back", "land back", "local back"]


def test_recomputation_and_a_second_pass_give_the_same_gradients(world, seed):
    for plain, *others in world(2).run("tasks_overlap:checkpointed", seed):
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_gradients_for_some_inputs_alone(world, seed):
    alone = world(2).run("tasks_overlap:only_some_inputs_want_gradients", seed)
    for (plain, *_), (dq, dv) in zip(world(2).run("tasks_overlap:checkpointed", seed), alone, strict=True):
        assert torch.equal(plain[0], dq)
        assert torch.equal(plain[2], dv)


@pytest.mark.parametrize("tokens", (20_000, 80_000))
def test_temporaries_do_not_grow_with_the_tokens(world, tokens):
    for sizes in world(2).run("tasks_overlap:largest_temporary", tokens):
        assert sizes.keys() == {"add", "dS"}
        for name, most in sizes.items():
            assert 2**13 <= most <= 2**17, (name, most)
