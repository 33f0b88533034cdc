"""What happens when a backend took a problem and its kernel fails: the next one, with the reason, or a clear error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import portable_gla
from portable_gla import planning, registry
from portable_gla.testing.oracle import Oracle


class Failing(Oracle):
    """Serves everything, until it runs."""

    name = "failing"
    priority = 1000
    error: Exception = portable_gla.KernelError("ptxas: too many registers")

    def forward(self, call, *, save):
        raise self.error


@pytest.fixture
def failing() -> Iterator[Failing]:
    backend = Failing()
    registry.register(backend)
    planning._failed.clear()
    yield backend
    registry.unregister("failing")
    planning._failed.clear()


def tensors(**options):
    return [torch.randn(1, 7, 2, 8, **options) for _ in range(3)]


def test_the_next_backend_steps_in_and_the_plan_says_why(failing):
    q, k, v = tensors()
    o = portable_gla.attention(q, k, v)
    assert torch.equal(o, portable_gla.attention(q, k, v, backend="cpu"))
    plan = portable_gla.plan(q, k, v)
    assert plan.backend == "cpu"
    assert "ptxas: too many registers" in str(plan)
    assert [reason.code for reason in plan.reasons["failing"]] == ["kernel-error"]


def test_the_plain_backend_warns_with_the_reason(failing):
    q, k, v = tensors(dtype=torch.float64)
    with pytest.warns(portable_gla.PortabilityWarning, match="too many registers"):
        portable_gla.attention(q, k, v)


def test_strict_mode_raises(failing):
    with portable_gla.strict(), pytest.raises(portable_gla.UnsupportedProblem, match="too many registers"):
        portable_gla.attention(*tensors(dtype=torch.float64))


def test_a_named_backend_is_never_replaced(failing):
    with pytest.raises(portable_gla.KernelError, match="too many registers\nproblem   attention"):
        portable_gla.attention(*tensors(), backend="failing")


def test_out_of_memory_comes_with_the_plan(failing):
    failing.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(torch.OutOfMemoryError, match=r"20 GiB\nproblem   attention(.|\n)*memory    "):
        portable_gla.attention(*tensors())


def test_other_errors_are_let_through(failing):
    failing.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        portable_gla.attention(*tensors())
