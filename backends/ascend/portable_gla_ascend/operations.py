"""PyTorch operations: to come."""

from __future__ import annotations

from torch import Tensor

from portable_gla.backend import Call, DecodeCall, Gradients
from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla_ascend.socs import Soc


def schedule(problem: Problem, soc: Soc) -> Schedule:
    """Describe how PyTorch operations run a problem."""
    figures = cost(problem)
    return Schedule(tiles={"chunk": 64}, launches_forward=1, launches_backward=int(problem.training),
                    bytes_forward=figures.compulsory_forward, bytes_backward=figures.compulsory_backward,
                    residual_bytes=0, workspace_bytes=2**20)


def forward(call: Call) -> tuple[Tensor, Tensor | None]:
    """Return o and the final state."""
    raise NotImplementedError


def backward(call: Call, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
    """Return the gradients."""
    raise NotImplementedError


def decode(call: DecodeCall) -> None:
    """Write o and the states."""
    raise NotImplementedError
