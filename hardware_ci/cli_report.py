"""``python -m hardware_ci report`` and ``workflow``: what is written from the matrix and the results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from hardware_ci import matrix, places, plots, results, support
from hardware_ci import workflow as generated
from portable_gla.cli import output

Check = Annotated[bool, typer.Option("--check", help="Write nothing; fail if the file is not up to date.")]


def report(
    check: Check = False,
    folder: Annotated[Path, typer.Option(
        "--results", metavar="FOLDER", help="Where the result files are.")] = places.RESULTS,
    readme: Annotated[Path, typer.Option(metavar="FILE", help="The README with the table.")] = places.README,
    plots_folder: Annotated[Path, typer.Option(
        "--plots", metavar="FOLDER", help="Where the plots go.")] = places.PLOTS,
) -> None:
    """Write the support table into the README, and the plots of every device's latest timed result.

    Exit status: 0 if done (with --check: up to date), 1 if not, 2 for a wrong argument.
    """
    try:
        found = results.every(folder)
        before = readme.read_text(encoding="utf-8")
        after = support.insert(before, support.table(matrix.rows(), found))
    except (OSError, support.ReadmeError) as error:
        raise typer.BadParameter(f"{readme}: {error}", param_hint="--readme") from error
    except results.ResultError as error:
        raise typer.BadParameter(str(error), param_hint="--results") from error
    if check:
        _compare(readme, before == after, "python -m hardware_ci report")
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("expected matplotlib to be installed, and it is not: pip install 'portable-gla[plot]'")
    readme.write_text(after, encoding="utf-8")
    output.say(f"table of {len(found)} results: {readme}")
    if not found:
        output.say("no result yet: no device was measured")
    latest = {(result.what["row"], result.what["device"]["name"]): result for result in found
              if result.steps.get("benchmarks", {}).get("shapes")}
    for result in latest.values():
        for path in plots.draw(result, plots_folder):
            output.say(f"plot: {path}")


def workflow(
    check: Check = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The workflow file.")] = places.WORKFLOW,
) -> None:
    """Write the GitHub workflow for self-hosted runners, a job per row of the matrix that has one.

    Exit status: 0 if done (with --check: up to date), 1 if not, 2 for a wrong argument.
    """
    text = generated.text()
    if check:
        _compare(out, out.exists() and out.read_text(encoding="utf-8") == text, "python -m hardware_ci workflow")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    output.say(f"workflow: {out}")


def _compare(path: Path, same: bool, command: str) -> None:
    if not same:
        output.tell(f"{path} is not up to date: run {command}")
        raise typer.Exit(1)
    output.say(f"{path} is up to date")
