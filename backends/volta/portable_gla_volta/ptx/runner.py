"""Runs kernels as NVRTC compiled them to PTX, on CPU tensors."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from portable_gla_volta import nvrtc, sources, targets
from portable_gla_volta.emulator import building
from portable_gla_volta.emulator.runner import EmulatorRunner
from portable_gla_volta.kernel import Kernel
from portable_gla_volta.ptx.translate import translate
from portable_gla_volta.sources import Source

_HEADER = Path(__file__).with_name("instructions.h")


class PtxRunner(EmulatorRunner):
    """A runner that takes the compiler's PTX in the place of the sources; the machine that runs it is the emulator's.

    So bounds, races and bank conflicts are those of the compiled kernel, and a place is a line of its PTX.
    ``options`` are for NVRTC beside the usual ones: with ``--fmad=false`` it fuses no product with a sum that the
    source does not, as g++ does not either, and results are the emulator's to the last bit.
    """

    unrolls = False  # the compiler has

    def __init__(self, options: Sequence[str] = (), target: str = "sm_70", folder: Path = sources.FOLDER) -> None:
        super().__init__(target, folder)
        self.options = tuple(options)

    def instructions(self, kernel: Kernel) -> int:
        """Return how many machine instructions, about, threads have run of a kernel since the last time this was asked.

        They are estimated from the PTX: an mma is four, 64-bit integer arithmetic two, a copy none. A predicated
        instruction counts whether it is carried out or not, as it is issued either way.
        """
        counter = ctypes.c_longlong.in_dll(self.compiled(kernel)._library, "instructions_run")
        found, counter.value = counter.value, 0
        return found

    def ptx(self, kernel: Kernel) -> str:
        """Compile a kernel as it would be for a newer GPU."""
        source = sources.read(kernel.source, self.folder)
        return nvrtc.find(targets.PORTABLE).compile(
            source.name, source.text, source.headers,
            (*sources.options(kernel, targets.PORTABLE), *self.options)).code.decode()

    def build(self, kernel: Kernel) -> Path:
        """Compile a kernel's PTX, translated, for this machine."""
        source = Source(f"{kernel.entry}-ptx.cpp", translate(self.ptx(kernel)),
                        {_HEADER.name: _HEADER.read_text(encoding="utf-8")})
        return building.kernel(dataclasses.replace(kernel, defines=()), source)  # the PTX has its constants
