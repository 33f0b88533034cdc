"""The plot of ``bench``: time against T, one panel per pass. Needs matplotlib, which is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from portable_gla.cli.bench import Row

_FORMATS = (".png", ".svg", ".pdf")


def check(path: Path, option: str = "--plot") -> None:
    """Refuse, before anything is timed, a plot that could not be written."""
    if path.suffix.lower() not in _FORMATS:
        raise typer.BadParameter(f"expected a file ending in {', '.join(_FORMATS)}, got {str(path)!r}",
                                 param_hint=option)
    if not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"expected a file in a folder that exists, got {str(path)!r}", param_hint=option)
    if importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("expected matplotlib to be installed, and it is not: pip install 'portable-gla[plot]'",
                                 param_hint=option)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw medians with the fastest and slowest sample, on logarithmic axes, and the floor as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    passes = list(dict.fromkeys(row.passes for row in rows))
    figure = Figure(figsize=(6.2 * len(passes), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    names = list(dict.fromkeys(row.name for row in rows))
    tokens = sorted({row.tokens for row in rows})
    for index, passed in enumerate(passes):
        axes = figure.add_subplot(1, len(passes), index + 1)
        for order, name in enumerate(names):
            group = sorted((row for row in rows if (row.name, row.passes) == (name, passed)),
                           key=lambda row: row.tokens)
            if not group:
                continue
            x, y = [row.tokens for row in group], [row.median * 1e3 for row in group]
            axes.plot(x, y, marker="osD^vP*X"[order % 8], label=name, color=f"C{order}")
            axes.fill_between(x, [row.fastest * 1e3 for row in group], [row.slowest * 1e3 for row in group],
                              color=f"C{order}", alpha=0.2, linewidth=0)
        floors = sorted({(row.tokens, row.floor * 1e3) for row in rows if row.passes == passed and row.floor})
        if floors:
            axes.plot([x for x, _ in floors], [y for _, y in floors], "k--", linewidth=1, label="floor (model)")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(FixedLocator(tokens))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set_xlabel("tokens T")
        axes.set_ylabel("time per call, ms")
        axes.set_title(passed)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
