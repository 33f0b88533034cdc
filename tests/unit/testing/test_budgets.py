"""Budgets: what they let pass, what they do not, and what never hides."""

from __future__ import annotations

import math

import pytest
import torch

from portable_gla.testing import budgets, cases, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.oracle import Oracle

SEEDS = (1, 2)


def baseline(given):
    return budgets.outputs(Oracle(torch.float32), given.call(), given.do, given.dfinal_state)


@pytest.mark.parametrize("name", [
    "gate-channel-f32", "gate-head-bf16", "gate-constant-f16", "regime-strong-head-f32", "regime-extreme-channel-f16",
    "tokens-0", "batch-0", "dims-1x1", "magnitude-all-1e-3-f32"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_straightforward_computation_passes(name, seed):
    given = inputs.make(cases.named(name), seed)
    expected = budgets.expected(given)
    assert {key: str(budgets.compare(value, expected[key])) for key, value in baseline(given).items()
            if not budgets.compare(value, expected[key]).ok} == {}


def test_a_budget_is_a_few_roundings():
    """None is wider than the data ask for: within 30 units of float32 of what was summed."""
    given = inputs.make(cases.named("gate-channel-f32"), 3)
    expected = budgets.expected(given)
    for name, value in expected.items():
        noise = budgets._rms(value.noise) / budgets._rms(value.truth)
        assert noise < 30 * 2**-24, name


def test_a_tiny_row_is_held_to_its_own_size():
    """dg where exp(g) is tiny: an error that is nothing to its neighbours is an error."""
    given = inputs.make(Case("one strong gate", batch=1, tokens=20), 5)
    given.g[:, 10] = -50.0
    expected = budgets.expected(given)["dg"]
    found = expected.truth.float()
    assert budgets.compare(found, expected).ok
    assert 0 < found[:, 10].abs().max() < 1e-18
    found[:, 10] *= 1.001
    verdict = budgets.compare(found, expected)
    assert not verdict.ok
    assert verdict.where.startswith("row [0, 10") or verdict.where.startswith("element [0, 10")


def test_where_nothing_is_summed_nothing_is_allowed():
    """dg of a first token without a state is 0, and noise there is an error; what underflows is none."""
    given = inputs.make(Case("no state", batch=1, tokens=5), 5)
    expected = budgets.expected(given)["dg"]
    found = expected.truth.float()
    assert found[:, 0].abs().max() == 0
    found[:, 0] = 1e-40
    assert budgets.compare(found, expected).ok
    found[:, 0] = 1e-12
    assert not budgets.compare(found, expected).ok


def test_flushed_underflow_passes():
    """Flushing decays and results below the normal range, as hardware does."""
    given = inputs.make(cases.named("regime-extreme-channel-f32"), 6)
    expected = budgets.expected(given)
    for name, value in baseline(given).items():
        flushed = value.where(value.abs() > torch.finfo(torch.float32).smallest_normal, 0.0)
        assert budgets.compare(flushed, expected[name]).ok, name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails(bad):
    given = inputs.make(cases.named("gate-channel-f32"), 7)
    expected = budgets.expected(given)["o"]
    found = expected.truth.float()
    found[0, 3, 1, 2] = bad
    assert not budgets.compare(found, expected).ok


def test_a_wrong_shape_fails():
    given = inputs.make(cases.named("gate-channel-f32"), 7)
    expected = budgets.expected(given)["o"]
    assert not budgets.compare(expected.truth[..., :1], expected).ok


def test_beyond_the_range_of_the_dtype_anything_may_come():
    given = inputs.make(Case("overflow", batch=1, tokens=4, dtype=torch.float16, magnitudes=(40.0, 40.0, 40.0)), 8)
    expected = budgets.expected(given)["o"]
    assert 0 < expected.ignored.float().mean() < 1
    assert budgets.compare(expected.truth.half(), expected).ok


def test_infinity_passes_where_the_budget_reaches_it_and_nothing_else_does():
    """Of float16: a truth of 65,500 may be rounded to infinity, half of it is wrong, and so is minus infinity."""
    truth, noise = torch.tensor([[65_500.0, 1.0, -65_500.0]]).double(), torch.full((1, 3), 20.0).double()
    expected = budgets.Expected(truth, noise, noise, truth > math.inf, budgets.FACTORS[torch.float16])
    for value, ok in (([math.inf, 1, -math.inf], True), ([32_750, 1, -65_500], False), ([-math.inf, 1, -65_500], False),
                      ([65_500, math.inf, -65_500], False), ([65_500, 1, math.nan], False)):
        assert budgets.compare(torch.tensor([value]).half(), expected).ok == ok


@pytest.mark.parametrize(("dtype", "units"), [
    (torch.float64, 20), (torch.float32, 20), (torch.bfloat16, 2), (torch.float16, 2)])
def test_the_truth_rounded_passes_and_some_units_in_the_last_place_do_not(dtype, units):
    given = inputs.make(Case("rounding", dtype=dtype), 9)
    expected = budgets.expected(given)["o"]
    found = expected.truth.to(dtype)
    assert budgets.compare(found, expected).ok
    assert not budgets.compare(found * (1 + units * torch.finfo(dtype).eps), expected).ok


def test_a_path_that_crosses_a_constant_gate_often_is_one_term():
    """The squares of dg's terms, against every path from a key or the initial state to an output or the final state."""
    given = inputs.make(Case("squares", gate="constant", batch=1, tokens=9, q_heads=1, k_heads=1, v_heads=1,
                             gate_heads=1, key_dim=3, value_dim=2, initial_state="each", final_state=True), 10)
    call, do, dfinal = budgets._converted(given.call(), given, torch.float64)
    q, k, v, dout = call.q[0, :, 0], call.k[0, :, 0], call.v[0, :, 0], do[0, :, 0]
    decay = call.g.exp().item()
    sources = [call.initial_state[0, 0], *torch.einsum("tk,tv->tkv", k, v)]
    readers = [*(call.scale * torch.einsum("tk,tv->tkv", q, dout)), dfinal[0, 0]]
    found = 0.0
    for at, source in enumerate(sources):  # a source is behind gate `at`, which the initial state's first crosses
        for reader, target in enumerate(readers):
            crossed = min(reader + 1, 9) - at
            if crossed > 0:
                found += (crossed * decay**crossed * source * target).square().sum().item()
    assert budgets._squares(call, do, dfinal)["dg"].item() == pytest.approx(found, rel=1e-3)


def test_one_rounding_of_a_score_is_what_a_constant_gate_allows():
    """dg of scores rounded to bfloat16 once, as any computation in it does: within the noise, and not by far."""
    ratios = []
    for seed in range(60):
        given = inputs.make(Case("scores", gate="constant", regime="zero", batch=1, tokens=43, q_heads=1, k_heads=1,
                                 v_heads=1, gate_heads=1, key_dim=8, value_dim=33, dtype=torch.bfloat16,
                                 gate_dtype=torch.float32, initial_state="none", final_state=False), seed)
        expected = budgets.expected(given, rounds_operands=True)["dg"]
        call, do, _ = budgets._converted(given.call(), given, torch.float64)
        scores = call.scale * call.q[0, :, 0] @ call.k[0, :, 0].T
        paths = scores.bfloat16().double() * (do[0, :, 0] @ call.v[0, :, 0].T)
        at = torch.arange(43)
        dg = (paths * (at[:, None] - at).clamp(min=0)).sum()
        ratios.append(((dg - expected.truth) / expected.noise).item())
    assert 0.2 < torch.tensor(ratios).square().mean().sqrt() < 1.0
