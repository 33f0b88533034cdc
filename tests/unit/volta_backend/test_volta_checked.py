"""Real cases with every check of the emulator on, and with sums cut as V100 cuts them: still within the budgets."""

from __future__ import annotations

import pytest
import torch
from portable_gla_volta import emulator

from portable_gla.testing import cases, checking, checks
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target, run

TARGET = Target("volta", emulated=True)
HALF = [case for case in cases.CONFORMANCE if case.dtype == torch.float16 and "large" not in case.tags]
SINGLE = [case for case in cases.select("quick") if case.dtype == torch.float32]


def hold(case: Case, seed: int, name: str = "within_budget") -> None:
    check = checks.CHECKS[name]
    if check.applies(case):
        assert [str(row) for row in check(TARGET, case, seed) if not row.ok] == []


@pytest.mark.parametrize("case", HALF, ids=str)
def test_float16_with_truncated_sums(case: Case, seed: int) -> None:
    with emulator.options(truncate=True, checks="all", order=seed + 1):
        hold(case, seed)


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_float32(case: Case, seed: int) -> None:
    with emulator.options(checks="all", order=seed + 1):
        hold(case, seed)


@pytest.mark.parametrize("case", [case for case in HALF if "quick" in case.tags], ids=str)
@pytest.mark.parametrize("name", ["segmented", "decodes"])
def test_segments_and_decoding(case: Case, name: str, seed: int) -> None:
    with emulator.options(truncate=True, checks="all"):
        hold(case, seed, name)


def test_the_order_of_threads_changes_nothing(seed: int) -> None:
    case = cases.named("gate-channel-f16-g-f32")
    found = []
    for order in (0, 1, 2):
        with emulator.options(order=order):
            found.append(run(TARGET, numbers.make(case, seed)))
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


# A program as wide as V may be, of every K, its last columns past the end or not.
WIDE = [Case(f"wide-{key_dim}-{value_dim}-{gate}-{regime}", dtype=torch.float16, gate_dtype=torch.float32, batch=1,
             key_dim=key_dim, value_dim=value_dim, gate=gate, regime=regime, tokens=150, initial_state="each", **more)
        for key_dim, value_dim, gate, regime, more in (
            (32, 128, "channel", "usual", {}), (64, 128, "channel", "range", {"reverse": True}),
            (128, 128, "channel", "slow", {}), (128, 100, "channel", "extreme", {"bonus": True}),
            (128, 128, "head", "usual", {}), (256, 128, "channel", "usual", {}),
            (256, 72, "head", "usual", {"bonus": True}), (20, 200, "none", "usual", {}),
            (129, 65, "constant", "usual", {}))]


@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize("segments", [1, 2])
def test_wide_programs(case: Case, segments: int, seed: int) -> None:
    with emulator.options(truncate=True, checks="all"):
        found = run(TARGET, numbers.make(case, seed), segments=segments)
        rows = checking.held(case, found, checking.expected(TARGET, case, seed))
        assert [str(row) for row in rows if not row.ok] == []


FOUND_AT_RANDOM = [
    # An initial state in float64 for all sequences: its gradient is summed by a kernel that writes float32.
    Case("float64-state", dtype=torch.float16, gate="none", lengths=(16, 65, 0), initial_state="broadcast",
         initial_dtype=torch.float64, reverse=True, bonus=True, k_heads=1),
    # Not a token, and heads that are shared.
    Case("no-token", dtype=torch.float32, lengths=(0,), q_heads=2, k_heads=2, v_heads=4, gate_heads=1,
         initial_state="each"),
    Case("no-token-constant", dtype=torch.float16, lengths=(0, 0), q_heads=2, k_heads=2, v_heads=4, gate_heads=1,
         gate="constant", initial_state="broadcast", bonus=True),
]


@pytest.mark.parametrize("case", FOUND_AT_RANDOM, ids=str)
def test_what_random_cases_have_found(case: Case, seed: int) -> None:
    with emulator.options(checks="all"):
        hold(case, seed)
