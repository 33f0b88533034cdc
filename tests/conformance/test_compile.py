"""``torch.compile(fullgraph=True)`` forward and backward, with a T that varies: the bits of the uncompiled call."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import portable_gla
from portable_gla.testing import cases, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target

CASES = {
    "plain": Case("compile-plain", final_state=False),
    "all": Case("compile-all", initial_state="each", reverse=True, bonus=True, q_heads=4, k_heads=1, gate_heads=4),
    "head": Case("compile-head", gate="head", layout="BHTD", dtype=torch.bfloat16),
    "constant": Case("compile-constant", gate="constant", initial_state="broadcast"),
    "packed": Case("compile-packed", lengths=(0, 21, 19), initial_state="each"),
}


def attend(target: Target, case: Case, function: Any, given: inputs.Inputs) -> list[Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.tensors(given)}
    turned = {name: leaf.transpose(1, 2) if case.layout == "BHTD" and name in "qkvg" and leaf.dim() > 1 else leaf
              for name, leaf in leaves.items()}
    with target.pinned():
        result = function(turned, given.cu_seqlens)
        outputs = list(result) if isinstance(result, tuple) else [result]
        loss = sum(((output * output).sum() for output in outputs), torch.zeros((), device=target.device))
        return [*outputs, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("name", CASES)
def test_dynamic_tokens(target: Target, name: str, seed: int, poisoned: None) -> None:
    case = CASES[name]
    if case.dtype == torch.bfloat16 and target.reasons_against(case):  # test_check holds the refusal
        case = dataclasses.replace(case, dtype=torch.float16)

    def function(tensors: dict[str, Tensor], cu_seqlens: Tensor | None) -> Any:
        return portable_gla.attention(
            **tensors, cu_seqlens=cu_seqlens, output_final_state=case.final_state, reverse=case.reverse,
            layout=case.layout, backend=target.backend)

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (40, 65, 17):
        lengths = None if case.lengths is None else (0, 21, tokens - 21 if tokens > 21 else 0)
        one = dataclasses.replace(case, tokens=tokens, lengths=lengths)
        given = inputs.make(one, seed, target.device)
        for found, wanted in zip(attend(target, one, compiled, given), attend(target, one, function, given),
                                 strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert counter.frame_count == 1, "a new T was compiled anew"


def test_inductor(target: Target, seed: int) -> None:
    """Once through the compiler that users have, with operations around the call for it to fuse."""
    def function(x: Tensor, weight: Tensor) -> Tensor:
        q, k, v, g = (x @ weight).unflatten(-1, (4, 2, 8)).unbind(2)
        o = portable_gla.attention(q, k, v, torch.nn.functional.logsigmoid(g), backend=target.backend)
        return torch.tanh(o)  # type: ignore[arg-type]

    torch._dynamo.reset()
    torch.manual_seed(seed)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    weight = torch.randn(16, 64, device=target.device, requires_grad=True)
    with target.pinned():
        for tokens in (20, 33):
            x = torch.randn(2, tokens, 16, device=target.device)
            found, wanted = compiled(x, weight), function(x, weight)
            torch.testing.assert_close(found, wanted)
            torch.testing.assert_close(
                torch.autograd.grad(found.sum(), weight), torch.autograd.grad(wanted.sum(), weight), rtol=1e-4,
                atol=1e-4)


def test_compiled_decode(target: Target, seed: int) -> None:
    case = cases.named("gate-channel-f32")
    given = inputs.make(dataclasses.replace(case, tokens=1, batch=3), seed, target.device)
    assert given.initial_state is not None
    slots = torch.tensor([2, -1, 0], device=target.device)

    def function(state: Tensor) -> Tensor:
        return portable_gla.decode_(given.q, given.k, given.v, given.g, state, slots=slots, backend=target.backend)

    torch._dynamo.reset()
    with torch.no_grad(), target.pinned():
        states = [given.initial_state.clone() for _ in range(2)]
        wanted = function(states[0])
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(states[1])
    assert torch.equal(found, wanted)
    assert torch.equal(*states)
