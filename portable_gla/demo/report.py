"""What the demo tells: lines and a progress bar for a person, one JSON object for a program."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from portable_gla.demo.train import Progress


class Report:
    """Collects the figures and the checks' outcomes, and prints them unless ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self.figures: dict[str, Any] = {}
        self.checks: dict[str, bool] = {}
        self._quiet = quiet
        self._console = Console(quiet=quiet, markup=False, highlight=False, emoji=False, soft_wrap=True)

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(self.checks.values())

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text)

    def check(self, name: str, held: bool, text: str) -> None:
        """Keep the outcome of a check, and print it."""
        self.checks[name] = held
        self.say(f"{'ok  ' if held else 'FAIL'}  {text}")

    @contextlib.contextmanager
    def training(self, seconds: float, zlib: float) -> Iterator[Callable[[Progress], None]]:
        """Show a training's progress: a bar on a terminal, lines for the held-out figures anywhere."""
        curve: list[dict[str, float]] = []
        self.figures["heldout"] = curve
        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn())
        with Bar(*columns, console=self._console, disable=self._quiet or not self._console.is_terminal,
                 transient=True) as bar:
            task = bar.add_task("training", total=seconds, loss="")

            def show(now: Progress) -> None:
                bar.update(task, completed=now.seconds, loss=f"{now.loss:.2f} bits/byte")
                if now.heldout is not None:
                    curve.append({"seconds": round(now.seconds, 2), "steps": now.steps,
                                  "training_bytes": now.training_bytes, "bits_per_byte": now.heldout})
                    self.say(f"{now.seconds:6.1f} s  {now.steps:6d} steps  {now.training_bytes / 1e6:6.2f} MB read  "
                             f"held-out {now.heldout:.3f} bits/byte  (zlib -9: {zlib:.3f})")

            yield show

    def finish(self, folder: Path) -> None:
        """Write the figures to ``folder``, and print them where nothing else was."""
        text = json.dumps({**self.figures, "checks": self.checks, "passed": self.passed}, indent=2)
        folder.joinpath("figures.json").write_text(text + "\n", encoding="utf-8")
        if self._quiet:
            print(text)
