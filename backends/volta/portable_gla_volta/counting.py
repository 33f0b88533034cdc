"""Counts what the kernels do inside a chip, in the emulator, and writes ``counts.yaml``, which plans predict from.

``python -m portable_gla_volta.counting`` counts afresh all that the sources no longer agree with; ``--all`` everything,
``"64x64 channel"`` and so on those rows. ``--brief`` leaves out the instructions, for which PTX is translated: minutes.
A row is what one chunk of one head costs once a walk is under way: the difference between calls of three and of two
chunks, with all programs that share its channels of V.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from ctypes import Structure
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from portable_gla import segments
from portable_gla.backend import Call
from portable_gla_volta import configurations, images, launch, targets
from portable_gla_volta.configurations import CHUNK, Sweep
from portable_gla_volta.kernel import Kernel, Runner

FILE = Path(__file__).with_name("counts.yaml")
WIDTHS = (32, 64, 128, 256)
_FIRST = targets.TARGETS[0]
_SOURCES = 16  # characters of a hash


class Kind(NamedTuple):
    """A kind of call in float16: K and V rounded up to one of ``WIDTHS``, gates per channel or not.

    ``target`` is Volta's, but where Turing's programs are other ones.
    """

    key_dim: int
    value_dim: int
    channel: bool
    target: str = _FIRST

    def __str__(self) -> str:
        own = "" if self.target == _FIRST else f" {self.target}"
        return f"{self.key_dim}x{self.value_dim} {'channel' if self.channel else 'head'}{own}"

    def shape(self, target: str) -> Sweep:
        """Return the programs of a target that walk along a segment."""
        return configurations.sweep(target, self.key_dim, self.value_dim, self.channel)


class Work(NamedTuple):
    """What one chunk of one head costs: a forward pass, one walk that keeps or sums states, or the gradients."""

    wavefronts: int  # of shared memory
    least: int  # what they would be without a conflict
    mma: int  # of a warp; each is four HMMA.884
    accesses: int  # instructions of warps that access global memory, which take the same path to the core
    instructions: int  # of warps, about: from the PTX, if their lanes stay together; 0: not counted


PASSES = {"forward": "forward", "states": "states", "gradients": "gradients"}


def kind_of(target: str, key_dim: int, value_dim: int, gate: str) -> Kind:
    """Return the row that a call in float16 falls into."""
    wide = next(width for width in WIDTHS if value_dim <= width)
    kind = Kind(configurations.padded(key_dim), wide, gate == "channel")
    return kind if kind.shape(target) == kind.shape(_FIRST) else kind._replace(target=target)


def kinds() -> Iterator[Kind]:
    """Yield every row's kind."""
    sizes = itertools.product(targets.TARGETS, WIDTHS, WIDTHS, ("channel", "head"))
    yield from dict.fromkeys(itertools.starmap(kind_of, sizes))


@functools.cache
def table() -> dict[str, dict[str, Work]]:
    """Read the counts, by kind and pass."""
    return {kind: {name: Work(*row[name]) for name in PASSES} for kind, row in _document().items()}


def _document() -> dict[str, Any]:
    if not FILE.exists():
        return {}
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")) or {})


def sources(kind: Kind) -> str:
    """Return a hash of all that a row was counted from."""
    shape = kind.shape(kind.target)
    kernels = (configurations.forward(shape, kind.channel), configurations.states(shape, kind.channel),
               configurations.gradients(shape.keys, kind.channel, torch.float16))
    text = "\n".join(images.key(kernel, targets.PORTABLE) for kernel in kernels)
    return hashlib.sha256(text.encode()).hexdigest()[:_SOURCES]


def stale() -> list[Kind]:
    """List the kinds whose row is missing, or was counted from other sources."""
    found = _document()
    return [kind for kind in kinds() if found.get(str(kind), {}).get("sources") != sources(kind)]


class _Noting:
    """A runner that notes what another one launches."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.target, self.entries = runner, runner.target, list[str]()
        self.instructions: list[int] = []

    def launch(self, kernel: Kernel, grid: int, arguments: Structure, tensors: Sequence[Tensor]) -> None:
        """Note a launch, and do it."""
        self.entries.append(kernel.entry)
        counter = getattr(self.runner, "instructions", lambda kernel: 0)
        counter(kernel)
        self.runner.launch(kernel, grid, arguments, tensors)
        self.instructions.append(counter(kernel) // 32)


def count(kind: Kind, instructions: bool = True, nats: float = 0.05) -> dict[str, Work]:
    """Count a kind of call; without ``instructions`` they are 0, and no PTX is translated.

    Gates are of about so many ``nats``; those per channel cost more where they are strong.
    """
    short, long = (_counted(kind, CHUNK * chunks, instructions, nats) for chunks in (2, 3))
    return {name: Work(*(b - a for a, b in zip(short[name], long[name], strict=True))) for name in PASSES}


def _counted(kind: Kind, tokens: int, instructions: bool, nats: float) -> dict[str, Work]:
    from portable_gla_volta import emulator, ptx  # with a compiler for the host, which users need not have

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, tokens, 1, *shape, generator=generator)

    q, k = (normal(kind.key_dim).half() for _ in range(2))
    v, d = (normal(kind.value_dim).half() for _ in range(2))
    g = torch.nn.functional.logsigmoid(normal(kind.key_dim) if kind.channel else normal()) * (nats / 0.8)
    call = Call(q, k, v, g, None, None, None, 1.0, False, False, {})
    cut = segments.choose(1, tokens, 1, kind.value_dim, 1, 1)
    runner, links = _Noting(emulator.EmulatorRunner(kind.target)), torch.zeros(0, 1, kind.key_dim, kind.value_dim)
    with emulator.options(count=True) as launches:
        launch.Launcher(runner, call, cut).forward(links)
        launch.Launcher(runner, call, cut).backward(links, d, None)
    also = _Noting(ptx.PtxRunner(target=kind.target)) if instructions else runner
    if instructions:
        launch.Launcher(also, call, cut).forward(links)
        launch.Launcher(also, call, cut).backward(links, d, None)
    found = {}
    for name, entry in PASSES.items():
        number = runner.entries.index(entry)
        first = launches[number]
        shared = [site for site in first.sites if site.space == "shared"]
        found[name] = Work(sum(site.wavefronts for site in shared), sum(site.least for site in shared),
                           first.multiplications,
                           sum(site.instructions for site in first.sites if site.space == "global"),
                           also.instructions[number])
    return found


def write(rows: dict[str, Any]) -> None:
    """Write the table, a line a row."""
    head = ("# What one chunk of one head costs, counted in the emulator by `python -m portable_gla_volta.counting`:\n"
            "# [wavefronts of shared memory, the least possible, mma, global accesses, instructions], of warps.\n")
    order = {str(kind): rows[str(kind)] for kind in kinds() if str(kind) in rows}
    FILE.write_text(head + yaml.safe_dump(order, sort_keys=False, default_flow_style=None, width=200),
                    encoding="utf-8")


def main() -> None:
    """Count what is out of date."""
    rows = _document()
    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    wanted = [kind for kind in kinds() if str(kind) in names] or (list(kinds()) if "--all" in sys.argv else stale())
    for number, kind in enumerate(wanted, 1):
        found = count(kind, "--brief" not in sys.argv)
        rows[str(kind)] = {"sources": sources(kind), **{name: list(work) for name, work in found.items()}}
        write(rows)
        print(f"{number} of {len(wanted)}  {kind}  {found}", flush=True)


if __name__ == "__main__":
    main()
