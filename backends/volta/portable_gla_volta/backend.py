"""The claims of the Volta backend; see ``README.md`` beside this folder."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portable_gla import devices, segments
from portable_gla.backend import Backend, Built, Call, DecodeCall, Gradients
from portable_gla.problem import Device, Problem, Reason, Schedule
from portable_gla.segments import Segments
from portable_gla_volta import cutting, targets
from portable_gla_volta.kernel import Runner

LARGEST = 256
"""K and V at most."""

_DTYPES = (torch.float16, torch.float32)


class VoltaBackend:
    """CUDA C++ kernels for Volta and Turing, compiled on first use, or run by an emulator."""

    name = "volta"
    plain = False
    rounds_operands = True
    prebuild_targets = (*targets.TARGETS, targets.PORTABLE)

    def __init__(self, *, emulating: bool = False) -> None:
        self._emulating = emulating
        self.priority = 100

    def emulated(self) -> Backend:
        """Return a backend that runs the same kernels on CPU tensors."""
        return VoltaBackend(emulating=True)

    def prebuild(self, target: str, cache: Path | None) -> tuple[int, Iterator[Built]]:
        """Compile the kernels that a cache lacks."""
        found: tuple[int, Iterator[Built]] = importlib.import_module("portable_gla_volta.build").prebuild(target, cache)
        return found

    def unavailable(self) -> Sequence[Reason]:
        """Refuse where PyTorch sees no NVIDIA GPU, or is a build that cannot drive or compile for one of these."""
        if self._emulating:
            missing: str = importlib.import_module("portable_gla_volta.emulator").missing()
            return (Reason("library", missing, "install g++, or name a compiler in CXX"),) if missing else ()
        found: Sequence[Reason] = importlib.import_module("portable_gla_volta.driver").unavailable()
        return found

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse other devices, bfloat16 and float64, K or V above 256, and pins other than ``segments``."""
        reasons = []
        wanted = "cpu" if self._emulating else "cuda"
        if problem.device.type != wanted:
            reasons.append(Reason("device", f"serves {wanted} tensors, not {problem.device.type}",
                                  "move them yourself"))
        elif not self._emulating and targets.of(problem.device.arch) is None:
            reasons.append(Reason(
                "arch", f"has no kernels for {problem.device.arch or 'this device'}: they are for the tensor cores of "
                        f"{' and '.join(targets.TARGETS)}", "see portable_gla.backends() for another backend"))
        if problem.dtype == torch.bfloat16:
            reasons.append(Reason("dtype", "the tensor cores of Volta and Turing have no bfloat16",
                                  "cast to float16, or to float32 where its range is needed"))
        elif problem.dtype not in _DTYPES:
            dtype = str(problem.dtype).removeprefix("torch.")
            reasons.append(Reason("dtype", f"computes in float32, which is too coarse for {dtype}",
                                  "use the eager backend, or cast the inputs"))
        for name, size in (("K", problem.key_dim), ("V", problem.value_dim)):
            if size > LARGEST:
                reasons.append(Reason("size", f"{name} = {size} is more than {LARGEST}",
                                      "split the heads, or use the eager backend"))
        reasons += [Reason("pin", f"cannot have {name}={value}", "pin segments to 1 or more, or leave the override")
                    for name, value in problem.pins if name != "segments" or value < 1]
        return reasons

    def _segments(self, device: Device, sizes: cutting.Sizes, pins: Mapping[str, int]) -> Segments:
        cores = 1 if self._emulating else devices.cores(device)
        return cutting.choose(sizes, cores, pins.get("segments", 0))

    def schedule(self, problem: Problem) -> Schedule:
        """Count what each launch moves and multiplies, and say what bounds it."""
        cut = self._segments(problem.device, cutting.of_problem(problem), dict(problem.pins))
        found: Schedule = importlib.import_module("portable_gla_volta.schedule").schedule(problem, cut)
        return found

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep the states between segments: [boundaries, H, K, V]."""
        cut = self._cut(call)
        _, tokens, _, key_dim = call.q.shape
        rows = tokens // cut.unit if call.cu_seqlens is not None else (
            call.sequences * segments.larger((tokens + cut.unit - 1) // cut.unit - 1, 0))
        return (rows, call.heads, key_dim, call.v.shape[3]), torch.float32

    def _cut(self, call: Call) -> Segments:
        return self._segments(devices.of(call.q.device), cutting.of_call(call), call.pins)

    def _launcher(self, call: Call) -> Any:
        return importlib.import_module("portable_gla_volta.launch").Launcher(_runner(self._emulating), call,
                                                                            self._cut(call))

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Allocate what is returned, and launch."""
        shape, dtype = self.residual_spec(call)
        links = call.q.new_empty(shape, dtype=dtype)
        with _current(call.q):
            o, final = self._launcher(call).forward(links)
        return o, final, links if save else None

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Launch the backward pass."""
        with _current(call.q):
            found: Gradients = self._launcher(call).backward(residual, do, dfinal_state)
        return found

    def decode(self, call: DecodeCall) -> None:
        """Launch one kernel."""
        with _current(call.q):
            importlib.import_module("portable_gla_volta.launch").decode(_runner(self._emulating), call)


@functools.cache
def _runner(emulating: bool) -> Runner:
    if emulating:
        emulator: Runner = importlib.import_module("portable_gla_volta.emulator").EmulatorRunner()
        return emulator
    device: Runner = importlib.import_module("portable_gla_volta.device_runner").DeviceRunner()
    return device


@contextlib.contextmanager
def _current(q: Tensor) -> Iterator[None]:
    """Make q's device current: kernels are launched on its stream."""
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        yield


backend = VoltaBackend()
