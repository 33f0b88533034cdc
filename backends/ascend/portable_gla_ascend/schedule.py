"""What the kernels launch and move: to come."""

from __future__ import annotations

from portable_gla.cost import cost
from portable_gla.problem import Problem, Schedule
from portable_gla_ascend.socs import Soc


def schedule(problem: Problem, soc: Soc) -> Schedule:
    """Describe how the kernels run a problem."""
    figures = cost(problem)
    return Schedule(tiles={"chunk": 64}, launches_forward=1, launches_backward=int(problem.training),
                    bytes_forward=figures.compulsory_forward, bytes_backward=figures.compulsory_backward,
                    residual_bytes=0, workspace_bytes=2**20)
