"""The pieces of a slab: forward and backward against the recurrence, over blocks of any size."""

from __future__ import annotations

import math

import pytest
import torch
from portable_gla_eager import slab
from portable_gla_eager.backend import BLOCK, _sequences, _slab_tokens

from portable_gla.backend import Call
from portable_gla.testing import oracle

HEADS, BLOCKS, KEY, VALUE = 2, 3, 5, 4


def random_slab(size, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    g = -torch.rand((HEADS, BLOCKS, size, KEY), generator=draw, dtype=torch.float64)
    g[:, 1, size // 2] = -math.inf
    q, k = normal(HEADS, BLOCKS, size, KEY), normal(HEADS, BLOCKS, size, KEY)
    x = slab.Slab(q, k, normal(HEADS, BLOCKS, size, VALUE), g.exp())
    return x, g, normal(HEADS, KEY, VALUE), normal(HEADS, KEY), normal(HEADS, BLOCKS, size, VALUE), normal(
        HEADS, KEY, VALUE)


def flat(x):
    """[H, n, c, D] as the oracle's [1, T, H, D]."""
    return x.flatten(1, 2).transpose(0, 1)[None]


def assert_equal(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("with_bonus", [False, True])
def test_a_slab_is_the_recurrence(size, with_bonus):
    x, g, state, bonus, do, dstate = random_slab(size)
    bonus = bonus if with_bonus else None
    o, after = slab.forward(x, state, bonus)
    wanted = oracle.recurrence(flat(x.q), flat(x.k), flat(x.v), flat(g), state[None], bonus, 1.0)
    assert_equal(flat(o), wanted[0])
    assert_equal(after[None], wanted[1])
    found = slab.backward(x, state, bonus, do, dstate)
    dq, dk, dv, dg, dbefore, dbonus = oracle.adjoint(
        flat(x.q), flat(x.k), flat(x.v), flat(g), state[None], bonus, 1.0, flat(do), dstate[None])
    for left, right in ((found.q, dq), (found.k, dk), (found.v, dv), (found.g, dg)):
        assert_equal(flat(left), right)
    assert_equal(found.state[None], dbefore)
    assert (found.bonus is None) == (dbonus is None)
    if dbonus is not None:
        assert_equal(found.bonus, dbonus)


@pytest.mark.parametrize("with_bonus", [False, True])
def test_scores_are_pairs_and_causal(with_bonus):
    x, g, _, bonus, _, _ = random_slab(6)
    g = g.clamp(min=-5)
    x = x._replace(decay=g.exp())
    scores = slab._scores(x, bonus if with_bonus else None)
    total = g.cumsum(2)
    for i in range(6):
        for j in range(6):
            if j > i:
                wanted = torch.zeros(HEADS, BLOCKS, dtype=torch.float64)
            elif j == i:
                own = bonus[:, None] if with_bonus else 1.0
                wanted = (x.q[:, :, i] * own * x.k[:, :, i]).sum(-1)
            else:
                read = total[:, :, i - 1] if with_bonus else total[:, :, i]
                wanted = (x.q[:, :, i] * x.k[:, :, j] * (read - total[:, :, j]).exp()).sum(-1)
            assert_equal(scores[:, :, i, j], wanted)


def test_scan():
    decay = torch.rand(HEADS, 4, KEY, dtype=torch.float64)
    added = torch.randn(HEADS, 4, KEY, VALUE, dtype=torch.float64)
    state = torch.randn(HEADS, KEY, VALUE, dtype=torch.float64)
    found = slab._scan(decay, added, state)
    assert torch.equal(found[:, 0], state)
    for block in range(4):
        state = decay[:, block, :, None] * state + added[:, block]
        assert_equal(found[:, block + 1], state)


@pytest.mark.parametrize("lengths", [(0,), (1000, 0, 1), (256, 256), (255, 257, 0, 513)])
@pytest.mark.parametrize("reverse", [False, True])
def test_slabs_cover_each_sequence_once_and_share_no_residual(lengths, reverse):
    ends = torch.tensor([0, *lengths]).cumsum(0)
    total = int(ends[-1])
    empty = torch.empty(1, total, 1, 1)
    call = Call(empty, empty, empty, None, None, None, ends, 1.0, reverse, False, {})
    seen, slots = torch.zeros(total, dtype=torch.int64), []
    for index, sequence in enumerate(_sequences(call, 256)):
        parts = sequence.slabs(256, reverse)
        order = [part.start for _, part in parts]
        assert order == sorted(order, reverse=reverse)
        assert all(int(ends[index]) <= part.start < part.stop <= int(ends[index + 1]) for _, part in parts)
        for slot, part in parts:
            slots.append(slot)
            seen[part] += 1
    assert (seen == 1).all()
    assert len(set(slots)) == len(slots)
    assert all(slot < len(lengths) + total // 256 for slot in slots)


def test_a_slab_holds_whole_blocks():
    for heads, key_dim, value_dim in ((1, 1, 1), (4, 128, 128), (32, 512, 512)):
        tokens = _slab_tokens(heads, key_dim, value_dim)
        assert tokens % BLOCK == 0 and tokens >= BLOCK
