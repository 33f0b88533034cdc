"""Timing side by side: repetitions interleaved, so that a slow moment of the machine falls on everyone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_SHORTEST = 0.005  # seconds: a shorter sample is made of several calls, so that the clock and a launch do not show
_FLUSHED = 2**29  # bytes that are overwritten to empty a cache: more than any accelerator's last level holds

Sampler = Callable[[Callable[[], object], torch.device, int], float]
"""Runs a call some times on a device; returns seconds per call."""


@dataclass(frozen=True)
class Timing:
    """Every sample, in seconds per call."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest sample."""
        return min(self.samples), max(self.samples)


def interleaved(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, budget: float,
                tick: Callable[[], object],
                sampler: Sampler | None = None) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time every call; return the timings, and why a call could not be timed.

    Parameters
    ----------
    calls
        What to time, by name. The first call of each (it compiles, it allocates) is no sample.
    device
        Where they run; an accelerator is synchronised around every sample.
    repeats
        Samples per call.
    budget
        Seconds for the samples of one call: fewer are taken where they would take longer, at least one.
    tick
        Called ``repeats`` times, as rounds are done.
    sampler
        How a sample is taken; default: by the clock, calls back to back. :func:`cold` is another.
    """
    sampler = sampler or _sample
    plans, failed = {}, {}
    for name, call in calls.items():
        try:
            once = sampler(call, device, 1)
            if once < budget / repeats:  # the first call may be all compilation
                once = sampler(call, device, 1)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:  # out of memory is a RuntimeError
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        inner = max(1, min(200, math.ceil(_SHORTEST / max(once, 1e-9))))
        plans[name] = (inner, max(1, int(min(repeats, budget / max(once * inner, 1e-9)))))
    samples: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(repeats):
        for name, (inner, rounds) in plans.items():
            if turn < rounds:
                samples[name].append(sampler(calls[name], device, inner))
        tick()
    return {name: Timing(tuple(found)) for name, found in samples.items()}, failed


def _sample(call: Callable[[], object], device: torch.device, inner: int) -> float:
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(inner):
        call()
    _synchronise(device)
    return (time.perf_counter() - start) / inner


def cold(device: torch.device) -> Sampler:
    """Return a sampler that empties the device's caches before every call, and times calls by the device's events.

    The emptying also gives the host a head start, so that a launch shows only where it is longer. A CPU, or a device
    without timed events, is sampled as by default: its caches are as the call before left them.
    """
    event = None if device.type == "cpu" else getattr(torch.get_device_module(device), "Event", None)
    if event is None:
        return _sample
    scratch = torch.empty(_FLUSHED, dtype=torch.int8, device=device)

    def sample(call: Callable[[], object], device: torch.device, inner: int) -> float:
        marks = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(inner)]
        _synchronise(device)
        for start, end in marks:
            scratch.zero_()
            start.record()
            call()
            end.record()
        _synchronise(device)
        return sum(float(start.elapsed_time(end)) for start, end in marks) / inner / 1e3

    return sample


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
