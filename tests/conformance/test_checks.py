"""Every backend on every case of the table: ``portable_gla.testing.checks``."""

from __future__ import annotations

from collections.abc import Callable

from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.running import Target


def test_check(target: Target, check: str, case: Case, seed: int,
               record_property: Callable[[str, object], None]) -> None:
    rows = list(CHECKS[check](target, case, seed))
    assert rows, "a check that checks nothing"
    for row in rows:
        if row.quantity == "refused":
            record_property("refused", (str(target), case.name, row.note))
    failed = [str(row) for row in rows if not row.ok]
    assert not failed, "\n".join(failed)
