"""One run: recognise the device, then evidence, conformance, sanitizer, and, if these are green, what is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import portable_gla
from hardware_ci import benchmark, conformance, evidence, floors, machine, matrix, results, sanitizer
from hardware_ci.deadline import Deadline
from hardware_ci.results import FAILED, INCOMPLETE, PASSED, SKIPPED, Result
from portable_gla import devices, registry
from portable_gla.cli import verify

Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """What the command line asks of a run."""

    device: torch.device
    out: Path
    backend: str | None = None
    quick: bool = False
    steps: Sequence[str] = results.STEPS
    cases: str | None = None  # only the conformance cases that match
    only: str | None = None  # only the benchmark shapes that match
    jobs: int = 1
    timeout: float | None = None
    seed: int = 0
    resume: Path | None = None
    commit: str | None = None  # what is run, where git does not know


class Run:
    """A run in progress; ``say`` is given a line at a time."""

    def __init__(self, options: Options, say: Say) -> None:
        self.options, self.say = options, say
        self.deadline = Deadline(options.timeout)
        self.here = devices.of(options.device)
        self.row = matrix.recognise(self.here, options.backend)
        self.backend = options.backend or self._due()
        what: dict[str, Any] = {
            "row": self.row.key if self.row else None, "backend": self.backend, "quick": options.quick,
            "device": machine.device_facts(options.device), "versions": machine.software(),
            "portable_gla": portable_gla.__version__, "commit": self._commit(),
            "load": machine.load()}
        if options.resume is None:
            name = self.row.key if self.row else f"unknown {what['device']['name']}"
            self.result = results.begin(options.out, name, what)
        else:
            self.result = results.resume(options.resume, options.out, what)

    def go(self) -> Result:
        """Do the steps that are asked for and not done; return the result, which is on disk at every moment."""
        self._introduce()
        _make_current(self.options.device)
        self._step("evidence", lambda before: evidence.run(
            self.backend, self.options.device, self.row.dtype if self.row else "bfloat16"))
        self._step("conformance", self._conformance)
        self._step("sanitizer", lambda before: sanitizer.run(
            self.backend, self.options.device, self.deadline, before, self.row.dtype if self.row else "bfloat16"))
        self._step("benchmarks", self._benchmarks)
        self._step("graphs", self._graphs)
        self._hold()
        self.result.save()
        return self.result

    def _due(self) -> str:
        """Return the backend that has to serve this device: the matrix's, or, of a device it does not know, the plan's.

        Raises
        ------
        portable_gla.UnsupportedProblem
            If no backend serves a usual call on a device that the matrix does not know.
        """
        if self.row is not None:
            return self.row.backend
        usual = portable_gla.Problem(tokens=4096, heads=16, key_dim=128, value_dim=128, dtype=torch.bfloat16,
                                     training=True, device=self.here)
        found = portable_gla.plan(usual)
        if found.backend is None:
            raise portable_gla.UnsupportedProblem(str(found))
        return found.backend

    def _commit(self) -> dict[str, Any]:
        found = machine.commit()
        return {"sha": self.options.commit, "changed": None} if (
            self.options.commit and found["sha"] == "unknown") else found

    def _introduce(self) -> None:
        name = machine.device_name(self.options.device)
        known = f"row {self.row.key} of the matrix" if self.row else (
            "the matrix does not know it: UNVERIFIED, and run all the same, without floors")
        self.say(f"device       {name} ({self.here}): {known}")
        note = "" if self._as_due() else ", which is not the one that has to serve this device"
        self.say(f"backend      {self.backend}{note}")
        self.say(f"result       {self.result.path}")

    def _as_due(self) -> bool:
        return self.row is None or self.row.backend == self.backend

    def _step(self, name: str, work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Do one step unless it is done or not asked for; whatever it raises is its failure."""
        before = self.result.steps.get(name, {})
        if before.get("outcome") == PASSED:
            self.say(f"{name:<13}passed already")
            return
        if name not in self.options.steps:
            if not before:
                self.result.steps[name] = {"outcome": SKIPPED, "reason": "not asked for"}
            return
        self.say(f"{name:<13}running")
        try:
            found = work(before)
        except Exception as error:  # noqa: BLE001 - recorded as the step's failure; the other steps go on
            found = {**self.result.steps.get(name, {}), "outcome": FAILED, "reason": f"{type(error).__name__}: {error}"}
        self.result.steps[name] = found
        self.result.save()
        self.say(f"{name:<13}{found['outcome']}{_detail(found)}")

    def _keep(self, name: str) -> Callable[[dict[str, Any]], object]:
        """Return what writes a step that is under way to disk."""

        def keep(step: dict[str, Any]) -> None:
            self.result.steps[name] = {**step, "outcome": FAILED if step["outcome"] == FAILED else INCOMPLETE}
            self.result.save()
            done = len(step["shapes"]) if "shapes" in step else step["cases"] - len(step.get("remaining", ()))
            total = done + len(step.get("left_out", step.get("remaining", ())))
            if "shapes" in step:
                self.say(f"             {done} of {total}  {_line(step['shapes'], self.backend)}")
            elif done % 50 == 0:
                self.say(f"             {done} of {total} cases, {step['failed']} checks failed")

        return keep

    def _conformance(self, before: dict[str, Any]) -> dict[str, Any]:
        if self.backend not in registry.names():
            raise RuntimeError(f"{self.backend} has to serve this device and is not installed; there are "
                               f"{', '.join(registry.names())}")
        reasons = verify.reasons_against(self.backend, self.options.device)
        if reasons:
            raise RuntimeError(verify.refusal(self.backend, [self.options.device]))
        names = conformance.chosen(self.options.quick, self.options.cases)
        if before.get("outcome") in (FAILED, SKIPPED) or before.get("only") != self.options.cases:
            before = {}  # a failure is looked at again from the start; other cases are another step
        found = conformance.run(
            self.backend, self.options.device, names, before.get("seed", self.options.seed), jobs=self.options.jobs,
            deadline=self.deadline, before=before, progress=self._keep("conformance"))
        return found if self.options.cases is None else {**found, "only": self.options.cases}

    def _effort(self) -> benchmark.Effort:
        options = self.options
        found = benchmark.Effort(
            self.backend, options.device, options.quick, options.only, self.deadline, options.seed)
        return found if self.row is None else dataclasses.replace(
            found, dtype=getattr(torch, self.row.dtype), widest=self.row.widest)

    def _gate(self) -> None:
        """Refuse to time what is not right: a wrong result has no speed."""
        allowed = {"evidence": {PASSED, SKIPPED}, "conformance": {PASSED}, "sanitizer": {PASSED, SKIPPED}}
        if "sanitizer" not in self.options.steps:
            allowed["sanitizer"].add(INCOMPLETE)  # it was too slow, and is left out knowingly: the verdict stays open
        for name, good in allowed.items():
            outcome = self.result.outcome(name)
            if outcome not in good:
                raise _NotGreenError(f"nothing is timed: {name} is {outcome or 'not run'}")

    def _benchmarks(self, before: dict[str, Any]) -> dict[str, Any]:
        try:
            self._gate()
        except _NotGreenError as reason:
            return {**before, "outcome": SKIPPED, "reason": str(reason)}
        return benchmark.run(self._effort(), before, self._keep("benchmarks"))

    def _graphs(self, before: dict[str, Any]) -> dict[str, Any]:
        timed = self.result.steps.get("benchmarks", {})
        if not timed.get("shapes"):
            return {"outcome": SKIPPED, "reason": "nothing was timed without graphs"}
        return benchmark.replay(self._effort(), timed, before, self._keep("graphs"))

    def _hold(self) -> None:
        shapes = self.result.steps.get("benchmarks", {}).get("shapes", [])
        if self.row is None or not self.row.floors or not self._as_due() or not shapes:
            return
        self.result.what["floors"] = floors.evaluate(self.row.floors, shapes, self.backend)
        for floor in self.result.what["floors"]:
            passes = "" if len(floor["passes"]) > 1 else f", {floor['passes'][0]}"
            self.say(f"floor        {floor['outcome']}: {floor['name']}{passes}"
                     + "".join(f"\n             missed by {row}" for row in floor.get("missed", ())))


