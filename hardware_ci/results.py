"""A run's result: one YAML file, written again after every piece of work, and the way to continue an earlier one."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hardware_ci import documents, places

FORMAT = 1
STEPS = ("evidence", "conformance", "sanitizer", "benchmarks", "graphs")
PASSED, FAILED, SKIPPED, INCOMPLETE = "passed", "failed", "skipped", "incomplete"


class ResultError(ValueError):
    """A result file cannot be read, or cannot be continued; the message says which and why."""


@dataclass
class Result:
    """The document of one run, and its file. ``what`` holds plain data only."""

    path: Path
    what: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> dict[str, Any]:
        """What came of each step, by its name."""
        found: dict[str, Any] = self.what.setdefault("steps", {})
        return found

    def outcome(self, step: str) -> str:
        """Tell how a step ended; ``""`` where it has not run."""
        return str(self.steps.get(step, {}).get("outcome", ""))

    def save(self) -> None:
        """Write the file, with the verdict as it stands."""
        self.what["verdict"] = self.verdict()
        self.what["finished"] = now()
        documents.write(self.path, self.what)

    def verdict(self) -> str:
        """Sum up: failed if any part failed, incomplete if any part is missing."""
        outcomes = [self.outcome(step) for step in STEPS]
        floors = [floor["outcome"] for floor in self.what.get("floors", ())]
        if FAILED in outcomes or "missed" in floors:
            return FAILED
        done = all(outcome in (PASSED, SKIPPED) for outcome in outcomes)
        return PASSED if done and self.conforms() else INCOMPLETE

    def conforms(self) -> bool:
        """Tell whether the conformance suite passed, all of it or its quick cases: not a choice of some."""
        return self.outcome("conformance") == PASSED and "only" not in self.steps["conformance"]


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def begin(folder: Path, name: str, what: dict[str, Any]) -> Result:
    """Start a result; its file is named after the device, the backend, the time and the commit."""
    moment = re.sub(r"\D", "", now())
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    file = f"{slug}-{what['backend']}-{moment[:8]}-{moment[8:]}-{what['commit']['sha'][:7]}.yaml"
    return Result(folder / file, {"format": FORMAT, **what, "started": now()})


def load(path: Path) -> Result:
    """Read a result.

    Raises
    ------
    ResultError
        If it is no result file of this format.
    """
    try:
        found = documents.read(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResultError(f"{path}: expected a result file of format {FORMAT}")
    return Result(path, found)


def resume(path: Path, folder: Path, what: dict[str, Any]) -> Result:
    """Continue an earlier result, under its name in ``folder``.

    Raises
    ------
    ResultError
        If it is of another device, backend, commit, or choice of cases: results of two never mix.
    """
    result = load(path)
    for key in ("device", "backend", "commit", "versions", "quick"):
        if result.what.get(key) != what.get(key):
            raise ResultError(f"{path}: expected a result with the same {key}: it has {result.what.get(key)}, "
                              f"this run {what.get(key)}")
    result.path = folder / path.name
    return result


def every(folder: Path = places.RESULTS) -> list[Result]:
    """Read all results of a folder, the oldest first."""
    found = [load(path) for path in folder.glob("*.yaml")]
    return sorted(found, key=lambda result: str(result.what.get("finished", "")))
