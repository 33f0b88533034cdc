"""Sequences that are larger than the device's memory; see :func:`stream` and :func:`stream_backward`."""

from portable_gla.streaming.api import stream, stream_backward
from portable_gla.streaming.resume import ResumeError

__all__ = ["ResumeError", "stream", "stream_backward"]
