"""Calls captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

_WARM = 3  # calls before a capture: what allocates or compiles at first must have done so


def capture(calls: dict[str, Callable[[], object]],
            device: torch.device) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Capture each call; return the replays, and why a call could not be captured."""
    replays: dict[str, Callable[[], object]] = {}
    failed = {}
    for name, call in calls.items():
        try:
            replays[name] = _captured(call, device)
        except Exception as error:  # noqa: BLE001 - a peer may do anything that a capture forbids; the reason is kept
            first = str(error).strip().splitlines()[:1]
            failed[name] = ": ".join([type(error).__name__, *first])
    return replays, failed


def _captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    torch.cuda.synchronize(device)
    return graph.replay
