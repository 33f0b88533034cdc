"""Launches the kernels: to come."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla_ascend.socs import Soc


def forward(kernels: Any, call: Call, soc: Soc) -> tuple[Tensor, Tensor | None]:
    """Return o and the final state."""
    raise NotImplementedError


def backward(kernels: Any, call: Call, do: Tensor, dfinal_state: Tensor | None, soc: Soc) -> Gradients:
    """Return the gradients."""
    raise NotImplementedError


def decode(kernels: Any, call: DecodeCall, soc: Soc) -> None:
    """Write o and the states."""
    raise NotImplementedError
