"""A backend that does as another does, for faults to be seeded into, and the list of what must catch each of them.

The copy wraps the eager backend; a fault changes what one of its methods is given or returns, as the mistake would.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portable_gla import registry
from portable_gla.backend import Backend, Call, DecodeCall, Gradients

Forward = tuple[Tensor, Tensor | None, Tensor | None]


class Copy:
    """A backend that does as another does; faults override one of its methods."""

    name = "copy"
    priority = -1
    plain = False

    def __init__(self) -> None:
        self.sound: Backend = registry.get("eager")

    def unavailable(self) -> Sequence[Any]:
        return ()

    def reasons_against(self, problem: Any) -> Sequence[Any]:
        return self.sound.reasons_against(problem)

    def schedule(self, problem: Any) -> Any:
        return self.sound.schedule(problem)

    def residual_spec(self, call: Call) -> tuple[tuple[int, ...], torch.dtype]:
        return self.sound.residual_spec(call)

    def forward(self, call: Call, *, save: bool) -> Forward:
        return self.sound.forward(call, save=save)

    def backward(self, call: Call, residual: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        return self.sound.backward(call, residual, do, dfinal_state)

    def decode(self, call: DecodeCall) -> None:
        self.sound.decode(call)


class Fault(NamedTuple):
    backend: type[Copy]
    check: str
    case: str

    def __str__(self) -> str:
        return f"{self.backend.__name__}-{self.check}-{self.case}"


FAULTS: list[Fault] = []


def caught_by(*pairs: tuple[str, str]) -> Callable[[type[Copy]], type[Copy]]:
    def note(backend: type[Copy]) -> type[Copy]:
        FAULTS.extend(Fault(backend, check, case) for check, case in pairs)
        return backend

    return note


def budget(*names: str) -> list[tuple[str, str]]:
    return [("within_budget", name) for name in names]


def changed(call: Call, **fields: Any) -> Call:
    return dataclasses.replace(call, **fields)


def with_o(result: Forward, o: Tensor) -> Forward:
    return o, *result[1:]
