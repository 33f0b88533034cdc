"""A kernel whose compiler crashed is started once more, and only then; what the second start raises is raised."""

from __future__ import annotations

import types

import pytest
from portable_gla_ascend import backend, retry


class MLIRCompilationError(Exception):
    """Triton-Ascend's, by its name."""


CRASH = MLIRCompilationError("[ConvertTritonIRToLinalgIR] encounters error:\nPLEASE submit\nStack dump:\n0.")
KILLED = MLIRCompilationError("[ConvertLinalgRToBinary] encounters error:\ndied with <Signals.SIGSEGV: 11>.")
REFUSAL = MLIRCompilationError("[ConvertLinalgRToBinary] encounters error:\nub overflow, requires 2105344 bits")


class Kernel:
    """Raises what it is given, one error a start, then runs."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.started, self.ran = list(errors), 0, []

    def __getitem__(self, grid):
        def start(*args, **kwargs):
            self.started += 1
            if self.errors:
                raise self.errors.pop(0)
            self.ran.append((grid, args, kwargs))

        return start


def launch(kernel: Kernel) -> None:
    retry.Retrying(types.SimpleNamespace(toy=kernel)).toy[(3,)](1, SIZE=2)


@pytest.mark.parametrize("error", [CRASH, KILLED])
def test_a_crash_is_tried_once_more(error) -> None:
    kernel = Kernel(error)
    launch(kernel)
    assert kernel.ran == [((3,), (1,), {"SIZE": 2})] and kernel.started == 2


@pytest.mark.parametrize("second", [KILLED, REFUSAL, ValueError("anything")])
def test_the_second_error_is_raised(second) -> None:
    kernel = Kernel(CRASH, second)
    with pytest.raises(type(second)) as raised:
        launch(kernel)
    assert raised.value is second and raised.value.__context__ is CRASH and kernel.started == 2


@pytest.mark.parametrize("error", [REFUSAL, RuntimeError("Stack dump: of something else"), KeyboardInterrupt()])
def test_any_other_error_is_raised_at_once(error) -> None:
    kernel = Kernel(error)
    with pytest.raises(type(error)):
        launch(kernel)
    assert kernel.started == 1


def test_a_kernel_that_runs_runs_once() -> None:
    kernel = Kernel()
    launch(kernel)
    assert kernel.started == 1


def test_the_devices_kernels_are_started_so() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert isinstance(backend.AscendBackend()._kernels(), retry.Retrying)
    with pytest.raises(AttributeError, match="nosuch"):
        _ = backend.AscendBackend()._kernels().nosuch
