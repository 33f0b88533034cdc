"""The two calls for sequences that do not fit a device: :func:`stream` and :func:`stream_backward`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from portable_gla.backend import Gradients
from portable_gla.streaming import backward, forward
from portable_gla.streaming.describe import describe, fingerprint, target
from portable_gla.streaming.job import Report, check_host_memory, reporting
from portable_gla.streaming.resume import ProgressFile, ResumeError, checksum
from portable_gla.streaming.segments import Segment
from portable_gla.streaming.sources import Target
from portable_gla.streams import Streams


def stream(
    q: Any,
    k: Any,
    v: Any,
    g: Any = None,
    *,
    device: str | torch.device,
    segment_tokens: int | None = None,
    out: Any = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    bonus: Tensor | None = None,
    layout: str = "BTHD",
    backend: str | None = None,
    prefetch: int = 1,
    progress: bool | Report | None = None,
    resume: str | PathLike[str] | None = None,
    streams: Streams | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute :func:`portable_gla.attention` on ``device`` for a sequence that lies in host memory.

    Segments are copied to the device, computed, and copied back, all three at a time on streams of their own; the
    state goes from one to the next. The device holds ``prefetch + 1`` segments whatever T is. Results are those of
    :func:`portable_gla.attention` within the error budget.

    Parameters
    ----------
    q, k, v, g
        As in :func:`portable_gla.attention`, in host memory: tensors (``torch.from_file`` maps a file), numpy arrays
        (``numpy.memmap``, read-only ones too) or slices of a safetensors file (``safe_open(...).get_slice(...)``). A
        constant g [Hg] is a tensor, wherever it lies.
    device
        Where to compute: ``"cuda"``, ``"npu:1"``, ``"cpu"``.
    segment_tokens
        Length of a segment. None: as many tokens as make 64 MiB of inputs and outputs.
    out
        [B, T, H, V] in v's dtype (layout BHTD: [B, H, T, V]): a tensor or numpy array in host memory, often a map of a
        file, to receive o; None allocates it.
    scale, initial_state, output_final_state, cu_seqlens, reverse, bonus, layout, backend
        As in :func:`portable_gla.attention`; small tensors may lie anywhere. Documents of ``cu_seqlens`` may cross
        segments; the device then also holds a state for every document that has tokens in the segment.
    prefetch
        How many segments are in flight besides the one that is computed; 1 or more.
    progress
        A bar on stderr: True, False, or None for "on a terminal"; or a function that is told (finished, all) segments.
    resume
        Path of a progress file. It is replaced after every segment, and removed at the end. If it is there at the
        start, the run goes on after the last finished segment: with the same inputs, options and ``out`` (which must
        be given, and hold what the interrupted run wrote). It survives the process, not a loss of power.
    streams
        The streams of the device, in place of its own: for tests, see ``portable_gla.testing.streams``.

    Returns
    -------
    o : Tensor
        ``out``, as a tensor, or a new one; in host memory.
    final_state : Tensor
        [N, H, K, V] in float32 (float64 for float64 inputs), in host memory; only with ``output_final_state``.

    Raises
    ------
    TypeError, ValueError
        A malformed call: the argument, what was expected, what came.
    UnsupportedProblem
        No backend serves the segments on ``device``.
    HostMemoryError
        Too little host memory for the buffers or the results.
    ResumeError
        ``resume`` names a file of another call, or no progress file. It is left as it is, and so is ``out``.
    RuntimeError
        If an input requires a gradient while gradients are enabled (see :func:`stream_backward`), or a copy fails.

    Examples
    --------
    >>> q, k, v = (torch.randn(1, 5000, 2, 16) for _ in range(3))
    >>> o, state = stream(q, k, v, device="cpu", segment_tokens=1024, output_final_state=True)
    """
    job = describe(
        q, k, v, g, None, device=device, segment_tokens=segment_tokens, scale=scale, initial_state=initial_state,
        cu_seqlens=cu_seqlens, reverse=reverse, bonus=bonus, layout=layout, backend=backend, prefetch=prefetch,
        streams=streams)
    if resume is not None and out is None:
        raise ValueError("resume: expected out= as well, which holds what an interrupted run has computed")
    o = target("out", out, job, None, inputs=(q, k, v, g))
    file = None
    if resume is not None:
        file = ProgressFile(Path(resume), {**fingerprint(job, "forward"), "output_final_state": output_final_state})
    outputs = forward.Outputs(o, keep_state=file is not None)
    run = _Run(file, {"o": o}, len(job.segments))
    if output_final_state:
        shape = (job.sequences, *job.state_shape)
        outputs.final_state = file.array("final", shape, job.state_dtype) if file is not None and job.packed else (
            torch.empty(shape, dtype=job.state_dtype))
        if run.done == 0:
            _fill(outputs.final_state, job.initial_state)  # what a sequence without tokens ends with
    if not run.started:
        run.save("forward", 0, {}, None)
    with reporting(progress, "streaming") as report:
        def finished(segment: Segment) -> None:
            run.save("forward", segment.number + 1, {} if outputs.state is None else {"state": outputs.state}, segment)
            report(segment.number + 1, len(job.segments))

        outputs.state = run.arrays.get("state")
        report(run.done, len(job.segments))
        forward.run(job, outputs, run.done, outputs.state, finished)
    final = None if outputs.final_state is None else outputs.final_state.clone()
    run.end()
    return o.tensor if final is None else (o.tensor, final)


