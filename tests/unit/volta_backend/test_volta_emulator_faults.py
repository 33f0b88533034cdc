"""What the emulator finds in kernels that do something wrong, and that it finds nothing in those that do not."""

from __future__ import annotations

import helpers_volta_toys as toys
import pytest
import torch
from portable_gla_volta import emulator
from portable_gla_volta.emulator import (
    EmulationError,
    GlobalConflictError,
    OutOfBoundsError,
    RaceError,
    SynchronizationError,
    UninitialisedError,
)

ORDERS = (0, 1, 2, 3)


def fault(error: pytest.ExceptionInfo[EmulationError], kind: str) -> str:
    """Return what was said; every fault names the kernel, a block, a thread and a place in the source."""
    (found, *_) = [each for each in error.value.faults if each.kind == kind]
    assert found.place.startswith("toys.cu:")
    assert found.kernel in str(found) or "MODE" in found.kernel
    return str(found)


@pytest.mark.parametrize("order", ORDERS)
def test_barrier_between_warps(order: int) -> None:
    x = toys.numbers(64)
    with emulator.options(order=order, checks="all"):
        assert torch.equal(toys.launch("turned", x, torch.empty(64), threads=64, shared=256), x.flip(0))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [1, 4])
def test_missing_barrier_is_a_race(order: int, mode: int) -> None:
    with emulator.options(order=order, checks="all"), pytest.raises(EmulationError) as error:
        toys.launch("turned", toys.numbers(64), torch.empty(64), threads=64, shared=256, mode=mode)
    kinds = {each.kind for each in error.value.faults}
    assert "race" in kinds
    assert "with no barrier between" in fault(error, "race")
    assert isinstance(error.value, RaceError | UninitialisedError)


def test_a_race_is_found_in_an_order_that_hides_it() -> None:
    """Threads of the first warp run first: they load what the second stores later, or the other way round."""
    texts = []
    for order in (0, 2):
        with emulator.options(order=order, checks="all"), pytest.raises(RaceError) as error:
            toys.launch("twice", toys.numbers(64), torch.empty(64), threads=64, shared=256, count=3, mode=1)
        texts.append(fault(error, "race"))
    assert all("toys.cu" in text for text in texts)
    with emulator.options(checks="all"):
        toys.launch("twice", toys.numbers(64), torch.empty(64), threads=64, shared=256, count=3)


@pytest.mark.parametrize(("mode", "text"), [(2, "have left"), (3, "wait at the barrier"), (5, "have left")])
@pytest.mark.parametrize("checks", ["fast", "all"])
def test_barrier_of_part_of_a_block(mode: int, text: str, checks: str) -> None:
    with emulator.options(checks=checks), pytest.raises(EmulationError) as error:
        toys.launch("turned", toys.numbers(64), torch.empty(64), threads=64, shared=256, mode=mode)
    assert text in fault(error, "barrier")
    assert "reached by only part of the block" in fault(error, "barrier")


@pytest.mark.parametrize("checks", ["fast", "all"])
def test_uninitialised(checks: str) -> None:
    with emulator.options(checks=checks), pytest.raises(UninitialisedError) as error:
        toys.launch("turned", toys.numbers(64), torch.empty(64), threads=64, shared=256, mode=6)
    assert "thread 0," in fault(error, "uninitialised")
    assert "offset 252" in fault(error, "uninitialised")


def test_shared_memory_is_not_kept_from_one_block_to_the_next() -> None:
    x = toys.numbers(64)
    toys.launch("turned", x, torch.empty(64), threads=64, shared=256)
    with pytest.raises(UninitialisedError):
        toys.launch("turned", x, torch.empty(64), threads=64, shared=256, mode=6)


@pytest.mark.parametrize("order", ORDERS)
def test_order_within_a_warp(order: int) -> None:
    x = toys.numbers(32)
    with emulator.options(order=order, checks="all"):
        found = toys.launch("swapped", x, torch.empty(32), shared=128)
        assert torch.equal(found, x.view(16, 2).flip(1).reshape(32))
        for mode in (1, 2):
            with pytest.raises(EmulationError) as error:
                toys.launch("swapped", x, torch.empty(32), shared=128, mode=mode)
            assert "race" in {each.kind for each in error.value.faults}


