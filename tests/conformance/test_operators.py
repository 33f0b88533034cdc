"""The operators as PyTorch sees them: ``opcheck``, autocast, second derivatives, requests for no gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import portable_gla
from portable_gla import registry
from portable_gla.testing import inputs
from portable_gla.testing.cases import Case, named
from portable_gla.testing.running import Target

CASES = {
    "plain": Case("opcheck-plain", final_state=False, tokens=20),
    "all": Case("opcheck-all", tokens=20, initial_state="broadcast", bonus=True, q_heads=4, k_heads=1, gate_heads=4,
                strides="heads-first"),
    "packed": Case("opcheck-packed", lengths=(0, 13, 7), initial_state="each", gate="head", reverse=True),
    "constant": Case("opcheck-constant", tokens=20, gate="constant"),
    "ungated-f16": Case("opcheck-ungated", tokens=20, gate="none", dtype=torch.float16),
}


def handle(target: Target) -> str:
    return registry.emulated_handle(target.backend) if target.emulated else target.backend


def arguments(target: Target, case: Case, seed: int, requires_grad: bool) -> tuple[object, ...]:
    given = inputs.make(case, seed, target.device)
    leaves = {name: value.detach().requires_grad_(requires_grad) for name, value in inputs.tensors(given)}
    return (leaves["q"], leaves["k"], leaves["v"], leaves.get("g"), leaves.get("initial_state"), leaves.get("bonus"),
            given.cu_seqlens, given.scale, case.reverse, case.final_state, handle(target), "")


def opcheck(target: Target, operator: object, args: tuple[object, ...]) -> None:
    """All that PyTorch checks of an operator; how it registers autograd, only on devices where PyTorch can look."""
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if target.device.type not in ("cpu", "cuda", "xpu"):
        utilities.remove("test_autograd_registration")
    torch.library.opcheck(operator, args, test_utils=utilities)


@pytest.mark.parametrize("name", CASES)
def test_opcheck(target: Target, name: str, seed: int, poisoned: None) -> None:
    case = CASES[name]
    forward, backward = torch.ops.portable_gla.fwd.default, torch.ops.portable_gla.bwd.default
    opcheck(target, forward, (*arguments(target, case, seed, True), True))
    plain = arguments(target, case, seed, False)
    opcheck(target, forward, (*plain, False))
    given = inputs.make(case, seed, target.device)
    residual = forward(*plain, True)[2]
    opcheck(target, backward, (*plain, residual, given.do, given.dfinal_state))


@pytest.mark.parametrize("slots", [False, True])
def test_opcheck_decode(target: Target, slots: bool, seed: int, poisoned: None) -> None:
    case = dataclasses.replace(named("gate-channel-f32"), tokens=2, batch=3, bonus=True)
    given = inputs.make(case, seed, target.device)
    opcheck(target, torch.ops.portable_gla.decode.default, (
        given.q, given.k, given.v, given.g, given.initial_state,
        torch.tensor([2, -1, 0], device=target.device) if slots else None, given.bonus, given.scale, handle(target),
        torch.empty_like(given.do)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.float16])
def test_autocast(target: Target, dtype: torch.dtype, gate_dtype: torch.dtype, seed: int, poisoned: None) -> None:
    """q, k and v are cast as a matrix product's operands are; g keeps float32; gradients are the inputs' dtypes."""
    given = inputs.make(named("gate-channel-f32"), seed, target.device)
    assert given.g is not None and given.initial_state is not None
    q, k, v = (x.detach().requires_grad_() for x in (given.q, given.k, given.v))
    g = given.g.to(gate_dtype).requires_grad_()
    if target.reasons_against(dataclasses.replace(given.case, dtype=dtype, gate_dtype=gate_dtype)):
        with target.pinned(), torch.autocast(target.device.type, dtype=dtype), \
                pytest.raises(portable_gla.UnsupportedProblem):
            portable_gla.attention(q, k, v, g, backend=target.backend)
        return
    with target.pinned():
        with torch.autocast(target.device.type, dtype=dtype):
            o, state = portable_gla.attention(q, k, v, g, initial_state=given.initial_state, output_final_state=True,
                                              backend=target.backend)
            found = [o, state, *torch.autograd.grad((o.float() ** 2).sum() + state.sum(), (q, k, v, g))]
        cast = [x.to(dtype) for x in (q, k, v)]
        gate = g if gate_dtype == torch.float32 else g.to(dtype)
        o, state = portable_gla.attention(*cast, gate, initial_state=given.initial_state, output_final_state=True,
                                          backend=target.backend)
        wanted = [o, state, *torch.autograd.grad((o.float() ** 2).sum() + state.sum(), (q, k, v, g))]
    assert [x.dtype for x in found] == [dtype, torch.float32, *[torch.float32] * 3, gate_dtype]
    assert all(torch.equal(left, right) for left, right in zip(found, wanted, strict=True))


def test_autocast_leaves_float64_alone(target: Target, seed: int) -> None:
    given = inputs.make(named("gate-channel-f64"), seed, target.device)
    if target.reasons_against(given.case):
        return  # test_check holds the refusal
    with target.pinned(), torch.autocast(target.device.type, dtype=torch.bfloat16):
        assert portable_gla.attention(given.q, given.k, given.v, given.g, backend=target.backend).dtype == torch.float64


def test_second_derivative_is_refused(target: Target, seed: int) -> None:
    given = inputs.make(named("gate-channel-f32"), seed, target.device)
    q = given.q.detach().requires_grad_()
    with target.pinned():
        o = portable_gla.attention(q, given.k, given.v, given.g, backend=target.backend)
        (dq,) = torch.autograd.grad((o ** 2).sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            dq.sum().backward()


def test_backward_outside_the_context(target: Target, seed: int) -> None:
    """Forward and backward of one call run on one backend under one plan, wherever the backward pass runs."""
    given = inputs.make(named("gate-channel-f32"), seed, target.device)
    q = given.q.detach().requires_grad_()
    found = []
    for inside in (True, False):
        with target.pinned(segments=1):
            o = portable_gla.attention(q, given.k, given.v, given.g, backend=target.backend)
            if inside:
                found.append(torch.autograd.grad(o, q, given.do)[0])
        if not inside:
            found.append(torch.autograd.grad(o, q, given.do)[0])
    assert torch.equal(*found)


def test_nothing_is_kept_without_gradients(target: Target, seed: int) -> None:
    given = inputs.make(named("gate-channel-f32"), seed, target.device)
    with target.pinned():
        assert portable_gla.attention(given.q, given.k, given.v, given.g, backend=target.backend).grad_fn is None
    residual = torch.ops.portable_gla.fwd.default(*arguments(target, given.case, seed, False), False)[2]
    assert residual.numel() == 0
