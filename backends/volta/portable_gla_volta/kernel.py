"""One kernel with everything that is fixed when it is compiled, and whoever can run it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """A kernel to compile: a source of ``csrc``, its entry point, and the constants that it is compiled with."""

    entry: str  # the extern "C" name in the source
    source: str  # a file of csrc
    defines: tuple[tuple[str, int], ...]
    threads: int
    shared: int  # bytes of dynamic shared memory


class Runner(Protocol):
    """Runs kernels: on the device, or in the emulator."""

    @property
    def target(self) -> str:
        """What kernels are compiled for: some are other ones on Turing."""
        ...

    def launch(self, kernel: Kernel, grid: int, arguments: ctypes.Structure, tensors: Sequence[Tensor]) -> None:
        """Launch ``grid`` blocks on the current stream.

        ``arguments`` is the kernel's one parameter; its pointers point into ``tensors``, which are the only global
        memory that the kernel may touch and which stay alive until it is queued.
        """
        ...
