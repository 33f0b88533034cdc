"""``python -m portable_gla_ascend.tune``: makes the table of tiles, from what the compilers say fits a core.

For each kind of chip, pass, kind of product and gate, all kernels of the pass are compiled with the largest tiles; a
kernel that does not fit has its own block made smaller. Of what fits, the tiles that move the least through global
memory are taken. No device is needed, and no time is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

from portable_gla_ascend import launch, offline
from portable_gla_ascend.offline import recording
from portable_gla_ascend.tiles import Pass, Tiles, within

CHIPS = {"910": "Ascend910B2", "950": "Ascend950"}
"""Kinds of chips, and the target that stands for each: the compilers describe the others of a kind alike."""
DTYPES = {"bf16": "bf16", "split": "f16", "f32": "f32"}
"""Kinds of products, and the inputs' dtype."""
GATES = {"channel": ("channel",), "other": ("head", "none")}
PASSES = ("forward", "backward")
_CHUNKS = (64, 32)
_SPANS = {"forward": (2,), "backward": (1,)}
_BLOCKS_K = (128, 64, 32)
_FEATURES = ("bonus", "all", "plain")
_SIZES = (512, 64)
_LARGE = 512  # K and V for which the traffic is counted
_BLOCKS = (128, 64, 32)
_OF_V = tuple((size,) for size in _BLOCKS)
LADDERS: dict[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = {
    "sweep": (("sweep_v",), _OF_V),
    "outputs": (("block_v",), _OF_V),
    "gradients_v": (("block_v",), _OF_V),
    "gradients_k": (("loop_k", "loop_v"), tuple(itertools.product((128, 64, 32, 16), (128, 64, 32)))),
}
"""The blocks that only one kernel of a pass has, and what they may be, the best first."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the table is for."""

    chip: str
    which: str
    kind: str
    gate: str


def rows() -> list[Row]:
    """List the rows."""
    return [Row(*parts) for parts in itertools.product(CHIPS, PASSES, DTYPES, GATES)]


def traffic(which: str, tile: Pass) -> float:
    """Count numbers that a token of a head moves through global memory, at the largest K and V."""
    size = _LARGE
    state, along_k = size * size / tile.chunk, size / tile.block_k
    sweep = size / tile.sweep_v * 2 * size + along_k * size + state / tile.span
    side = size / tile.block_v * (3 if tile.span == 1 else 5) * size + size + state
    if which == "forward":
        return sweep + side
    return 2 * sweep + side + size / tile.loop_k * 6 * size + 6 * size + 2 * state


def candidates(which: str) -> Iterator[Pass]:
    """Yield tiles, of which each kernel has the best of its own, those that move the least first."""
    best = {field: size for fields, ladder in LADDERS.values() for field, size in zip(fields, ladder[0], strict=True)}
    found = [Pass(chunk=chunk, span=span, block_k=block_k, **best)
             for chunk, span, block_k in itertools.product(_CHUNKS, _SPANS[which], _BLOCKS_K)]
    yield from sorted(found, key=functools.partial(traffic, which))


def search(which: str, refused: Callable[[Pass], Iterable[str]]) -> Pass | None:
    """Return the tiles that move the least of those that fit; ``refused`` names the kernels that do not."""
    best, least = None, float("inf")
    for start in candidates(which):
        if traffic(which, start) >= least:
            break  # smaller blocks move more, and so do the candidates after this one
        found = _shrunk(start, refused)
        if found is not None and traffic(which, found) < least:
            best, least = found, traffic(which, found)
    return best


def _shrunk(tile: Pass, refused: Callable[[Pass], Iterable[str]]) -> Pass | None:
    """Go down the ladders of the kernels that do not fit, till all do; None where one has come to its end."""
    while True:
        wanted = {LADDERS[kernel] for kernel in refused(tile)}
        if not wanted:
            return tile
        for fields, ladder in wanted:
            at = ladder.index(tuple(getattr(tile, field) for field in fields)) + 1
            if at == len(ladder):
                return None
            tile = dataclasses.replace(tile, **dict(zip(fields, ladder[at], strict=True)))


def configurations(row: Row) -> Iterator[dict[str, Any]]:
    """Yield the calls that a row has to serve."""
    for size, features, gate in itertools.product(_SIZES, _FEATURES, GATES[row.gate]):
        yield {"dtype": DTYPES[row.kind], "gate": gate, "K": size, "V": size, "features": features}


def refusals(row: Row, tile: Pass) -> dict[str, str]:
    """Compile a row's kernels with tiles; return the errors, by kernel, of the first call that has one."""
    target = CHIPS[row.chip]
    found: dict[str, str] = {}

    def choose(soc: Any, kind: str, gate: str, key_dim: int, value_dim: int) -> Tiles:
        capped = within(tile, key_dim, value_dim)
        return Tiles(capped, capped)

    with mock.patch.object(launch, "choose", choose):
        for configuration in configurations(row):
            for one in recording.record(offline.kernels(), offline.soc(target), configuration, (row.which,)):
                if one.kernel not in found:
                    error = offline.compile_launch(one, target)["error"]
                    if error:
                        found[one.kernel] = error
            if found:
                break
    return found


def tuned(row: Row) -> tuple[Row, Pass | None]:
    """Search one row, and tell on stderr what was refused."""
    def refused(tile: Pass) -> Iterable[str]:
        found = refusals(row, tile)
        for kernel, error in found.items():
            print(f"{row} {tile}: {kernel}: {error[:200]}", file=sys.stderr, flush=True)
        return found

    return row, search(row.which, refused)


def line(row: Row, tile: Pass) -> str:
    """Write a row as a line of ``tiles.yaml``."""
    named = {"chip": f'"{row.chip}"', "pass": row.which, "kind": row.kind, "gate": row.gate, **dataclasses.asdict(tile)}
    return f"- {{{', '.join(f'{name}: {value}' for name, value in named.items())}}}"


def main() -> int:
    """Print the table's rows, or some."""
    parser = argparse.ArgumentParser(prog="python -m portable_gla_ascend.tune", description=main.__doc__)
    parser.add_argument("rows", nargs="*", default=["*"], metavar="CHIP/PASS/KIND/GATE",
                        help="patterns, such as '910/*/bf16/channel'; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    wanted = [row for row in rows() if any(fnmatch.fnmatchcase("/".join(dataclasses.astuple(row)), pattern)
                                           for pattern in given.rows)]
    offline.prepare()
    missing = 0
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, tile in pool.map(tuned, wanted):
            if tile is None:
                missing += 1
                print(f"# {row}: nothing fits", flush=True)
            else:
                print(line(row, tile), flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
