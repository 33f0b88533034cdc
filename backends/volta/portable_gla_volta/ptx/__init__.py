"""Runs the PTX that NVRTC makes of the kernels on CPU tensors: what was compiled, without a GPU.

The translation knows the instructions that these kernels have; any other is an error. What it shares with the emulator
of the sources is nothing but its tensors, so that where they agree, both are right or both read the same manual wrong.
"""

from portable_gla_volta.ptx.runner import PtxRunner
from portable_gla_volta.ptx.translate import PtxError

__all__ = ["PtxError", "PtxRunner"]
