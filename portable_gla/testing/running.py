"""Runs a case on a backend: who is tested, where, and how a case becomes a call."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

import portable_gla
from portable_gla import devices, registry
from portable_gla.backend import RoundsOperands
from portable_gla.problem import Problem, Reason
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.emulation import emulate
from portable_gla.testing.inputs import Inputs

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """A backend on a device, or in its emulator on CPU tensors."""

    backend: str
    device: torch.device = CPU
    emulated: bool = False

    def __str__(self) -> str:
        return f"{self.backend}{'' if self.device.type == 'cpu' else f'@{self.device}'}" + (
            ":emulated" if self.emulated else "")

    @property
    def rounds_operands(self) -> bool:
        """Whether the backend rounds what it multiplies to a 16-bit dtype of the inputs."""
        return isinstance(found := registry.get(self.backend), RoundsOperands) and found.rounds_operands

    def pinned(self, **pins: int) -> contextlib.AbstractContextManager[None]:
        """Enter what a call needs to reach this target, with parts of the plan fixed."""
        return emulate(self.backend, **pins) if self.emulated else portable_gla.override(**pins)

    def reasons_against(self, case: Case, **pins: int) -> tuple[Reason, ...]:
        """Return why the backend would not serve a case; empty: it would."""
        problem = case.problem(devices.of(self.device))
        with self.pinned(**pins):
            found = portable_gla.plan(problem, backend=self.backend)
        return () if found.handle else found.reasons[self.backend]


def find(backend: str, device: torch.device | None = None) -> tuple[Target | None, tuple[Reason, ...]]:
    """Find where a backend can be tested: a device (the accelerator first), else its emulator; or why nowhere."""
    if backend in registry.failures():
        return None, (registry.failures()[backend],)
    simple = Problem(tokens=64, heads=1, key_dim=64, value_dim=64)
    reasons: tuple[Reason, ...] = tuple(registry.get(backend).unavailable())
    for candidate in reversed(devices.present()) if device is None else [device]:
        found = portable_gla.plan(simple, device=devices.of(candidate), backend=backend)
        if found.handle and not reasons:
            return Target(backend, candidate), ()
        reasons = reasons or found.reasons.get(backend, ())
    if device is None or device.type == "cpu":
        try:
            registry.emulated_handle(backend)
        except ValueError as error:
            return None, (*reasons, Reason("emulator", str(error)))
        return Target(backend, CPU, emulated=True), ()
    return None, reasons


def run(target: Target, inputs: Inputs, *, do: Tensor | None = None, wanted: tuple[str, ...] | None = None,
        **pins: int) -> dict[str, Tensor]:
    """Run a case forward and backward; return what came out, named as in ``budgets.QUANTITIES``, in layout BTHD.

    ``do`` replaces the case's; ``wanted`` are the inputs that require a gradient (default: all).
    """
    case = inputs.case
    # Detached views keep their strides, and are leaves.
    leaves = {name: value.detach().requires_grad_(wanted is None or name in wanted)
              for name, value in numbers.tensors(inputs)}
    given = dict(leaves)
    turned = ("q", "k", "v", "g") if case.layout == "BHTD" else ()
    for name in turned:
        if name in given and given[name].dim() > 1:
            # As a user of that layout holds them: contiguous as [B, H, T, D].
            leaf = given[name].detach().transpose(1, 2).contiguous().requires_grad_(given[name].requires_grad)
            leaves[name] = given[name] = leaf
    with target.pinned(**pins):
        result = portable_gla.attention(
            given["q"], given["k"], given["v"], given.get("g"), scale=case.scale,
            initial_state=given.get("initial_state"), output_final_state=case.final_state,
            cu_seqlens=inputs.cu_seqlens, reverse=case.reverse, bonus=given.get("bonus"), layout=case.layout,
            backend=target.backend)
    o, final_state = result if isinstance(result, tuple) else (result, None)
    do = inputs.do if do is None else do
    roots = [(o, do.transpose(1, 2) if turned else do)]
    if final_state is not None and inputs.dfinal_state is not None:
        roots.append((final_state, inputs.dfinal_state))
    asked = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad([root for root, _ in roots], list(asked.values()), [seed for _, seed in roots])
    found = {"o": o.detach()}
    if final_state is not None:
        found["final_state"] = final_state.detach()
    found.update({f"d{name}": gradient for name, gradient in zip(asked, gradients, strict=True)})
    for name in ("o", "dq", "dk", "dv", "dg") if turned else ():
        if name in found and found[name].dim() > 1:
            found[name] = found[name].transpose(1, 2)
    return found
