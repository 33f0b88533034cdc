"""The claims of the Ascend backend, and the choice between its two paths; see ``README.md`` beside this folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from portable_gla import devices, settings
from portable_gla.backend import Backend, Call, DecodeCall, Gradients
from portable_gla.errors import KernelError
from portable_gla.problem import Device, Problem, Reason, Schedule
from portable_gla_ascend import paths, retry
from portable_gla_ascend.paths import OPERATIONS
from portable_gla_ascend.socs import Soc

LARGEST = 512
"""K and V at most."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_PINS = {"segments": "one segment", OPERATIONS: "yes"}  # 1 is all they can be


class AscendBackend:
    """Triton-Ascend kernels, compiled for the device or run by an emulator; else PyTorch operations on the device."""

    name = "ascend"
    priority = 100
    plain = False
    rounds_operands = True

    def __init__(self, *, emulating: bool = False) -> None:
        self._emulating = emulating

    def emulated(self) -> Backend:
        """Return a backend that runs the same kernels (or, pinned, operations) on CPU tensors."""
        return AscendBackend(emulating=True)

    def unavailable(self) -> Sequence[Reason]:
        """Refuse where PyTorch has no NPU, whatever ``torch.cuda`` says."""
        if self._emulating:
            emulator = importlib.util.find_spec("triton")
            return () if emulator else (Reason("library", "Triton, whose interpreter the emulator is, is not installed",
                                               "pip install triton"),)
        reason = paths.torch_npu()
        return (reason,) if reason else ()

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse other devices, unknown chips, float64, K or V above 512, and pins that it does not have."""
        reasons = []
        wanted = "cpu" if self._emulating else "npu"
        if problem.device.type != wanted:
            reasons.append(Reason("device", f"serves {wanted} tensors, not {problem.device.type}",
                                  "move them yourself"))
        elif self._soc(problem.device) is None:
            reasons.append(paths.unknown_soc(problem.device))
        if problem.dtype not in _DTYPES:
            dtype = str(problem.dtype).removeprefix("torch.")
            reasons.append(Reason("dtype", f"computes in float32, which is too coarse for {dtype}",
                                  "use the eager backend, or cast the inputs"))
        for name, size in (("K", problem.key_dim), ("V", problem.value_dim)):
            if size > LARGEST:
                reasons.append(Reason("size", f"{name} = {size} is more than {LARGEST}: a tile of it fits no core",
                                      "split the heads, or use the eager backend"))
        reasons += [Reason("pin", f"cannot have {name}={value}", f"pin {' or '.join(f'{pin}=1' for pin in _PINS)}, or "
                           "leave the override") for name, value in problem.pins if name not in _PINS or value != 1]
        return reasons

    def plain_for(self, problem: Problem) -> bool:
        """Tell whether PyTorch operations have to step in, because Triton-Ascend is missing."""
        return self._path(problem.device, dict(problem.pins)).forced

    def _path(self, device: Device, pins: dict[str, int]) -> paths.Path:
        return paths.choose(device, OPERATIONS in pins, self._emulating)

    def _soc(self, device: Device) -> Soc | None:
        if not self._emulating:
            return paths.soc(device)
        found = paths.emulated()
        # With so few cores that a program walks several pieces of work.
        return found and dataclasses.replace(found, cube_cores=3, vector_cores=6)

    def schedule(self, problem: Problem) -> Schedule:
        """Ask the path that is taken, and say which one it is and why."""
        path = self._path(problem.device, dict(problem.pins))
        found: Schedule = _part("schedule" if path.kernels else "operations").schedule(
            problem, self._soc(problem.device))
        return dataclasses.replace(found, notes=(str(path), *found.notes))

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep nothing: the backward pass computes the states again."""
        return (0,), torch.float32

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the path of this call."""
        o, final = self._run("forward", call, call.pins)
        return o, final, call.q.new_empty((0,), dtype=torch.float32) if save else None

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Run the path of this call."""
        found: Gradients = self._run("backward", call, call.pins, do, dfinal_state)
        return found

    def decode(self, call: DecodeCall) -> None:
        """Run the recurrence; the pin is the one in force when it runs."""
        self._run("decode", call, dict(settings.current().pins))

    def _run(self, name: str, call: Call | DecodeCall, pins: dict[str, int], *gradients: Tensor | None) -> Any:
        device = devices.of(call.q.device)
        if not self._path(device, pins).kernels:
            with self._current(call.q):
                return getattr(_part("operations"), name)(call, *gradients)
        with self._launching(call.q):
            return getattr(_part("launch"), name)(self._kernels(), call, *gradients, self._soc(device))

    def _kernels(self) -> Any:
        return _part("emulator").load() if self._emulating else retry.Retrying(_part("kernels"))

    def _current(self, q: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Make q's device current."""
        if self._emulating:
            return contextlib.nullcontext()
        current: contextlib.AbstractContextManager[Any] = torch.get_device_module("npu").device(q.device)
        return current

    @contextlib.contextmanager
    def _launching(self, q: Tensor) -> Iterator[None]:
        """Make q's device current, and name what Triton raises: a kernel that does not compile, or needs too much."""
        try:
            with self._current(q):
                yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not _of_triton(type(error)) and (self._emulating or not _within_triton(error.__traceback__)):
                raise
            raise KernelError(
                f"a Triton-Ascend kernel could not be built or launched: {type(error).__name__}: {_words(error)} "
                f"(portable_gla.override({OPERATIONS}=1) takes the path of PyTorch operations)") from error


def _part(name: str) -> Any:
    return importlib.import_module(f"portable_gla_ascend.{name}")


def _of_triton(kind: type[BaseException]) -> bool:
    return any(base.__module__.partition(".")[0] == "triton" for base in kind.__mro__)


def _within_triton(traceback: TracebackType | None) -> bool:
    """Tell whether an error was raised below Triton: its Ascend backend raises OSError, RuntimeError and others."""
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == "triton":
            return True
        traceback = traceback.tb_next
    return False


def _words(error: Exception) -> str:
    """Return what an error says, with the last words of the compiler that it ran."""
    said = getattr(error, "stderr", None)
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return f"{error}\n{said[-2000:]}" if isinstance(said, str) and said else str(error)


backend = AscendBackend()
