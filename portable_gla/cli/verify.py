"""``portable-gla verify``: the conformance checks on this machine's devices, as errors against budgets."""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import typer
from rich.table import Table
from rich.text import Text

from portable_gla import devices, planning, registry, testing
from portable_gla.cli import options, output
from portable_gla.problem import Problem, Reason

if TYPE_CHECKING:
    from portable_gla.testing.cases import Case
    from portable_gla.testing.checks import CheckRow


class Target(NamedTuple):
    """A backend on a device, or its emulator on CPU tensors."""

    backend: str
    device: torch.device
    emulated: bool = False

    def __str__(self) -> str:
        return f"{self.backend} emulated" if self.emulated else f"{self.backend} on {self.device}"


def verify(
    device: Annotated[list[str] | None, typer.Option(
        metavar="DEVICE", help="A device of this machine (cpu, cuda:0, npu). Repeatable; default: all.")] = None,
    backend: Annotated[list[str] | None, typer.Option(
        metavar="NAME",
        help="A backend. Repeatable; default: all that can run on the device, the oracle aside.")] = None,
    emulate: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help="Check this backend's kernels in its emulator, on CPU tensors. Repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick/--full", help="The quick cases, or all of them.")] = True,
    case: Annotated[str | None, typer.Option(
        metavar="PATTERN", help="Only cases whose name matches, such as `*reset*`, quick or not.")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Check every backend against the float64 oracle: the errors of outputs and gradients against their budgets.

    A budget is what a straightforward computation in the same dtype gets wrong, times a small factor, plus a rounding;
    it holds for a whole tensor and for every row of it. The table has the worst row per backend and quantity, then
    every row that fails.

    Exit status: 0 if every row is within budget, 1 if one is not, 2 for a wrong argument.
    """
    targets = _targets(device or [], backend or [], emulate or [])
    cases = select_cases(quick, case)
    found = {str(target): list(check(target, cases, seed)) for target in targets}
    ok = all(row.ok for rows in found.values() for row in rows)
    if json:
        output.write_json({"ok": ok, "seed": seed, "cases": len(cases), "targets": [
            {"backend": target.backend, "device": str(target.device), "emulated": target.emulated,
             "notes": list(notes(target)), "rows": [as_data(row) for row in found[str(target)]]}
            for target in targets]})
    else:
        _write(found)
        for target in targets:
            for note in notes(target):
                output.say(f"{target}: {note}")
        failed = sum(not row.ok for rows in found.values() for row in rows)
        total = sum(map(len, found.values()))
        output.say(f"{total - failed} of {total} checks within budget, {len(cases)} cases, seed {seed}")
    raise typer.Exit(0 if ok else 1)


def select_cases(quick: bool, pattern: str | None = None) -> list[Case]:
    """Take cases from the case table that tests and tuning read too."""
    from portable_gla.testing import cases as table  # at its use: plan and doctor start without it

    chosen = [case for case in table.CONFORMANCE if not quick or "quick" in case.tags]
    if pattern is not None:
        chosen = [case for case in table.CONFORMANCE if fnmatch.fnmatch(case.name, pattern)]
    if not chosen:
        raise typer.BadParameter(f"expected a pattern that some case's name matches, such as '*reset*',"
                                 f" got {pattern!r}", param_hint="--case")
    return chosen


def check(target: Target, cases: Iterable[Case], seed: int) -> Iterator[CheckRow]:
    """Run the conformance checks of one target, with a progress bar over the cases.

    A case in which the backend raises is a failing row.
    """
    from portable_gla.testing import checks

    emulation = testing.emulate(target.backend) if target.emulated else contextlib.nullcontext()
    with output.progress() as progress, emulation, _threads_that_help(target):
        for case in progress.track(list(cases), description=str(target)):
            try:
                yield from checks.verify(target.backend, target.device, [case], seed)
            except Exception as error:  # noqa: BLE001 - whatever a backend raises is a finding about it
                yield checks.CheckRow(case.name, "raised", math.inf, 0.0, False, f"{type(error).__name__}: {error}")


def notes(target: Target) -> tuple[str, ...]:
    """Return what the plan of a usual call says of the path that this target takes, if it has several."""
    usual = Problem(tokens=1024, heads=4, key_dim=64, value_dim=64, training=True, device=devices.of(target.device))
    with testing.emulate(target.backend) if target.emulated else contextlib.nullcontext():
        schedule = planning.plan(usual, backend=target.backend).schedule
    return tuple(note for note in (schedule.notes if schedule else ()) if note.startswith("path: "))


@contextlib.contextmanager
def _threads_that_help(target: Target) -> Iterator[None]:
    """Run plain PyTorch operations on one CPU thread.

    The cases are small, and threads that wait for each other make them ten times slower
    on a busy machine. A backend with kernels of its own keeps its threads: they are part of what is checked.
    """
    threads = torch.get_num_threads()
    if target.device.type == "cpu" and registry.get(target.backend).plain:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def as_data(row: CheckRow) -> dict[str, Any]:
    """Write a row as plain data, for JSON."""
    return {"case": row.case, "quantity": row.quantity, "error": row.error, "budget": row.budget, "ok": row.ok,
            "note": row.note}


def failures_table(rows: Iterable[tuple[str, CheckRow]]) -> Table:
    """Tabulate failing rows."""
    table = Table("backend", "case", "quantity", "error", "budget", "note", title="outside the budget",
                  title_justify="left", box=None, pad_edge=False)
    for name, row in rows:
        table.add_row(name, row.case, row.quantity, f"{row.error:.2e}", f"{row.budget:.2e}", Text(row.note))
    return table


def serving(device: torch.device) -> list[str]:
    """List the backends that can run on a device and are chosen without being named."""
    return [name for name in registry.handles()
            if registry.get(name).priority >= 0 and not reasons_against(name, device)]


def reasons_against(backend: str, device: torch.device) -> list[Reason]:
    """Say why a backend can do nothing on a device; empty: it can."""
    if backend in registry.failures():
        return [registry.failures()[backend]]
    found = registry.get(backend)
    plainest = Problem(tokens=64, heads=1, key_dim=64, value_dim=64, device=devices.of(device))
    return [*found.unavailable()] or [*found.reasons_against(plainest)]


def _targets(device_names: list[str], backends: list[str], emulated: list[str]) -> list[Target]:
    targets = []
    for name in options.known_backends(emulated, "--emulate"):
        try:
            registry.emulated_handle(name)
        except ValueError as error:
            raise typer.BadParameter(str(error).partition(": ")[2], param_hint="--emulate") from error
        targets.append(Target(name, torch.device("cpu"), emulated=True))
    if targets and not (device_names or backends):
        return targets
    backends = options.known_backends(backends)
    here = [options.present_device(name) for name in device_names] or devices.present()
    for device in here:
        targets += [Target(name, device) for name in backends or serving(device)
                    if not reasons_against(name, device)]
    for name in backends:
        if not any(target.backend == name for target in targets):
            raise typer.BadParameter(refusal(name, here), param_hint="--backend")
    return targets


def refusal(backend: str, here: Iterable[torch.device]) -> str:
    """Say why a backend runs on none of these devices."""
    reasons = dict.fromkeys(reason for device in here for reason in reasons_against(backend, device))
    return f"expected one that runs on {', '.join(map(str, here))}, got {backend!r}: " + "; ".join(
        reason.text + (f" -> {reason.hint}" if reason.hint else "") for reason in reasons)


def _write(found: dict[str, list[CheckRow]]) -> None:
    table = Table("backend", "what", "checks", "failed", "error / budget", "error", "budget", "in case", box=None,
                  pad_edge=False)
    for column in table.columns[2:7]:
        column.justify = "right"
    for name, rows in found.items():
        groups: dict[str, list[CheckRow]] = {}
        for row in rows:
            groups.setdefault(_promise(row), []).append(row)
        exact = [group for group in groups.values() if all(row.ok and row.error == row.budget == 0 for row in group)]
        held = {what: group for what, group in groups.items() if group not in exact}
        for what, group in sorted(held.items(), key=lambda item: -max(map(_ratio, item[1]))):
            worst = max(group, key=_ratio)
            failed = sum(not row.ok for row in group)
            table.add_row(name, what, str(len(group)), Text(str(failed), style="bold red" if failed else ""),
                          f"{_ratio(worst):.2g}", f"{worst.error:.1e}", f"{worst.budget:.1e}", worst.case)
        if exact:
            table.add_row(name, f"{len(exact)} more, to the bit", str(sum(map(len, exact))), "0", "0", "", "", "")
    output.show(table)
    output.say()
    failed_rows = [(name, row) for name, rows in found.items() for row in rows if not row.ok]
    if failed_rows:
        output.show(failures_table(failed_rows))
        output.say()


def _promise(row: CheckRow) -> str:
    """Return what a row is counted under: all quantities of "segments = 2: dq" and its like together."""
    return row.quantity.partition(": ")[0]


def _ratio(row: CheckRow) -> float:
    if row.error != row.error:  # NaN is worse than anything
        return float("inf")
    if row.budget == 0:
        return 0.0 if row.error == 0 else float("inf")
    return row.error / row.budget
