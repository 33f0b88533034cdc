"""``python -m portable_gla_ascend.tune``: searches the table of tiles, by what the compilers say fits a core.

A row of ``tiles.yaml`` is searched when all tiles that move less through global memory than the row's are refused. They
are tried from the best down, one kernel at a time, the most demanding first and in the most demanding calls first, till
the first refusal. A block that is refused with the smallest others is refused with all; so a row that stands takes a
few compilations, and plans are kept between runs. No device is needed, and no time is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

from portable_gla_ascend import launch, offline
from portable_gla_ascend.offline import recording
from portable_gla_ascend.offline.recording import Launch
from portable_gla_ascend.tiles import Pass, Tiles, table, within

CHIPS = {"910": "Ascend910B2", "950": "Ascend950"}
"""Kinds of chips, and the target that stands for each: the compilers describe the others of a kind alike."""
DTYPES = {"bf16": "bf16", "split": "f16", "f32": "f32"}
"""Kinds of products, and the inputs' dtype."""
GATES = {"channel": ("channel",), "other": ("head", "none", "constant")}
PASSES = ("forward", "backward")
SECONDS = 300.0
"""Wall-clock seconds in which a kernel has to compile; more is a refusal."""
BLOCKS = {"chunk": (32, 64), "block_k": (32, 64, 128), "sweep_v": (32, 64, 128), "block_v": (32, 64, 128),
          "loop_k": (16, 32, 64, 128), "loop_v": (32, 64, 128)}
"""What is searched: how many chunks a state spans, and by which kernels, is not."""
_FEATURES = ("bonus", "all", "plain")  # the most demanding first
_SIZES = (512, 64)
_LARGE = 512  # K and V for which the traffic is counted
Refuses = Callable[[str, Pass], str]
"""From a kernel and tiles to the compilers' reason for refusing it, empty where there is none."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the table is for."""

    chip: str
    which: str
    kind: str
    gate: str

    @property
    def standing(self) -> Pass:
        """Return the tiles that the table has."""
        return table()[self.which, self.chip, self.kind, self.gate]


def rows() -> list[Row]:
    """List the rows, in the order of their use."""
    return [Row(chip, which, kind, gate)
            for chip, kind, which, gate in itertools.product(CHIPS, ("bf16", "f32", "split"), PASSES, GATES)]


def kernels(which: str, tile: Pass) -> dict[str, tuple[str, ...]]:
    """Return a pass's kernels, the most demanding first, and the fields that each is compiled with.

    ``keys`` and ``values`` are the halves of ``gradients``: what refuses a half refuses the whole.
    """
    if which == "forward":
        return {"outputs": ("chunk", "block_k", "block_v"), "sweep": ("chunk", "block_k", "sweep_v")}
    keys, values = ("loop_k", "loop_v"), ("block_k", "block_v")
    halves: dict[str, tuple[str, ...]] = {"keys": ("chunk", *keys), "values": ("chunk", *values),
                                          "sweep_both": ("chunk", "block_k", "sweep_v")}
    return {**halves, "gradients": ("chunk", *keys, *values)} if tile.whole else halves


def part(launch: Launch) -> str:
    """Name a launch as ``kernels`` does."""
    if launch.kernel != "gradients" or launch.constants["KEYS"] == launch.constants["VALUES"]:
        return launch.kernel
    return "keys" if launch.constants["KEYS"] else "values"


def traffic(which: str, tile: Pass) -> float:
    """Count numbers that a token of a head moves through global memory, at the largest K and V."""
    size = _LARGE
    state, along_k = size * size / tile.chunk, size / tile.block_k
    sweep = size / tile.sweep_v * 2 * size + along_k * size + state / tile.span
    if which == "forward":
        return sweep + size / tile.block_v * (3 if tile.span == 1 else 5) * size + size + state
    keys = size / tile.loop_k * (2 if tile.span == 1 else 4) * size + 13 * size + 2 * state
    return 2 * sweep + keys + size / tile.block_v * 2 * size + 5 * size + state


def better(which: str, standing: Pass) -> Iterator[Pass]:
    """Yield the tiles that move less than those that stand, those that move the least first.

    Chunks become no smaller: that would keep more states, which memory has to hold, where the rest is read again.
    """
    fields = dict.fromkeys(field for used in kernels(which, standing).values() for field in used)
    every: Iterator[dict[str, Any]] = (dict(zip(fields, blocks, strict=True))
                                       for blocks in itertools.product(*(BLOCKS[field] for field in fields)))
    found = (dataclasses.replace(standing, **blocks) for blocks in every)
    limit = traffic(which, standing)
    less = (tile for tile in found if tile.chunk >= standing.chunk and traffic(which, tile) < limit)
    yield from sorted(less, key=lambda tile: (traffic(which, tile), -tile.loop_v))


