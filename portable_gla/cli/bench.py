"""``portable-gla bench``: times against T, side by side with what is installed, after a green verify."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

import portable_gla
from portable_gla import devices, registry
from portable_gla.cli import options, output, peers, plotting, timing, verify
from portable_gla.cost import format_seconds

FORWARD, BOTH = "forward", "forward + backward"


Missing = tuple[str, int | None, str | None, str]  # name, T and pass (None: all), reason


class Pass(str, enum.Enum):
    """What is timed."""

    FORWARD = "forward"
    BOTH = "both"


@dataclass(frozen=True)
class Row:
    """One contestant at one T; times in seconds per call."""

    tokens: int
    passes: str
    name: str
    median: float
    fastest: float
    slowest: float
    samples: tuple[float, ...]
    ratio: float | None  # this time over that of the first backend: above 1, the backend is faster
    floor: float | None  # of this package's backends, by the model


def bench(
    tokens: Annotated[str, typer.Option(help="T, with commas between.", metavar="INTEGERS")] = "1024,4096,16384",
    batch: Annotated[int, options.integer(1, "B: sequences.")] = 1,
    heads: Annotated[int, options.integer(1, "H: heads.")] = 4,
    key_dim: Annotated[int, options.integer(1, "K: channels per head of q and k.")] = 128,
    value_dim: Annotated[int | None, options.integer(1, "V: channels per head of v. Default: K.")] = None,
    dtype: Annotated[options.Dtype | None, typer.Option(
        help="dtype of all inputs. Default: float32 on a CPU, else bfloat16.")] = None,
    gate: Annotated[options.Gate, typer.Option(help="The kind of gate.")] = options.Gate.CHANNEL,
    passes: Annotated[Pass, typer.Option(help="forward alone, or also forward + backward.")] = Pass.BOTH,
    device: Annotated[str | None, typer.Option(
        metavar="DEVICE", help="A device of this machine. Default: its first accelerator, else its CPU.")] = None,
    backend: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help="A backend; the rest are compared with the first. Repeatable; default: all that serve the "
                             "shape.")] = None,
    peer: Annotated[bool, typer.Option("--peers/--no-peers", help="Time other libraries too.")] = True,
    repeats: Annotated[int, options.integer(2, "Samples per figure.")] = 7,
    budget: Annotated[float, options.number(
        0.1, "Seconds for a figure's samples: fewer are taken where they would take longer, at least one.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(
        help="Draw time against T into this file (.png, .svg, .pdf).", metavar="FILE")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Time attention against T, beside PyTorch's softmax attention and flash-linear-attention where they run.

    A backend is timed only if its quick verify is green here. Samples are interleaved in one run; the table has their
    median, their spread, and the ratio to the first backend. The floor is the model's bound from compulsory bytes and
    operations.

    Exit status: 0 if all was timed, 1 if verify fails or nothing could be timed, 2 for a wrong argument.
    """
    lengths = options.integers(tokens, "--tokens")
    where = options.present_device(device)
    if plot is not None:
        plotting.check(plot)
    chosen_dtype = dtype or (options.Dtype.FLOAT32 if where.type == "cpu" else options.Dtype.BFLOAT16)
    shape = peers.Shape(batch, heads, key_dim, key_dim if value_dim is None else value_dim, chosen_dtype.torch,
                        gate.value, where, seed)
    names = _backends(shape, backend or [], passes is Pass.BOTH)
    _require_green(names, where, seed)
    contestants = {name: peers.backend(name) for name in names} | (peers.PEERS if peer else {})
    rows, absent = _measure(shape, lengths, contestants, names, passes, repeats, budget)
    title = (f"B={batch} H={heads} K={shape.key_dim} V={shape.value_dim} {chosen_dtype.value}, gate {gate.value}, "
             f"on {devices.of(where)}, {torch.get_num_threads()} CPU threads")
    if json:
        output.write_json({
            "ok": bool(rows), "shape": {"batch": batch, "heads": heads, "key_dim": shape.key_dim,
                                        "value_dim": shape.value_dim, "dtype": chosen_dtype.value, "gate": gate.value},
            "device": str(where), "kind": devices.of(where).kind, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "portable_gla": portable_gla.__version__, "seed": seed, "baseline": names[0],
            "rows": [dataclasses.asdict(row) for row in rows],
            "absent": [{"name": name, "tokens": length, "pass": passed, "reason": reason}
                       for name, length, passed, reason in absent]})
    else:
        _write(rows, absent, title, names[0], where)
    if plot is not None and rows:
        plotting.plot(rows, title, plot)
        output.tell(f"plot written to {plot}")
    raise typer.Exit(0 if any(row.name in names for row in rows) else 1)


