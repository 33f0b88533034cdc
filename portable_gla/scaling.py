"""What a stack of attention calls takes at long context: memory on the device and on the host, traffic, what hides.

Everything here is a prediction: the chosen backend's own bytes, and ``devices.yaml``'s rates, which are peaks. It
counts the attention calls alone; weights, optimizer and other layers come on top.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from portable_gla import devices, planning
from portable_gla.cost import cost, format_bytes, format_seconds
from portable_gla.planning import Plan
from portable_gla.problem import Problem
from portable_gla.streaming.segments import default_tokens

KEEPS = ("device", "states", "all", "stream")
"""Where what the backward pass needs is kept: on the device, the states on the host, all of it on the host
(:func:`portable_gla.offload_states`), or nothing longer than a segment on the device (:func:`portable_gla.stream`)."""

RING = 2
"""Slots on the device of what waits on the host: one in use, one on its way."""


class Traffic(NamedTuple):
    """Bytes that one layer's pass moves over a link, on each device, and what that may hide behind."""

    what: str
    moved: int
    seconds: float | None  # None where the table knows no rate
    behind: str
    behind_seconds: float | None

    @property
    def hides(self) -> bool | None:
        """Whether it takes no longer than what it runs beside."""
        if self.seconds is None or self.behind_seconds is None:
            return None
        return self.seconds <= self.behind_seconds


@dataclass(frozen=True)
class LongPlan:
    """Where a long context's bytes are, for ``layers`` calls one after another on each of ``devices`` devices."""

    problem: Problem  # the whole sequence
    devices: int
    layers: int
    keep: str
    local: Plan  # one layer's call on the device with most tokens
    device_bytes: int | None  # None where no backend serves the call
    device_memory: float | None  # what the table says the device has
    host_bytes: int  # of each device's share
    traffic: tuple[Traffic, ...]

    @property
    def fits(self) -> bool | None:
        """Whether the device holds it."""
        if self.device_bytes is None or self.device_memory is None:
            return None
        return self.device_bytes <= self.device_memory

    def __str__(self) -> str:
        return "\n".join(_explain(self))


