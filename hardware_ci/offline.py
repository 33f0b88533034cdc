"""Compiles a backend's kernels without their devices, in several processes, and holds the builds to rules.

A backend takes part with a module ``portable_gla_<backend>.offline`` that has

- ``TARGETS``, the names of the architectures it compiles for (``sm_90``, ``gfx942``);
- ``builds(targets, sample)``, an iterator of what is to be compiled: objects, picklable, with ``kernel``, ``target``
  and ``configuration`` (a dict); with ``sample`` only a few that stand for the rest;
- ``compile_one(build)``, which compiles one and returns an object with ``build``, ``registers``, ``spills`` (bytes),
  ``shared`` and ``shared_limit`` (bytes), ``warps``, ``occupancy`` (blocks per multiprocessor that its model predicts),
  ``seconds`` and ``error``; None where the target's compiler does not tell. It may have ``extra``, a dict of what else
  there is to say; a backend's own rules are errors. With ``extra["key"]`` and a function ``key(build)``, a hash of all
  that a build is made of, what a table has already is not compiled again.

It may have ``MEMORY``, what ``shared`` is of, where that is not shared memory; ``compiler()``, which says what
compiles, where that is not installed here; ``prepare()``, which makes what ``compile_one`` needs, or raises
RuntimeError.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hardware_ci import documents, places

NO_SPILLS = ("sm_70", "sm_75", "sm_80", "sm_90")  # where a spill is a mistake, unless it stands in the list
MOST_ALLOWED = 64  # bytes
SHARED_MEMORY = "shared memory"
_HIDDEN = ("key",)  # of a row's extra: for programs
ALLOWED = places.OFFLINE / "allowed_spills.yaml"


class OfflineError(ValueError):
    """A backend cannot be compiled offline, or the list of allowed spills is wrong; the message says why."""


class Build(Protocol):
    """What a backend's ``builds`` yields."""

    kernel: str
    target: str
    configuration: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What came of one build."""

    kernel: str
    target: str
    configuration: dict[str, Any] = field(default_factory=dict)
    registers: int | None = None
    spills: int | None = None
    shared: int = 0
    shared_limit: int = 0
    warps: int | None = 0
    occupancy: float | None = None
    seconds: float = 0.0
    error: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Allowed:
    """Spills that are lived with: of kernels and configurations that match, up to so many bytes, and why."""

    kernel: str  # a pattern
    target: str
    bytes: int
    reason: str
    configuration: dict[str, Any] = field(default_factory=dict)  # values that have to be so; others are free

    def covers(self, row: Row) -> bool:
        """Tell whether a row's spills are these."""
        return (fnmatch.fnmatchcase(row.kernel, self.kernel) and row.target == self.target
                and all(row.configuration.get(name) == value for name, value in self.configuration.items())
                and (row.spills or 0) <= self.bytes)


def load(backend: str) -> Any:
    """Import a backend's offline module.

    Raises
    ------
    OfflineError
        If it has none, or not all of it.
    """
    name = f"portable_gla_{backend}.offline"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise OfflineError(f"backend {backend!r} cannot be compiled offline: {error}") from error
    missing = [part for part in ("TARGETS", "builds", "compile_one") if not hasattr(module, part)]
    if missing:
        raise OfflineError(f"{name} lacks {', '.join(missing)}")
    return module


def read_allowed(path: Path = ALLOWED) -> list[Allowed]:
    """Read the list of allowed spills.

    Raises
    ------
    OfflineError
        If an entry lacks a reason, allows too much, or has an unknown field.
    """
    found = []
    for number, entry in enumerate((documents.read(path) if path.exists() else None) or [], 1):
        try:
            allowed = Allowed(**entry)
        except TypeError as error:
            raise OfflineError(f"{path.name}, entry {number}: {error}") from error
        if not allowed.reason.strip():
            raise OfflineError(f"{path.name}, entry {number}: expected a reason")
        if not 0 < allowed.bytes <= MOST_ALLOWED:
            raise OfflineError(f"{path.name}, entry {number}: bytes: expected 1 to {MOST_ALLOWED}, got {allowed.bytes}")
        found.append(allowed)
    return found


def compile_all(module: Any, builds: Sequence[Build], jobs: int,
                tick: Callable[[Row], object] = lambda row: None) -> list[Row]:
    """Compile every build, in ``jobs`` processes; rows come in the order of the builds.

    A compiler that dies takes its process along: the builds that were lost with it are tried again, each in a process
    of its own, so that the one at fault is known.
    """
    rows: dict[int, Row] = {}
    for index, row in _pooled(module.__name__, list(enumerate(builds)), jobs):
        if row is not None:
            rows[index] = row
            tick(row)
    for index, build in enumerate(builds):
        if index not in rows:
            (_, row), = _pooled(module.__name__, [(index, build)], 1)
            rows[index] = row or _row(build, error="the process that compiled it died")
            tick(rows[index])
    return [rows[index] for index in range(len(builds))]


def known(path: Path, module: Any, builds: Iterable[Build], compiler: str) -> dict[int, Row]:
    """Return the rows of a table that stand for builds as they are now, by the builds' numbers, with their names."""
    key = getattr(module, "key", None)
    document = documents.read(path) if key is not None and path.exists() else None
    if not document or document.get("compiler") != compiler:
        return {}
    rows = {entry["extra"]["key"]: entry for entry in document["rows"] if entry.get("extra") and not entry["broken"]}
    found = {}
    for index, build in enumerate(builds):
        entry = rows.get(key(build)) if key is not None else None
        if entry is not None:
            # What else launches the same may have changed, and with it what the build is called.
            fields = {**entry, "configuration": dict(build.configuration)}
            found[index] = Row(**{name: value for name, value in fields.items() if name != "broken"})
    return found


