"""The command line ``portable-gla``: one file per command, and what they share in ``options`` and ``output``."""

from __future__ import annotations

from typing import Annotated

import typer

import portable_gla
from portable_gla.cli import bench, build, demo, doctor, plan, verify

app = typer.Typer(name="portable-gla", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown",
                  context_settings={"help_option_names": ["-h", "--help"]})
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("demo")(demo.demo)
app.command("build")(build.build)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(portable_gla.__version__)
        raise typer.Exit


@app.callback()
def _portable_gla(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave."),
    ] = False,
) -> None:
    """Gated linear attention on any device: what runs here, why, whether it is right, and how fast."""


def main() -> None:
    """Run the command line."""
    app(prog_name="portable-gla")
