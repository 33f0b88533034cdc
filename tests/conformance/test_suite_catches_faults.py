"""The suite itself is tested: each of the ``seeded_faults`` must be caught by the checks that it names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from seeded_faults import FAULTS, Copy, Fault

from portable_gla import registry
from portable_gla.testing import cases
from portable_gla.testing.checks import CHECKS, CheckRow
from portable_gla.testing.running import Target


def rows(backend: Copy, fault: Fault, seed: int) -> Iterator[CheckRow]:
    registry.register(backend)
    try:
        yield from CHECKS[fault.check](Target("copy"), cases.named(fault.case), seed)
    finally:
        registry.unregister("copy")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_caught(fault: Fault, seed: int) -> None:
    assert CHECKS[fault.check].applies(cases.named(fault.case)), "this check does not run on this case"
    assert not all(row.ok for row in rows(fault.backend(), fault, seed))


@pytest.mark.parametrize(("check", "case"), sorted({(fault.check, fault.case) for fault in FAULTS}))
def test_sound_copy_passes(check: str, case: str, seed: int) -> None:
    assert all(row.ok for row in rows(Copy(), Fault(Copy, check, case), seed))
