"""Runs kernels on the device: loads each once, and queues it on PyTorch's current stream."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from portable_gla.errors import KernelError
from portable_gla_volta import driver, sources, targets
from portable_gla_volta.images import Images
from portable_gla_volta.kernel import Kernel


class DeviceRunner:
    """A :class:`~portable_gla_volta.kernel.Runner` for the GPUs of this machine.

    Compiling and loading happen at a kernel's first launch on a device, and nothing then waits for the device: a launch
    may be captured into a CUDA graph, the first one too.
    """

    def __init__(self, images: Images | None = None, get: Callable[[], driver.Driver] = driver.get) -> None:
        self._images, self._get = images, get
        self._loaded: dict[tuple[Kernel, int], ctypes.c_void_p] = {}
        self._targets: dict[int, str] = {}
        self._lock = threading.Lock()  # forward and backward run in different threads

    @property
    def target(self) -> str:
        """What the current device's kernels are compiled for."""
        device = torch.cuda.current_device()
        if device not in self._targets:  # asked at every launch
            self._targets[device] = targets.of(_arch(device)) or targets.PORTABLE
        return self._targets[device]

    def launch(self, kernel: Kernel, grid: int, arguments: ctypes.Structure, tensors: Sequence[Tensor]) -> None:
        """Launch ``grid`` blocks on the current stream of the tensors' device, which is to be the current one.

        Raises
        ------
        portable_gla.errors.KernelError
            If it cannot be built, loaded or queued.
        """
        device = torch.cuda.current_device()
        function = self._loaded.get((kernel, device))
        if function is None:
            with self._lock:
                function = self._loaded.get((kernel, device)) or self._load(kernel, device)
                self._loaded[kernel, device] = function
        try:
            self._get().launch(function, grid, kernel.threads, kernel.shared,
                               torch.cuda.current_stream(device).cuda_stream, arguments)
        except KernelError as error:
            raise KernelError(f"{sources.title(kernel)} could not be launched on {grid} blocks of {kernel.threads} "
                              f"threads and {kernel.shared} bytes: {error}") from error

    def _load(self, kernel: Kernel, device: int) -> ctypes.c_void_p:
        arch = _arch(device)
        target = targets.of(arch)
        if target is None:
            raise KernelError(f"{sources.title(kernel)}: no kernels for {arch}, there are for "
                              f"{', '.join(targets.TARGETS)}")
        if self._images is None:
            self._images = Images()
        here = self._get()
        for last in (False, True):
            image = self._images.get(kernel, target, here.cuda)
            if target == targets.PORTABLE:
                image = self._images.translated(image, arch, here.version, here.translate)
            try:
                return here.load(image.code, kernel.entry, kernel.shared)
            except KernelError as error:
                # A driver may refuse a file that is whole. One made here and now is no file's fault.
                if last or image.compiled:
                    raise KernelError(f"{sources.title(kernel)} cannot be loaded on {arch}: {error}") from error
                self._images.drop(image)
        raise AssertionError("unreachable")


def _arch(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
