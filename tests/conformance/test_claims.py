"""What backends claim: refusals that hold, plans that do not depend on T, schedules for all that is served."""

from __future__ import annotations

import dataclasses

import pytest

import portable_gla
from portable_gla import devices, registry
from portable_gla.testing import inputs
from portable_gla.testing.cases import CASES, named
from portable_gla.testing.running import Target, run


def test_tokens_do_not_matter(target: Target) -> None:
    """A choice made while tracing with a dynamic T holds for every T."""
    backend = registry.get(target.backend)
    for case in CASES:
        problem = case.problem(devices.of(target.device))
        answers = {tuple(backend.reasons_against(dataclasses.replace(problem, tokens=tokens)))
                   for tokens in (0, 1, 17, 1024, 10**7)}
        assert len(answers) == 1, case


def test_refusals_are_for_people_and_programs(target: Target) -> None:
    for case in CASES:
        for reason in target.reasons_against(case):
            assert reason.code and reason.code == reason.code.lower()
            assert len(reason.text) > 10 and reason.hint, f"{case}: {reason}"


def test_schedules(target: Target) -> None:
    """Whatever is served has a schedule, which moves at least what must be moved; the plan can be printed."""
    for case in CASES:
        if target.reasons_against(case):
            continue
        with target.pinned():
            found = portable_gla.plan(case.problem(devices.of(target.device)), backend=target.backend)
        assert found.schedule is not None
        assert found.schedule.bytes_forward >= found.cost.compulsory_forward, case
        assert found.schedule.bytes_backward >= found.cost.compulsory_backward, case
        assert found.backend in str(found)


def test_an_unknown_pin_is_refused(target: Target, seed: int) -> None:
    case = named("gate-channel-f32")
    reasons = target.reasons_against(case, no_such_part=3)
    assert [reason.code for reason in reasons] == ["pin"]
    assert "no_such_part=3" in reasons[0].text
    with pytest.raises(portable_gla.UnsupportedProblem, match="no_such_part=3"):
        run(target, inputs.make(case, seed, target.device), no_such_part=3)
