"""Times every hardware case of the case table, the backend beside its peers, in one run."""

from __future__ import annotations

import dataclasses
import fnmatch
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

import portable_gla
from hardware_ci import bandwidth, contestants, documents, graphs
from hardware_ci.deadline import Deadline
from hardware_ci.results import FAILED, INCOMPLETE, PASSED, SKIPPED
from portable_gla.cli import timing
from portable_gla.testing import cases
from portable_gla.testing.cases import Case

Step = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """What is timed, and how long that may take."""

    backend: str
    device: torch.device
    quick: bool = False
    only: str | None = None
    deadline: Deadline = field(default_factory=Deadline)
    seed: int = 0
    dtype: torch.dtype = torch.bfloat16
    widest: int = 0  # K or V at most; 0: any

    @property
    def samples(self) -> int:
        """Samples per figure."""
        return 5 if self.quick else 15

    @property
    def seconds(self) -> float:
        """Seconds for the samples of one figure; fewer are taken where they would take longer."""
        return 1.0 if self.quick else 3.0

    def chosen(self) -> list[Case]:
        """List the cases, in this dtype: those tagged "hardware" that are not too wide, or of these the brief ones."""
        return [dataclasses.replace(case, dtype=self.dtype) for case in cases.select("hardware")
                if (not self.quick or "brief" in case.tags)
                and (not self.widest or max(case.key_dim, case.value_dim) <= self.widest)]

    def now(self, names: Iterable[str]) -> list[Case]:
        """List those that are still to be timed (``names``) and asked for in this part of the run."""
        left = set(names)
        return [case for case in self.chosen() if case.name in left
                and (self.only is None or fnmatch.fnmatchcase(case.name, self.only))]


def run(effort: Effort, before: Step | None = None, progress: Callable[[Step], object] = lambda step: None) -> Step:
    """Time what is left; return the step. ``before`` is the step of an earlier part of the same run."""
    done = {entry["case"]: entry for entry in (before or {}).get("shapes", ()) if "failed" not in entry}
    asked = effort.now(case.name for case in effort.chosen() if case.name not in done)
    copies = list((before or {}).get("copies", ()))
    if asked and not effort.deadline.passed:
        copies.append(bandwidth.copy(effort.device, effort.quick))
    for case in asked:
        if effort.deadline.passed:
            break
        done[case.name] = _measure(case, effort, copies[-1]["gb_s"])
        _forget(effort.device)
        progress(_step(effort, done, copies))
    return _step(effort, done, copies)


def replay(effort: Effort, timed: Step, before: Step | None = None,
           progress: Callable[[Step], object] = lambda step: None) -> Step:
    """Time the same calls as replays of CUDA graphs: what is left of them without the host."""
    if effort.device.type != "cuda":
        return {"outcome": SKIPPED, "reason": f"CUDA graphs are for GPUs of type cuda, not {effort.device.type}"}
    names = [entry["case"] for entry in timed.get("shapes", ()) if "failed" not in entry]
    done: dict[str, Step] = {entry["case"]: entry for entry in (before or {}).get("shapes", ())}
    for case in effort.now(name for name in names if name not in done):
        if effort.deadline.passed:
            break
        try:
            done[case.name] = _replay(case, effort)
        except Exception as error:  # noqa: BLE001 - a column more; what stands in its way is recorded
            done[case.name] = {"case": case.name, "passes": {}, "not_timed": _reason(error)}
        _forget(effort.device)
        progress(_step(effort, done))
    return _step(effort, done)


def _measure(case: Case, effort: Effort, copy_gb_s: float) -> Step:
    entry: Step = {
        "case": case.name, "batch": case.batch, "tokens": case.tokens, "heads": case.heads, "key_dim": case.key_dim,
        "value_dim": case.value_dim, "gate": case.gate, "dtype": str(case.dtype).removeprefix("torch."),
        "for": next(tag for tag in ("shape", "sweep", "decode") if tag in case.tags), "copy_gb_s": copy_gb_s,
        "passes": {}}
    try:
        prepared = contestants.field(case, effort.backend, effort.device, effort.seed)
        if effort.backend in prepared.absent:
            raise RuntimeError(prepared.absent[effort.backend])
        for passed, calls in prepared.calls.items():
            entry["passes"][passed] = _times(case, effort, passed, calls, prepared.absent, copy_gb_s)
    except Exception as error:  # noqa: BLE001 - of any kind, it is this backend's failure on this case, and is recorded
        entry["failed"] = _reason(error)
    return entry


