"""The kernels. They import triton alone, so that a compiler's own environment can load them."""

from portable_gla_ascend.kernels.decode import decode
from portable_gla_ascend.kernels.gradients import gradients_k, gradients_v
from portable_gla_ascend.kernels.gradients_chunk import gradients_chunk
from portable_gla_ascend.kernels.outputs import outputs
from portable_gla_ascend.kernels.sweep import sweep
from portable_gla_ascend.kernels.sweep_both import sweep_both

__all__ = ["decode", "gradients_chunk", "gradients_k", "gradients_v", "outputs", "sweep", "sweep_both"]
