"""Bytes and launches of the Triton kernels, counted as they run: the budgets, and the plan's model of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import portable_gla
from portable_gla import devices
from portable_gla.testing import cases, emulate, inputs
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target, run

pytest.importorskip("triton", reason="Triton is not installed")
from portable_gla_triton import emulator

TOKENS = 4096
BUDGETS = {(1, False): 1400, (2, False): 2400, (2, True): 8400}
"""Bytes per token-head at K = V = 128, float16, T = 4,096, by (segments, with backward)."""

COUNTED = Case("traffic", batch=1, tokens=TOKENS, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=128,
               value_dim=128, dtype=torch.float16, final_state=False)


def moved(rows: list[emulator.Traffic]) -> int:
    return sum(row.unique_loaded + row.unique_stored for row in rows)


def counted(case: Case, segments: int, backward: bool) -> list[emulator.Traffic]:
    given = inputs.make(case, 0)
    tensors = {name: value.detach().requires_grad_(backward) for name, value in inputs.tensors(given)}
    with emulator.checking(races=False), emulator.counted() as rows, emulate("triton", segments=segments):
        result = portable_gla.attention(
            **tensors, cu_seqlens=given.cu_seqlens, output_final_state=case.final_state, reverse=case.reverse)
        if backward:
            outputs = result if isinstance(result, tuple) else (result,)
            torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    return list(rows)


@pytest.mark.parametrize(("segments", "backward"), BUDGETS)
def test_budgets(segments: int, backward: bool) -> None:
    rows = counted(COUNTED, segments, backward)
    assert moved(rows) / TOKENS <= BUDGETS[segments, backward], "\n".join(map(str, rows))


@pytest.mark.parametrize("gate", ["head", "constant", "none"])
def test_other_gates_move_less(gate: str) -> None:
    """A gate per head is never expanded to channels in memory: g costs a channel's worth less."""
    rows = counted(dataclasses.replace(COUNTED, gate=gate), 1, False)
    assert moved(rows) / TOKENS <= BUDGETS[1, False] - 2 * 128


MODELLED = [
    Case("model-plain", batch=2, tokens=300, key_dim=64, value_dim=96, dtype=torch.float16, final_state=False),
    Case("model-states", batch=2, tokens=200, key_dim=64, value_dim=64, initial_state="each"),
    Case("model-shared", batch=1, tokens=300, q_heads=4, k_heads=2, v_heads=1, gate_heads=4, key_dim=80, bonus=True,
         dtype=torch.bfloat16),
    Case("model-head", batch=1, tokens=300, gate="head", gate_heads=1, key_dim=80, initial_state="broadcast"),
    Case("model-constant", batch=3, tokens=130, gate="constant", reverse=True),
    Case("model-none", batch=1, tokens=130, gate="none"),
]


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("case", MODELLED, ids=str)
def test_the_plan_predicts_launches_and_bytes(case: Case, segments: int) -> None:
    with emulator.counted() as rows:
        run(Target("triton", emulated=True), inputs.make(case, 1), segments=segments)
    with emulate("triton", segments=segments):
        schedule = portable_gla.plan(case.problem(devices.of(torch.device("cpu"))), backend="triton").schedule
    assert schedule is not None
    assert len(rows) == schedule.launches_forward + schedule.launches_backward
    predicted = schedule.bytes_forward + schedule.bytes_backward
    assert predicted == pytest.approx(moved(rows), rel=0.05), "\n".join(map(str, rows))


def test_at_most_three_launches_forward_and_five_backward() -> None:
    device = devices.named("h200")
    for case in cases.CASES:
        for segments in (1, 2):
            problem = dataclasses.replace(case.problem(device), pins=(("segments", segments),))
            schedule = portable_gla.plan(problem, backend="triton").schedule
            if schedule is not None:
                assert schedule.launches_forward <= 3
                assert schedule.launches_backward <= 5
