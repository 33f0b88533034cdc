"""``portable-gla demo``: the library doing its main job on real text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from portable_gla.cli import options


def demo(
    out: Annotated[Path, typer.Option(
        help="Folder for the model (safetensors) and the figures; made if it is not there.",
        file_okay=False, metavar="FOLDER")] = Path("demo-out"),
    seconds: Annotated[float, options.number(1.0, "About how long to train.")] = 60.0,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Train a small byte-level language model of gated linear attention on the sources of Python's library.

    Prints the plan for this machine, checks the call against the oracle, trains for about --seconds with held-out bits
    per byte beside zlib's, generates text token by token, and saves the model.
    """
    from portable_gla.demo import run  # at its use: the other commands must not depend on what it imports

    raise typer.Exit(run(out, seconds, json, seed))
