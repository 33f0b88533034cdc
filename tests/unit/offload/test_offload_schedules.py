"""The engine on fake streams: whatever the order in which streams go on, what comes back is what went out."""

import random

import pytest
import torch

from portable_gla.offload.engine import Engine
from portable_gla.offload.pool import HostPool
from portable_gla.testing.streams import FakeEvent, ShuffledStreams, ThreadedStreams

DEPENDENCIES = {"made", "host slot free", "copied out", "room", "in the slot", "copied back", "orphan filled"}
SHAPE, STRIDES = (2, 3), (3, 1)


def right(streams, seed):
    """Train three steps of a few layers that compute nothing but their own number; tell whether they found it again."""
    chance = random.Random(seed)
    forward, backward = streams.new_stream(), streams.new_stream()
    engine = Engine(streams, HostPool(streams), ahead=chance.choice((1, 1, 2, 3)))
    dropped = chance.choice((0.0, 0.4))
    wanted, found = [], []
    for step in range(3):
        saved = []
        group = engine.new_group()
        with streams.computing_on(forward):
            for layer in range(chance.randint(2, 4)):
                if chance.random() < 0.7:
                    group = engine.new_group()
                value = float(10 * step + layer + 1)
                states = streams.empty_strided(SHAPE, STRIDES, torch.float32)
                streams.launch(forward, lambda states=states, value=value: states.fill_(value))
                saved.append((value, engine.pack(states, group=group, owned=True)))
                del states
            if chance.random() < 0.5:
                engine.flush()
        usual = chance.choice((forward, backward))  # autograd runs a backward pass where its forward ran: mostly one
        while saved and chance.random() >= dropped:  # else the rest of the graph is dropped
            stream = usual if chance.random() < 0.9 else forward
            with streams.computing_on(stream):
                value, moved = saved.pop()
                states = engine.unpack(moved)
                result = torch.zeros(SHAPE)
                streams.launch(stream, lambda states=states, result=result: result.copy_(states))
                streams.free(stream, states)
                wanted.append(torch.full(SHAPE, value))
                found.append(result)
                del moved, states
    for stream in (forward, backward):
        streams.synchronise(streams.record(stream), "the end")
    return all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_no_schedule_gives_a_wrong_result(seed):
    seen = set()
    for n in range(1500):
        streams = ShuffledStreams(seed + n)
        assert right(streams, seed + n), f"seed {seed + n}"
        seen |= streams.seen
    assert seen - {"the end"} == DEPENDENCIES


def test_no_schedule_of_threads_gives_a_wrong_result(seed):
    for n in range(40):
        streams = ThreadedStreams(seed + n)
        assert right(streams, seed + n), f"seed {seed + n}"
        streams.close()


@pytest.mark.parametrize("dependency", sorted(DEPENDENCIES))
def test_a_dependency_left_out_is_noticed(dependency, seed):
    assert not all(right(ShuffledStreams(seed + n, without=dependency), seed + n) for n in range(500))


@pytest.mark.parametrize("dependency", sorted(DEPENDENCIES))
def test_a_dependency_left_out_is_noticed_with_threads(dependency, seed):
    for n in range(500):
        streams = ThreadedStreams(seed + n, without=dependency, longest_delay=1e-3)
        noticed = not right(streams, seed + n)
        streams.close()
        if noticed:
            return
    raise AssertionError(f"500 schedules without {dependency!r}, and none was wrong")


class OneAtATime(ShuffledStreams):
    """No stream goes on by itself."""

    def __init__(self):
        super().__init__(0)
        self._eagerness = 0.0

    def go(self, stream):
        """Run what a stream can do while all others stand still; return how much that was."""
        items, count = self._streams[stream], 0
        while items and not (isinstance(items[0], FakeEvent) and not items[0].done.is_set()):
            self._run_next(stream)
            count += 1
        return count


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_copies_overlap_with_computation(ahead):
    """While no copy goes on, computation does for ``ahead + 1`` calls; while it waits, copies are made ahead of it."""
    streams, ran = OneAtATime(), []
    compute = streams.new_stream()
    engine = Engine(streams, HostPool(streams), ahead)
    outward, homeward = 1, 2
    with streams.computing_on(compute):
        saved = []
        for layer in range(6):
            streams.launch(compute, lambda layer=layer: ran.append(layer))
            saved.append(engine.pack(torch.full(SHAPE, float(layer)), group=engine.new_group(), owned=True))
        streams.go(compute)
        assert ran == list(range(ahead + 1))
        while streams.go(outward) + streams.go(compute):
            pass
        assert ran == list(range(6))
        states = engine.unpack(saved.pop())
        streams.launch(compute, lambda: ran.append("backward"))
        streams.go(compute)
        assert "backward" not in ran
        streams.go(homeward)
        arrived = [bool((moved.arriving == layer).all()) for layer, moved in enumerate(saved)
                   if moved.arriving is not None]
        assert arrived == [True] * ahead
        streams.go(compute)
        assert "backward" in ran
        assert torch.equal(states, torch.full(SHAPE, 5.0))


def test_a_failing_copy_is_raised_where_its_tensor_is_wanted():
    for failing in range(1, 7):  # three out, three back
        streams = ShuffledStreams(failing, failing_copy=failing)
        engine = Engine(streams, HostPool(streams), ahead=1)
        with pytest.raises(RuntimeError, match=f"copy {failing} failed"):
            saved = [engine.pack(torch.full(SHAPE, float(n)), group=n, owned=True) for n in range(3)]
            while saved:
                engine.unpack(saved.pop())
