"""What a benchmark times for one case: the backend, and the peers of ``portable_gla.cli.peers`` that can take part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch

import portable_gla
from hardware_ci.matrix import PASSES
from portable_gla import devices
from portable_gla.cli import peers
from portable_gla.problem import Problem
from portable_gla.testing.cases import Case

GATES_DRAWN = "logsigmoid of a normal variable, over 16"  # in peers.Shape.inputs
FORWARD, BOTH = PASSES

Calls = dict[str, Callable[[], object]]


class Field(NamedTuple):
    """The contestants of one case: what to call per pass and name, and why a peer is absent."""

    calls: dict[str, Calls]
    absent: dict[str, str]


def field(case: Case, backend: str, device: torch.device, seed: int) -> Field:
    """Prepare everybody for one case; all read the same numbers."""
    shape = peers.Shape(case.batch, case.heads, case.key_dim, case.value_dim, case.dtype, case.gate, device, seed)
    inputs = shape.inputs(case.tokens)
    if "decode" in case.tags:
        return _decoding(shape, inputs, backend)
    calls: dict[str, Calls] = {FORWARD: {}, BOTH: {}}
    absent = {}
    everybody = {backend: peers.backend(backend)}
    everybody |= {name: peer for name, peer in peers.HARDWARE_PEERS.items() if name != backend}
    for name, prepare in everybody.items():
        try:
            work = prepare(shape, inputs)
        except (peers.Absent, torch.OutOfMemoryError) as error:
            absent[name] = str(error).splitlines()[0]
            continue
        calls[FORWARD][name], calls[BOTH][name] = work.forward, work.forward_backward
    return Field(calls, absent)


def problem(case: Case, device: torch.device, passed: str) -> Problem:
    """Describe the call that is timed."""
    found = case.problem(devices.of(device), training=passed == BOTH)
    if "decode" in case.tags:
        found = dataclasses.replace(found, mode="decode")
    return found


def served_by(case: Case, backend: str, device: torch.device, passed: str) -> portable_gla.Plan:
    """Return the plan of the timed call: by that backend, or not at all.

    Raises
    ------
    portable_gla.UnsupportedProblem
        If the backend does not serve the call; the message has its reasons.
    """
    with portable_gla.strict():
        found = portable_gla.plan(problem(case, device, passed), backend=backend)
    if found.backend != backend or found.fallback or found.emulated:
        raise portable_gla.UnsupportedProblem(f"{backend} does not serve {case.name}:\n{found}")
    return found


def state_bytes(case: Case) -> int:
    """Count the bytes of the states that a decode step reads, and writes again."""
    return case.batch * case.heads * case.key_dim * case.value_dim * case.state_dtype.itemsize


def _decoding(shape: peers.Shape, inputs: peers.Inputs, backend: str) -> Field:
    def prepare(name: str) -> Callable[[], object]:
        state = torch.zeros(shape.batch, shape.heads, shape.key_dim, shape.value_dim, device=shape.device)
        out = torch.empty_like(inputs.v)

        def step() -> object:
            with torch.no_grad():
                return portable_gla.decode_(inputs.q, inputs.k, inputs.v, inputs.g, state, out=out, backend=name)

        return step

    return Field({FORWARD: {name: prepare(name) for name in dict.fromkeys((backend, "eager"))}},
                 {name: "decodes by other calls" for name in peers.HARDWARE_PEERS if name != "eager"})
