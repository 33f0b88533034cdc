"""Gated linear attention on any device: one call, right numbers, and a plain answer to "what ran, and why".

Importing this package imports no device library; backends load their kernels on first use.
"""

from portable_gla import registry
from portable_gla.api import attention, decode_
from portable_gla.errors import PortabilityWarning, UnsupportedProblem
from portable_gla.planning import Plan, plan
from portable_gla.problem import Device, Problem, Reason
from portable_gla.registry import BackendInfo, backends
from portable_gla.settings import override, set_strict, strict

__version__ = "0.1.0"
__all__ = [
    "BackendInfo", "Device", "Plan", "PortabilityWarning", "Problem", "Reason", "UnsupportedProblem", "attention",
    "backends", "decode_", "override", "plan", "set_strict", "strict",
]

registry.load()
