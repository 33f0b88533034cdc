"""The support table of the README: every row of the matrix, and what was really verified on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware_ci import matrix, offline, places
from hardware_ci.floors import HELD
from hardware_ci.results import FAILED, Result
from portable_gla import devices

BEGIN, END = "<!-- support:begin -->", "<!-- support:end -->"
_NOTE = "<!-- written by `python -m hardware_ci report` from hardware_ci/matrix.yaml, results/ and offline/ -->"


class ReadmeError(ValueError):
    """The README has no place for the table; the message says what is missing."""


def table(rows: Sequence[matrix.Row], found: Sequence[Result], builds: Path = places.OFFLINE) -> str:
    """Write the table, a sentence on what is missing from it, and what unknown devices showed."""
    lines = ["| device | backend | verified, and how |", "|---|---|---|"]
    for row in rows:
        backend = f"`{row.backend}`" + ("" if row.there else ", to come")
        lines.append(f"| {row.title} | {backend} | {verified(row, found, builds)} |")
    lines += [f"| {other.name} | {_ticked(other.backend)} | {other.verified} |" for other in matrix.others()]
    unknown = [result for result in found if result.what.get("row") is None]
    for result in unknown:
        what = result.what
        lines.append(f"| {what['device']['name']}, which the matrix does not know | `{what['backend']}` | unverified; "
                     f"{_ran(result)} |")
    if not any(result.what["device"]["type"] != "cpu" for result in found):
        lines += ["", "The hardware CI has not run on a GPU or an NPU yet: nothing in this table was measured on one."]
    return "\n".join(lines)


def verified(row: matrix.Row, found: Sequence[Result], builds: Path = places.OFFLINE) -> str:
    """Say what was verified of a row: its latest native run, or else what was done without the device."""
    own = [result for result in found if result.what.get("row") == row.key and result.what["backend"] == row.backend]
    good = [result for result in own if result.conforms()]
    parts = []
    if good:
        parts.append(f"the conformance suite, natively: {_ran(good[-1])}")
        parts += _speed(good[-1])
    if own and own[-1] not in good and own[-1].outcome("conformance") == FAILED:
        parts.append(f"FAILED natively: {_ran(own[-1])}")
    if not good:
        if row.emulated:
            parts.append(row.emulated)
        arches = row.arch or ((devices.table()[row.kind].arch,) if row.kind else ())
        parts += [text for text in (offline.summary(row.backend, arch, builds) for arch in arches) if text]
        parts.append("not yet run on a chip" if parts else "nothing: not yet run")
    return "; ".join(parts)


def insert(readme: str, content: str) -> str:
    """Put a table between the markers of a README.

    Raises
    ------
    ReadmeError
        If it does not have both markers, once each and in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ReadmeError(f"expected a line {BEGIN} and, after it, a line {END}, once each")
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n{_NOTE}\n\n{content}\n\n{END}{rest.partition(END)[2]}"


def _ran(result: Result) -> str:
    what = result.what
    step: dict[str, Any] = result.steps.get("conformance", {})
    sha, changed = what["commit"]["sha"], what["commit"]["changed"]
    commit = f"commit {sha[:7]}{' with changes' if changed else ''}"
    checks = step.get("checks", 0)
    held = f"{checks - step.get('failed', 0):,} of {checks:,} checks"
    cases = f"{step.get('cases', 0)} {'quick ' if what['quick'] else ''}cases"
    return f"{held}, {cases}, {commit}, {str(what.get('finished', ''))[:10]}, {what['device']['name']}"


def _speed(result: Result) -> list[str]:
    floors = result.what.get("floors", ())
    parts = []
    if floors:
        parts.append(f"{sum(floor['outcome'] == HELD for floor in floors)} of {len(floors)} speed floors held")
    sanitizer = result.outcome("sanitizer")
    if sanitizer not in ("", "skipped"):
        parts.append(f"compute-sanitizer {sanitizer}")
    return parts


def _ticked(backend: str) -> str:
    name, comma, rest = backend.partition(",")
    return f"`{name}`{comma}{rest}"