def _backends(shape: peers.Shape, asked: Sequence[str], training: bool) -> list[str]:
    """Take the backends asked for, or all that serve the shape by themselves; refuse where none does."""
    asked = options.known_backends(asked)
    problem = shape.problem(1024, training)
    for name in asked:
        found = portable_gla.plan(problem, backend=name)
        if found.backend is None:
            raise typer.BadParameter(f"expected a backend that serves the shape, got {name!r}:\n{found}",
                                     param_hint="--backend")
    names = list(asked) or [name for name in verify.serving(shape.device)
                            if not registry.get(name).reasons_against(problem)]
    if not names:
        output.tell(f"no backend serves this shape\n{portable_gla.plan(problem)}")
        raise typer.Exit(1)
    return names


def _require_green(names: Sequence[str], device: torch.device, seed: int) -> None:
    """Leave with 1 if a backend to be timed is outside a budget: a wrong result has no speed."""
    cases = verify.select_cases(quick=True)
    failed = [(name, row) for name in names for row in verify.check(verify.Target(name, device), cases, seed)
              if not row.ok]
    if failed:
        output.show_error(verify.failures_table(failed))
        output.tell(f"nothing is timed: {len(failed)} checks failed, seed {seed} (portable-gla verify shows them all)")
        raise typer.Exit(1)


def _measure(shape: peers.Shape, lengths: Sequence[int], contestants: dict[str, peers.Contestant],
             ours: Sequence[str], passes: Pass, repeats: int, budget: float) -> tuple[list[Row], list[Missing]]:
    rows: list[Row] = []
    absent: dict[str, Missing] = {}
    wanted = [FORWARD] if passes is Pass.FORWARD else [FORWARD, BOTH]
    with output.progress() as progress:
        task = progress.add_task("timing", total=len(lengths) * len(wanted) * repeats)
        for length in lengths:
            progress.update(task, description=f"T = {length:,}")
            works, reasons = _prepare(contestants, shape, length)
            absent.update({name: (name, None, None, reason) for name, reason in reasons.items()})
            for passed in wanted:
                calls: dict[str, Callable[[], object]] = {
                    name: work.forward if passed == FORWARD else work.forward_backward
                    for name, work in works.items()}
                times, failed = timing.interleaved(calls, shape.device, repeats, budget,
                                                   lambda: progress.advance(task))
                absent.update({f"{name} {length} {passed}": (name, length, passed, reason)
                               for name, reason in failed.items()})
                rows += _rows(shape, length, passed, times, ours)
    return rows, list(absent.values())


def _prepare(contestants: dict[str, peers.Contestant], shape: peers.Shape,
             length: int) -> tuple[dict[str, peers.Work], dict[str, str]]:
    inputs = shape.inputs(length)
    works, reasons = {}, {}
    for name, prepare in contestants.items():
        try:
            works[name] = prepare(shape, inputs)
        except peers.Absent as error:
            reasons[name] = str(error)
    return works, reasons


def _rows(shape: peers.Shape, length: int, passed: str, times: dict[str, timing.Timing],
          ours: Sequence[str]) -> list[Row]:
    baseline = times.get(ours[0])
    floor = _floor(shape, length, passed)
    return [Row(length, passed, name, found.median, *found.spread, found.samples,
                None if baseline is None else found.median / baseline.median, floor if name in ours else None)
            for name, found in times.items()]


def _floor(shape: peers.Shape, length: int, passed: str) -> float | None:
    figures = portable_gla.plan(shape.problem(length, passed == BOTH)).cost
    if passed == FORWARD or figures.floor_forward is None or figures.floor_backward is None:
        return figures.floor_forward
    return figures.floor_forward + figures.floor_backward


def _write(rows: Sequence[Row], absent: Sequence[Missing], title: str, baseline: str, device: torch.device) -> None:
    output.say(title)
    output.say()
    for passed in dict.fromkeys(row.passes for row in rows):
        table = Table("T", "", "median", "samples", "fastest to slowest", f"time / {baseline}'s",
                      "floor / time", title=passed, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for column in (0, 2, 3, 4, 5, 6):
            table.columns[column].justify = "right"
        last = None
        for row in (row for row in rows if row.passes == passed):
            if last not in (None, row.tokens):
                table.add_section()
            table.add_row("" if row.tokens == last else f"{row.tokens:,}", row.name, format_seconds(row.median),
                          str(len(row.samples)),
                          f"{format_seconds(row.fastest)} to {format_seconds(row.slowest)}",
                          "" if row.ratio is None else f"{row.ratio:.2f}",
                          "" if row.floor is None else f"{100 * row.floor / row.median:.2g} %")
            last = row.tokens
        output.show(table)
        output.say()
    for name, length, passed_, reason in absent:
        which = "" if length is None else f", T = {length:,}, {passed_}"
        output.say(f"absent    {name}{which}: {reason}")
    if device.type == "cpu":
        output.say(f"note      the floor is that of {devices.table()['cpu'].name}")
