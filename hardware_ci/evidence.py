"""That what is verified and timed is the backend's own kernels: who serves, by which path, and what PyTorch computed.

A path of plain PyTorch operations gives right results too, and times that say nothing of the kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import portable_gla
from hardware_ci import profiles
from hardware_ci.results import FAILED, PASSED
from portable_gla import devices, registry
from portable_gla.backend import DecodeCall
from portable_gla.testing import cases, inputs, poison
from portable_gla.testing.inputs import Inputs

_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul", "linear", "einsum"}
_TOKENS = 1000


class _Products(TorchDispatchMode):
    """Notes PyTorch's matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().partition("::")[2].partition(".")[0].rstrip("_")
        if name in _PRODUCTS:
            self.seen[name] = self.seen.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def run(backend: str, device: torch.device, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the step: failed where plain operations stand in for kernels, or memory is not poisoned."""
    case = dataclasses.replace(cases.named("gate-channel-bf16"), name="evidence", tokens=_TOKENS, key_dim=64,
                               value_dim=64, dtype=getattr(torch, dtype))
    plan = portable_gla.plan(case.problem(devices.of(device)), backend=backend)
    if plan.handle is None or plan.schedule is None:
        raise portable_gla.UnsupportedProblem(str(plan), plan)
    chosen = portable_gla.plan(case.problem(devices.of(device)))
    given = inputs.make(case, 0, device)
    with _Products() as products:
        _calls(backend, given)
    with poison.poisoned_memory(device):
        poisoned = poison.holds(device)
    faults = []
    plain = registry.get(backend).plain
    if chosen.backend == backend and chosen.fallback and not plain:
        faults.append(f"plain PyTorch operations stand in for its kernels: {'; '.join(plan.schedule.notes)}")
    if products.seen and not plain:
        faults.append(f"PyTorch multiplied matrices inside it: {products.seen}")
    if not poisoned:
        faults.append("memory that the device gives cannot be poisoned")
    found: dict[str, Any] = {
        "outcome": FAILED if faults else PASSED, "served_by": backend, "notes": list(plan.schedule.notes),
        "products": products.seen, "poisoned": poisoned,
        "profile": profiles.record(lambda: _calls(backend, given), device)}
    return found | ({"reason": "; ".join(faults)} if faults else {})


def _calls(backend: str, given: Inputs) -> None:
    """Forward, backward and decode by the backend itself: inside the operators nothing can be watched."""
    found, call = registry.get(backend), given.call()
    _, _, residual = found.forward(call, save=True)
    assert residual is not None
    found.backward(call, residual, given.do, given.dfinal_state)
    assert call.initial_state is not None
    one = [None if x is None else x[:, :1] for x in (call.q, call.k, call.v, call.g)]
    q, k, v, g = one
    assert q is not None and k is not None and v is not None
    found.decode(DecodeCall(q, k, v, g, call.initial_state.clone(), None, None, call.scale,
                            v.new_empty(*q.shape[:2], call.heads, v.shape[3])))
