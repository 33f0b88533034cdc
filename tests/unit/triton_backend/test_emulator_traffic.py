"""Bytes counted by the emulator, against what one counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

from portable_gla_triton import emulator

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.int64, 8)], ids=str)
def test_masks_exclude(dtype: torch.dtype, size: int) -> None:
    with emulator.counted() as rows:
        KERNELS.copy[(4,)](torch.ones(27, dtype=dtype), torch.zeros(27, dtype=dtype), 27, N=8)
    bytes_ = 27 * size
    assert rows == [emulator.Traffic("copy", (4, 1, 1), bytes_, bytes_, bytes_, bytes_)]


@pytest.mark.parametrize("races", [True, False])
def test_what_is_loaded_again_is_unique_once(races: bool) -> None:
    with emulator.checking(races=races), emulator.counted() as rows:
        KERNELS.window[(5,)](torch.ones(20), torch.zeros(5), N=16)
    assert rows == [emulator.Traffic("window", (5, 1, 1), 5 * 16 * 4, 5 * 4, 20 * 4, 5 * 4)]


def test_what_is_stored_again_is_unique_once() -> None:
    with emulator.counted() as rows:
        KERNELS.scale_in_place[(4,)](torch.ones(32), N=8)
    assert rows == [emulator.Traffic("scale_in_place", (4, 1, 1), 256, 256, 128, 128)]


@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_descriptors_and_block_pointers() -> None:
    x, out = torch.randn(20, 8), torch.zeros(20, 8)
    with emulator.counted() as rows:
        KERNELS.through_descriptor[(2,)](x, out, 20, COLUMNS=8, TILE=16)
    assert torch.equal(x, out)
    assert rows == [emulator.Traffic("through_descriptor", (2, 1, 1), 640, 640, 640, 640)]


def test_each_launch_is_a_row_of_every_open_list() -> None:
    x = torch.zeros(16)
    with emulator.counted() as outer:
        KERNELS.overwrite[(1,)](x, 0, N=16)
        with emulator.counted() as inner:
            KERNELS.scale_in_place[(1,)](x, N=16)
        KERNELS.overwrite[(1,)](x, 0, N=8)
    KERNELS.overwrite[(1,)](x, 0, N=8)
    assert [row.kernel for row in outer] == ["overwrite", "scale_in_place", "overwrite"]
    assert inner == outer[1:2]
    assert outer[2].stored == 32 and outer[2].loaded == 0
