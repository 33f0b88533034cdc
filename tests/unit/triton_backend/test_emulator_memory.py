"""The emulator's memory: views as arguments, addresses out of bounds, races between programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

from portable_gla_triton import emulator

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")


def exchange(loads: list[int], stores: list[int]) -> torch.Tensor:
    x = torch.arange(32.0)
    KERNELS.exchange[(len(loads),)](x, torch.tensor(loads), torch.tensor(stores), N=4)
    return x


@pytest.mark.parametrize("view", [
    torch.arange(600.0).reshape(20, 30)[3:11, 5:9],
    torch.arange(600.0).reshape(30, 20).T[2:10, 4:8],
    torch.arange(8.0)[:, None].expand(8, 4),
    torch.arange(4.0).expand(8, 4),
    torch.arange(200.0).as_strided((8, 4), (9, 2), 17),
], ids=["offset", "transposed", "columns expanded", "rows expanded", "strided"])  # fmt: skip
def test_views(view: torch.Tensor) -> None:
    out = torch.zeros(8, 4)
    KERNELS.gather_rows[(1,)](view, out, view.stride(0), view.stride(1), ROWS=8, COLUMNS=4)
    assert torch.equal(out, view)


def test_a_view_is_written_where_it_lies() -> None:
    whole = torch.zeros(40)
    KERNELS.copy[(1,)](torch.ones(8), whole[10:18], 8, N=8)
    assert whole.nonzero().flatten().tolist() == list(range(10, 18))


def test_loads_after_the_end() -> None:
    x, out = torch.ones(16), torch.zeros(16)
    with pytest.raises(emulator.OutOfBoundsError, match=r"shift, program 0: load of 4 bytes .*ends 4 bytes after"):
        KERNELS.shift[(1,)](x, out, 1, N=16)


def test_loads_before_the_start() -> None:
    x = torch.ones(1 << 20)
    with pytest.raises(emulator.OutOfBoundsError, match=r"load .* 12 bytes before the nearest"):
        KERNELS.shift[(1,)](x, torch.zeros(16), -3, N=16)


def test_stores_after_the_end() -> None:
    out = torch.zeros(20)
    with pytest.raises(emulator.OutOfBoundsError, match=r"overwrite, program 1: store"):
        KERNELS.overwrite[(2,)](out, 16, N=16)


def test_nothing_is_written_by_the_access_that_fails() -> None:
    out = torch.zeros(12)
    with pytest.raises(emulator.OutOfBoundsError):
        KERNELS.overwrite[(1,)](out, 0, N=16)
    assert not out.any()


def test_what_masks_exclude_may_lie_anywhere() -> None:
    x, out = torch.randn(10), torch.zeros(10)
    KERNELS.copy[(4,)](x, out, 10, N=8)
    assert torch.equal(x, out)


def test_one_access_may_reach_into_two_tensors() -> None:
    x = torch.zeros(64)
    with pytest.raises(emulator.OutOfBoundsError):  # from one tensor's end on, whatever lies there
        KERNELS.shift[(1,)](x[32:], torch.zeros(64), 0, N=64)
    left, right = x[:32].numpy(), x[32:].numpy()  # two storages that touch
    KERNELS.shift[(1,)](torch.from_numpy(left), torch.from_numpy(right), 16, N=16)


def test_two_writers() -> None:
    with pytest.raises(emulator.RaceError, match="overwrite: program 1 stores what program 0 stores to"):
        KERNELS.overwrite[(2,)](torch.zeros(32), 15, N=16)
    KERNELS.overwrite[(2,)](torch.zeros(32), 16, N=16)


def test_a_load_of_what_an_earlier_program_stored() -> None:
    with pytest.raises(emulator.RaceError, match="program 1 loads what program 0 stores to: byte 16"):
        exchange([0, 4], [4, 8])


def test_a_store_to_what_an_earlier_program_loaded() -> None:
    with pytest.raises(emulator.RaceError, match="program 2 stores what program 0 loads"):
        exchange([0, 0, 0], [4, 8, 0])


def test_tensors_that_overlap_are_one_memory() -> None:
    whole = torch.zeros(24).numpy()
    left, right = torch.from_numpy(whole[:16]), torch.from_numpy(whole[8:])
    with pytest.raises(emulator.RaceError, match="copy: program 1 loads what program 0 stores to"):
        KERNELS.copy[(2,)](left, right, 16, N=8)
    around, inside = torch.from_numpy(whole), torch.from_numpy(whole[4:8])
    KERNELS.shift[(1,)](around, inside, 16, N=4)


def test_programs_may_load_alike_and_keep_their_own() -> None:
    assert exchange([0, 0, 0], [4, 8, 12])[:16].tolist() == [0.0, 1.0, 2.0, 3.0] * 4
    x = torch.ones(32)
    KERNELS.scale_in_place[(4,)](x, N=8)
    assert (x == 4).all()


def test_launches_do_not_race_with_one_another() -> None:
    x = torch.ones(32)
    for _ in range(2):
        KERNELS.overwrite[(2,)](x, 16, N=16)
        KERNELS.scale_in_place[(1,)](x, N=32)


def test_checks_can_be_turned_off() -> None:
    with emulator.checking(races=False):
        KERNELS.overwrite[(2,)](torch.zeros(32), 15, N=16)
        with pytest.raises(emulator.OutOfBoundsError):
            KERNELS.overwrite[(1,)](torch.zeros(12), 0, N=16)
    whole = torch.zeros(64)
    part = torch.from_numpy(whole.numpy()[:12])
    with emulator.checking(bounds=False, races=False):
        KERNELS.overwrite[(1,)](part, 0, N=16)
    assert whole.sum() == 16
    with pytest.raises(emulator.RaceError):
        KERNELS.overwrite[(2,)](torch.zeros(32), 15, N=16)
