"""The case table covers the contract, and its numbers are those of (case, seed)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from portable_gla import devices
from portable_gla.testing import cases, inputs
from portable_gla.testing.cases import CASES, CONFORMANCE, DTYPES, GATES, REGIMES, STRIDES, Case


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_contract_is_covered():
    assert {(case.gate, case.dtype) for case in CONFORMANCE} == set(itertools.product(GATES, DTYPES))
    assert {case.regime for case in CONFORMANCE} == set(REGIMES)
    assert {case.strides for case in CONFORMANCE} == set(STRIDES)
    assert {0, 1, 15, 16, 17, 63, 64, 65, 1000} <= {case.tokens for case in CONFORMANCE}
    for sizes in ({case.key_dim for case in CONFORMANCE}, {case.value_dim for case in CONFORMANCE}):
        assert {1, 3, 17, 64, 100, 128, 256, 512} <= sizes
    packs = [case.lengths for case in CONFORMANCE if case.lengths is not None]
    assert () in packs
    assert any(pack and not any(pack) for pack in packs)
    filled = [pack for pack in packs if any(pack)]
    assert any(pack[0] == 0 for pack in filled) and any(pack[-1] == 0 for pack in filled)
    assert any(0 in pack[1:-1] for pack in filled)
    for part in ("q_heads", "k_heads", "v_heads", "gate_heads"):
        assert any(getattr(case, part) < case.heads for case in CONFORMANCE if case.gate != "none")
    assert {(case.reverse, case.bonus) for case in CONFORMANCE} == set(itertools.product((False, True), repeat=2))


def test_quick_cases_are_small_and_of_every_kind():
    quick = cases.select("quick")
    assert len(quick) < len(CONFORMANCE) / 4
    assert all(case.tokens <= 70 and case.key_dim * case.value_dim <= 6400 for case in quick)
    assert {case.gate for case in quick} == set(GATES)
    assert {case.dtype for case in quick} == set(DTYPES)
    assert {case.regime for case in quick} == set(REGIMES)


@pytest.mark.parametrize("case", CONFORMANCE, ids=str)
def test_inputs_are_those_of_the_case(case):
    given = inputs.make(case, 1)
    again = inputs.make(case, 1)
    for name, value in inputs.tensors(given):
        assert torch.equal(value.nan_to_num(), getattr(again, name).nan_to_num())
        assert not value.isnan().any()
        assert value.stride() == getattr(again, name).stride()
    assert given.call().heads == case.heads
    assert given.call().sequences == case.sequences
    assert given.q.dtype == given.k.dtype == given.v.dtype == given.do.dtype == case.dtype
    assert (given.g is None) == (case.gate == "none")
    problem = case.problem(devices.of(torch.device("cpu")))
    assert (problem.tokens, problem.batch, problem.heads) == (given.q.shape[1], given.q.shape[0], case.heads)
    if given.q.numel() and case.magnitudes[0]:
        assert not torch.equal(given.q, inputs.make(case, 2).q)


def test_strides_are_what_they_are_called():
    made = {kind: inputs.make(Case("x", strides=kind, q_heads=3, k_heads=3, v_heads=3, gate_heads=3), 1)
            for kind in STRIDES}
    assert made["contiguous"].q.is_contiguous()
    assert made["fused"].k.storage_offset() > 0 and made["fused"].k.stride(-1) == 1
    assert made["heads-first"].q.transpose(1, 2).is_contiguous()
    assert made["channels-first"].q.stride(-1) > 1 and made["channels-first"].g.stride(-1) > 1
    assert made["stepped"].v.stride(-1) == 2
    assert made["offset"].q.storage_offset() == 1 and made["offset"].q.is_contiguous()
    assert (made["expanded"].q.stride(0), made["expanded"].k.stride(1), made["expanded"].v.stride(2)) == (0, 0, 0)
    for kind in ("fused", "heads-first", "channels-first", "stepped", "offset"):
        assert torch.equal(made[kind].q, made["contiguous"].q)


def test_regimes_are_what_they_are_called():
    made = {regime: inputs.make(Case("x", regime=regime, tokens=64), 1).g for regime in REGIMES}
    assert all((g <= 0).all() for name, g in made.items() if name not in ("positive", "growth", "mixed", "spikes"))
    assert ((made["huge"] == inputs.HUGE).sum(1) == 1).all()
    assert made["edges"][:, [0, 15, 16, 63]].isneginf().all() and made["edges"][:, 1].isfinite().all()
    assert 0.05 < made["resets"].isneginf().float().mean() < 0.25
    assert made["all-resets"].isneginf().all()
    assert made["mixed"].cumsum(1).abs().max() <= 2.001
    assert made["growth"].sum(1).max() < 88 - math.log(1e6)


def test_seeds_are_fresh():
    assert len({inputs.fresh_seed() for _ in range(20)}) == 20
