"""The claims of the Triton backend; see ``README.md`` beside this folder."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from portable_gla import devices, segments
from portable_gla.backend import Backend, Call, DecodeCall, Gradients
from portable_gla.errors import KernelError
from portable_gla.problem import Device, Problem, Reason, Schedule
from portable_gla.segments import Segments
from portable_gla_triton import launch, tiles
from portable_gla_triton.operands import EXACT, kind
from portable_gla_triton.schedule import schedule
from portable_gla_triton.targets import TARGETS
from portable_gla_triton.tiles import Tiles

LARGEST = 512
"""K and V at most."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_EMULATED = "sm_90"  # whose tiles the emulator runs


class TritonBackend:
    """Triton kernels, compiled for the device or run by an emulator."""

    name = "triton"
    plain = False
    rounds_operands = True

    def __init__(self, *, emulating: bool = False) -> None:
        self._emulating = emulating
        self.priority = 100

    def emulated(self) -> Backend:
        """Return a backend that runs the same kernels on CPU tensors."""
        return TritonBackend(emulating=True)

    def unavailable(self) -> Sequence[Reason]:
        """Refuse where Triton is missing, or PyTorch sees no GPU."""
        if not _installed():
            return (Reason("library", "Triton is not installed", "pip install triton (Linux; PyTorch's CUDA and ROCm "
                                                                 "builds bring it)"),)
        built = torch.version.cuda or torch.version.hip  # torch_npu's transfer_to_npu makes torch.cuda speak of NPUs
        if not self._emulating and not (built and torch.cuda.is_available()):
            return (Reason("device", "PyTorch sees no CUDA or ROCm device here",
                           "testing.emulate('triton') runs the kernels on CPU tensors, slowly"),)
        return ()

    def reasons_against(self, problem: Problem) -> Sequence[Reason]:
        """Refuse other devices and architectures, float64, K or V above 512, and pins other than ``segments``."""
        reasons = []
        wanted = "cpu" if self._emulating else "cuda"
        if problem.device.type != wanted:
            reasons.append(Reason("device", f"serves {wanted} tensors, not {problem.device.type}",
                                  "move them yourself"))
        elif not self._emulating and problem.device.arch not in TARGETS:
            reasons.append(Reason(
                "arch", f"has no kernels for {problem.device.arch or 'this device'}: its matrix unit is not one that "
                        f"Triton serves ({', '.join(TARGETS)})", "see portable_gla.backends() for another backend"))
        if problem.dtype not in _DTYPES:
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

    def _segments(self, device: Device, batch: Any, tokens: Any, heads: Any, value_dim: Any,
                  pins: Mapping[str, int]) -> Segments:
        """Cut into segments; sizes may be symbolic, so no table of tiles is read."""
        cores = 1 if self._emulating else devices.cores(device)
        return segments.choose(batch, tokens, heads, value_dim, cores, pins.get("segments", 0))

    def _tiles(self, device: Device, dtype: torch.dtype, gate: str, bonus: bool, key_dim: int,
               value_dim: int) -> tuple[Tiles, str]:
        target = _EMULATED if self._emulating else device.arch
        matrix = kind(dtype, target)
        if self._emulating and matrix == EXACT and os.environ.get("TRITON_INTERPRET") == "1":
            matrix = "ieee"  # Triton's own interpreter has no other float32
        return tiles.choose(target, matrix, gate, bonus, key_dim, value_dim), matrix

    def schedule(self, problem: Problem) -> Schedule:
        """Count what each launch loads and stores; a cache serves what side-by-side programs share."""
        device = problem.device
        cut = self._segments(device, problem.batch, problem.tokens, problem.heads, problem.value_dim,
                             dict(problem.pins))
        chosen, matrix = self._tiles(device, problem.dtype, problem.gate, problem.bonus, problem.key_dim,
                                     problem.value_dim)
        return schedule(problem, chosen, cut, matrix)

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        """Keep the states between segments: [boundaries, H, K, V]."""
        cut = self._cut(call)
        _, tokens, _, key_dim = call.q.shape
        rows = tokens // cut.unit if call.cu_seqlens is not None else (
            call.sequences * segments.larger((tokens + cut.unit - 1) // cut.unit - 1, 0))
        return (rows, call.heads, key_dim, call.v.shape[3]), torch.float32

    def _cut(self, call: Call) -> Segments:
        return self._segments(devices.of(call.q.device), call.q.shape[0], call.q.shape[1], call.heads, call.v.shape[3],
                              call.pins)

    def _launcher(self, call: Call) -> launch.Launcher:
        gate = "none" if call.g is None else {4: "channel", 3: "head", 1: "constant"}[call.g.dim()]
        chosen, matrix = self._tiles(devices.of(call.q.device), call.q.dtype, gate, call.bonus is not None,
                                     call.q.shape[3], call.v.shape[3])
        return launch.Launcher(self._kernels(), call, chosen, self._cut(call), matrix)

    def _kernels(self) -> Any:
        if self._emulating:
            return importlib.import_module("portable_gla_triton.emulator").load()
        return importlib.import_module("portable_gla_triton.kernels")

    def forward(self, call: Call, *, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Allocate what is returned, and launch."""
        shape, dtype = self.residual_spec(call)
        links = call.q.new_empty(shape, dtype=dtype)
        with _launching(call.q):
            o, final = self._launcher(call).forward(links)
        return o, final, links if save else None

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """Launch the backward pass."""
        with _launching(call.q):
            return self._launcher(call).backward(residual, do, dfinal_state)

    def decode(self, call: DecodeCall) -> None:
        """Launch one kernel."""
        with _launching(call.q):
            launch.decode(self._kernels(), call)


@contextlib.contextmanager
def _launching(q: Tensor) -> Iterator[None]:
    """Make q's device current, and name what Triton raises: a kernel that does not compile, or needs too much."""
    try:
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            yield
    except Exception as error:
        if not any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__):
            raise
        raise KernelError(f"a Triton kernel could not be built or launched: {type(error).__name__}: {error}") from error


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


backend = TritonBackend()
