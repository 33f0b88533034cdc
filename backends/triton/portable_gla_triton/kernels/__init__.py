"""The kernels. Imported on first use: nothing else here imports Triton."""

from .decode import decode
from .fold import fold
from .forward import forward
from .gradients import gradients
from .states import chunk_states, scan, summarize

__all__ = ["chunk_states", "decode", "fold", "forward", "gradients", "scan", "summarize"]