@pytest.mark.parametrize(("mode", "kind", "text"), [
    (0, "shared-bounds", "stores 4 bytes at offset 128 of 128"),
    (1, "shared-bounds", "loads 4 bytes at offset -4 of 128"),
    (2, "alignment", "loads 8 bytes at offset 12 of shared"),
    (3, "global-bounds", "loads 4 bytes of global memory: 0 bytes past the end of tensor 0 of 2 (float32[32])"),
    (4, "global-bounds", "stores 4 bytes of global memory: 4 bytes before tensor 1 of 2 (float32[16])"),
    (5, "alignment", "loads 8 bytes of global memory: byte 4 of tensor 0"),
    (6, "shared-bounds", "stores 2 bytes at offset 127 of 128"),
    (7, "shared-bounds", "loads 16 bytes at offset 116 of 128"),
])
@pytest.mark.parametrize("checks", ["fast", "all"])
def test_accesses_that_go_astray(mode: int, kind: str, text: str, checks: str) -> None:
    # Both lie inside a larger tensor: what is beside them is there, and still not theirs.
    one = torch.zeros(32 + 3 * 16)
    with emulator.options(checks=checks), pytest.raises(OutOfBoundsError) as error:
        toys.launch("astray", one[:32], one[48:64], shared=128, mode=mode)
    assert text in fault(error, kind)
    assert "thread 3," in fault(error, kind)
    assert "block 0," in fault(error, kind)


@pytest.mark.parametrize(("mode", "text"), [(1, "shuffle"), (2, "with mask"), (3, "waits at shuffle_xor")])
@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_of_part_of_a_warp(mode: int, text: str, order: int) -> None:
    x = toys.numbers(32)
    with emulator.options(order=order):
        torch.testing.assert_close(toys.launch("summed", x, torch.empty(32)), x.sum().expand(32))
        with pytest.raises(SynchronizationError) as error:
            toys.launch("summed", x, torch.empty(32), mode=mode)
    assert text in fault(error, "warp")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [1, 2, 3])
def test_blocks_that_meet_in_global_memory(mode: int, order: int) -> None:
    with emulator.options(order=order, checks="all"), pytest.raises(GlobalConflictError) as error:
        toys.launch("apart", torch.empty(0), torch.zeros(128), grid=4, count=4, mode=mode)
    assert "in the same launch" in fault(error, "blocks")
    with emulator.options(order=order, checks="all"):
        found = toys.launch("apart", torch.empty(0), torch.zeros(128), grid=4, count=4)
    assert torch.equal(found, torch.arange(128.0))


def test_two_threads_store_to_one_global_address() -> None:
    with emulator.options(checks="all"), pytest.raises(RaceError) as error:
        toys.launch("apart", torch.empty(0), torch.zeros(128), grid=4, count=4, mode=4)
    assert "byte" in fault(error, "race")


def test_a_fault_ends_the_launch_and_not_the_process() -> None:
    x = toys.numbers(64)
    for _ in range(3):
        with pytest.raises(EmulationError):
            toys.launch("turned", x, torch.empty(64), threads=64, shared=256, mode=2)
        assert torch.equal(toys.launch("turned", x, torch.empty(64), threads=64, shared=256), x.flip(0))


def test_the_launch_is_held_against_the_source() -> None:
    x = toys.numbers(64)
    with pytest.raises(ValueError, match="launched with 32 threads, compiled for 64"):
        toys.launch("doubled", x, torch.empty(64), threads=32)
    with pytest.raises(ValueError, match="bytes of shared memory"):
        toys.launch("turned", x, torch.empty(64), threads=64, shared=1 << 17)
    with pytest.raises(ValueError, match="grid"):
        toys.launch("doubled", x, torch.empty(64), threads=64, grid=0)


def test_registers_that_nothing_was_stored_to_are_huge_or_not_a_number() -> None:
    found = toys.launch("forgotten", torch.empty(0), torch.zeros(32), count=3)
    assert not (found.abs() < 1e30).any()
    assert (toys.launch("forgotten", torch.empty(0), torch.zeros(32), count=5) == 1).all()
