"""The oracle, by which all else is judged: against autograd, finite differences, and forms that are not recurrent."""

from __future__ import annotations

import math

import pytest
import torch

from portable_gla.backend import Call, DecodeCall
from portable_gla.testing import cases, inputs, oracle
from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.oracle import Oracle
from portable_gla.testing.running import Target

DOUBLE = {"dtype": torch.float64, "batch": 2, "tokens": 7, "key_dim": 3, "value_dim": 4}


def quadratic(q, k, v, g, state, bonus, scale):
    """o and the final state as sums over pairs of tokens: written out anew, with nothing of the oracle's."""
    tokens = q.shape[1]
    through = g.cumsum(1)  # from the start to after token t
    o = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    for i in range(tokens):
        # With a bonus, token i reads the state before its own gate and before its own key.
        seen = through[:, i] if bonus is None else through[:, i] - g[:, i]
        total = torch.einsum("bhk,bhk,bhkv->bhv", q[:, i], seen.exp(), state)
        for j in range(i + 1):
            if j < i or bonus is None:
                weight = (q[:, i] * k[:, j] * (seen - through[:, j]).exp()).sum(-1)
            else:
                weight = (q[:, i] * bonus * k[:, j]).sum(-1)
            total = total + weight[..., None] * v[:, j]
        o[:, i] = scale * total
    final = through[:, -1, :, :, None].exp() * state
    for j in range(tokens):
        decayed = k[:, j] * (through[:, -1] - through[:, j]).exp()
        final = final + decayed[..., None] * v[:, j, :, None]
    return o, final


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("regime", ["usual", "slow", "positive", "mixed"])
def test_recurrence_is_the_sum_over_pairs(bonus, regime):
    given = inputs.make(Case("pairs", **DOUBLE, bonus=bonus, regime=regime, initial_state="each"), 3)
    arguments = (given.q, given.k, given.v, given.g, given.initial_state, given.bonus, given.scale)
    for found, wanted in zip(oracle.recurrence(*arguments), quadratic(*arguments), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("regime", ["usual", "strong", "resets", "growth"])
def test_adjoint_is_autograd(bonus, regime):
    given = inputs.make(Case("adjoint", **DOUBLE, bonus=bonus, regime=regime, initial_state="each"), 4)
    leaves = [x.detach().requires_grad_() for _, x in inputs.tensors(given)]
    q, k, v, g, state, *rest = leaves
    u = rest[0] if rest else None
    outputs = oracle.recurrence(q, k, v, g, state, u, given.scale)
    wanted = torch.autograd.grad(outputs, leaves, [given.do, given.dfinal_state])
    with torch.no_grad():
        found = oracle.adjoint(q, k, v, g, state, u, given.scale, given.do, given.dfinal_state)
    for left, right in zip(found, wanted, strict=False):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)
    assert found[5] is None if u is None else found[5] is not None


@pytest.mark.parametrize("fields", [
    {}, {"gate": "head"}, {"gate": "constant"}, {"gate": "none"}, {"bonus": True}, {"reverse": True},
    {"q_heads": 1, "gate_heads": 1}, {"k_heads": 1, "v_heads": 1, "bonus": True, "reverse": True},
    {"lengths": (0, 3, 4, 0), "initial_state": "each"}, {"initial_state": "broadcast", "reverse": True},
    {"lengths": (2, 0, 3), "initial_state": "broadcast", "bonus": True, "gate": "head", "gate_heads": 1},
], ids=str)
def test_gradients_are_those_of_finite_differences(fields):
    """Through the public call, so operators and autograd are in it: gradcheck perturbs every input."""
    import portable_gla

    case = Case("gradcheck", **{**DOUBLE, "tokens": 5, **fields})
    given = inputs.make(case, 5)
    names, leaves = zip(*((name, x.detach().requires_grad_()) for name, x in inputs.tensors(given)), strict=True)

    def function(*tensors):
        named = dict(zip(names, tensors, strict=True))
        return portable_gla.attention(
            named["q"], named["k"], named["v"], named.get("g"), initial_state=named.get("initial_state"),
            output_final_state=True, cu_seqlens=given.cu_seqlens, reverse=case.reverse, bonus=named.get("bonus"),
            backend="reference")

    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["heads-grouped-channel", "heads-mixed-head", "heads-gate-most-constant"])
