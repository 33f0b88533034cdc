"""``portable-gla verify``: what is run, what is printed, how it ends. The checks themselves are tested elsewhere."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import pytest

from portable_gla.cli import verify


class Row(NamedTuple):
    case: str
    quantity: str
    error: float
    budget: float
    ok: bool
    note: str = ""


GREEN = Row("gate-head-f32", "o", 1e-7, 1e-6, True)
RED = Row("regime-resets-channel-f32", "dg", 3e-3, 1e-6, False, "row 5")


@pytest.fixture
def ran(monkeypatch):
    """Stand in for the checks; collects (target, case names, seed) and gives the rows put into ``rows``."""

    class Ran(list):
        rows = (GREEN,)

    ran = Ran()

    def check(target, cases, seed):
        ran.append((target, [case.name for case in cases], seed))
        yield from ran.rows

    monkeypatch.setattr(verify, "check", check)
    return ran


def test_green_is_0_with_a_summary(cli, ran):
    result = cli("verify", "--seed", "7")
    assert result.exit_code == 0
    assert "gate-head-f32" in result.stdout
    assert result.stdout.strip().splitlines()[-1].endswith("seed 7")
    assert all(seed == 7 for _, _, seed in ran)


def test_a_row_outside_its_budget_is_1_and_shown(cli, ran):
    ran.rows = (GREEN, RED)
    result = cli("verify", "--backend", "eager")
    assert result.exit_code == 1
    assert "outside the budget" in result.stdout and "row 5" in result.stdout and "3.00e-03" in result.stdout
    assert "1 of 2 checks within budget" in result.stdout


def test_json(cli, ran):
    ran.rows = (GREEN, RED)
    result = cli("verify", "--backend", "eager", "--json", "--seed", "3")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["ok"] is False and found["seed"] == 3
    assert found["targets"] == [{"backend": "eager", "device": "cpu", "emulated": False, "notes": [],
                                 "rows": [GREEN._asdict(), RED._asdict()]}]


@pytest.mark.parametrize(("error", "budget", "ratio"), [
    (math.nan, 1.0, math.inf), (1.0, 0.0, math.inf), (0.0, 0.0, 0.0), (1.0, 4.0, 0.25),
])
def test_which_row_is_the_worst(error, budget, ratio):
    assert verify._ratio(Row("", "", error, budget, False)) == ratio


def test_backends_are_those_asked_for_or_all_that_can_run_here(cli, ran):
    cli("verify", "--backend", "eager", "--backend", "reference", "--backend", "eager")
    assert [(target.backend, str(target.device)) for target, _, _ in ran] == [("eager", "cpu"), ("reference", "cpu")]
    ran.clear()
    cli("verify", "--device", "cpu")
    assert "eager" in [target.backend for target, _, _ in ran]
    assert "reference" not in [target.backend for target, _, _ in ran]


def test_the_cases_are_the_quick_ones_all_or_a_pattern_s(cli, ran):
    for arguments in (["--quick"], ["--full"], ["--case", "tokens-1*"]):
        cli("verify", "--backend", "eager", *arguments)
    quick, full, pattern = (set(cases) for _, cases, _ in ran)
    assert quick < full and "tokens-1000" in full - quick
    assert pattern and all(name.startswith("tokens-1") for name in pattern)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--backend", "cudnn"], ["--backend", "expected one of", "eager", "'cudnn'"]),
    (["--device", "cuda:9"], ["--device", "expected one of cpu", "'cuda:9'"]),
    (["--device", "gpu"], ["--device", "expected one of cpu", "'gpu'"]),
    (["--emulate", "cudnn"], ["--emulate", "expected one of", "'cudnn'"]),
    (["--emulate", "eager"], ["--emulate", "brings no emulator"]),
    (["--case", "no-such-case"], ["--case", "expected a pattern", "'no-such-case'"]),
    (["--seed", "-1"], ["--seed", "expected an integer of 0 or more", "'-1'"]),
])
def test_a_wrong_argument_is_2_and_named(cli, ran, arguments, words):
    result = cli("verify", *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and result.stdout == "" and not ran
    for word in words:
        assert word in message, message


def test_a_backend_that_raises_is_a_failing_row(cli, monkeypatch):
    checks = pytest.importorskip("portable_gla.testing.checks")

    def verify(backend, device, cases, seed):
        yield checks.CheckRow(cases[0].name, "o", 0.0, 1.0, True)
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(checks, "verify", verify)
    result = cli("verify", "--backend", "eager", "--case", "tokens-15")
    assert result.exit_code == 1 and "RuntimeError: the driver is gone" in result.stdout
    (target,) = json.loads(cli("verify", "--backend", "eager", "--case", "tokens-15", "--json").stdout)["targets"]
    assert [(row["quantity"], row["error"], row["ok"]) for row in target["rows"]] == [
        ("o", 0.0, True), ("raised", "inf", False)]


def test_the_real_checks_of_one_case(cli):
    pytest.importorskip("portable_gla.testing.checks")
    result = cli("verify", "--backend", "eager", "--case", "tokens-15", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["ok"] and found["cases"] == 1
    assert {"o", "dq"} <= {row["quantity"] for row in found["targets"][0]["rows"]}
