"""Streams, events and host memory of a device, injected: the same code runs on CUDA, on an NPU, and on fake streams."""

from portable_gla.streams.choice import of
from portable_gla.streams.memory import available_host_bytes
from portable_gla.streams.protocol import Event, Stream, Streams

__all__ = ["Event", "Stream", "Streams", "available_host_bytes", "of"]
