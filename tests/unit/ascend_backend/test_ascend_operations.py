"""The PyTorch operations, on CPU tensors: the contract whole, and what only this path has."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers_ascend import TARGET
from portable_gla_ascend.operations import layout, levels
from portable_gla_ascend.operations.pairs_channel import ChannelPairs
from portable_gla_ascend.operations.pairs_scalar import ScalarPairs

from portable_gla.testing import cases, checks, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.running import run

HARD = ("wide-head-bf16", "tokens-1000-slow-bf16", "tokens-1000-range-packed", "dims-512x512-bf16",
        "packed-many-reverse-bonus",
        "heads-mixed-head", "regime-spikes-bonus-f32", "regime-huge-packed-f32", "regime-extreme-channel-f16",
        "strides-expanded-bf16-head", "reverse-bonus-tokens-129")


@pytest.mark.parametrize("case", [*cases.select("quick"), *map(cases.named, HARD)], ids=str)
def test_conformance(case, seed):
    rows = [row for check in checks.CHECKS.values() if check.applies(case) for row in check(TARGET, case, seed)]
    assert rows and all(row.ok for row in rows), "\n".join(str(row) for row in rows if not row.ok)


@pytest.mark.parametrize("name", ["wide-channel-f32", "packed-many-channel-bf16", "wide-head-bf16", "tokens-1000-slow",
                                  "reverse-bonus-tokens-129"])
def test_slabs_do_not_show(name, seed, monkeypatch):
    """A long call is computed piece by piece, and gives the bits of one piece, but for sums over all tokens."""
    given = inputs.make(cases.named(name), seed)
    whole = run(TARGET, given)
    for elements in (1, 2**14):
        monkeypatch.setattr(layout, "ELEMENTS", elements)
        parts = run(TARGET, given)
        assert {key for key in whole if not torch.equal(whole[key], parts[key])} <= {"dbonus"}
        assert all(torch.allclose(whole[key], parts[key], rtol=1e-5, atol=1e-4) for key in whole)


def test_rows_cover_every_token_once():
    lengths = (3, 130, 0, 64, 1, 65)
    case = Case("pack", lengths=lengths)
    for reverse in (False, True):
        call = dataclasses.replace(inputs.make(case, 1).call(), reverse=reverse)
        tokens = torch.arange(sum(lengths), dtype=torch.float32).view(1, -1, 1, 1) + 1
        blocks = list(layout.blocks(call))
        rows = [slab.load(tokens) for block in blocks for slab in block.slabs(3)]
        seen = torch.cat(rows).flatten()
        assert seen[seen > 0].sort().values.tolist() == (tokens.flatten()).tolist()
        back = torch.zeros_like(tokens)
        for block in blocks:
            for slab in block.slabs(3):
                slab.store(back, slab.load(tokens))
        assert torch.equal(back, tokens)


def test_levels_have_every_pair_once():
    count = torch.zeros(1, 64, 64)
    for level in range(levels.LEVELS):
        levels.corner(count, level).add_(1)
    assert torch.equal(count[0], torch.ones(64, 64).tril(-1))


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("extreme", [0.0, -1e5, -math.inf])
def test_both_kinds_of_pairs_agree(bonus, extreme, seed):
    """A gate that all channels share, in either arrangement: as one product, and level by level."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, 5, 64, 8)
    g = torch.nn.functional.logsigmoid(torch.randn(5, 64))
    g[:, ::7] += extreme
    u = torch.randn(5, 8) if bonus else None
    one, other = ScalarPairs(q, k, g, 0.3, u), ChannelPairs(q, k, g[..., None].expand(-1, -1, 8), 0.3, u)
    for name in ("scores", "q_in", "k_out"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(other.scores).all()
    dscores, dq, dk = torch.randn(5, 64, 64), torch.randn(5, 64, 8), torch.randn(5, 64, 8)
    through = torch.randn(5, 1)
    left = one.backward(dscores, dq.clone(), dk.clone(), through)
    right = other.backward(dscores, dq.clone(), dk.clone(), through.expand(-1, 8) / 8)
    own = torch.zeros(1) if bonus else 0.3 * dscores.diagonal(dim1=1, dim2=2)[..., None]
    torch.testing.assert_close(left[0], right[0] + own * k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left[1], right[1] + own * q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left[2], right[2].sum(-1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_multiplied_as_it_is(monkeypatch, seed):
    """The matrix unit gets bfloat16 operands in every product but those of a per-head gate's gradient."""
    seen = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: (seen.append((a.dtype, b.dtype)), bmm(a, b))[1])
    run(TARGET, inputs.make(cases.named("gate-channel-bf16"), seed))
    assert seen and set(seen) == {(torch.bfloat16, torch.bfloat16)}
