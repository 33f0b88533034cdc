"""Chooses the backends, says where each one runs, and holds their debts against them."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import debts
import pytest
import torch

import portable_gla
from portable_gla.testing import cases, checks, running
from portable_gla.testing.poison import poisoned_memory
from portable_gla.testing.running import Target

TARGETS = pytest.StashKey[list[Target]]()
ABSENT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    named = config.getoption("--backend")
    device = config.getoption("--device")
    known = [info.name for info in portable_gla.backends()]
    found, absent = [], {}
    for name in named or known:
        if name not in known:
            raise pytest.UsageError(f"--backend: expected one of {', '.join(known)}, got {name!r}")
        target, reasons = running.find(name, None if device is None else torch.device(device))
        if target is None:
            absent[name] = "; ".join(reason.text for reason in reasons)
        else:
            found.append(target)
    if named and absent:
        raise pytest.UsageError("\n".join(f"--backend {name}: {why}" for name, why in absent.items()))
    config.stash[TARGETS], config.stash[ABSENT] = found, absent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say on what the suite ran, and what was refused: at the end, where it is seen with ``-q`` too."""
    refused = collections.Counter(
        (target, note) for target, _, note in {
            value for report in terminalreporter.stats.get("passed", []) for key, value in report.user_properties
            if key == "refused"})
    for line in described(config):
        terminalreporter.write_line(line)
    for (target, note), count in sorted(refused.items()):
        terminalreporter.write_line(f"backend {target}: refused {count} cases, as it said: {note}")


def described(config: pytest.Config) -> list[str]:
    """Say where each backend is tested, or why it is not."""
    lines = []
    for target in config.stash[TARGETS]:
        where = "EMULATED on CPU tensors: no hardware for it here" if target.emulated else f"on {target.device}"
        lines.append(f"backend {target.backend}: {where}, {len(chosen_cases(config, target))} cases")
    return lines + [f"backend {name}: NOT TESTED: {why}" for name, why in config.stash[ABSENT].items()]


def chosen_cases(config: pytest.Config, target: Target) -> tuple[cases.Case, ...]:
    """The cases to run on a target: an emulator is slow, so it gets the small ones unless all are asked for."""
    which = config.getoption("--cases")
    return cases.select("quick") if which == "quick" or (which == "auto" and target.emulated) else cases.CONFORMANCE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    targets = metafunc.config.stash[TARGETS]
    if "check" not in metafunc.fixturenames:
        metafunc.parametrize("target", targets, ids=str)
        return
    chosen = {target: frozenset(chosen_cases(metafunc.config, target)) for target in targets}
    # Case by case, so that what the oracle says of one is computed once for all checks and backends.
    metafunc.parametrize(("target", "check", "case"), [
        pytest.param(target, name, case, id=f"{target}-{name}-{case}")
        for case in cases.CONFORMANCE for name, check in checks.CHECKS.items() if check.applies(case)
        for target in targets if case in chosen[target]])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    owed = {target.backend: debts.of(target.backend) for target in config.stash[TARGETS]}
    used = set()
    for item in items:
        target = _target_of(item)
        if target is None:
            continue
        name = _name_without(item, target)
        for debt in owed[target.backend]:
            if debt.matches(name):
                item.add_marker(pytest.mark.xfail(reason=f"{debt.where}: {debt.reason}", strict=True))
                used.add(debt)
    here = Path(__file__).parent
    everything = {path.name for path in here.glob("test_*.py")} <= {
        item.path.name for item in items if item.path.parent == here}
    stale = [debt for each in owed.values() for debt in each if debt not in used]
    if everything and stale and config.getoption("--cases") == "auto":
        raise pytest.UsageError("debts that no test matches: " + ", ".join(f"{d.where} {d.pattern}" for d in stale))


def _target_of(item: pytest.Item) -> Target | None:
    callspec = getattr(item, "callspec", None)
    target = None if callspec is None else callspec.params.get("target")
    return target if isinstance(target, Target) else None  # other folders' tests name other things so


def _name_without(item: pytest.Item, target: Target) -> str:
    """A test's name as debts write it: ``test_check[within_budget-tokens-1]``, the target left out."""
    name, _, parameters = item.name.partition("[")
    rest = parameters.removesuffix("]").removeprefix(str(target)).removeprefix("-")
    return f"{name}[{rest}]" if rest else name


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory full of NaN; the checks of ``portable_gla.testing`` bring it themselves."""
    with poisoned_memory():
        yield