def probes(fields: tuple[str, ...], tile: Pass, standing: Pass) -> Iterator[Pass]:
    """Yield smaller tiles that are refused only where ``tile`` is: with one block above what stands, others least."""
    for field in fields:
        above = [size for size in BLOCKS[field] if getattr(standing, field) < size <= getattr(tile, field)]
        if above and field != "chunk":
            least: dict[str, Any] = {other: BLOCKS[other][0] for other in fields if other not in (field, "chunk")}
            yield dataclasses.replace(tile, **{**least, field: above[0]})
    yield tile


def search(which: str, standing: Pass, refuses: Refuses) -> Pass:
    """Return the tiles that move the least of those that fit: those that stand, where all better ones are refused."""
    asked: dict[tuple[Any, ...], str] = {}

    def refused(kernel: str, fields: tuple[str, ...], tile: Pass) -> bool:
        key = kernel, *(getattr(tile, field) for field in fields)
        if key not in asked:
            asked[key] = refuses(kernel, tile)
        return bool(asked[key])

    wanted = kernels(which, standing)
    for tile in better(which, standing):
        changed = {kernel: fields for kernel, fields in wanted.items()
                   if any(getattr(tile, field) != getattr(standing, field) for field in fields)}
        if not any(refused(kernel, fields, probe) for kernel, fields in changed.items()
                   for probe in probes(fields, tile, standing)):
            return tile
    return standing


def too_large(kernel: str, tile: Pass, chip: str) -> str:
    """Say which memory cannot hold what a kernel keeps in float32 at the least: a sweep's state, a product's sum."""
    soc = offline.soc(CHIPS[chip])
    sums = {"outputs": tile.chunk * tile.block_v, "values": tile.chunk * tile.block_v,
            "keys": tile.chunk * tile.loop_k}.get(kernel, 0)
    if kernel.startswith("sweep"):
        sums = tile.block_k * tile.sweep_v
    if sums * 4 > soc.l0c_kib * 1024:
        return f"L0C: a sum of {sums * 4 // 1024} KiB"
    vectors = 2 if chip == "910" else 1  # which share the work beside a cube
    if kernel.startswith("sweep") and 2 * sums * 4 > vectors * soc.unified_kib * 1024:
        return f"unified buffer: a state and its addend of {2 * sums * 4 // 1024} KiB"
    return ""


def configurations(row: Row) -> Iterator[dict[str, Any]]:
    """Yield the calls that a row has to serve, the most demanding first."""
    for size, features, gate in itertools.product(_SIZES, _FEATURES, GATES[row.gate]):
        yield {"dtype": DTYPES[row.kind], "gate": gate, "K": size, "V": size, "features": features}


def refusal(row: Row, kernel: str, tile: Pass) -> str:
    """Compile a row's kernel with tiles, till the first refusal; return it."""
    target = CHIPS[row.chip]
    error = too_large(kernel, tile, row.chip)
    if error:
        return error

    def choose(soc: Any, kind: str, gate: str, key_dim: int, value_dim: int) -> Tiles:
        whole = kernel == "gradients"
        capped = within(dataclasses.replace(tile, whole=whole, own_masks=whole and tile.own_masks), key_dim, value_dim)
        return Tiles(capped, capped)

    with mock.patch.object(launch, "choose", choose):
        for configuration in configurations(row):
            for one in recording.record(offline.kernels(), offline.soc(target), configuration, (row.which,)):
                if part(one) == kernel:
                    error = offline.compile_launch(one, target, limit=SECONDS)["error"]
                    if error:
                        return f"{configuration['features']}: {error}"
    return ""


def tuned(row: Row) -> tuple[Row, Pass]:
    """Search one row, and tell on stderr what was refused."""
    def refuses(kernel: str, tile: Pass) -> str:
        error = refusal(row, kernel, tile)
        blocks = {field: getattr(tile, field) for field in kernels(row.which, tile)[kernel]}
        print(f"{row} {kernel} {blocks}: {error[:200] or 'fits'}", file=sys.stderr, flush=True)
        return error

    return row, search(row.which, row.standing, refuses)


def line(row: Row, tile: Pass) -> str:
    """Write a searched row as a line of ``tiles.yaml``."""
    fields = dataclasses.asdict(tile)
    flags = {name: "true" for name, value in fields.items() if value is True}
    blocks = {name: value for name, value in fields.items() if not isinstance(value, bool)}
    named = {"chip": f'"{row.chip}"', "pass": row.which, "kind": row.kind, "gate": row.gate, **blocks, **flags,
             "searched": "true"}
    return f"- {{{', '.join(f'{name}: {value}' for name, value in named.items())}}}"


def main() -> int:
    """Search rows, and print them as the table has them."""
    parser = argparse.ArgumentParser(prog="python -m portable_gla_ascend.tune", description=main.__doc__)
    parser.add_argument("rows", nargs="*", default=["*"], metavar="CHIP/PASS/KIND/GATE",
                        help="patterns, such as '910/*/bf16/channel'; default: all, in the order of their use")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    wanted = [row for row in rows() if any(fnmatch.fnmatchcase("/".join(dataclasses.astuple(row)), pattern)
                                           for pattern in given.rows)]
    offline.prepare()
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, tile in pool.map(tuned, wanted):
            print(line(row, tile), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
