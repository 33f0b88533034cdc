"""Several threads: no race shows, and their number does not show in the numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from portable_gla.testing import cases, inputs
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.running import Target, run

NAMES = ("wide-channel-f32", "tokens-1000-slow", "heads-grouped-head", "packed-many", "reverse-bonus", "dims-128x256")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_threads(target: Target, name: str, seed: int, threads: None) -> None:
    case = cases.named(name)
    rows = list(CHECKS["within_budget"](target, case, seed))
    assert all(row.ok for row in rows), "\n".join(map(str, rows))


@pytest.mark.parametrize("name", NAMES)
def test_number_of_threads(target: Target, name: str, seed: int, threads: None) -> None:
    given = inputs.make(cases.named(name), seed, target.device)
    many = run(target, given, segments=1)
    torch.set_num_threads(1)
    one = run(target, given, segments=1)
    assert [key for key in one if not torch.equal(one[key], many[key])] == []
