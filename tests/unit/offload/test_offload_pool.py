"""The pool of host memory: slots never share a byte, and what is given back is whole again."""

import random

import pytest

import portable_gla
from portable_gla.offload import context
from portable_gla.offload.engine import Engine
from portable_gla.offload.pool import HostPool
from portable_gla.testing.streams import ShuffledStreams


@pytest.mark.parametrize("fixed", [None, 2**14])
def test_random_slots(seed, fixed):
    chance, streams = random.Random(seed), ShuffledStreams(seed)
    pool, held, refused = HostPool(streams, fixed), {}, 0
    for n in range(600):
        if held and chance.random() < 0.48:
            slot, value = held.pop(chance.choice(list(held)))
            assert bool((slot.memory == value).all())  # nobody wrote there
            pool.give_back(slot, [f"event {n}"])
            continue
        count = chance.choice((1, 64, 100, 640, 3000))
        try:
            pool.require(count)
        except portable_gla.HostMemoryError:
            with pytest.raises(portable_gla.HostMemoryError):
                pool.take(count)
            refused += 1
            continue
        slot = pool.take(count)
        assert slot.memory.numel() == count
        held[n] = slot, n % 251
        slot.memory.fill_(n % 251)
    assert pool.bytes == streams.host_bytes
    assert (refused > 0) == (fixed is not None)
    for slot, _ in held.values():
        pool.give_back(slot, [])
    if fixed is not None:
        assert len(pool.take(fixed).events) > 1  # one piece again, after all copies from and to its parts


def test_release(monkeypatch):
    streams = ShuffledStreams(0)
    pool = HostPool(streams)
    kept, other = pool.take(100), pool.take(200)
    pool.give_back(other, [streams.record(None)])
    engine = Engine(streams, pool, 1)
    monkeypatch.setitem(context._engines, ("device", None, 1), engine)
    portable_gla.offload.release_host_memory()
    assert pool.bytes == streams.host_bytes == 128  # the slot that is in use
    pool.give_back(kept, [])
    portable_gla.offload.release_host_memory()
    assert pool.bytes == streams.host_bytes == 0
    assert pool.take(300).memory.numel() == 300


def test_a_fixed_pool_that_was_released_is_taken_again():
    streams = ShuffledStreams(0)
    pool = HostPool(streams, 1000)
    pool.release()
    assert streams.host_bytes == 0
    pool.require(640)
    pool.give_back(pool.take(1000), [])
    pool.take(640)
    assert streams.host_bytes == 1024  # whole lines of the cache
    with pytest.raises(portable_gla.HostMemoryError, match="the pool of 1 KiB has 384 B left"):
        pool.require(640)