def stream_backward(
    q: Any,
    k: Any,
    v: Any,
    g: Any,
    do: Any,
    *,
    device: str | torch.device,
    dfinal_state: Tensor | None = None,
    segment_tokens: int | None = None,
    out: Mapping[str, Any] | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    bonus: Tensor | None = None,
    layout: str = "BTHD",
    backend: str | None = None,
    prefetch: int = 1,
    progress: bool | Report | None = None,
    resume: str | PathLike[str] | None = None,
    streams: Streams | None = None,
) -> Gradients:
    """Compute the gradients of :func:`stream`, given that of its o.

    A forward pass leaves the state before every segment in host memory; the backward pass walks the segments from the
    last to the first, and computes each again from its state. Device memory does not grow with T.

    Parameters
    ----------
    q, k, v, g, device, segment_tokens, scale, initial_state, cu_seqlens, reverse, bonus, layout, backend, prefetch, \
progress, streams
        As in :func:`stream`. ``progress`` counts the segments of both passes.
    do
        Gradient of o, in o's shape and v's dtype, in host memory.
    dfinal_state
        Gradient of the final state, [N, H, K, V]; None: it has none.
    out
        Where to write: any of ``{"q": ..., "k": ..., "v": ..., "g": ...}``, tensors or numpy arrays in host memory of
        the inputs' own shapes and dtypes. What is not given is allocated.
    resume
        As in :func:`stream`; ``out`` must then hold q, k, v, and g where g has tokens. The states lie in files beside
        the progress file until the run ends.

    Returns
    -------
    Gradients
        ``q, k, v, g, initial_state, bonus``: each in its input's shape and dtype, in host memory; None where the input
        is None.

    Raises
    ------
    TypeError, ValueError, UnsupportedProblem, HostMemoryError, ResumeError, RuntimeError
        As in :func:`stream`.
    """
    job = describe(
        q, k, v, g, do, device=device, segment_tokens=segment_tokens, scale=scale, initial_state=initial_state,
        cu_seqlens=cu_seqlens, reverse=reverse, bonus=bonus, layout=layout, backend=backend, prefetch=prefetch,
        streams=streams, dfinal_state=dfinal_state)
    names = [name for name in job.tokenwise if name != "do"]
    out = {} if out is None else out
    if not isinstance(out, Mapping) or set(out) - set(names):
        got = type(out).__name__ if not isinstance(out, Mapping) else f"the keys {', '.join(map(str, out))}"
        raise ValueError(f"out: expected a mapping from some of {', '.join(names)} to memory, got {got}")
    if resume is not None and set(out) != set(names):
        raise ValueError(f"resume: expected out= for {', '.join(names)}, which holds what an interrupted run has "
                         f"computed; got {', '.join(out) or 'none'}")
    targets = {name: target(f"out[{name!r}]", out.get(name), job, name, inputs=(q, k, v, g, do), others=[
        out[other] for other in names[:names.index(name)] if out.get(other) is not None]) for name in names}
    count = len(job.segments)
    dfinal = None if dfinal_state is None else dfinal_state.detach().cpu().to(job.state_dtype)
    file = None
    if resume is not None:
        file = ProgressFile(Path(resume), {
            **fingerprint(job, "backward"), "dfinal_state": None if dfinal is None else checksum(dfinal)})
    run = _Run(file, targets, count)
    boundaries_shape = (count, job.carried, *job.state_shape)
    starts_shape = (job.sequences, *job.state_shape)
    if file is None:
        size = job.state_dtype.itemsize
        for length in boundaries_shape:
            size *= length
        check_host_memory(size, f"the states before {count} segments")
        boundaries = torch.empty(boundaries_shape, dtype=job.state_dtype)
        dinitial = torch.empty(starts_shape, dtype=job.state_dtype)
    else:
        boundaries = file.array("states", boundaries_shape, job.state_dtype)
        dinitial = file.array("dinitial", starts_shape, job.state_dtype)
    if not run.started:
        run.save("forward", 0, {}, None)
        _fill(dinitial, dfinal)  # what a sequence without tokens sends back
    with reporting(progress, "streaming") as report:
        if run.phase == "forward":
            outputs = forward.Outputs(boundaries=boundaries, keep_state=file is not None)

            def passed(segment: Segment) -> None:
                kept = {} if outputs.state is None else {"state": outputs.state}
                run.save("forward", segment.number + 1, kept, None)
                report(segment.number + 1, 2 * count)

            outputs.state = run.arrays.get("state")
            report(run.done, 2 * count)
            forward.run(job.without("do"), outputs, run.done, outputs.state, passed)
            run.save("backward", 0, {}, None)
            run.arrays = {}
        found = backward.Found(targets, None if initial_state is None else dinitial, file is not None,
                               dict(run.arrays))

        def returned(segment: Segment) -> None:
            run.save("backward", count - segment.number, found.carried, segment)
            report(2 * count - segment.number, 2 * count)

        report(count + run.done, 2 * count)
        backward.run(job, boundaries, dfinal, found, run.done, returned)
    gradients = {name: written.tensor for name, written in targets.items()}
    for name, given in (("gate", g), ("bonus", bonus)):
        if getattr(job, name) is not None and isinstance(given, Tensor):
            total = found.carried.get(name)
            gradients[name] = (torch.zeros(given.shape) if total is None else total).to(given.dtype)
    if initial_state is not None:
        whole = dinitial.sum(0, keepdim=True) if len(initial_state) == 1 != job.sequences else dinitial.clone()
        gradients["initial_state"] = whole.to(initial_state.dtype)
    run.end()
    return Gradients(gradients["q"], gradients["k"], gradients["v"], gradients.get("g", gradients.get("gate")),
                     gradients.get("initial_state"), gradients.get("bonus"))


