"""Timing side by side: repetitions interleaved, so that a slow moment of the machine falls on everyone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

_SHORTEST = 0.005  # seconds: a shorter sample is made of several calls, so that the clock and a launch do not show


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
                tick: Callable[[], object]) -> tuple[dict[str, Timing], dict[str, str]]:
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
    """
    plans, failed = {}, {}
    for name, call in calls.items():
        try:
            once = _sample(call, device, 1)
            if once < budget / repeats:  # the first call may be all compilation
                once = _sample(call, device, 1)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:  # out of memory is a RuntimeError
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        inner = max(1, min(200, math.ceil(_SHORTEST / max(once, 1e-9))))
        plans[name] = (inner, max(1, int(min(repeats, budget / max(once * inner, 1e-9)))))
    samples: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(repeats):
        for name, (inner, rounds) in plans.items():
            if turn < rounds:
                samples[name].append(_sample(calls[name], device, inner))
        tick()
    return {name: Timing(tuple(found)) for name, found in samples.items()}, failed


def _sample(call: Callable[[], object], device: torch.device, inner: int) -> float:
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(inner):
        call()
    _synchronise(device)
    return (time.perf_counter() - start) / inner


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
