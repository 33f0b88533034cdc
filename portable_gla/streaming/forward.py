"""The forward pass over segments: the state goes from one to the next on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from portable_gla.api import attention
from portable_gla.streaming.job import Job
from portable_gla.streaming.pipeline import Buffer, Part, Step
from portable_gla.streaming.segments import Segment
from portable_gla.streaming.sources import Target


@dataclass
class Outputs:
    """Where the forward pass leaves what it finds, all on the host; None: not wanted."""

    o: Target | None = None
    final_state: Tensor | None = None  # [N, H, K, V]
    boundaries: Tensor | None = None  # [segments, carried, H, K, V]: the state with which each segment starts
    keep_state: bool = False  # copy the carried state to the host with every segment
    state: Tensor | None = None  # the latest such state


def run(job: Job, outputs: Outputs, first: int, state: Tensor | None, finished: Callable[[Segment], None]) -> None:
    """Run the segments from ``first`` on, the first with the carried ``state`` (on the host) of an earlier run."""
    forward = _Forward(job, outputs, None if state is None else job.on_device(state))
    buffers = {name: job.buffer(name) for name in job.tokenwise}
    if outputs.o is not None:
        tokens = max((segment.tokens for segment in job.segments), default=0)
        buffers["o"] = Buffer(job.batch * tokens * job.heads * job.state_shape[2], job.tokenwise["v"].dtype)
    if job.packed:
        buffers["offsets"] = Buffer(job.most_rows() + 1, torch.int32)
        if job.initial_state is not None:
            buffers["initial"] = job.state_buffer(job.most_rows())
    if outputs.keep_state or outputs.boundaries is not None:
        buffers["state"] = job.state_buffer(job.carried)
    if outputs.final_state is not None:
        buffers["final"] = job.state_buffer(job.most_rows())
    job.pipeline(buffers).run(forward.steps(first, finished))


def start(job: Job, segment: Segment, given: Tensor | None, state: Tensor | None) -> Tensor | None:
    """Put a segment's initial states together on the device: those given, and the one carried into it."""
    if not segment.carried_in:
        return given
    assert state is not None
    if segment.documents is None:
        return state
    found = state.new_zeros(job.rows(segment), *job.state_shape) if given is None else given.clone()
    found[segment.row_in] = state[0]
    return found


class _Forward:
    def __init__(self, job: Job, outputs: Outputs, state: Tensor | None) -> None:
        self._job, self._outputs = job, outputs
        self._state = state  # on the device, in the order of the computation
        self._initial = None
        if job.initial_state is not None and not job.packed:
            self._initial = job.on_device(job.initial_state)

    def steps(self, first: int, finished: Callable[[Segment], None]) -> Iterator[Step]:
        for segment in self._job.segments[first:]:
            yield self._step(segment, finished)

    def _step(self, segment: Segment, finished: Callable[[Segment], None]) -> Step:
        job, wanted = self._job, self._outputs
        inputs = {name: job.part(name, segment) for name in job.tokenwise}
        if segment.documents is not None:
            inputs["offsets"] = job.offsets(segment)
            if job.initial_state is not None:
                inputs["initial"] = job.states(segment, job.initial_state, segment.begins)
        outputs = {}
        if wanted.o is not None:
            target = wanted.o
            shape = (job.batch, segment.tokens, job.heads, job.state_shape[2])
            outputs["o"] = Part(shape, lambda found: target.write(segment.start, segment.end, found))
        if segment.carried_out and (wanted.keep_state or wanted.boundaries is not None):
            outputs["state"] = Part((job.carried, *job.state_shape), lambda found: self._keep(segment, found))
        if wanted.final_state is not None and (segment.documents is not None or not segment.carried_out):
            outputs["final"] = Part((job.rows(segment), *job.state_shape), lambda found: self._end(segment, found))

        def compute(given: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
            initial = start(job, segment, given.get("initial", self._initial), self._state)
            need = segment.carried_out or "final" in results
            with torch.no_grad():
                found = attention(
                    given["q"], given["k"], given["v"], given.get("g", job.gate), initial_state=initial,
                    output_final_state=need, cu_seqlens=given.get("offsets"), bonus=job.bonus, **job.options(segment))
                o, final = found if isinstance(found, tuple) else (found, None)
                self._state = None
                if segment.carried_out:
                    assert final is not None
                    row = segment.row_out
                    self._state = final if segment.documents is None else final[row:row + 1].clone()
                for name, value in (("o", o), ("final", final), ("state", self._state)):
                    if name in results:
                        assert value is not None
                        results[name].copy_(value)

        return Step(inputs, outputs, compute, lambda: finished(segment))

    def _keep(self, segment: Segment, found: Tensor) -> None:
        if self._outputs.boundaries is not None:
            self._outputs.boundaries[segment.number + 1].copy_(found)
        if self._outputs.keep_state:
            self._outputs.state = found.cpu().clone()

    def _end(self, segment: Segment, found: Tensor) -> None:
        target = self._outputs.final_state
        assert target is not None
        if segment.documents is None:
            target.copy_(found)
            return
        for row, (number, _, _) in enumerate(segment.documents):
            if segment.ends(row):
                target[number].copy_(found[row])