def broken(row: Row, allowed: Iterable[Allowed] = ()) -> str:
    """Say which rule a row breaks; ``""``: none."""
    if row.error:
        return row.error
    if row.shared > row.shared_limit:
        return f"{row.shared:,} bytes of shared memory, of {row.shared_limit:,}"
    if row.spills and row.target in NO_SPILLS and not any(entry.covers(row) for entry in allowed):
        return f"{row.spills} bytes of spills"
    return ""


def unused(allowed: Iterable[Allowed], rows: Sequence[Row]) -> list[Allowed]:
    """List the entries that no row needs any more."""
    return [entry for entry in allowed if not any(row.spills and entry.covers(row) for row in rows)]


def as_document(backend: str, rows: Sequence[Row], allowed: Sequence[Allowed], sample: bool,
                about: dict[str, Any]) -> dict[str, Any]:
    """Return the table as plain data; times of compilation are left out, so that it changes only with the builds."""
    entries = []
    for row in rows:
        entry = {key: value for key, value in asdict(row).items()
                 if key not in ("seconds", "error") and (key != "extra" or value)}
        entry["broken"] = broken(row, allowed)
        entries.append(entry)
    return {"backend": backend, "sample": sample, **about, "builds": len(rows),
            "broken": sum(bool(entry["broken"]) for entry in entries), "rows": entries}


def as_markdown(document: dict[str, Any]) -> str:
    """Write the table for people."""
    which = "a sample of the builds" if document["sample"] else "every build"
    extra = [name for name in next((row["extra"] for row in document["rows"] if row.get("extra")), {})
             if name not in _HIDDEN]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "target": lambda row: str(row["target"]),
        "kernel": lambda row: f"`{row['kernel']}`",
        "configuration": lambda row: ", ".join(f"{name} {value}" for name, value in row["configuration"].items())}
    told = {"registers": "registers", "spills": "spills", document.get("memory", SHARED_MEMORY): "",
            "warps": "warps", "blocks (predicted)": "occupancy"}
    for name, field_name in told.items():
        if not field_name:
            columns[name] = lambda row: f"{row['shared']:,} of {row['shared_limit']:,}"
        elif any(row[field_name] is not None for row in document["rows"]):  # else this compiler does not tell
            columns[name] = functools.partial(_cell, field_name)
    if extra:
        columns[", ".join(extra)] = lambda row: ", ".join(str(row.get("extra", {}).get(name, "")) for name in extra)
    columns[""] = lambda row: str(row["broken"]).replace("|", "\\|").replace("\n", " ")
    lines = [f"# Backend {document['backend']}, compiled without a device", "",
             f"Written by `python -m hardware_ci compile`: {which}, {document['builds']} in all, "
             f"{document['broken']} against a rule. Compiled is not run: nothing here says that a kernel is right or "
             f"fast. Compiler: {document['compiler']}.", "",
             f"| {' | '.join(columns)} |".replace("|  |", "| |"), f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(write(row) for write in columns.values())} |" for row in document["rows"]]
    return "\n".join(lines) + "\n"


def summary(backend: str, arch: str, folder: Path = places.OFFLINE) -> str:
    """Say in a few words what was compiled for an architecture; ``""`` where nothing was."""
    path = folder / f"{backend}.yaml"
    if not path.exists():
        return ""
    document = _read(path, path.stat().st_mtime_ns)
    rows = [row for row in document["rows"] if row["target"] == arch]
    if not rows:
        return ""
    wrong = sum(bool(row["broken"]) for row in rows)
    which = "a sample of " if document["sample"] else ""
    return f"compiled for {arch}: {which}{len(rows)} builds" + (f", {wrong} against a rule" if wrong else "")


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Any:
    """Read a table once for all architectures, until it is ``changed``."""
    return documents.read(path)


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _pooled(module: str, builds: Sequence[tuple[int, Build]], jobs: int) -> Iterator[tuple[int, Row | None]]:
    # Spawned: compilers keep threads, which a fork would lose.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: dict[Future[Row], int] = {pool.submit(_compile, module, build): index for index, build in builds}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                yield futures[future], None


def _compile(module: str, build: Build) -> Row:
    try:
        found = importlib.import_module(module).compile_one(build)
    except Exception as error:  # noqa: BLE001 - a compiler raises what it likes; the row has it, and fails
        lines = str(error).strip().splitlines()
        return _row(build, error=": ".join([type(error).__name__, *lines[-1:]]))
    return _row(build, found.registers, found.spills, found.shared, found.shared_limit, found.warps, found.occupancy,
                found.seconds, found.error, dict(getattr(found, "extra", {})))


def _row(build: Build, *figures: Any, error: str = "") -> Row:
    # Through JSON, so that what a backend puts into a configuration comes back from the YAML file as it was.
    configuration = json.loads(json.dumps(build.configuration, default=str))
    return Row(build.kernel, build.target, configuration, *figures) if figures else Row(
        build.kernel, build.target, configuration, error=error)
