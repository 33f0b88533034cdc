"""Plots of a result: time against T, fraction of the memory floor, and against each peer. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_ci import places
from hardware_ci.contestants import FORWARD
from hardware_ci.matrix import PASSES
from hardware_ci.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"


def draw(result: Result, folder: Path = places.PLOTS) -> list[Path]:
    """Draw what a result has the figures for; return the files."""
    shapes = [entry for entry in result.steps.get("benchmarks", {}).get("shapes", ()) if "failed" not in entry]
    attention = [entry for entry in shapes if entry["for"] != "decode"]
    if not attention:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    backend, name = result.what["backend"], result.what.get("row") or "unknown"
    title = (f"{backend} on {result.what['device']['name']}, commit {result.what['commit']['sha'][:7]}, "
             f"{str(result.what['finished'])[:10]}{', brief run' if result.what['quick'] else ''}")
    drawn = []
    for kind, figure in (("time", _time(attention, title)), ("floor", _fraction(attention, title)),
                         ("peers", _peers(attention, backend, title))):
        if figure is not None:
            path = folder / f"{name}-{kind}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            drawn.append(path)
    return drawn


def sweep(shapes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the shapes that differ in T alone, B · T being the same, by growing T; none unless there are two."""
    swept = [entry for entry in shapes if entry["for"] == "sweep"]
    alike = [entry for entry in shapes if swept and _alike(entry) == _alike(swept[0])]
    return sorted(alike, key=lambda entry: int(entry["tokens"])) if len(alike) > 1 else []


def _alike(entry: dict[str, Any]) -> tuple[Any, ...]:
    return (entry["batch"] * entry["tokens"], *(entry[name] for name in ("heads", "key_dim", "value_dim", "gate",
                                                                         "dtype")))


def _time(shapes: Sequence[dict[str, Any]], title: str) -> Figure | None:
    swept = sweep(shapes)
    if not swept:
        return None
    first = swept[0]
    figure, panels = _figure(f"{title}\nB · T = {first['batch'] * first['tokens']:,}, H = {first['heads']}, K = "
                             f"{first['key_dim']}, V = {first['value_dim']}, {first['dtype']}", 12, 4.8)
    for axes, passed in zip(panels, PASSES, strict=True):
        names = dict.fromkeys(name for entry in swept for name in entry["passes"][passed]["times"])
        for order, name in enumerate(names):
            points = [(entry["tokens"], 1e3 * entry["passes"][passed]["times"][name]["median"]) for entry in swept
                      if name in entry["passes"][passed]["times"]]
            axes.plot(*zip(*points, strict=True), marker=_MARKERS[order % len(_MARKERS)], label=name, color=f"C{order}")
        floor = [(entry["tokens"], entry["passes"][passed]["bytes"] / entry["copy_gb_s"] / 1e6) for entry in swept]
        axes.plot(*zip(*floor, strict=True), "k--", linewidth=1, label="compulsory bytes at the speed of a copy")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([entry["tokens"] for entry in swept], [f"{entry['tokens']:,}" for entry in swept])
        axes.set_xlabel("tokens T")
        axes.set_ylabel("time per call, ms")
        axes.set_title(passed)
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _fraction(shapes: Sequence[dict[str, Any]], title: str) -> Figure:
    figure, panels = _figure(f"{title}\ncompulsory bytes over time, as a fraction of a copy's speed", 13,
                             1.4 + 0.35 * len(shapes))
    for axes, passed in zip(panels, PASSES, strict=True):
        values = [entry["passes"][passed]["copy_fraction"] for entry in shapes]
        bars = axes.barh([_label(entry) for entry in shapes], values)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.axvline(1.0, color="k", linestyle="--", linewidth=1)
        axes.set_title(passed)
        _as_list(axes)
    return figure


def _peers(shapes: Sequence[dict[str, Any]], backend: str, title: str) -> Figure | None:
    names = list(dict.fromkeys(name for entry in shapes for name in entry["passes"][FORWARD]["times"]
                               if name != backend))
    if not names:
        return None
    figure, panels = _figure(f"{title}\npeer's time over that of {backend}: right of 1, {backend} is faster", 13,
                             1.4 + 0.2 * len(shapes) * (len(names) + 1))
    height = 0.8 / len(names)
    for axes, passed in zip(panels, PASSES, strict=True):
        for order, name in enumerate(names):
            timed = [(index + order * height, entry["passes"][passed]["times"][name]["ratio"])
                     for index, entry in enumerate(shapes) if name in entry["passes"][passed]["times"]]
            bars = axes.barh([place for place, _ in timed], [value for _, value in timed], height=height, label=name)
            axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
        axes.set_yticks([index + 0.4 - height / 2 for index in range(len(shapes))], [_label(e) for e in shapes])
        axes.axvline(1.0, color="k", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set_title(passed)
        _as_list(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=8)
    return figure


def _figure(title: str, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, [figure.add_subplot(1, len(PASSES), index + 1) for index in range(len(PASSES))]


def _as_list(axes: Axes) -> None:
    """Let rows run from the top."""
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(True, axis="x", alpha=0.3)


def _label(entry: dict[str, Any]) -> str:
    gate = "" if entry["gate"] == "channel" else f", gate per {entry['gate']}"
    return f"{entry['batch']}×{entry['tokens']:,}×{entry['heads']}×{entry['key_dim']}" + (
        f"×{entry['value_dim']}" if entry["value_dim"] != entry["key_dim"] else "") + gate
