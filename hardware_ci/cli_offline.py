"""``python -m hardware_ci compile``: the offline table of a backend's kernels."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from hardware_ci import documents, offline, places
from portable_gla.cli import options, output

_COMPILERS = ("triton", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvcc-cu12")
_SHOWN = 30  # rows against a rule that are printed


def compile_(
    backend: Annotated[str, typer.Option(metavar="NAME", help="The backend, by the name of its folder.")] = "triton",
    targets: Annotated[str | None, typer.Option(
        metavar="NAMES", help="Architectures, with commas between, such as sm_90,gfx942. Default: all that the backend "
                              "compiles for.")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="A few builds that stand for the rest.")] = False,
    jobs: Annotated[int, options.integer(1, "Compilations at a time.")] = 2,
    again: Annotated[bool, typer.Option(
        "--again", help="Compile too what the table has already, where a backend tells.")] = False,
    out: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Where the Markdown goes, ending in .md; the YAML goes beside it. Default: "
                             "hardware_ci/offline/BACKEND.md.")] = None,
    json: options.Json = False,
) -> None:
    """Compile a backend's kernels for devices that are not here; write registers, spills and shared memory as a table.

    A build fails if the compiler or the backend says so, if it takes more shared memory than there is, or if it spills
    on sm_70 to sm_90 and does not stand in offline/allowed_spills.yaml.

    Exit status: 0 if no build fails, 1 if one does or the compiler cannot be had, 2 for a wrong argument.
    """
    path = out or places.OFFLINE / f"{backend}.md"
    if path.suffix != ".md":
        raise typer.BadParameter(f"expected a file ending in .md, got {str(path)!r}", param_hint="--out")
    try:
        module = offline.load(backend)
        allowed = offline.read_allowed()
    except offline.OfflineError as error:
        raise typer.BadParameter(str(error), param_hint="--backend") from error
    wanted = [name.strip() for name in targets.split(",")] if targets is not None else list(module.TARGETS)
    unknown = [name for name in wanted if name not in module.TARGETS]
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(module.TARGETS)} with commas between, got "
                                 f"{', '.join(unknown)}", param_hint="--targets")
    compiler = module.compiler() if hasattr(module, "compiler") else _compilers()
    builds = list(module.builds(wanted, sample))
    output.tell(f"{len(builds)} builds for {', '.join(wanted)}")
    done: list[offline.Row] = []

    def tick(row: offline.Row) -> None:
        done.append(row)
        wrong = offline.broken(row, allowed)
        if wrong or len(done) % 20 == 0 or len(done) == len(builds):
            what = f"{row.target} {row.kernel} {row.configuration}: {wrong}" if wrong else ""
            output.tell(f"{len(done)} of {len(builds)}  {what}")

    have = {} if again else offline.known(path.with_suffix(".yaml"), module, builds, compiler)
    if have:
        output.tell(f"{len(have)} of them stand in {path.with_suffix('.yaml')} as they are, and are not compiled again")
        done += have.values()
    left = [(index, build) for index, build in enumerate(builds) if index not in have]
    if left and hasattr(module, "prepare"):
        try:
            module.prepare()
        except RuntimeError as error:
            output.tell(str(error))
            raise typer.Exit(1) from error
    made = offline.compile_all(module, [build for _, build in left], jobs, tick)
    rows = [row for _, row in sorted([*have.items(), *((index, row) for (index, _), row in zip(
        left, made, strict=True))], key=lambda item: item[0])]
    document = offline.as_document(backend, rows, allowed, sample, {
        "targets": wanted, "compiler": compiler,
        **({"memory": module.MEMORY} if hasattr(module, "MEMORY") else {})})
    documents.write(path.with_suffix(".yaml"), document)
    path.write_text(offline.as_markdown(document), encoding="utf-8")
    if json:
        output.write_json({"ok": not document["broken"], **document})
    else:
        _say(rows, allowed, path, sample)
    raise typer.Exit(1 if document["broken"] or not rows else 0)


def _say(rows: list[offline.Row], allowed: list[offline.Allowed], path: Path, sample: bool) -> None:
    wrong = [(row, offline.broken(row, allowed)) for row in rows if offline.broken(row, allowed)]
    for row, what in wrong[:_SHOWN]:
        output.say(f"FAILED  {row.target} {row.kernel} {row.configuration}: {what}")
    if not sample:
        for entry in offline.unused(allowed, rows):
            output.say(f"note    no build needs the allowance for {entry.kernel} on {entry.target} any more")
    seconds = sum(row.seconds for row in rows)
    output.say(f"{len(rows) - len(wrong)} of {len(rows)} builds within the rules, {seconds:.0f} s of compilation: "
               f"{path}")


def _compilers() -> str:
    found = []
    for name in _COMPILERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found) or "not known"