def test_heads_are_shared_as_the_contract_says(name):
    given = inputs.make(cases.named(name), 6)
    heads = given.case.heads
    call = given.call()
    full = {key: getattr(call, key)[:, :, [h * getattr(call, key).shape[2] // heads for h in range(heads)]]
            for key in "qkv"}
    g = call.g[[h * call.g.shape[0] // heads for h in range(heads)]] if call.g.dim() == 1 else call.g[
        :, :, [h * call.g.shape[2] // heads for h in range(heads)]]
    wide = Call(full["q"], full["k"], full["v"], g, call.initial_state, None, None, call.scale, False, True, {})
    for found, wanted in zip(Oracle().forward(call, save=False)[:2], Oracle().forward(wide, save=False)[:2],
                             strict=True):
        assert torch.equal(found, wanted)


def test_a_reset_forgets_exactly():
    given = inputs.make(Case("reset", **DOUBLE, initial_state="each"), 7)
    given.g[:, 4] = -math.inf
    whole, _, _ = Oracle().forward(given.call(), save=False)
    call = given.call()
    late = Call(call.q[:, 4:], call.k[:, 4:], call.v[:, 4:], call.g[:, 4:], None, None, None, call.scale, False, False,
                {})
    assert torch.equal(whole[:, 4:], Oracle().forward(late, save=False)[0])
    dg = Oracle().backward(call, torch.empty(0), given.do, given.dfinal_state).g
    assert dg.isfinite().all() and (dg[:, 4] == 0).all()


def test_a_constant_gate_of_one_head_by_hand():
    """T = 2, K = V = 1: o_2 = scale q_2 (e^g k_1 v_1 + k_2 v_2)."""
    q, k, v = (torch.tensor(x, dtype=torch.float64).reshape(1, 2, 1, 1) for x in ([2.0, 3.0], [5.0, 7.0], [11.0, 13.0]))
    g = torch.tensor([math.log(0.5)], dtype=torch.float64)
    o, final, _ = Oracle().forward(Call(q, k, v, g, None, None, None, 0.1, False, True, {}), save=False)
    assert o.flatten().tolist() == pytest.approx([0.1 * 2 * 55, 0.1 * 3 * (27.5 + 91)])
    assert final.item() == pytest.approx(118.5)
    bonus = torch.tensor([[2.0]], dtype=torch.float64)
    o, final, _ = Oracle().forward(Call(q, k, v, g, None, bonus, None, 0.1, False, True, {}), save=False)
    assert o.flatten().tolist() == pytest.approx([0.1 * 2 * 2 * 55, 0.1 * 3 * (55 + 2 * 91)])
    assert final.item() == pytest.approx(118.5)


def test_decoding_is_the_recurrence():
    given = inputs.make(Case("decode", **DOUBLE, initial_state="each"), 8)
    o, final, _ = Oracle().forward(given.call(), save=False)
    state, out = given.initial_state.clone(), torch.empty_like(o)
    Oracle().decode(DecodeCall(given.q, given.k, given.v, given.g, state, None, None, given.scale, out))
    torch.testing.assert_close(out, o)
    torch.testing.assert_close(state, final)


def test_bits_do_not_follow_strides():
    """With K = 1 PyTorch's sum over V took another order where v lay channels first."""
    target = Target("reference")
    case = Case("strides", lengths=(1,), tokens=1, batch=1, q_heads=1, k_heads=1, v_heads=2, gate_heads=1, key_dim=1,
                value_dim=64, dtype=torch.float64, initial_state="each", final_state=False, strides="channels-first")
    for seed in range(5):
        assert [str(row) for row in CHECKS["strided"](target, case, seed) if not row.ok] == []