class _NotGreenError(Exception):
    """A step before the benchmarks is not green."""


def exit_status(result: Result, deadline: Deadline) -> int:
    """Return 1 if anything failed, 3 if time ran out before all was done, else 0."""
    verdict = result.verdict()
    if verdict == FAILED:
        return 1
    return 3 if verdict == INCOMPLETE and deadline.passed else 0


def _detail(step: dict[str, Any]) -> str:
    parts = []
    if "checks" in step:
        parts.append(f"{step['checks'] - step['failed']} of {step['checks']} checks within budget")
    if "shapes" in step:
        parts.append(f"{len(step['shapes'])} cases timed")
    left = len(step.get("remaining", step.get("left_out", ())))
    if left:
        parts.append(f"{left} left")
    if "reason" in step:
        parts.append(step["reason"])
    lines = [f"\n             {row['case']}: {row['quantity']}: error {row['error']}, budget {row['budget']} "
             f"{row['note']}" for row in step.get("failures", ())[:10]]
    return (": " if parts else "") + ", ".join(parts) + "".join(lines)


def _line(shapes: Sequence[dict[str, Any]], backend: str) -> str:
    """Sum up the latest shape."""
    entry = shapes[-1]
    if "failed" in entry:
        return f"{entry['case']}: FAILED: {entry['failed']}"
    texts = []
    for passed, step in entry["passes"].items():
        times = step["times"]
        if backend not in times:
            texts.append(f"{passed}: {step.get('not_captured', {}).get(backend, 'not timed')}")
            continue
        peers = ", ".join(f"{name} x {figure['ratio']:.3g}" for name, figure in times.items() if name != backend)
        share = f", {step['copy_fraction']:.2f} of a copy" if "copy_fraction" in step else ""
        texts.append(f"{passed} {times[backend]['median'] * 1e3:.3g} ms{share}{f' ({peers})' if peers else ''}")
    return f"{entry['case']}: {'; '.join(texts)}"


def _make_current(device: torch.device) -> None:
    """Make it the current device: events and streams without a device of their own then belong to it."""
    choose = None if device.type == "cpu" else getattr(torch.get_device_module(device), "set_device", None)
    if choose is not None:
        choose(device)
