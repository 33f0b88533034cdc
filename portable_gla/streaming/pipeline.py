"""A ring of slots through which segments go: copied in, computed, copied out, each on a stream of its own.

A step's copy in overlaps with the computation of the step before it, and its copy out with that of the next. Between
the caller's memory and the device lies memory that the device copies from directly, filled and emptied by the host
meanwhile; where nothing overlaps (on a CPU) it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from portable_gla.cost import format_bytes
from portable_gla.errors import HostMemoryError
from portable_gla.streams import Event, Streams, available_host_bytes


class Part(NamedTuple):
    """A tensor of one step: its shape, and what fills its host side (an input) or takes it from there (an output).

    ``direct`` is an input that the device can copy from where it is.
    """

    shape: tuple[int, ...]
    move: Callable[[Tensor], None]
    direct: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One segment's work: ``compute`` queues it on the device, from its inputs to its outputs."""

    inputs: Mapping[str, Part]
    outputs: Mapping[str, Part]
    compute: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]
    finished: Callable[[], None]  # called when all outputs have been taken


class Buffer(NamedTuple):
    """How much a tensor of any step may need."""

    elements: int
    dtype: torch.dtype


@dataclass
class _Slot:
    device: dict[str, Tensor]
    host: dict[str, Tensor]
    arrived: Event = None
    computed: Event = None
    departed: Event = None
    step: Step | None = None
    used: bool = False
    outputs: dict[str, Tensor] = field(default_factory=dict)


class Pipeline:
    """Device memory: ``depth`` times the buffers, whatever the number of steps.

    Raises
    ------
    HostMemoryError
        If the host has too little memory for its side of the buffers.
    """

    def __init__(self, streams: Streams, depth: int, buffers: Mapping[str, Buffer]) -> None:
        self._streams = streams
        self._memory: Tensor | None = None
        count = depth * sum(_aligned(buffer) for buffer in buffers.values())
        if streams.overlaps:
            available = available_host_bytes()
            if available is not None and count > available:
                raise HostMemoryError(f"streaming needs {format_bytes(count)} of host memory for its buffers, and "
                                      f"{format_bytes(available)} is available; make segment_tokens smaller")
            self._memory = streams.host_memory(count)
        self._slots, start = [], 0
        for _ in range(depth):
            slot = _Slot({}, {})
            for name, buffer in buffers.items():
                slot.device[name] = streams.empty_strided((buffer.elements,), (1,), buffer.dtype)
                slot.host[name] = slot.device[name]
                if self._memory is not None:
                    part = self._memory[start:start + buffer.elements * buffer.dtype.itemsize]
                    slot.host[name], start = part.view(buffer.dtype), start + _aligned(buffer)
            self._slots.append(slot)

    def run(self, steps: Iterable[Step]) -> None:
        """Run the steps in order; ``finished`` is called in order too.

        What goes wrong, in a copy as well, is raised here, after all that was queued has ended.
        """
        streams, compute = self._streams, self._streams.current()
        inward, outward = streams.new_stream(), streams.new_stream()
        streams.wait(inward, streams.record(compute), "room")
        last = -1
        try:
            for number, step in enumerate(steps):
                slot = self._slots[number % len(self._slots)]
                inputs = self._load(slot, step, inward)
                streams.wait(compute, slot.arrived, "inputs there")
                if slot.used:
                    streams.wait(compute, slot.departed, "outputs copied")
                outputs = {name: _shaped(slot.device[name], part.shape) for name, part in step.outputs.items()}
                streams.launch(compute, _bound(step, inputs, outputs))
                computed = streams.record(compute)
                self._finish(slot)
                streams.wait(outward, computed, "outputs there")
                slot.outputs = {name: _shaped(slot.host[name], part.shape) for name, part in step.outputs.items()}
                if self._memory is not None:
                    for name, output in outputs.items():
                        streams.copy(outward, slot.outputs[name], output)
                slot.computed, slot.departed = computed, streams.record(outward)
                slot.step, slot.used = step, True
                last = number
                if self._memory is None:  # the next step in this slot writes where these outputs are
                    self._finish(slot)
            for number in range(last + 1, last + 1 + len(self._slots)):
                self._finish(self._slots[number % len(self._slots)])
        finally:
            self._end(inward, compute, outward)

    def _load(self, slot: _Slot, step: Step, inward: object) -> dict[str, Tensor]:
        streams = self._streams
        if slot.used:
            streams.synchronise(slot.arrived, "host side read")
            streams.wait(inward, slot.computed, "inputs read")
        inputs = {}
        for name, part in step.inputs.items():
            inputs[name] = _shaped(slot.device[name], part.shape)
            host = part.direct if self._memory is not None else None
            if host is None:
                host = _shaped(slot.host[name], part.shape)
                part.move(host)
            if self._memory is not None:
                streams.copy(inward, inputs[name], host)
        slot.arrived = streams.record(inward)
        return inputs

    def _finish(self, slot: _Slot) -> None:
        if slot.step is None:
            return
        self._streams.synchronise(slot.departed, "outputs in host memory")
        step, slot.step = slot.step, None
        for name, part in step.outputs.items():
            part.move(slot.outputs[name])
        step.finished()

    def _end(self, *queues: object) -> None:
        """Let everything end before the memory goes."""
        streams, memory = self._streams, self._memory
        for slot in self._slots:
            slot.step = None
        try:
            for queue in queues:
                streams.synchronise(streams.record(queue), "all ended")
        finally:
            self._slots, self._memory = [], None
            if memory is not None:
                streams.release_host_memory(memory)


def _bound(step: Step, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Callable[[], None]:
    return lambda: step.compute(inputs, outputs)


def _shaped(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return flat[:count].view(shape)


def _aligned(buffer: Buffer) -> int:
    return -(-buffer.elements * buffer.dtype.itemsize // 64) * 64
