"""``stream`` on fake streams: whatever the order in which streams go on, results are those of one order, to the bit."""

import itertools

import pytest
import torch

import portable_gla
from portable_gla.streaming.sources import Source
from portable_gla.testing.streams import CopyError, ShuffledStreams, ThreadedStreams

B, T, H, D = 2, 22, 1, 4
SEGMENT = 4
DEPENDENCIES = {"room", "host side read", "inputs read", "inputs there", "outputs copied", "outputs there",
                "outputs in host memory"}
CALLS = ("forward", "packed", "backward")
copied = Source.read


@pytest.fixture(scope="module")
def call():
    generator = torch.Generator().manual_seed(0)
    q, k, v, g, do = (torch.randn(B, T, H, D, generator=generator) for _ in range(5))
    state = torch.randn(B, H, D, D, generator=generator)
    g = torch.nn.functional.logsigmoid(g)
    offsets = torch.tensor([0, 3, 3, 13, 20, T])

    def run(kind, streams=None, prefetch=1, **options):
        options = {"device": "cpu", "segment_tokens": SEGMENT, "streams": streams, "prefetch": prefetch,
                   "progress": False, **options}
        if kind == "forward":
            return portable_gla.stream(q, k, v, g, output_final_state=True, **options)
        if kind == "packed":
            return portable_gla.stream(q[:1], k[:1], v[:1], g[:1], output_final_state=True, cu_seqlens=offsets,
                                       reverse=True, **options)
        found = portable_gla.stream_backward(q, k, v, g[..., 0].contiguous(), do, bonus=k[0, 0],
                                             initial_state=state, **options)
        return [x for x in found if x is not None]

    return run


@pytest.fixture(scope="module")
def expected(call):
    return {kind: call(kind) for kind in CALLS}


def right(call, expected, kind, streams, prefetch=1):
    compute = streams.new_stream()
    with streams.computing_on(compute):
        found = call(kind, streams, prefetch)
    return all(torch.equal(a, b) for a, b in zip(found, expected[kind], strict=True))


@pytest.mark.parametrize("kind", CALLS)
def test_no_schedule_gives_a_wrong_result(call, expected, kind, seed):
    seen = set()
    for n in range(400):
        streams = ShuffledStreams(seed + n)
        assert right(call, expected, kind, streams, 1 + n % 3), f"seed {seed + n}"
        assert streams.host_bytes == 0
        seen |= streams.seen
    assert seen - {"all ended"} == DEPENDENCIES


def test_pinned_inputs_go_to_the_device_from_where_they_are(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, g = (torch.randn(1, T, H, D, generator=generator) for _ in range(4))
    expected = portable_gla.stream(q, k, v, g, device="cpu", segment_tokens=SEGMENT)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.data_ptr() != v.data_ptr())
    read = []
    monkeypatch.setattr(Source, "read", lambda self, *rest: (read.append(self.name), copied(self, *rest))[1])
    for n in range(100):
        streams = ShuffledStreams(seed + n)
        with streams.computing_on(streams.new_stream()):
            o = portable_gla.stream(q, k, v, g, device="cpu", segment_tokens=SEGMENT, streams=streams, progress=False)
        assert torch.equal(o, expected)
    assert set(read) == {"v"}
    # Not what is no whole piece of memory, or in another order.
    read.clear()
    portable_gla.stream(q[..., :2], k[..., :2], v, g[..., :2], device="cpu", segment_tokens=SEGMENT,
                        streams=ShuffledStreams(0), progress=False)
    assert set(read) == {"q", "k", "v", "g"}


@pytest.mark.parametrize("kind", CALLS)
def test_no_schedule_of_threads_gives_a_wrong_result(call, expected, kind, seed):
    for n in range(15):
        streams = ThreadedStreams(seed + n)
        assert right(call, expected, kind, streams, 1 + n % 3), f"seed {seed + n}"
        streams.close()


@pytest.mark.parametrize(("kind", "dependency"), list(itertools.product(CALLS, sorted(DEPENDENCIES))))
def test_a_dependency_left_out_is_noticed(call, expected, kind, dependency, seed):
    for n in range(300):
        try:
            if not right(call, expected, kind, ShuffledStreams(seed + n, without=dependency)):
                return
        except ValueError as error:  # a poisoned cu_seqlens
            assert "cu_seqlens" in str(error)
            return
    raise AssertionError(f"300 schedules without {dependency!r}, and none was wrong")


@pytest.mark.parametrize("fake", [ShuffledStreams, ThreadedStreams])
@pytest.mark.parametrize("kind", CALLS)
def test_an_error_in_a_copy_is_raised_and_nothing_is_left(call, kind, fake):
    for failing in (1, 5, 12):
        streams = fake(failing, failing_copy=failing)
        with streams.computing_on(streams.new_stream()), pytest.raises(CopyError, match=f"copy {failing} "):
            call(kind, streams)
        assert streams.host_bytes == 0


def test_an_error_on_the_host_is_raised_and_nothing_is_left(call, expected):
    streams = ShuffledStreams(0)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with streams.computing_on(streams.new_stream()), pytest.raises(KeyboardInterrupt):
        call("forward", streams, progress=stop)
    assert streams.host_bytes == 0
