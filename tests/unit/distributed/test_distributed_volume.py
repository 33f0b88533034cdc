"""The formulas of volume, against the bytes that go into the collectives; and that no T is in them."""

from __future__ import annotations

import pytest

from portable_gla.distributed import volume
from portable_gla.testing.cases import F32, F64, Case


@pytest.mark.parametrize("size", (2, 3))
@pytest.mark.parametrize("tokens", (24, 96))
@pytest.mark.parametrize("case, options", [
    (Case("channel", final_state=False), {}),
    (Case("channel-final"), {"final_documents": 2}),
    (Case("head", gate="head", gate_heads=1, k_heads=1, final_state=False), {"gate_heads": 1}),
    (Case("constant", gate="constant", final_state=False, batch=3), {}),
    (Case("none", gate="none", final_state=False, dtype=F64), {}),
    (Case("head-tail", final_state=False), {"runs": 2}),
], ids=str)
def test_attention_sends_what_the_formula_says(world, seed, case, options, tokens, size):
    case = Case(**{**vars(case), "tokens": tokens})
    order = "head-tail" if options.get("runs") == 2 else "contiguous"
    lengths = [tokens // size] * size
    expected = volume.states(size, case.heads, case.key_dim, case.value_dim, batch=case.batch, gate=case.gate,
                             itemsize=case.state_dtype.itemsize, **options)
    for sent in world(size).run("tasks_volume:run", case, seed, lengths, order):
        assert sent["forward"] == expected.forward
        assert sent["backward"] == expected.backward


def test_packed_documents_send_one_state_for_each_end_and_their_final_states(world, seed):
    case = Case("packed", lengths=(5, 2, 13, 4), dtype=F32)
    # Rank 0 has documents 0, 1 and the beginning of 2; rank 1 the end of 2, and 3: two and one that are not the last.
    expected = volume.states(2, case.heads, case.key_dim, case.value_dim, final_documents=4, inner_documents=2)
    for sent in world(2).run("tasks_volume:run", case, seed, [12, 12], "contiguous"):
        assert (sent["forward"], sent["backward"]) == (expected.forward, expected.backward)


def test_the_projection_sends_what_the_formula_says(world):
    expected = volume.row_parallel_projection(2, 24, 10, batch=2, itemsize=4)
    for sent in world(2).run("tasks_volume:project", 2, 24, 10):
        assert (sent["forward"], sent["backward"]) == (expected.forward, expected.backward)


def test_softmax_needs_far_more_at_long_context():
    ranks, tokens, heads, key, value = 8, 131_072, 4, 256, 512
    ours = volume.states(ranks, heads, key, value)
    ring = volume.ring_attention(ranks, tokens, heads, key, heads, value)
    exchange = volume.all_to_all(ranks, tokens, heads, heads, key, heads, value)
    assert ours.total == 7 * 4 * heads * (2 * key * value + key)
    assert ring.total == (7 + 15) * 2 * (tokens // 8) * heads * (key + value)
    assert exchange.total == 2 * 7 * 2 * (tokens // 8 // 8) * heads * 2 * (key + value)
    assert ours.total < exchange.total < ring.total
    assert volume.ring_attention(ranks, 2 * tokens, heads, key, heads, value).total == 2 * ring.total


def test_a_gate_that_is_none_of_the_kinds_is_refused():
    with pytest.raises(ValueError, match="gate: expected one of"):
        volume.states(2, 2, 4, 4, gate="row")
