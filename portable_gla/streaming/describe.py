"""From a call's arguments to a :class:`~portable_gla.streaming.job.Job`, or to the error that names the argument."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from portable_gla import devices, planning, validation
from portable_gla.streaming import segments
from portable_gla.streaming.job import Job, check_host_memory
from portable_gla.streaming.resume import checksum
from portable_gla.streaming.sources import Source, Target, overlap
from portable_gla.streams import Streams, of


def describe(
    q: Any, k: Any, v: Any, g: Any, do: Any, *, device: str | torch.device, segment_tokens: int | None,
    scale: float | None, initial_state: Tensor | None, cu_seqlens: Tensor | None, reverse: bool, bonus: Tensor | None,
    layout: str, backend: str | None, prefetch: int, streams: Streams | None, dfinal_state: Tensor | None = None,
) -> Job:
    """Check everything, and plan, before anything is allocated or read."""
    validation.check_layout(layout)
    validation.check_scale(scale)
    validation.check_backend_name(backend)
    training = do is not None
    given = {"q": q, "k": k, "v": v, "g": g, "do": do}
    constant = isinstance(g, Tensor) and g.dim() == 1
    tokenwise = {name: Source(name, x, layout) for name, x in given.items()
                 if x is not None and not (name == "g" and constant)}
    _check_gradients(training, q=q, k=k, v=v, g=g, initial_state=initial_state, bonus=bonus)
    meta = {name: source.meta() for name, source in tokenwise.items()}
    small = {"g": g if constant else None, "initial_state": initial_state, "cu_seqlens": cu_seqlens, "bonus": bonus}
    for name, x in small.items():
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    stand_in: dict[str, Any] = {name: None if x is None else x.to("meta") for name, x in small.items()}
    gate = meta.get("g", stand_in["g"])
    validation.check_attention(meta["q"], meta["k"], meta["v"], gate, stand_in["initial_state"],
                               stand_in["cu_seqlens"], bonus=stand_in["bonus"], layout=layout)
    shape, heads = tokenwise["q"].shape, validation.check_qkvg(meta["q"], meta["k"], meta["v"], gate, layout)
    offsets = None
    if cu_seqlens is not None:
        validation.check_cu_seqlens_values(cu_seqlens.cpu(), shape[1])
        offsets = cu_seqlens.tolist()
    sequences = shape[0] if offsets is None else len(offsets) - 1
    value_dim = tokenwise["v"].shape[3]
    if training:
        source = tokenwise["do"]
        if source.shape != (*shape[:2], heads, value_dim) or source.dtype != tokenwise["v"].dtype:
            raise ValueError(f"do: expected shape {[*shape[:2], heads, value_dim]} (in layout BTHD) and v's dtype, "
                             f"got {list(source.shape)} and {source.dtype}")
    if dfinal_state is not None:
        wanted = (sequences, heads, shape[3], value_dim)
        if not isinstance(dfinal_state, Tensor) or tuple(dfinal_state.shape) != wanted:
            got = list(dfinal_state.shape) if isinstance(dfinal_state, Tensor) else type(dfinal_state).__name__
            raise ValueError(f"dfinal_state: expected a tensor [N, H, K, V] = {list(wanted)}, got {got}")
    layer = _streams(device, streams)
    if _integer("prefetch", prefetch) < 1:
        raise ValueError(f"prefetch: expected 1 or more, got {prefetch}")
    token_bytes = sum(source.dtype.itemsize * _product((source.shape[0], *source.shape[2:]))
                      for name, source in tokenwise.items() if name != "do")
    token_bytes += shape[0] * heads * value_dim * tokenwise["v"].dtype.itemsize
    if segment_tokens is None:
        segment_tokens = segments.default_tokens(token_bytes)
    elif _integer("segment_tokens", segment_tokens) < 1:
        raise ValueError(f"segment_tokens: expected 1 or more, got {segment_tokens}")
    problem = planning.describe(
        meta["q"], meta["k"], meta["v"], gate, layout=layout, sequences=-1 if offsets is None else sequences,
        initial_state=True, final_state=True, reverse=bool(reverse), bonus=bonus is not None, training=training)
    planning.require(planning.choose(dataclasses.replace(problem, device=devices.of(layer.device)), backend))
    state_dtype = torch.float64 if tokenwise["q"].dtype == torch.float64 else torch.float32
    return Job(
        tokenwise, _placed(g if constant else None, layer, state_dtype), _placed(bonus, layer, state_dtype),
        None if initial_state is None else initial_state.detach().cpu().to(state_dtype), offsets is not None,
        sequences, heads, shape[3] ** -0.5 if scale is None else float(scale), bool(reverse), layout, backend,
        segments.cut(shape[1], segment_tokens, offsets, bool(reverse)), layer, prefetch + 1)


def target(name: str, value: Any, job: Job, like: str | None, *, inputs: Sequence[Any],
           others: Sequence[Any] = ()) -> Target:
    """Check what an output is written to, or allocate it; ``like`` names its input, None is o."""
    if like is None:
        shape: tuple[int, ...] = (*job.tokenwise["q"].shape[:2], job.heads, job.state_shape[2])
        dtype = job.tokenwise["v"].dtype
    else:
        shape, dtype = job.tokenwise[like].shape, job.tokenwise[like].dtype
    if value is None:
        check_host_memory(_product(shape) * dtype.itemsize, f"{name}: {list(shape)} elements to write")
    elif any(overlap(value, x) for x in (*inputs, *others)):
        raise ValueError(f"{name}: expected memory of its own, got some that an input or another output has a part of")
    return Target(name, value, shape, dtype, job.layout)


def fingerprint(job: Job, direction: str) -> dict[str, Any]:
    """Return what a resumed call must have in common with the one that was interrupted.

    Of large inputs: shape, dtype and the values of the first and the last token; small ones are compared whole.
    """
    found: dict[str, Any] = {
        "direction": direction, "scale": job.scale, "reverse": job.reverse, "layout": job.layout,
        "backend": job.backend, "segments": [(segment.start, segment.end) for segment in job.segments[:2]],
        "packed": job.packed, "documents": checksum(torch.tensor(
            [row for segment in job.segments for row in segment.documents or ()], dtype=torch.int64))}
    for name, source in job.tokenwise.items():
        tokens = source.shape[1]
        ends = []
        for token in ((0, tokens - 1) if tokens else ()):
            row = torch.empty((source.shape[0], 1, *source.shape[2:]), dtype=source.dtype)
            source.read(token, token + 1, row)
            ends.append(checksum(row))
        found[name] = [list(source.shape), str(source.dtype), ends]
    for name, x in (("gate", job.gate), ("bonus", job.bonus), ("initial_state", job.initial_state)):
        found[name] = None if x is None else [list(x.shape), checksum(x.cpu())]
    return found


def _check_gradients(training: bool, **tensors: Any) -> None:
    if training or not torch.is_grad_enabled():
        return
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.requires_grad:
            raise RuntimeError(f"{name}: stream records no gradient, and this tensor requires one: call it under "
                               "torch.no_grad(), and stream_backward for the gradients")


def _streams(device: Any, streams: Streams | None) -> Streams:
    if streams is not None:
        return streams
    wanted = torch.device(device)
    here = devices.present()
    if wanted.type not in {found.type for found in here}:
        raise ValueError(f"device: expected one that PyTorch sees here ({', '.join(str(found) for found in here)}), "
                         f"got {wanted}")
    return of(wanted)


def _placed(x: Tensor | None, streams: Streams, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.detach().to(streams.device, dtype)


def _product(sizes: Sequence[int]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