def _times(case: Case, effort: Effort, passed: str, calls: contestants.Calls, absent: dict[str, str],
           copy_gb_s: float) -> Step:
    found = contestants.served_by(case, effort.backend, effort.device, passed)
    ready, failed = _warmed(calls, effort.device)
    times, late = timing.interleaved(ready, effort.device, effort.samples, effort.seconds, lambda: None,
                                     timing.cold(effort.device))
    failed |= late
    if effort.backend in failed:
        raise RuntimeError(f"{passed}: {failed[effort.backend]}")
    ours = times[effort.backend].median
    if "decode" in case.tags:
        moved = 2 * contestants.state_bytes(case)
    else:
        moved = found.cost.compulsory_forward + found.cost.compulsory_backward
    step: Step = {
        "served_by": found.backend, "tiles": dict(found.schedule.tiles) if found.schedule else {}, "bytes": moved,
        "copy_fraction": documents.short(moved / ours / 1e9 / copy_gb_s),
        "times": {name: _figure(timed, ours) for name, timed in times.items()}}
    if absent or failed:
        step["absent"] = {**absent, **failed}
    return step


def _warmed(calls: contestants.Calls, device: torch.device) -> tuple[contestants.Calls, dict[str, str]]:
    """Call each once, for kernels to be compiled and tuned; tell apart those that cannot run."""
    ready, failed = {}, {}
    for name, call in calls.items():
        try:
            call()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        except Exception as error:  # noqa: BLE001 - compilers raise what they like; the reason is recorded
            failed[name] = _reason(error)
        else:
            ready[name] = call
    return ready, failed


def _replay(case: Case, effort: Effort) -> Step:
    entry: Step = {"case": case.name, "passes": {}}
    prepared = contestants.field(case, effort.backend, effort.device, effort.seed)
    for passed, calls in prepared.calls.items():
        # A plain-PyTorch path of many thousand launches is no call that anybody captures.
        kept = {name: call for name, call in calls.items() if name == effort.backend or name != "eager"}
        captured, failed = graphs.capture(kept, effort.device)
        times, late = timing.interleaved(captured, effort.device, effort.samples, effort.seconds, lambda: None,
                                         timing.cold(effort.device))
        failed |= late
        ours = times[effort.backend].median if effort.backend in times else None
        entry["passes"][passed] = {"times": {name: _figure(timed, ours) for name, timed in times.items()}}
        if failed:
            entry["passes"][passed]["not_captured"] = failed
    return entry


def _figure(timed: timing.Timing, ours: float | None) -> Step:
    figure: Step = {"median": documents.short(timed.median)}
    if ours is not None:
        figure["ratio"] = documents.short(timed.median / ours)
    return figure | {"samples": [documents.short(sample) for sample in timed.samples]}


def _step(effort: Effort, done: dict[str, Step], copies: list[Step] | None = None) -> Step:
    names = [case.name for case in effort.chosen()]
    failed = [name for name in names if "failed" in done.get(name, {})]
    left = [name for name in names if name not in done]
    step: Step = {"outcome": FAILED if failed else INCOMPLETE if left else PASSED}
    if failed:
        step["reason"] = f"{effort.backend} could not be timed on {', '.join(failed)}"
    if copies is not None:
        step |= {"gates": contestants.GATES_DRAWN, "copies": copies}
    step |= {"shapes": [done[name] for name in names if name in done]}
    if left:
        step["left_out"] = left
    return step


def _forget(device: torch.device) -> None:
    """Give the case's memory back before the next is drawn."""
    gc.collect()
    empty = None if device.type == "cpu" else getattr(torch.get_device_module(device), "empty_cache", None)
    if empty is not None:
        empty()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    kept = lines if isinstance(error, portable_gla.UnsupportedProblem) else lines[:1]
    return ": ".join(filter(None, (type(error).__name__, "\n".join(kept))))
