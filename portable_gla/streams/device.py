"""Streams of an accelerator whose PyTorch module has CUDA's names: ``torch.cuda`` itself, and torch_npu's twin."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from portable_gla.streams.protocol import Event, Stream

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device of the process


class AcceleratorStreams:
    """``torch.npu`` and its like; host memory is what the device's own pinned allocator gives."""

    overlaps = True

    def __init__(self, device: torch.device, module: Any = None) -> None:
        self._module: Any = torch.get_device_module(device) if module is None else module
        index = self._module.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)

    def current(self) -> Stream:
        """Return PyTorch's current stream of the device, in this thread."""
        return self._module.current_stream(self.device)

    def new_stream(self) -> Stream:
        """Take a stream from PyTorch's pool."""
        return self._module.Stream(device=self.device)

    def launch(self, stream: Stream, work: Callable[[], None]) -> None:
        """Run ``work`` with ``stream`` current: what it queues goes there."""
        with self._module.stream(stream):
            work()

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Queue the copy; the host does not wait for it."""
        with self._module.stream(stream), torch.no_grad():
            target.copy_(source, non_blocking=True)

    def record(self, stream: Stream) -> Event:
        """Record a new event, without timing."""
        event = self._module.Event()
        event.record(stream)
        return event

    def wait(self, stream: Stream, event: Event, why: str) -> None:
        """Let the device wait; the host does not."""
        stream.wait_event(event)

    def synchronise(self, event: Event, why: str = "") -> None:
        """Let the host wait."""
        event.synchronize()

    def empty_strided(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Take memory from PyTorch's caching allocator."""
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=self.device)

    def free(self, stream: Stream, tensor: Tensor) -> None:
        """Do nothing: the caching allocator reuses memory in the order of the stream that allocated it."""

    def host_memory(self, count: int) -> Tensor:
        """Allocate pinned memory."""
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)

    def release_host_memory(self, memory: Tensor) -> None:
        """Do nothing: the last reference frees it."""


class CudaStreams(AcceleratorStreams):
    """``torch.cuda`` (NVIDIA and AMD); host memory is exactly as large as asked for, and registered with the driver.

    PyTorch's pinned allocator rounds up to a power of two, which for a pool may be nearly twice the memory.
    """

    def host_memory(self, count: int) -> Tensor:
        """Map whole pages of the operating system's, and register them."""
        # Pages of its own: a page that two registrations share would be refused.
        memory = torch.frombuffer(mmap.mmap(-1, max(count, 1)), dtype=torch.uint8)[:count]
        if count:
            self._check(self._module.cudart().cudaHostRegister(memory.data_ptr(), count, _PORTABLE),
                        f"registering {count} bytes of host memory")
        return memory

    def release_host_memory(self, memory: Tensor) -> None:
        """Take the registration back; the last reference unmaps the pages."""
        if memory.numel():
            self._check(self._module.cudart().cudaHostUnregister(memory.data_ptr()), "unregistering host memory")

    def _check(self, status: Any, what: str) -> None:
        if int(status):
            raise RuntimeError(f"{what} failed: {self._module.cudart().cudaGetErrorString(status)}")
