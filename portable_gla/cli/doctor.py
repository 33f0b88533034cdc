"""``portable-gla doctor``: what this machine has, what works on it, and how to mend what does not.

What is wrong before PyTorch can even be imported is said by ``portable_gla_doctor``, whose checks this shares.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import typer
from rich.table import Table
from rich.text import Text

from portable_gla import devices, registry
from portable_gla.cli import options, output
from portable_gla.cli.smoke import TOLERANCE, Smoke, smoke
from portable_gla_doctor import DeviceFacts, Facts, Finding, Severity, examine, gather
from portable_gla_doctor.facts import with_torch

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def doctor(json: options.Json = False) -> None:
    """Say what this machine has, what each backend says, whether a tiny real run is right, and how to mend faults.

    The run is attention forward and backward and decode_, in float32, on every device that PyTorch sees, compared with
    the float64 oracle.

    Exit status: 0 if all is well (warnings included), 1 if something is broken.
    """
    facts = examine_machine()
    findings = examine(facts)
    with output.progress() as progress:
        here = devices.present()
        runs = [smoke(device) for device in progress.track(here, description="tiny runs")]
    ok = all(run.ok for run in runs) and not any(finding.severity is Severity.ERROR for finding in findings)
    if json:
        output.write_json(_as_data(facts, findings, runs, ok))
    else:
        _write(facts, findings, runs, ok)
    raise typer.Exit(0 if ok else 1)


def examine_machine() -> Facts:
    """Gather the facts, PyTorch's and the backends' included."""
    found = []
    for device in devices.present():
        described = devices.of(device)
        found.append(DeviceFacts(device.type, _name(device), described.arch, described.kind))
    refusals = {info.name: "; ".join(reason.text for reason in info.reasons)
                for info in registry.backends() if not info.available}
    return dataclasses.replace(with_torch(gather(), torch), devices=tuple(found), refusals=refusals)


def _name(device: torch.device) -> str:
    get_name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(get_name(device)) if get_name is not None else str(device)


def _build(facts: Facts) -> str:
    if facts.cuda_build is not None:
        return f"CUDA {facts.cuda_build}"
    return f"ROCm {facts.rocm_build}" if facts.rocm_build is not None else "CPU"


def _as_data(facts: Facts, findings: list[Finding], runs: list[Smoke], ok: bool) -> dict[str, Any]:
    data = dataclasses.asdict(facts)
    return {
        "ok": ok, "torch_error": data.pop("torch_error"), "packages": data.pop("packages"),
        "devices": data.pop("devices"), "facts": data,
        "backends": [{"name": info.name, "available": info.available, "priority": info.priority,
                      "reasons": [reason._asdict() for reason in info.reasons]} for info in registry.backends()],
        "runs": [{**dataclasses.asdict(run), "ok": run.ok} for run in runs],
        "findings": [finding._asdict() for finding in findings]}


def _write(facts: Facts, findings: list[Finding], runs: list[Smoke], ok: bool) -> None:
    output.say(f"Python    {facts.python}, {facts.system}, {facts.cores} cores")
    output.say(f"PyTorch   {facts.packages.get('torch', 'unknown')}, {_build(facts)} build, {facts.threads} threads")
    others = ", ".join(f"{name} {version}" for name, version in facts.packages.items() if name != "torch")
    output.say(f"packages  {others}")
    output.say()
    output.show(_backend_table())
    output.say()
    output.show(_run_table(facts, runs))
    output.say()
    for finding in findings:
        output.say_styled(Text(f"{finding.severity.value} [{finding.code}] ", style=_STYLES[finding.severity]),
                          f"{finding.text}\n  -> {finding.remedy}")
    errors = sum(finding.severity is Severity.ERROR for finding in findings) + sum(not run.ok for run in runs)
    warned = sum(finding.severity is Severity.WARNING for finding in findings)
    if ok:
        output.say("all is well" if not warned else f"it works, with {warned} warning{'s' * (warned > 1)}")
    else:
        output.say(f"broken: {errors} error{'s' * (errors > 1)}")


def _backend_table() -> Table:
    table = Table("backend", "can run here", "priority", "why not, and the way out", box=None, pad_edge=False)
    for info in registry.backends():
        reasons = "\n".join(reason.text + (f" -> {reason.hint}" if reason.hint else "") for reason in info.reasons)
        by_name = info.priority is not None and info.priority < 0
        table.add_row(info.name, "yes" if info.available else "no",
                      "" if info.priority is None else "by name" if by_name else str(info.priority), Text(reasons))
    return table


def _run_table(facts: Facts, runs: list[Smoke]) -> Table:
    table = Table("device", "what it is", "backend", "forward", "backward", "decode", "", box=None, pad_edge=False)
    for run, device in zip(runs, facts.devices, strict=True):
        kind = device.kind or "not in the device table"
        what = f"{device.name}, {device.arch}, {kind}" if device.name != run.device else f"{device.arch}, {kind}"
        errors = ["" if error is None else f"{error:.0e}" for error in (run.forward, run.backward, run.decode)]
        verdict = "right" if run.ok else run.problem or f"WRONG: an error of {TOLERANCE:g} or more"
        table.add_row(run.device, Text(what), f"{run.backend}{' (fallback)' if run.fallback else ''}", *errors,
                      Text(verdict, style="green" if run.ok else "bold red"))
    return table
