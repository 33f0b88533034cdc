"""Copies of the kernels with faults put in, each to be switched on while they run.

One copy has all of them: a kernel is compiled once, and a number in its library says which fault it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from portable_gla_volta import backend, sources
from portable_gla_volta.emulator import EmulationError, EmulatorRunner
from portable_gla_volta.kernel import Kernel

from portable_gla.testing import checking
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.poison import poisoned_memory
from portable_gla.testing.running import Target, run

TARGET = Target("volta", emulated=True)
SEED = 7  # always: some faults show only in some numbers
_SWITCH = 'extern "C" { __attribute__((visibility("default"))) int mutant; }\n'
_BARRIER = re.compile(r"(?<!\w)((?:warp_)?barrier\(\);)")
_FENCE = "FENCED"  # these keep the compiler from fetching too much at once; no order of accesses depends on them


@dataclass(frozen=True)
class Patch:
    """``old``, which stands once in ``file``, becomes ``new``, where MUTANT says whether the fault is on."""

    name: str
    file: str
    old: str
    new: str


def barriers(text: str) -> list[int]:
    """Return the numbers of the lines of a source that have a barrier."""
    return [number for number, line in enumerate(text.splitlines(), 1)
            if _BARRIER.search(line.partition("//")[0]) and _FENCE not in line]


class Mutants:
    """A folder of sources with faults, numbered from 1, and a runner that has one of them on, or none."""

    def __init__(self, folder: Path, patches: tuple[Patch, ...], *, barriers: bool = False) -> None:
        self.numbers: dict[str, int] = {}
        texts = {path.name: path.read_text(encoding="utf-8") for path in sources.FOLDER.iterdir() if path.is_file()}
        for patch in patches:
            number = self.numbers[patch.name] = len(self.numbers) + 1
            assert texts[patch.file].count(patch.old) == 1, f"{patch.name}: {patch.file} has not once: {patch.old}"
            new = patch.new.replace("MUTANT", f"(mutant == {number})")
            texts[patch.file] = texts[patch.file].replace(patch.old, new)
        if barriers:
            for name in sorted(texts):
                if name != "target.cuh":
                    texts[name] = self._without_barriers(name, texts[name])
        texts["arguments.cuh"] = _SWITCH + texts["arguments.cuh"]
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.runner = _Runner(folder)

    def _without_barriers(self, file: str, text: str) -> str:
        lines = text.splitlines()
        for number in barriers(text):
            one = self.numbers[f"{file}:{number}"] = len(self.numbers) + 1
            lines[number - 1], found = _BARRIER.subn(rf"{{ if (mutant != {one}) \1 }}", lines[number - 1])
            assert found == 1, f"{file}:{number} has two barriers"
        return "\n".join(lines) + "\n"

    @contextlib.contextmanager
    def on(self, name: str | None, patch: pytest.MonkeyPatch, target: str = "sm_70") -> Iterator[None]:
        """Have calls to the emulated backend run a target's kernels, with one fault or none."""
        self.runner.mutant, self.runner.target = self.numbers[name] if name else 0, target
        with patch.context() as inner:
            inner.setattr(backend, "_runner", lambda emulating: self.runner)
            yield


class _Runner(EmulatorRunner):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder)
        self.mutant = 0

    def compiled(self, kernel: Kernel, unrolled: bool = False) -> object:
        found = super().compiled(kernel, unrolled)
        ctypes.c_int.in_dll(found._library, "mutant").value = self.mutant
        return found


def caught(case: Case, segments: int = 1) -> set[str]:
    """Run a case forward and backward, or decode it; return the kinds of faults, "budget" if a result misses its own.

    ``segments`` 0: decode.
    """
    try:
        with poisoned_memory():
            if segments:
                found = run(TARGET, numbers.make(case, SEED), segments=segments)
                rows = list(checking.held(case, found, checking.expected(TARGET, case, SEED)))
            else:
                rows = list(CHECKS["decodes"](TARGET, case, SEED))
    except EmulationError as error:
        return {fault.kind for fault in error.faults}
    return {"budget"} if not all(row.ok for row in rows) else set()


def half(name: str, **fields: object) -> Case:
    """A case in float16: its tokens are no whole chunks."""
    return Case(name, **{"dtype": torch.float16, "gate_dtype": torch.float32, "tokens": 70, "key_dim": 64,  # type: ignore
                         "value_dim": 64, "initial_state": "each", **fields})
