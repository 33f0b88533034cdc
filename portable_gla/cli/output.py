"""How the commands write: results to stdout, everything else to stderr, progress only to a terminal."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_WIDTH = 120  # of a table that goes to a file or a pipe, where there is no terminal to ask


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def say(text: str = "") -> None:
    """Print a line of the result, as it is: no markup, no wrapping."""
    _console().print(text, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a line about the work, to stderr."""
    _console(stderr=True).print(text, markup=False, soft_wrap=True)


def say_styled(head: Text, text: str) -> None:
    """Print a coloured head (where there is a terminal) and plain text after it."""
    _console().print(head, text, sep="", markup=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table of the result."""
    _console().print(table)


def show_error(table: Table) -> None:
    """Print a table about what went wrong, to stderr."""
    _console(stderr=True).print(table)


def write_json(value: Any) -> None:
    """Print one JSON document: all that a command with ``--json`` writes to stdout.

    JSON has no infinity and no NaN: they are written as the strings ``"inf"``, ``"-inf"`` and ``"nan"``.
    """
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def progress() -> Progress:
    """Return a progress bar for long work: on stderr, gone when done, and silent without a terminal."""
    console = _console(stderr=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                    console=console, transient=True, disable=not console.is_terminal)
