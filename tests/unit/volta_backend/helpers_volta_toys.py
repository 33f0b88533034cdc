"""Runs the toy kernels of ``emulated_kernels``."""

from __future__ import annotations

import ctypes
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from portable_gla_volta import sources
from portable_gla_volta.emulator import EmulatorRunner
from portable_gla_volta.kernel import Kernel
from torch import Tensor

SOURCE = Path(__file__).with_name("emulated_kernels") / "toys.cu"


class Arguments(ctypes.Structure):
    _fields_ = [("source", ctypes.c_void_p), ("to", ctypes.c_void_p), ("count", ctypes.c_int)]


@functools.cache
def folder() -> Path:
    """A folder of sources: the toys, and the primitives that stand beside the real kernels."""
    found = Path(tempfile.mkdtemp(prefix="volta-toys-"))
    shutil.copy(SOURCE, found)
    shutil.copy(sources.FOLDER / "target.cuh", found)
    return found


@functools.cache
def runner() -> EmulatorRunner:
    return EmulatorRunner(folder=folder())


def launch(entry: str, source: Tensor, to: Tensor, *, mode: int = 0, threads: int = 32, shared: int = 0, grid: int = 1,
           count: int | None = None) -> Tensor:
    kernel = Kernel(entry, "toys.cu", (("MODE", mode),), threads, shared)
    arguments = Arguments(source.data_ptr(), to.data_ptr(), source.numel() if count is None else count)
    runner().launch(kernel, grid, arguments, [source, to])
    return to


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