def _fill(target: Tensor, states: Tensor | None) -> None:
    if states is None:
        target.zero_()
    else:
        target.copy_(states.expand(target.shape))


_SAMPLED = 64  # tokens: a checksum of whole segments would take longer than to compute them


def _sample(written: Target, start: int, end: int) -> int:
    return checksum(written.read(start, end)[:, ::-(-(end - start) // _SAMPLED)])


class _Run:
    """How far a call has come, in its progress file if it has one."""

    def __init__(self, file: ProgressFile | None, targets: Mapping[str, Target], count: int) -> None:
        self._file, self._targets = file, targets
        self.phase, self.done = "forward", 0
        self.arrays: dict[str, Tensor] = {}
        self.started = file is not None and file.found is not None
        if file is not None and file.found is not None:
            self.phase, self.done, checksums, self.arrays = file.found
            place = checksums.pop("start", 0), checksums.pop("end", 0)
            for name, value in checksums.items():
                if _sample(targets[name], *place) != value:
                    raise ResumeError(f"resume: {targets[name].name} does not hold what the interrupted run wrote to "
                                      f"tokens {place[0]} to {place[1]}; it was left as it is")

    def save(self, phase: str, done: int, arrays: Mapping[str, Tensor], segment: Segment | None) -> None:
        """Write the file; ``segment`` is the one whose outputs were written last."""
        self.phase, self.done = phase, done
        if self._file is None:
            return
        checksums = {}
        if segment is not None:
            place = segment.start, segment.end
            checksums = {name: _sample(written, *place) for name, written in self._targets.items()}
            checksums.update(start=place[0], end=place[1])
        self._file.write(phase, done, checksums, arrays)

    def end(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.remove()
