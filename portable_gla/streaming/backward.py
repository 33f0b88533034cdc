"""The backward pass over segments, from the last to the first: each is computed again from the state before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from portable_gla.api import attention
from portable_gla.streaming.forward import start
from portable_gla.streaming.job import Job, copied
from portable_gla.streaming.pipeline import Buffer, Part, Step
from portable_gla.streaming.segments import Segment
from portable_gla.streaming.sources import Target


@dataclass
class Found:
    """Where the backward pass leaves what it finds, all on the host."""

    tokenwise: Mapping[str, Target]  # by the input's name
    dinitial_state: Tensor | None  # [N, H, K, V]; None: the call has no initial state
    keep: bool = False  # copy what ``carried`` holds to the host with every segment
    carried: dict[str, Tensor] = field(default_factory=dict)
    """What goes from one segment to the next, as of the last finished one: "state", "bonus", "gate"."""


def run(job: Job, boundaries: Tensor, dfinal_state: Tensor | None, found: Found, done: int,
        finished: Callable[[Segment], None]) -> None:
    """Run the segments backwards, after ``done`` of them in an earlier run that left ``found.carried``."""
    backward = _Backward(job, boundaries, dfinal_state, found)
    buffers = {name: job.buffer(name) for name in job.tokenwise}
    buffers.update({f"d{name}": job.buffer(name) for name in found.tokenwise})
    buffers["before"] = buffers["state"] = job.state_buffer(job.carried)
    most = job.state_buffer(job.most_rows())
    if job.packed:
        buffers["offsets"] = Buffer(job.most_rows() + 1, torch.int32)
        if job.initial_state is not None:
            buffers["initial"] = most
        if dfinal_state is not None:
            buffers["final"] = most
    if job.initial_state is not None:
        buffers["dinitial"] = most
    for name, x in (("bonus", job.bonus), ("gate", job.gate)):
        if x is not None:
            buffers[name] = Buffer(x.numel(), x.dtype)
    job.pipeline(buffers).run(backward.steps(done, finished))


class _Backward:
    def __init__(self, job: Job, boundaries: Tensor, dfinal_state: Tensor | None, found: Found) -> None:
        self._job, self._boundaries, self._dfinal, self._found = job, boundaries, dfinal_state, found
        carried = {name: job.on_device(x) for name, x in found.carried.items()}
        self._adjoint = carried.get("state")  # on the device, in the order of the computation
        self._sums = {name: carried.get(name, torch.zeros_like(x))
                      for name, x in (("bonus", job.bonus), ("gate", job.gate)) if x is not None}
        self._initial = self._final = None
        if not job.packed:
            self._initial = None if job.initial_state is None else job.on_device(job.initial_state)
            self._final = None if dfinal_state is None else job.on_device(dfinal_state)

    def steps(self, done: int, finished: Callable[[Segment], None]) -> Iterator[Step]:
        for segment in list(reversed(self._job.segments))[done:]:
            yield self._step(segment, finished)

    def _step(self, segment: Segment, finished: Callable[[Segment], None]) -> Step:
        job, wanted = self._job, self._found
        inputs = {name: job.part(name, segment) for name in job.tokenwise}
        if segment.carried_in:
            before = self._boundaries[segment.number]
            inputs["before"] = Part((job.carried, *job.state_shape), copied(before))
        if segment.documents is not None:
            inputs["offsets"] = job.offsets(segment)
            if job.initial_state is not None:
                inputs["initial"] = job.states(segment, job.initial_state, segment.begins)
            if self._dfinal is not None:
                inputs["final"] = job.states(segment, self._dfinal, segment.ends)
        outputs = {f"d{name}": self._target(name, target, segment) for name, target in wanted.tokenwise.items()}
        if wanted.dinitial_state is not None and (segment.documents is not None or not segment.carried_in):
            outputs["dinitial"] = Part((job.rows(segment), *job.state_shape), lambda x: self._begin(segment, x))
        if wanted.keep or segment.number == 0:
            names = [*self._sums, *(["state"] if segment.carried_in else [])]
            shapes = {name: tuple(x.shape) for name, x in self._sums.items()}
            shapes["state"] = (job.carried, *job.state_shape)
            outputs.update({name: self._carried(name, shapes[name]) for name in names})

        def compute(given: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
            self._compute(segment, given, results)

        return Step(inputs, outputs, compute, lambda: finished(segment))

    def _compute(self, segment: Segment, given: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
        job = self._job
        leaves = {name: given[name].detach().requires_grad_() for name in ("q", "k", "v", "g") if name in given}
        leaves.update({name: x.detach().requires_grad_() for name, x in (("bonus", job.bonus), ("gate", job.gate))
                       if x is not None})
        initial = start(job, segment, given.get("initial", self._initial), given.get("before"))
        if initial is not None:
            rows = job.rows(segment)  # one state of all the batch is repeated, and its gradients are summed at the end
            leaves["initial"] = initial.expand(rows, *job.state_shape).detach().requires_grad_()
        seeds = [given["do"]]
        dfinal = self._end(segment, given.get("final", self._final))
        if dfinal is not None:
            seeds.append(dfinal)
        with torch.enable_grad():
            outputs = attention(
                leaves["q"], leaves["k"], leaves["v"], leaves.get("g", leaves.get("gate")),
                initial_state=leaves.get("initial"), output_final_state=dfinal is not None,
                cu_seqlens=given.get("offsets"), bonus=leaves.get("bonus"), **job.options(segment))
            roots = outputs if isinstance(outputs, tuple) else (outputs,)
        gradients = dict(zip(leaves, torch.autograd.grad(roots, list(leaves.values()), seeds), strict=True))
        self._adjoint = None
        if segment.carried_in:
            row = segment.row_in
            found = gradients["initial"]
            self._adjoint = found if segment.documents is None else found[row:row + 1].clone()
        for name in self._sums:
            self._sums[name] = self._sums[name] + gradients[name]
        values = {f"d{name}": x for name, x in gradients.items()}
        values.update(self._sums)
        if self._adjoint is not None:
            values["state"] = self._adjoint
        for name, result in results.items():
            result.copy_(values[name])

    def _end(self, segment: Segment, given: Tensor | None) -> Tensor | None:
        """Put the gradients of a segment's final states together: those given, and the one carried into it."""
        if not segment.carried_out:
            return given
        assert self._adjoint is not None
        if segment.documents is None:
            return self._adjoint
        if given is None:
            found = self._adjoint.new_zeros(self._job.rows(segment), *self._job.state_shape)
        else:
            found = given.clone()
        found[segment.row_out] = self._adjoint[0]
        return found

    def _target(self, name: str, target: Target, segment: Segment) -> Part:
        return Part(self._job.shape(name, segment), lambda x: target.write(segment.start, segment.end, x))

    def _carried(self, name: str, shape: tuple[int, ...]) -> Part:
        def keep(x: Tensor) -> None:
            self._found.carried[name] = x.cpu().clone()

        return Part(shape, keep)

    def _begin(self, segment: Segment, x: Tensor) -> None:
        target = self._found.dinitial_state
        assert target is not None
        if segment.documents is None:
            target.copy_(x)
            return
        for row, (number, _, _) in enumerate(segment.documents):
            if segment.begins(row):
                target[number].copy_(x[row])
