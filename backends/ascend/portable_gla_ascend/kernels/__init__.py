"""The kernels. They import triton alone, so that a compiler's own environment can load them."""

from portable_gla_ascend.kernels.decode import decode
from portable_gla_ascend.kernels.gradients import gradients_k, gradients_v
from portable_gla_ascend.kernels.outputs import outputs
from portable_gla_ascend.kernels.sweep import sweep

__all__ = ["decode", "gradients_k", "gradients_v", "outputs", "sweep"]
