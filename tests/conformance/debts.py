"""The debts of a backend: ``xfails.txt`` in its folder, one pattern of tests a line, then ``#`` and the reason.

A pattern is a test's name and, in brackets, what it was run on, without the backend; ``*`` stands for anything::

    test_check[within_budget-regime-strong-*]  # exponents are clamped: issue 12

Debts are strict: a test that stands there and passes fails the run, and so does a pattern that no test matches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

BACKENDS = Path(__file__).parents[2] / "backends"


class Debt(NamedTuple):
    pattern: str
    reason: str
    where: str

    def matches(self, test: str) -> bool:
        return re.fullmatch(".*".join(map(re.escape, self.pattern.split("*"))), test) is not None


def read(path: Path) -> list[Debt]:
    """Read one file; none is no debt."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if not pattern:
            continue
        if not reason:
            raise ValueError(f"{path}:{number}: a debt needs a reason: {pattern}  # why")
        found.append(Debt(pattern, reason, f"{path.parent.name}/{path.name}:{number}"))
    return found


def of(backend: str) -> list[Debt]:
    """Read a backend's debts."""
    return read(BACKENDS / backend / "xfails.txt")
