"""Writes ``tiles.yaml``: ``python -m portable_gla_triton.tune [targets]``.

Without a GPU: the first of the candidates, best guess first, that compiles without spilling for every kind of call.
On a GPU (``--measure``): the fastest of those, timed on the case table's ``hardware`` shapes of the row's kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

import portable_gla
from portable_gla import devices
from portable_gla.testing import cases, inputs
from portable_gla.testing.cases import Case
from portable_gla_triton import offline, tiles
from portable_gla_triton.offline import Build, Compiled
from portable_gla_triton.operands import EXACT
from portable_gla_triton.tiles import WIDTHS, Tile

Row = tuple[str, str, str, str, bool, int, bool]  # the arguments of tiles.row_name
TABLE = Path(__file__).with_name("tiles.yaml")
_HEAD = "# target kernel operands gate[+bonus] K [odd]: chunk, block of K, of V, warps, stages, near. By tune.py.\n"

_KINDS = {"bf16": "bf16", "tf32": "f16", "bf16x6": "f32"}  # operands, and the dtype that gets them
_LAUNCHED = {"states": ("chunk_states", "summarize"), "forward": ("forward",), "gradients": ("gradients",)}

ODD = 128
"""Up to which K there are rows for odd sizes, without a bonus; elsewhere a few bytes a thread may spill."""

_STATES = ((64, 64, 4), (64, 64, 8), (32, 64, 4), (32, 32, 4), (16, 32, 4), (16, 16, 4))
_GRADIENTS = ((64, 64, 8), (64, 32, 8), (32, 64, 8), (32, 32, 8), (32, 32, 4), (16, 32, 4), (16, 16, 4))
_FORWARD = (
        (32, 64, 64, 8), (32, 128, 64, 8), (32, 64, 32, 8), (32, 128, 32, 8), (32, 32, 64, 8), (32, 32, 32, 8),
        (32, 128, 16, 8), (16, 128, 32, 8), (16, 64, 32, 8), (16, 128, 16, 8), (16, 128, 16, 8, 2), (16, 64, 16, 8),
        (16, 32, 16, 8), (16, 64, 16, 4), (16, 32, 16, 4), (16, 16, 16, 4))


def candidates(kernel: str, kind: str) -> tuple[Tile, ...]:
    """Return what is tried for a kernel, best guess first; a pair of gradients' chunks is a chunk of the states."""
    chunk = 32 if kind == "bf16x6" else 64  # three operands for one are held in registers
    return {"states": tuple(Tile(chunk, *rest) for rest in _STATES),
            "gradients": tuple(Tile(chunk // 2, *rest) for rest in _GRADIENTS),
            "forward": tuple(Tile(*one) for one in _FORWARD)}[kernel]


def rows(target: str) -> Iterator[Row]:
    """Yield target, kernel, operands, gate, bonus and K of every row that a target needs."""
    for kind in ("bf16", "tf32", "bf16x6"):
        for gate, bonus, kernel in itertools.product(("channel", "head"), (False, True), _LAUNCHED):
            for width in WIDTHS if kernel == "forward" and kind != EXACT else WIDTHS[1:2]:
                yield target, kernel, kind, gate, bonus, width, False
                if width <= ODD and not bonus:
                    yield target, kernel, kind, gate, bonus, width, True


def builds(target: str, kernel: str, kind: str, gate: str, bonus: bool, width: int, odd: bool) -> list[Build]:
    """Return what has to compile without spills for a row: calls with every feature first, then those with none."""
    sizes = [(width, width)]
    if odd:
        sizes = [(40, 72)] if width == 64 else [(104, 136), (40, 72)] if kernel != "forward" or kind == EXACT else [
            (104, 136)]
    elif kernel != "forward" or kind == EXACT:  # one row for every K
        sizes += [(width // 2, width // 2)]
    gates = ("head", "constant", "none") if gate == "head" and not bonus else (gate,)
    return [Build(name, target, {"dtype": _KINDS[kind], "gate": one, "K": key_dim, "V": value_dim,
                                 "features": features})
            for features in (("bonus",) if bonus else ("all", "plain")) for key_dim, value_dim in sizes
            for one in gates for name in _LAUNCHED[kernel] if (features, name) != ("plain", "summarize")]


def fits(found: Compiled) -> bool:
    """Tell whether a build is as the table wants it."""
    return not found.error and not found.spills and found.shared <= found.shared_limit


def fitting(row: Row) -> list[Tile]:
    """Return every candidate that compiles as the table wants it."""
    found = []
    for candidate in candidates(row[1], row[2]):
        with offline.table_with({tiles.row_name(*row): candidate}):
            if all(fits(offline.compile_one(build)) for build in builds(*row)):
                found.append(candidate)
    return found


def shapes(row: Row) -> list[Case]:
    """Return the case table's ``hardware`` shapes that a row serves, in the row's dtype; decoding has none."""
    _, kernel, kind, gate, bonus, width, odd = row
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[_KINDS[kind]]
    narrower = max([0, *(other for other in WIDTHS if other < width)])
    every = kernel != "forward" or kind == EXACT
    return [dataclasses.replace(case, dtype=dtype, bonus=bonus) for case in cases.select("hardware")
            if (case.gate == "channel") == (gate == "channel") and case.tokens > 1 and not odd
            and (every or narrower < case.key_dim <= width)]


def fastest(row: Row, among: list[Tile], time: Callable[[Case, bool], float]) -> Tile:
    """Return the candidate with the least sum of times, each relative to the best on its shape."""
    key, backward = tiles.row_name(*row), row[1] != "forward"
    times = []
    for candidate in among:
        with offline.table_with({key: candidate}):
            times.append([time(case, backward) for case in shapes(row)])
    best = [min(column) for column in zip(*times, strict=True)]
    scores = [sum(one / least for one, least in zip(each, best, strict=True)) for each in times]
    return among[scores.index(min(scores))]


def seconds(case: Case, backward: bool) -> float:
    """Return the median time of a case on this machine's GPU, by device events."""
    given = inputs.make(case, 0, "cuda")
    leaves: dict[str, Any] = {name: value.detach().requires_grad_(backward) for name, value in inputs.tensors(given)}
    samples: list[float] = []
    for repetition in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        o = portable_gla.attention(**leaves, backend="triton")
        assert isinstance(o, torch.Tensor)
        if backward:
            torch.autograd.grad(o, list(leaves.values()), given.do)
        end.record()
        end.synchronize()
        if repetition >= 5:
            samples.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def search(row: Row) -> tuple[str, Tile, str]:
    """Return a row's key, its tile, and a word on it."""
    key = tiles.row_name(*row)
    among = candidates(row[1], row[2])
    if row[6]:  # the usual row's tile first
        among = (tiles.table()[tiles.row_name(*row[:6])], *among)
    best: tuple[int, Tile] | None = None
    for candidate in among:
        worst = 0
        for build in builds(*row):
            with offline.table_with({key: candidate}):
                found = offline.compile_one(build)
            worst = max(worst, (found.spills or 0) if not found.error and found.shared <= found.shared_limit else 10**6)
            if not fits(found):
                break
        else:
            return key, candidate, f"{found.registers} registers"
        if best is None or worst < best[0]:
            best = worst, candidate
    assert best is not None
    return key, best[1], f"spills {best[0]} bytes: no candidate is without"


def main(arguments: list[str]) -> int:
    """Search and write the table; other targets' rows stay."""
    parser = argparse.ArgumentParser(prog="python -m portable_gla_triton.tune", description=__doc__)
    parser.add_argument("targets", nargs="*", default=["sm_80", "sm_90"])
    parser.add_argument("--only", default="*", help="rows to search, such as '* forward * channel+bonus *'")
    parser.add_argument("--measure", action="store_true", help="time the candidates on this machine's GPU")
    parser.add_argument("--jobs", type=int, default=2, help="compilations side by side")
    chosen = parser.parse_args(arguments)
    found: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    wanted = [row for target in chosen.targets for row in rows(target)
              if fnmatch.fnmatch(tiles.row_name(*row), chosen.only)]
    if chosen.measure:
        return _measure(wanted, found)
    for odd in (False, True):  # the usual rows first: a search of an odd row begins with the usual one's tile
        tiles.table.cache_clear()
        with ProcessPoolExecutor(chosen.jobs) as pool:
            for key, tile, note in pool.map(search, [row for row in wanted if row[6] == odd]):
                print(f"{key}: {tuple(tile)} {note}", flush=True)
                found[key] = list(tile)
                if odd and found[key] == found.get(key.removesuffix(" odd")):
                    del found[key]
                _write(found)
    return 0


def _measure(wanted: list[Row], found: dict[str, Any]) -> int:
    if not torch.cuda.is_available():
        print("--measure: PyTorch sees no GPU here", file=sys.stderr)
        return 2
    here = tiles.family(devices.of(torch.device("cuda", torch.cuda.current_device())).arch)
    for row in wanted:
        among = fitting(row) if row[0] == here and shapes(row) else []
        if among:
            key = tiles.row_name(*row)
            found[key] = list(fastest(row, among, seconds))
            print(f"{key}: {found[key]} of {len(among)}", flush=True)
            _write(found)
    return 0


def _write(found: dict[str, Any]) -> None:
    TABLE.write_text(_HEAD + "".join(f"{key}: {found[key]}\n" for key in sorted(found)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
