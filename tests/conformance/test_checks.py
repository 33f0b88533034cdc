"""Every backend on every case of the table: ``portable_gla.testing.checks``."""

from __future__ import annotations

from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.running import Target


def test_check(target: Target, check: str, case: Case, seed: int) -> None:
    rows = list(CHECKS[check](target, case, seed))
    assert rows, "a check that checks nothing"
    failed = [str(row) for row in rows if not row.ok]
    assert not failed, "\n".join(failed)
