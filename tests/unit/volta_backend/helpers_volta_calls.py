"""Small calls through the emulator."""

from __future__ import annotations

import torch

import portable_gla
from portable_gla.problem import Device, Problem
from portable_gla.testing import inputs
from portable_gla.testing.cases import Case

CASES = {
    "channel": Case("volta-channel", dtype=torch.float16, tokens=70, batch=1, initial_state="each"),
    "head": Case("volta-head", dtype=torch.float16, gate="head", tokens=70, batch=1, k_heads=1, final_state=False),
    "constant": Case("volta-constant", gate="constant", tokens=70, batch=1, bonus=True, initial_state="broadcast"),
    "none": Case("volta-none", gate="none", tokens=70, batch=1, final_state=False),
}


def attend(case: Case) -> None:
    """Run a case forward and backward."""
    given = inputs.make(case, 0)
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.tensors(given)}
    result = portable_gla.attention(**leaves, output_final_state=case.final_state, reverse=case.reverse,
                                    backend="volta")
    outputs = result if isinstance(result, tuple) else (result,)
    torch.autograd.grad(sum((x.float().sum() for x in outputs), torch.zeros(())), list(leaves.values()))


def problem_of(case: Case) -> Problem:
    """Return a case's problem in the emulator."""
    return case.problem(Device("cpu", "cpu"))
