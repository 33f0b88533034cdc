"""The conformance suite on the device, memory poisoned with NaN: worst rows, failures, and what is left to do."""

from __future__ import annotations

import fnmatch
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from hardware_ci import documents
from hardware_ci.deadline import Deadline
from hardware_ci.results import FAILED, INCOMPLETE, PASSED
from portable_gla import registry
from portable_gla.testing import cases, checks
from portable_gla.testing.checks import CheckRow

_MOST_FAILURES = 200  # that a file lists; their number is always given

Found = tuple[str, list[CheckRow]]  # a case's name and its rows


def chosen(quick: bool, pattern: str | None = None) -> list[str]:
    """Name the cases: all of the conformance table, the quick ones, or those that match."""
    table = cases.CONFORMANCE
    if pattern is not None:
        return [case.name for case in table if fnmatch.fnmatchcase(case.name, pattern)]
    return [case.name for case in table if not quick or "quick" in case.tags]


def check(backend: str, device: str, name: str, seed: int) -> Found:
    """Run every check on one case; whatever the backend raises is a failing row."""
    threads = torch.get_num_threads()
    try:
        where, case = torch.device(device), cases.named(name)
        if where.type != "cpu" or registry.get(backend).plain:
            torch.set_num_threads(1)  # the oracle's many small operations gain nothing from more
        return name, list(checks.verify(backend, where, [case], seed))
    except Exception as error:  # noqa: BLE001 - a finding about the backend, which must not end the run
        return name, [CheckRow(name, "raised", math.inf, 0.0, False, f"{type(error).__name__}: {error}")]
    finally:
        torch.set_num_threads(threads)


def run(backend: str, device: torch.device, names: Sequence[str], seed: int, *, jobs: int = 1,
        deadline: Deadline | None = None, before: dict[str, Any] | None = None,
        progress: Callable[[dict[str, Any]], object] = lambda step: None) -> dict[str, Any]:
    """Run the cases that are left, in ``jobs`` processes; return the step.

    ``before`` is the step of an earlier part of the same run; ``progress`` is given the step as it grows.
    """
    tally = _Tally(names, seed, before)
    deadline = deadline or Deadline()
    left = [name for name in names if name in tally.remaining]
    arguments = [(backend, str(device), name, seed) for name in left]
    for name, rows in _serial(arguments, deadline) if jobs == 1 else _parallel(arguments, jobs, deadline):
        tally.add(name, rows)
        progress(tally.step())
    return tally.step()


def _serial(arguments: Iterable[tuple[str, str, str, int]], deadline: Deadline) -> Iterator[Found]:
    for each in arguments:
        if deadline.passed:
            return
        yield check(*each)


def _parallel(arguments: Sequence[tuple[str, str, str, int]], jobs: int, deadline: Deadline) -> Iterator[Found]:
    # Spawned, not forked: a device's context does not survive a fork.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    futures: dict[Future[Found], str] = {pool.submit(check, *each): each[2] for each in arguments}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool as error:
                yield futures[future], [CheckRow(futures[future], "raised", math.inf, 0.0, False,
                                                 f"a process died while this or another case ran: {error}")]
            if deadline.passed:
                return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Tally:
    """Adds rows up into a step, starting from that of an earlier part."""

    def __init__(self, names: Sequence[str], seed: int, before: dict[str, Any] | None) -> None:
        before = before or {}
        self.cases = len(names)
        self.seed = seed
        done = set(names) - set(before.get("remaining", names))
        self.remaining = dict.fromkeys(name for name in names if name not in done)
        self.count, self.failed = before.get("checks", 0), before.get("failed", 0)
        self.failures: list[dict[str, Any]] = list(before.get("failures", ()))
        self.refused: dict[str, int] = dict(before.get("refused", {}))
        self.worst: dict[tuple[str, str], dict[str, Any]] = {
            (row["quantity"], row["dtype"]): row for row in before.get("worst", ())}

    def add(self, name: str, rows: Iterable[CheckRow]) -> None:
        self.remaining.pop(name, None)
        dtype = str(cases.named(name).dtype).removeprefix("torch.")
        for row in rows:
            self.count += 1
            if row.quantity == "refused" and row.ok:
                self.refused[row.note] = self.refused.get(row.note, 0) + 1
            if not row.ok:
                self.failed += 1
                self.failures.append({"case": row.case, "quantity": row.quantity, "error": documents.short(row.error),
                                      "budget": documents.short(row.budget), "note": row.note})
            if row.budget > 0 or not row.ok:
                self._hold(row, dtype)

    def _hold(self, row: CheckRow, dtype: str) -> None:
        # "segments = 2: dq" and "dq" are one quantity, computed in two ways.
        quantity = row.quantity.rpartition(": ")[2]
        ratio = row.error / row.budget if row.budget else math.inf
        known = self.worst.get((quantity, dtype))
        if known is None or not ratio <= known["ratio"]:  # a NaN is worse than anything
            self.worst[quantity, dtype] = {
                "quantity": quantity, "dtype": dtype, "ratio": documents.short(ratio),
                "error": documents.short(row.error), "budget": documents.short(row.budget), "case": row.case}

    def step(self) -> dict[str, Any]:
        outcome = FAILED if self.failed else INCOMPLETE if self.remaining else PASSED
        found: dict[str, Any] = {
            "outcome": outcome, "seed": self.seed, "poisoned": "NaN", "cases": self.cases, "checks": self.count,
            "failed": self.failed}
        if self.refused:
            found["refused"] = self.refused
        found["worst"] = sorted(self.worst.values(), key=lambda row: (row["quantity"], row["dtype"]))
        if self.failures:
            found["failures"] = self.failures[:_MOST_FAILURES]
        if self.remaining:
            found["remaining"] = list(self.remaining)
        return found
