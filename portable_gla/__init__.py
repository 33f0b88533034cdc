"""Gated linear attention on any device: one call, right numbers, and a plain answer to "what ran, and why".

Importing this package imports no device library; backends load their kernels on first use.
"""

try:
    import torch as _torch  # noqa: F401  (a device extension of PyTorch's can make this fail)
except Exception as error:
    raise ImportError("portable_gla needs PyTorch, whose import fails here; `portable-gla doctor` says why") from error

from portable_gla import registry
from portable_gla.api import attention, decode_
from portable_gla.errors import HostMemoryError, KernelError, PortabilityWarning, UnsupportedProblem
from portable_gla.offload import OffloadStates, offload_states
from portable_gla.planning import Plan, plan
from portable_gla.problem import Device, Problem, Reason
from portable_gla.registry import BackendInfo, backends
from portable_gla.settings import override, set_strict, strict
from portable_gla.streaming import ResumeError, stream, stream_backward

__version__ = "0.1.0"
__all__ = [
    "BackendInfo", "Device", "HostMemoryError", "KernelError", "OffloadStates", "Plan", "PortabilityWarning", "Problem",
    "Reason", "ResumeError", "UnsupportedProblem",
    "attention", "backends", "decode_", "offload_states", "override", "plan", "set_strict", "stream",
    "stream_backward", "strict",
]

registry.load()
