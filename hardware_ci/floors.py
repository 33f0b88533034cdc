"""Holds what was timed to the floors of the matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from hardware_ci import documents
from hardware_ci.contestants import FORWARD
from hardware_ci.matrix import Floor
from portable_gla.testing import cases

HELD, MISSED, UNMEASURED = "held", "missed", "not measured"


class Value(NamedTuple):
    """One timed row, as a floor measures it; None: it could not be, and why."""

    row: str
    found: float | None
    reason: str = ""
    pending: bool = False  # it was not timed; otherwise the peer cannot do this shape


def evaluate(floors: Iterable[Floor], shapes: Sequence[dict[str, Any]], backend: str) -> list[dict[str, Any]]:
    """Hold the shapes of a benchmark step to every floor; return an entry per floor.

    A row that could not be measured misses nothing, and is said: a shape that a peer cannot do, beside others that it
    can, is left out of the floor; a shape that was not timed leaves the floor open.
    """
    return [_entry(floor, list(_values(floor, shapes, backend))) for floor in floors]


def _entry(floor: Floor, values: list[Value]) -> dict[str, Any]:
    at_most = floor.measure == "decode"
    measured = [(value.row, value.found) for value in values if value.found is not None]
    wanted = {name: bound for name, bound in (("each", floor.each), ("mean", floor.mean)) if bound is not None}
    missed: list[str] = []
    for row, found in measured:
        if floor.each is not None and not (found <= floor.each if at_most else found >= floor.each):
            missed.append(f"{row}: {found:.3g}")
    mean = math.exp(sum(math.log(found) for _, found in measured) / len(measured)) if measured else None
    complete = bool(measured) and not any(value.pending for value in values)
    if floor.mean is not None and mean is not None and complete and mean < floor.mean:
        missed.append(f"geometric mean: {mean:.3g}")
    outcome = MISSED if missed else HELD if complete else UNMEASURED
    entry: dict[str, Any] = {"name": floor.name, "passes": list(floor.passes), "wanted": wanted, "outcome": outcome}
    if floor.mean is not None and mean is not None:
        entry["mean"] = documents.short(mean)
    entry["found"] = {row: documents.short(found) for row, found in measured}
    if missed:
        entry["missed"] = missed
    reasons = {value.row: value.reason for value in values if value.found is None}
    if reasons:
        entry["not_measured"] = reasons
    return entry


def _values(floor: Floor, shapes: Sequence[dict[str, Any]], backend: str) -> Iterator[Value]:
    by_name = {entry["case"]: entry for entry in shapes}
    # The table says what there is to hold: a shape that was not timed must show as such.
    for case in cases.select("hardware"):
        decode = "decode" in case.tags
        if decode != (floor.measure == "decode") or (floor.tag and floor.tag not in case.tags):
            continue
        if not floor.tokens[0] <= case.tokens <= floor.tokens[1]:
            continue
        if (case.gate != "channel") if floor.measure != "gate" else (case.gate != "head"):
            continue
        for passed in floor.passes if not decode else (FORWARD,):
            row = f"{case.name}, {passed}"
            timed = by_name.get(case.name, {}).get("passes", {}).get(passed)
            if timed is None:
                yield Value(row, None, by_name.get(case.name, {}).get("failed", "not timed"), pending=True)
            elif timed["bytes"] >= floor.least_bytes:
                yield _value(floor, row, timed, by_name, case.name, passed, backend)


def _value(floor: Floor, row: str, timed: dict[str, Any], by_name: dict[str, dict[str, Any]], name: str, passed: str,
           backend: str) -> Value:
    ours = timed["times"][backend]["median"]
    if floor.measure == "copy":
        return Value(row, timed["copy_fraction"])
    if floor.measure == "decode":
        return Value(row, 1 / timed["copy_fraction"])
    if floor.measure == "peer":
        peer = timed["times"].get(floor.peer)
        if peer is None:
            return Value(row, None, timed.get("absent", {}).get(floor.peer, f"{floor.peer} was not timed"))
        return Value(row, peer["median"] / ours)
    twin = by_name.get(name.removesuffix("-head"), {}).get("passes", {}).get(passed)
    if twin is None:
        return Value(row, None, "its twin with per-channel gates was not timed", pending=True)
    return Value(row, twin["times"][backend]["median"] / ours)