def plan_long(problem: Problem, *, devices: int = 1, layers: int = 1, keep: str = "device",
              backend: str | None = None) -> LongPlan:
    """Plan ``layers`` calls of a problem whose sequence is sharded over some devices.

    Parameters
    ----------
    problem
        One layer's call; T is that of the whole sequence. ``training`` decides whether anything is kept.
    devices
        How many share the sequence (:func:`portable_gla.distributed.attention`), T / devices tokens each.
    layers
        Calls one after another in one forward pass.
    keep
        One of :data:`KEEPS`.
    backend
        As in :func:`portable_gla.plan`.

    Raises
    ------
    ValueError
        If an argument is none of these, or the problem is a decoding step.
    """
    for name, value in (("devices", devices), ("layers", layers)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    if keep not in KEEPS:
        raise ValueError(f"keep: expected one of {', '.join(KEEPS)}, got {keep!r}")
    if problem.mode == "decode":
        raise ValueError("mode: a decoding step holds one state, whatever the context: expected attention")
    if devices > 1 and keep == "stream":
        raise ValueError("keep: stream runs a sequence through one device: expected devices=1, or another keep")
    local = planning.plan(_local(problem, devices, keep), backend=backend)
    figures = _figures(problem)
    memory = None if figures is None else figures.memory_gib * 2**30
    if local.schedule is None or local.cost.peak_memory is None:
        return LongPlan(problem, devices, layers, keep, local, None, memory, 0, ())
    count = _Count(problem, devices, layers, keep, local)
    return LongPlan(problem, devices, layers, keep, local, count.device(), memory, count.host(), tuple(count.traffic()))


def largest(problem: Problem, *, devices: int = 1, layers: int = 1, keep: str = "device", reserved: int = 0,
            backend: str | None = None) -> int | None:
    """Return the largest T, to 1 in 64, whose calls fit each device's memory less ``reserved`` bytes.

    None: no T is too large (streaming), or the device or its memory is not known.
    """
    def fits(tokens: int) -> bool | None:
        found = plan_long(dataclasses.replace(problem, tokens=tokens), devices=devices, layers=layers, keep=keep,
                          backend=backend)
        if found.device_bytes is None or found.device_memory is None:
            return None
        return found.device_bytes <= found.device_memory - reserved

    if keep == "stream" or fits(0) is None:
        return None
    low, high = 0, devices
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(devices, high // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def segment_tokens(problem: Problem) -> int:
    """Return how many tokens :func:`portable_gla.stream` takes at a time, unless told."""
    token = dataclasses.replace(problem, tokens=1, initial_state=False, final_state=False, training=False)
    return min(problem.tokens, default_tokens(cost(token).compulsory_forward))


def _local(problem: Problem, count: int, keep: str) -> Problem:
    """Describe one device's call: its shard, or a segment, from a given state to the next."""
    if keep == "stream":
        return dataclasses.replace(problem, tokens=segment_tokens(problem), initial_state=True, final_state=True)
    if count == 1:
        return problem
    return dataclasses.replace(problem, tokens=-(-problem.tokens // count), final_state=True)


def _figures(problem: Problem) -> devices.Figures | None:
    return devices.table().get(problem.device.kind)


class _Count:
    """The sums behind a :class:`LongPlan`."""

    def __init__(self, problem: Problem, devices: int, layers: int, keep: str, local: Plan) -> None:
        from portable_gla.distributed.volume import states  # brings torch.distributed

        assert local.schedule is not None and local.cost.peak_memory is not None
        self.problem, self.devices, self.layers, self.keep = problem, devices, layers, keep
        self.schedule, self.cost, self.peak = local.schedule, local.cost, local.cost.peak_memory
        self.figures = _figures(problem)
        rows = 1 if problem.packed else problem.batch  # of a pack, one document crosses an end of a shard
        size = problem.state_dtype.itemsize
        self.state = rows * problem.heads * problem.key_dim * problem.value_dim * size
        self.gathered = states(
            devices, problem.heads, problem.key_dim, problem.value_dim, batch=rows, gate=problem.gate,
            gate_heads=problem.gate_heads, final_documents=problem.sequences * problem.final_state, itemsize=size)
        self.shared = problem.training and devices > 1
        # What one call keeps for its backward pass, beside its residuals: inputs, and the state that came in.
        self.inputs = self.cost.inputs + (self.state if self.shared else 0)

    def device(self) -> int:
        """Return the most bytes that live on a device at once."""
        gathered = self.gathered.forward * self.devices // (self.devices - 1) if self.devices > 1 else 0
        residual, ring = self.schedule.residual_bytes, min(self.layers, RING)
        if self.keep == "stream":  # slots for what comes and goes, and what a call returns before it is copied there
            returned = self.cost.outputs + (self.cost.inputs if self.problem.training else 0)
            return RING * (self.cost.inputs + returned) + returned + residual + self.schedule.workspace_bytes
        if not self.problem.training:
            return self.peak + gathered
        kept = {"device": (self.layers - 1) * (self.inputs + residual),
                "states": (self.layers - 1) * self.inputs + (ring - 1) * residual,
                "all": (ring - 1) * (self.inputs + residual)}[self.keep]
        return self.peak + gathered + kept

    def host(self) -> int:
        """Return the bytes that the host holds for one device."""
        whole = self.problem
        if self.keep == "stream":
            found = cost(whole)
            both, pieces = found.inputs + found.outputs, -(-whole.tokens // max(1, segment_tokens(whole)))
            return self.layers * (2 * both + pieces * self.state if whole.training else both)
        if not whole.training:
            return 0
        return self.layers * {"device": 0, "states": self.schedule.residual_bytes,
                              "all": self.inputs + self.schedule.residual_bytes}[self.keep]

    def traffic(self) -> list[Traffic]:
        """List what moves over links for one layer (streaming: one segment)."""
        host = self._rate("host_gb_s")
        link = self._rate("link_gb_s") or host
        forward, backward = self._seconds(self.schedule.bytes_forward, self.cost.floor_forward), self._seconds(
            self.schedule.bytes_backward, self.cost.floor_backward)
        found = []

        def add(what: str, moved: int, rate: float | None, behind: str, seconds: float | None) -> None:
            found.append(Traffic(what, moved, moved / rate if rate else None, behind, seconds))

        kept = {"device": 0, "states": self.schedule.residual_bytes,
                "all": self.inputs + self.schedule.residual_bytes}.get(self.keep, 0)
        if kept and self.problem.training:
            add("to the host, forward", kept, host, "a layer's forward pass", forward)
            add("from the host, backward", kept, host, "a layer's backward pass", backward)
        if self.keep == "stream":
            add("from the host, a segment forward", self.cost.inputs, host, "its forward pass", forward)
            add("to the host, a segment forward", self.cost.outputs, host, "its forward pass", forward)
        if self.devices > 1:
            add("states of the other devices, forward", self.gathered.forward, link, "the pass over the own shard",
                forward)
            if self.problem.training:
                add("adjoint states of the other devices, backward", self.gathered.backward, link,
                    "the pass over the own shard", backward)
        return found

    def _rate(self, name: str) -> float | None:
        value = getattr(self.figures, name, 0)
        return value * 1e9 if value else None

    def _seconds(self, moved: int, floor: float | None) -> float | None:
        if self.figures is None or floor is None:
            return None
        return max(floor, moved / (self.figures.bandwidth_gb_s * 1e9))


_WHERE = {"device": "all that is kept stays on the device", "states": "states kept on the host",
          "all": "states, q, k, v and g kept on the host", "stream": "streamed in segments"}


def _explain(found: LongPlan) -> list[str]:
    problem = found.problem
    share = f"T={problem.tokens}"
    if found.devices > 1:
        share = f"T={found.local.problem.tokens} of {problem.tokens} on each"
    lines = [f"long      {found.devices} device{'s' * (found.devices > 1)}, {share}; {found.layers} "
             f"layer{'s' * (found.layers > 1)}; {_WHERE[found.keep]}"]
    if found.device_bytes is None:
        return [*lines, "          no backend serves the call: nothing is known of its memory"]
    text = f"device    {format_bytes(found.device_bytes)} at the peak on each"
    if found.device_memory is not None:
        text += f", {'within' if found.fits else 'MORE THAN'} its {format_bytes(found.device_memory)}"
    lines.append(text + " (attention alone: no weights, optimizer or other layers)")
    lines.append(f"host      {format_bytes(found.host_bytes)} for each device")
    for row in found.traffic:
        taken = "" if row.seconds is None else f", {format_seconds(row.seconds)}"
        verdict = {None: "", True: ": hides behind ", False: ": longer than "}[row.hides]
        if row.hides is not None and row.behind_seconds is not None:
            verdict += f"{row.behind} ({format_seconds(row.behind_seconds)})"
        lines.append(f"moves     {format_bytes(row.moved)} {row.what}{taken}{verdict}")
    return lines
