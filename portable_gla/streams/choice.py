"""Which streams a device has."""

from __future__ import annotations

import torch

from portable_gla.streams.device import AcceleratorStreams, CudaStreams
from portable_gla.streams.immediate import ImmediateStreams
from portable_gla.streams.protocol import Streams

_SYNCHRONOUS = ("cpu", "mps")  # mps: unified memory, and no streams in PyTorch's interface


def of(device: torch.device) -> Streams:
    """Return the streams of a device; those of a CPU, and of a device without any, do everything at once.

    Raises
    ------
    RuntimeError
        If this PyTorch has no module for the device's type, or the device is not there.
    """
    if device.type in _SYNCHRONOUS:
        return ImmediateStreams(device)
    return CudaStreams(device) if device.type == "cuda" else AcceleratorStreams(device)
