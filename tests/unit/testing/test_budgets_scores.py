"""Scores that are rounded once: within the budgets, whatever the signs of what they sum."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from portable_gla.testing import budgets, inputs, scores
from portable_gla.testing.cases import Case
from portable_gla.testing.oracle import Oracle

SEEDS = range(6)


def rounded(given, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """o, dq, dk, dv of one head in float64 but for the scores and their gradients, without gates, states and bonus."""
    call, do, _ = budgets._converted(given.call(), given, torch.float64)
    q, k, v, d = call.q[0, :, 0], call.k[0, :, 0], call.v[0, :, 0], do[0, :, 0]
    found, back = ((x.tril() * call.scale).to(dtype).double() for x in (q @ k.T, d @ v.T))
    named = {"o": found @ v, "dq": back @ k, "dk": back.T @ q, "dv": found.T @ d}
    return {name: value[None, :, None].to(dtype) for name, value in named.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 1), (128, 64), (1, 48)])
@pytest.mark.parametrize("positive", [(), ("q", "k"), ("v", "do")])
def test_rounding_scores_once_passes_and_much_more_does_not(dtype: torch.dtype, key_dim: int, value_dim: int,
                                                            positive: tuple[str, ...]) -> None:
    """Where scores' terms are positive and what scores weigh is not, o cancels, and rows of one element show that."""
    case = Case("scores", gate="none", batch=1, tokens=40, q_heads=1, k_heads=1, v_heads=1, gate_heads=1,
                key_dim=key_dim, value_dim=value_dim, dtype=dtype, initial_state="none", final_state=False)
    for seed in SEEDS:
        given = inputs.make(case, seed)
        for name in positive:
            getattr(given, name).abs_()
        expected = budgets.expected(given, rounds_operands=True)
        coarser = rounded(given, torch.bfloat16)
        for name, value in rounded(given, dtype).items():
            assert budgets.compare(value, expected[name]).ok, name
            if dtype == torch.float16:
                assert not budgets.compare(coarser[name].to(dtype), expected[name]).ok, name


@pytest.mark.parametrize("gate", ["channel", "head", "constant", "none"])
@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("more", [{"reverse": True}, {"lengths": (4, 0, 5)}, {"k_heads": 1}])
def test_squares_are_those_of_every_pair(gate: str, bonus: bool, more: dict[str, object]) -> None:
    """Against pairs one by one: all other keys and readers' do set to zero, what is left is the pair's own term."""
    case = Case("pairs", gate=gate, batch=1, tokens=9, q_heads=2, k_heads=2, v_heads=2, gate_heads=2, key_dim=3,
                value_dim=2, bonus=bonus, initial_state="none", final_state=False)
    given = inputs.make(Case(**{**vars(case), **more}), 3)
    call, do, _ = budgets._converted(given.call(), given, torch.float64)
    wanted: dict[str, torch.Tensor] = {}
    for reader, key, head in itertools.product(range(9), range(9), range(2)):
        only_key, only_reader = torch.zeros_like(call.v), torch.zeros_like(do)
        only_key[:, key, head], only_reader[:, reader, head] = call.v[:, key, head], do[:, reader, head]
        alone = budgets.outputs(Oracle(), dataclasses.replace(call, v=only_key), only_reader, None)
        o = torch.zeros_like(alone["o"])
        o[:, reader] = alone["o"][:, reader]
        dv = torch.zeros_like(alone["dv"])
        dv[:, key] = alone["dv"][:, key]
        if gate in ("head", "constant"):
            # Of a pair's path the square is that of A dA, or more where terms of one cancel.
            q, k = call.q[0, reader, head], call.k[0, key, head % call.k.shape[2]]
            for each in (q * k, do[0, reader, head] * call.v[0, key, head]):
                alone["dg"] = alone["dg"] * (each.square().sum() / each.sum().square()).clamp(min=1.0).sqrt()
        for name, value in {**alone, "o": o, "dv": dv}.items():
            wanted[name] = wanted.get(name, 0.0) + value.square()
    found = scores.squares(call, do)
    assert set(found) == {"o", "dq", "dk", "dv", *["dg"] * (gate != "none"), *["dbonus"] * bonus}
    for name, value in found.items():
        assert torch.allclose(value, wanted[name], rtol=1e-10, atol=1e-30), name


@pytest.mark.parametrize("rounded_one", ["q", "do"])
def test_rounding_one_operand_once_passes_in_the_gradient_of_a_shared_gate(rounded_one: str) -> None:
    """One pair of tokens: dg is A dA, and what is rounded meets the other's sum, whose terms here agree in sign."""
    case = Case("operand", gate="head", batch=1, tokens=2, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=128,
                value_dim=128, dtype=torch.float16, initial_state="none", final_state=False)
    for seed in range(60):
        given = inputs.make(case, seed)
        for name in ("v", "do") if rounded_one == "q" else ("q", "k"):
            getattr(given, name).abs_()
        call, do, _ = budgets._converted(given.call(), given, torch.float64)
        changed = dataclasses.replace(call, q=(call.q * call.scale).half() / call.scale) if rounded_one == "q" else call
        scaled = (do * call.scale).half() / call.scale if rounded_one == "do" else do
        found = budgets.outputs(Oracle(), changed, scaled.double(), None)["dg"]
        expected = budgets.expected(given, rounds_operands=True)["dg"]
        assert budgets.compare(found.half(), expected).ok, seed
