"""One tiny real run on a device, forward, backward and decode, beside the oracle: does anything work here at all?"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

import portable_gla

TOLERANCE = 1e-3  # relative, of float32 results: far above rounding, far below any fault; `verify` has the budgets
_SHAPE = (1, 50, 2, 16)  # B, T, H, K = V: a ragged T, small enough for the slowest path


@dataclass(frozen=True)
class Smoke:
    """What came of one device; errors are max |difference| / max |oracle|, None where the run failed before."""

    device: str
    backend: str | None = None
    fallback: bool = False
    forward: float | None = None
    backward: float | None = None
    decode: float | None = None
    seconds: float = 0.0
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything ran and agreed with the oracle."""
        errors = (self.forward, self.backward, self.decode)
        return not self.problem and all(error is not None and error < TOLERANCE for error in errors)


def smoke(device: torch.device) -> Smoke:
    """Run attention forward and backward and ``decode_`` in float32, by the backend that would be chosen."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(_SHAPE, generator=generator) for _ in range(4))
    g = torch.nn.functional.logsigmoid(torch.randn(_SHAPE, generator=generator))
    backend, fallback = None, False
    try:
        inputs = [x.to(device) for x in (q, k, v, g)]
        chosen = portable_gla.plan(*(x.detach().requires_grad_() for x in inputs))
        backend, fallback = chosen.backend, chosen.fallback
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", portable_gla.PortabilityWarning)  # the table says it
            found = _attention(inputs, do.to(device), None)
            decoded = _decode(inputs, None)
        wanted = _attention([q, k, v, g], do, "reference")
        forward = _error(found[:2], wanted[:2])
        backward = _error(found[2:], wanted[2:])
        decode = _error(decoded, _decode([q, k, v, g], "reference"))
    except Exception as error:  # noqa: BLE001 - a broken device may raise anything, and the doctor reports it
        return Smoke(str(device), backend, fallback, seconds=time.perf_counter() - start,
                     problem=f"{type(error).__name__}: {error}")
    return Smoke(str(device), backend, fallback, forward, backward, decode,
                 time.perf_counter() - start)


def _attention(inputs: list[Tensor], do: Tensor, backend: str | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    o, state = portable_gla.attention(*leaves, output_final_state=True, backend=backend)
    return [o.detach(), state.detach(), *torch.autograd.grad(o, leaves, do)]


def _decode(inputs: list[Tensor], backend: str | None) -> list[Tensor]:
    q, k, v, g = (x[:, :2].contiguous() for x in inputs)
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    return [portable_gla.decode_(q, k, v, g, state, backend=backend), state]


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((x.cpu().double() - y.double()).abs().max() / y.abs().max())
               for x, y in zip(found, wanted, strict=True))
