"""The command line ``python -m hardware_ci``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import portable_gla
from hardware_ci import (
    benchmark,
    cli_offline,
    cli_report,
    conformance,
    long_context,
    matrix,
    places,
    results,
    runner,
    small,
)
from portable_gla.cli import options, output

app = typer.Typer(name="hardware_ci", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]})

Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where the result file goes; made if it is not there.")]


@app.callback()
def _hardware_ci() -> None:
    """Measure a device: is the library right on it, and how fast? See hardware_ci/README.md."""


@app.command()
def run(
    device: Annotated[str | None, typer.Option(
        metavar="DEVICE", help="A device of this machine. Default: its first accelerator, else its CPU.")] = None,
    backend: Annotated[str | None, typer.Option(
        metavar="NAME", help="The backend to measure. Default: the one that the matrix says must serve the device; "
                             "of a device that it does not know, the one that a plan chooses.")] = None,
    quick: Annotated[bool, typer.Option(
        "--quick", help="The quick conformance cases, the brief shapes, fewer samples.")] = False,
    skip_bench: Annotated[bool, typer.Option(
        "--skip-bench", help="Evidence, conformance and sanitizer only.")] = False,
    steps: Annotated[str | None, typer.Option(
        metavar="NAMES", help=f"Only these steps, with commas between: {', '.join(results.STEPS)}.")] = None,
    only: Annotated[str | None, typer.Option(
        metavar="PATTERN", help="Time only the shapes whose name matches, such as `*x128`; the rest is left for "
                                "another part of the run (--resume).")] = None,
    cases: Annotated[str | None, typer.Option(
        metavar="PATTERN", help="Only the conformance cases whose name matches: for looking into something; such a run "
                                "verifies no device.")] = None,
    jobs: Annotated[int, options.integer(1, "Processes that share the conformance cases.")] = 1,
    timeout: Annotated[float | None, options.number(
        1, "Seconds for this part of the run: it stops between cases and shapes once they are spent, and records what "
           "is left.")] = None,
    resume: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Continue this result: what passed or was timed in it is not done again.")] = None,
    out: Out = places.RESULTS,
    commit: Annotated[str | None, typer.Option(
        metavar="SHA", help="The commit that runs, for a copy of the sources without git's data.")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Run the conformance suite, the sanitizer and, if they are green, the benchmarks on a device; write a YAML file.

    A backend is never replaced by another: what it cannot serve is a failure. A device that the matrix does not know is
    reported as unverified, and measured without floors.

    Exit status: 0 if nothing failed, 1 if a step failed or a floor was missed, 2 for a wrong argument, 3 if --timeout
    ended the run before all was done.
    """
    asked = _steps(steps, skip_bench)
    if backend is not None:
        options.known_backends([backend])
    if cases is not None and not conformance.chosen(False, cases):
        raise typer.BadParameter(f"expected a pattern that some case's name matches, got {cases!r}",
                                 param_hint="--cases")
    where = options.present_device(device)
    shapes = benchmark.Effort("", where, quick, only)
    if only is not None and not shapes.now(case.name for case in shapes.chosen()):
        names = ", ".join(case.name for case in shapes.chosen())
        raise typer.BadParameter(f"expected a pattern that one of {names} matches, got {only!r}", param_hint="--only")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"expected a folder, got the file {str(out)!r}", param_hint="--out")
    try:
        work = runner.Run(runner.Options(
            where, out, backend, quick, asked, cases, only, jobs, timeout, seed, resume, commit), output.tell)
    except results.ResultError as error:
        raise typer.BadParameter(str(error), param_hint="--resume") from error
    except (matrix.MatrixError, portable_gla.UnsupportedProblem) as error:
        output.tell(str(error))
        raise typer.Exit(1) from error
    result = work.go()
    if json:
        output.write_json(result.what)
    else:
        output.say(f"{result.verdict()}: {result.path}")
    raise typer.Exit(runner.exit_status(result, work.deadline))


@app.command("small")
def small_calls(
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="A device of this machine.")] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="The backend.")] = "eager",
    dtype: Annotated[options.Dtype, typer.Option(help="dtype of the calls.")] = options.Dtype.BFLOAT16,
) -> None:
    """Run one small call of each gate, forward, backward and decode: what the sanitizer watches."""
    options.known_backends([backend])
    for line in small.calls(backend, options.present_device(device), dtype.torch):
        output.say(line)


app.command("long")(long_context.long)
app.command("compile")(cli_offline.compile_)
app.command("report")(cli_report.report)
app.command("workflow")(cli_report.workflow)


def _steps(text: str | None, skip_bench: bool) -> tuple[str, ...]:
    if text is None:
        return results.STEPS[:3] if skip_bench else results.STEPS
    if skip_bench:
        raise typer.BadParameter("expected one of --steps and --skip-bench, got both", param_hint="--steps")
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(results.STEPS):
        raise typer.BadParameter(f"expected some of {', '.join(results.STEPS)} with commas between, got {text!r}",
                                 param_hint="--steps")
    return tuple(names)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m hardware_ci")
