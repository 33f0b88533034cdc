"""The kernels. They import triton alone, so that a compiler's own environment can load them."""

from portable_gla_ascend.kernels.decode import decode
from portable_gla_ascend.kernels.gradients import gradients
from portable_gla_ascend.kernels.outputs import outputs
from portable_gla_ascend.kernels.sweep import sweep, sweep_both

__all__ = ["decode", "gradients", "outputs", "sweep", "sweep_both"]
