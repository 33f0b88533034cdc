"""What overlaps, on streams with a clock: the longest of copy in, computation and copy out counts, not their sum."""

import pytest
import torch

import portable_gla
from portable_gla.offload.engine import Engine
from portable_gla.offload.pool import HostPool
from portable_gla.testing.timed_streams import TimedStreams

SEGMENTS, TOKENS, D = 20, 8, 4
TOKEN = 4 * D  # bytes of one of q, k, v, o


@pytest.mark.parametrize("prefetch", [1, 2])
@pytest.mark.parametrize(("compute", "unit"), [(10.0, 1.0), (10.0, 3.0), (10.0, 3.3), (10.0, 7.0), (0.0, 1.0)])
def test_stream(seed, prefetch, compute, unit):
    """``unit`` is the time of a copy of one of q, k, v or o of a segment."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, SEGMENTS * TOKENS, 1, D, generator=generator) for _ in range(3))
    streams = TimedStreams(compute, lambda size: unit * size / (TOKENS * TOKEN))
    portable_gla.stream(q, k, v, device="cpu", segment_tokens=TOKENS, prefetch=prefetch, streams=streams,
                        progress=False)
    steps = 3 * unit, compute, unit
    assert streams.now == pytest.approx(SEGMENTS * max(steps) + sum(steps) - max(steps))


@pytest.mark.parametrize(("copy", "hidden"), [(5.0, True), (10.0, True), (15.0, False)])
def test_offload(copy, hidden):
    """Forward and backward of 24 calls, each 10 units forward and 20 back, against the same without copies."""
    layers, forward, backward = 24, 10.0, 20.0
    streams = TimedStreams(forward, lambda size: copy)
    engine = Engine(streams, HostPool(streams), ahead=1)
    saved = []
    for _ in range(layers):
        streams.launch(0, lambda: None)
        saved.append(engine.pack(torch.zeros(4), group=engine.new_group(), owned=True))
    engine.flush()
    streams._compute = backward
    while saved:
        states = engine.unpack(saved.pop())
        streams.launch(0, lambda: None)
        del states
    without = layers * (forward + backward)
    if hidden:  # but for the last copy out and the first one back
        assert streams.now == without + 2 * copy <= 1.1 * without
    else:
        assert streams.now > 1.1 * without
