"""Launches kernels on CPU tensors."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from portable_gla_volta import sources, targets
from portable_gla_volta.kernel import Kernel

from . import building, counts, machine
from .errors import KINDS, Fault, error_of
from .options import current

_one_at_a_time = threading.Lock()  # the machine has one state; a launch runs without Python's lock


class EmulatorRunner:
    """Runs kernels as a device of ``target`` would; ``folder`` has their sources, if not ``csrc``."""

    unrolls = True  # builds what is counted apart

    def __init__(self, target: str = "sm_70", folder: Path | None = None) -> None:
        self.target = target
        self.folder = folder
        self._compiled: dict[tuple[Kernel, Path, bool], _Compiled] = {}

    def launch(self, kernel: Kernel, grid: int, arguments: ctypes.Structure, tensors: Sequence[Tensor]) -> None:
        """Run ``grid`` blocks; raise an :class:`EmulationError` if they do what they must not."""
        if not 1 <= grid < 2**31:
            raise ValueError(f"grid: expected 1 to 2**31 - 1 blocks, got {grid}")
        for tensor in tensors:
            if tensor.device.type != "cpu":
                raise ValueError(f"tensors: the emulator has the CPU's, got one on {tensor.device}")
        options = current()
        compiled = self.compiled(kernel, options.count and self.unrolls)
        compiled.check(kernel, arguments)
        begins, ends = _stretches(tensors)
        wanted = machine.Launch(
            compiled.entry, ctypes.addressof(arguments), grid, kernel.threads, kernel.shared, options.checks == "all",
            options.count, options.truncate, options.order, len(begins), (ctypes.c_uint64 * len(begins))(*begins),
            (ctypes.c_uint64 * len(ends))(*ends))
        library = machine.load()
        with _one_at_a_time:
            if number := library.emulator_run(ctypes.byref(wanted)):
                raise error_of(_faults(kernel, library, number, tensors))
            if options.count:
                options.launches.append(_counted(kernel, grid, library))

    def compiled(self, kernel: Kernel, unrolled: bool = False) -> _Compiled:
        """Compile a kernel, or find it compiled."""
        key = kernel, self.folder or sources.FOLDER, unrolled
        if key not in self._compiled:
            if kernel.threads % 32 or not 32 <= kernel.threads <= 1024:
                raise ValueError(f"{sources.title(kernel)}: a block cannot have {kernel.threads} threads")
            limit = targets.limits(self.target).shared
            if kernel.shared > limit:
                raise ValueError(f"{sources.title(kernel)}: asks for {kernel.shared} bytes of shared memory, and "
                                 f"{self.target} has {limit}")
            self._compiled[key] = _Compiled(self.unrolled(kernel) if unrolled else self.build(kernel), kernel)
        return self._compiled[key]

    def build(self, kernel: Kernel) -> Path:
        """Make the library that has a kernel, or find it made."""
        return building.kernel(kernel, sources.read(kernel.source, self.folder))

    def unrolled(self, kernel: Kernel) -> Path:
        """Make the library that has a kernel with an instruction for every turn of its short loops."""
        return building.kernel(kernel, sources.read(kernel.source, self.folder), unrolled=True)


class _Compiled:
    """A kernel's library, loaded for as long as the process runs: reports point into it."""

    def __init__(self, path: Path, kernel: Kernel) -> None:
        self._library = ctypes.CDLL(str(path))
        attach = self._library.emulator_attach
        attach.argtypes = [ctypes.c_void_p]
        attach(machine.load().emulator_machine_of_process())
        self.entry = ctypes.cast(self._library[kernel.entry], ctypes.c_void_p).value
        self._threads = ctypes.c_int.in_dll(self._library, f"{kernel.entry}_threads").value
        self._bytes = ctypes.c_int.in_dll(self._library, f"{kernel.entry}_bytes").value

    def check(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """Hold what the source says of itself against what the launch says of it."""
        if self._threads != kernel.threads:
            raise ValueError(f"{sources.title(kernel)}: launched with {kernel.threads} threads, compiled for "
                             f"{self._threads}")
        if self._bytes != ctypes.sizeof(arguments):
            raise ValueError(f"{sources.title(kernel)}: launched with {ctypes.sizeof(arguments)} bytes of arguments, "
                             f"compiled for {self._bytes}")


class _Extent(NamedTuple):
    begin: int
    end: int


def _extent(tensor: Tensor) -> _Extent:
    """Return the bytes from a tensor's first element to its last, whatever lies between."""
    begin = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return _Extent(begin, begin + (last + 1) * tensor.element_size())


def _stretches(tensors: Iterable[Tensor]) -> tuple[list[int], list[int]]:
    """List the legal global memory, ascending; tensors that overlap, as slices of one may, make one stretch."""
    begins: list[int] = []
    ends: list[int] = []
    for begin, end in sorted(_extent(tensor) for tensor in tensors if tensor.numel()):
        if ends and begin < ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            begins.append(begin)
            ends.append(end)
    return begins, ends


def _faults(kernel: Kernel, library: ctypes.CDLL, number: int, tensors: Sequence[Tensor]) -> list[Fault]:
    found = []
    for report in library.emulator_reports()[:number]:
        text = report.text.decode()
        if report.address:
            text += f": {_where(report.address, tensors)}"
        found.append(Fault(KINDS[report.kind][0], sources.title(kernel), report.block, report.thread,
                           _place(report.file, report.line), text, report.count))
    return found


def _where(address: int, tensors: Sequence[Tensor]) -> str:
    """Say where an address lies beside the tensor that is nearest."""
    best: tuple[int, str] | None = None
    for number, tensor in enumerate(tensors):
        if not tensor.numel():
            continue
        begin, end = _extent(tensor)
        shape = f"tensor {number} of {len(tensors)} ({str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)})"
        if begin <= address < end:
            return f"byte {address - begin} of {shape}"
        distance, text = ((begin - address, f"{begin - address} bytes before {shape}") if address < begin
                          else (address - end, f"{address - end} bytes past the end of {shape}"))
        if best is None or distance < best[0]:
            best = distance, text
    return best[1] if best else "there are no tensors"


def _place(file: bytes, line: int) -> str:
    return f"{Path(file.decode()).name}:{line}"


def _counted(kernel: Kernel, grid: int, library: ctypes.CDLL) -> counts.Launch:
    number = ctypes.c_int()
    sites = library.emulator_sites(ctypes.byref(number))[:number.value]
    totals = library.emulator_totals()[0]
    return counts.Launch(
        kernel.entry, kernel.defines, grid,
        tuple(counts.Site(_place(site.file, site.line), "global" if site.space else "shared", bool(site.store),
                          site.bytes, site.lanes, site.instructions, site.wavefronts, site.least, site.words,
                          site.sectors, site.ragged) for site in sites),
        totals.barriers, totals.multiplications, totals.shuffles, totals.loaded, totals.stored, totals.loaded_once,
        totals.stored_once)
