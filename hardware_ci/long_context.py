"""What long context promises of a device: offloaded states that cost no time, and T that needs no memory.

``python -m hardware_ci long``. On a CPU it runs too, as a check of itself: nothing is offloaded there, and memory is
counted by PyTorch's own allocator.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import portable_gla
from portable_gla.cli import options, output
from portable_gla.cost import format_bytes, format_seconds
from portable_gla.testing.counting import counted

MOST_TIME = 1.1
"""A training step with offloaded states, over one without: the issue's limit."""
_GIB = 2**30


class _Layers(torch.nn.Module):
    """Projections and attention, often enough that there is something behind which copies can hide."""

    def __init__(self, layers: int, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        self.into = torch.nn.ModuleList(torch.nn.Linear(width, 3 * width) for _ in range(layers))
        self.gates = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.out_of = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Run [B, T, width] through all layers."""
        for into, gate, out_of in zip(self.into, self.gates, self.out_of, strict=True):
            # The gate apart: logsigmoid saves its input, and would hold q, k and v if they lay in the same memory.
            q, k, v = into(x).unflatten(-1, (self.heads, -1)).chunk(3, -1)
            g = gate(x).unflatten(-1, (self.heads, -1))
            o = portable_gla.attention(q, k, v, torch.nn.functional.logsigmoid(g) / 16)
            x = x + out_of(o.flatten(-2))  # type: ignore[union-attr]
        return x


def offload(device: torch.device, tokens: int, layers: int, heads: int, head_dim: int, samples: int) -> dict[str, Any]:
    """Time a training step and take its peak memory: states on the device, on the host, and with q, k, v, g there."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = _Layers(layers, heads, head_dim).to(device, dtype)
    x = torch.randn(1, tokens, heads * head_dim, device=device, dtype=dtype)
    contexts: dict[str, Callable[[], Any]] = {
        "device": nullcontext, "residuals": portable_gla.offload_states,
        "all": lambda: portable_gla.offload_states(tensors="all")}
    moved = dict.fromkeys(contexts, 0)

    def step(name: str) -> None:
        with contexts[name]() as entered:
            loss = model(x).square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        moved[name] = getattr(entered, "moved_bytes", 0)

    found: dict[str, list[float]] = {name: [] for name in contexts}
    peaks = {name: _peak(device, functools.partial(step, name)) for name in contexts}  # which warms up as well
    for _ in range(samples):
        for name in contexts:
            _synchronise(device)
            start = time.perf_counter()
            step(name)
            _synchronise(device)
            found[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"tokens": tokens, "layers": layers, "heads": heads, "head_dim": head_dim, "samples_s": found,
            "ratios": {name: value / medians["device"] for name, value in medians.items()},
            "peak_bytes": peaks, "moved_bytes": moved}


def streamed(device: torch.device, tokens: int, heads: int, head_dim: int, cap_gib: float) -> dict[str, Any]:
    """Stream a sequence forward and backward under a cap of the device's memory; hold its end to one call of it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gib * _GIB / total), device)
    q, k, v, g, do = (torch.randn(1, tokens, heads, head_dim).bfloat16() for _ in range(5))
    g = torch.nn.functional.logsigmoid(g)
    o = torch.empty_like(v)
    gradients = {name: torch.empty_like(q) for name in "qkvg"}
    seconds = {}
    peaks = {}
    for name, run in (
            ("forward", lambda: portable_gla.stream(q, k, v, g, device=device, out=o)),
            ("forward + backward", lambda: portable_gla.stream_backward(
                q, k, v, g, do, device=device, out=gradients))):
        start = time.perf_counter()
        peaks[name] = _peak(device, run)
        seconds[name] = time.perf_counter() - start
    # With such gates 2,000 tokens are more than any memory.
    tail = [x[:, -4096:].to(device).requires_grad_() for x in (q, k, v, g)]
    alone = portable_gla.attention(*tail)
    assert isinstance(alone, Tensor)
    returned = torch.autograd.grad(alone, tail, do[:, -4096:].to(device))
    pairs = {"o": (o, alone.detach()),
             **{f"d{name}": (gradients[name], x) for name, x in zip("qkvg", returned, strict=True)}}
    errors = {name: _relative(left[:, -2000:], right[:, -2000:].cpu()) for name, (left, right) in pairs.items()}
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    return {"tokens": tokens, "heads": heads, "head_dim": head_dim, "cap_bytes": int(cap_gib * _GIB),
            "seconds": seconds, "peak_bytes": peaks, "errors": errors}


def long(
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="A device of this machine.")] = None,
    tokens: Annotated[int, options.integer(4096, "T of what is streamed.")] = 2**20,
    train_tokens: Annotated[int, options.integer(1, "T of the training step.")] = 2**16,
    layers: Annotated[int, options.integer(1, "Layers of the training step.")] = 12,
    heads: Annotated[int, options.integer(1, "Heads.")] = 8,
    head_dim: Annotated[int, options.integer(1, "K = V.")] = 128,
    cap: Annotated[float, options.number(0, "GiB of device memory that streaming may take.")] = 16.0,
    samples: Annotated[int, options.integer(1, "Samples of a time.")] = 7,
    json: options.Json = False,
) -> None:
    """Measure long context: what offloaded states cost, and a sequence larger than the device.

    Exit status: 1 if offloading states makes a step take more than 1.1 times as long, or a streamed result is wrong.
    """
    where = options.present_device(device)
    found: dict[str, Any] = {
        "device": str(where), "offload": offload(where, train_tokens, layers, heads, head_dim, samples),
        "stream": streamed(where, tokens, heads, head_dim, cap)}
    ratio, wrong = found["offload"]["ratios"]["residuals"], max(found["stream"]["errors"].values())
    held = {"offload": where.type == "cpu" or ratio <= MOST_TIME, "stream": wrong <= 2**-6}
    if json:
        output.write_json({**found, "held": held})
    else:
        for name, value in found["offload"]["ratios"].items():
            output.say(f"step, states {name}: {value:.3f} x, peak "
                       f"{format_bytes(found['offload']['peak_bytes'][name])}, moved "
                       f"{format_bytes(found['offload']['moved_bytes'][name])}")
        for name, value in found["stream"]["seconds"].items():
            output.say(f"streamed {name}: T = {tokens}, {format_seconds(value)}, peak "
                       f"{format_bytes(found['stream']['peak_bytes'][name])}")
        output.say(f"largest error of the last 2,000 tokens: {wrong:.2g} of their RMS")
        output.say(f"held: {held}")
    raise typer.Exit(0 if all(held.values()) else 1)


def _relative(found: Tensor, expected: Tensor) -> float:
    error = (found.float() - expected.float()).square().mean().sqrt()
    return float(error / expected.float().square().mean().sqrt())


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _peak(device: torch.device, run: Callable[[], object]) -> int:
    if device.type == "cpu":
        return counted(run)[0].peak
    module = torch.get_device_module(device)
    _synchronise(device)
    module.reset_peak_memory_stats(device)
    run()
    _synchronise(device)
    return int(module.max_memory_allocated(device))
