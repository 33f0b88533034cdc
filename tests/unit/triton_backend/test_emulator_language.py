"""Triton's language in the emulator: statements, loops, library functions, shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

from portable_gla_triton import emulator

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")


def test_scans_in_both_directions() -> None:
    x = torch.rand(16, 8) + 0.5
    out = torch.zeros(5, 16, 8)
    KERNELS.scans[(1,)](x, out, ROWS=16, COLUMNS=8)
    expected = [x.cumsum(0), x.flip(1).cumsum(1).flip(1), x.cumprod(0), x.flip(0).cumprod(0).flip(0),
                x.flip(1).cummax(1).values.flip(1)]
    for row, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(row, wanted)


def test_scan_over_two_tensors() -> None:
    decay, value = torch.rand(16), torch.randn(16)
    out = torch.zeros(16)
    KERNELS.two_scans[(1,)](decay, value, out, N=16)
    state = torch.tensor(0.0)
    for t in range(16):
        state = state * decay[t] + value[t]
        torch.testing.assert_close(out[t], state)


def test_library_functions() -> None:
    x = torch.randn(16, 8)
    out = torch.zeros(5, 16)
    KERNELS.standard[(1,)](x, out, ROWS=16, COLUMNS=8)
    expected = [x.sum(1), x.amax(1), x.amin(1), x.sum(1).flip(0), x.sum(1)]
    for row, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(row, wanted)


def test_argmax_breaks_ties_to_the_left() -> None:
    x = torch.randint(0, 3, (16, 8)).float()
    out = torch.zeros(16, dtype=torch.int32)
    KERNELS.argmax_rows[(1,)](x, out, ROWS=16, COLUMNS=8)
    assert out.tolist() == [row.index(max(row)) for row in x.tolist()]


def test_branches_follow_data() -> None:
    x = torch.stack([torch.rand(8) + 1, -torch.rand(8) - 1, torch.tensor([1.0, -1.0] * 4)])
    out = torch.full((3,), 9.0)
    KERNELS.branch[(3,)](x, out, N=8)
    torch.testing.assert_close(out, torch.stack([x[0].sum(), torch.tensor(-1.0), torch.tensor(0.0)]))


def test_and_or_of_blocks_are_elementwise() -> None:
    x = torch.tensor([-1.0, 1.0, 3.0, 5.0])
    out = torch.zeros(4, dtype=torch.int32)
    KERNELS.logical[(1,)](x, out, N=4)
    assert out.tolist() == [0, 1, 0, 1]


def test_a_block_is_no_condition() -> None:
    with pytest.raises(emulator.EmulationError, match="no truth value"):
        KERNELS.block_condition[(1,)](torch.ones(4), torch.zeros(1), N=4)


def test_chained_comparisons_are_refused() -> None:
    with pytest.raises(emulator.EmulationError, match="chained"):
        KERNELS.chained[(1,)](torch.ones(4), torch.zeros(1))


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_loops_carry_tuples(steps: int) -> None:
    out = torch.zeros(2, 4)
    KERNELS.carry[(1,)](out, steps, N=4)
    assert out[0].tolist() == [sum(range(steps))] * 4
    assert out[1].tolist() == [2.0**steps] * 4


def test_static_and_pipelined_loops() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    KERNELS.loops[(1,)](out, 5, N=4)
    assert out.tolist() == [9 + i + 600 + 50000 for i in range(4)]


def test_shapes_of_three_dimensions() -> None:
    x = torch.randn(2, 4, 8)
    out = torch.zeros(8, 8)
    KERNELS.shapes[(1,)](x, out, A=2, B=4, C=8)
    assert torch.equal(out, x.clamp(min=0).reshape(8, 8))


def test_offsets_of_64_bits() -> None:
    x = torch.arange(4)
    out = torch.zeros(2, 4, dtype=torch.int64)
    KERNELS.far[(1,)](x, out, 2**33, N=4)
    assert out.tolist() == [[0, 1, 2, 3], [i * 2**33 for i in range(4)]]


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="no parameter SIZE"):
        KERNELS.copy[(1,)](torch.ones(4), torch.ones(4), 4, N=4, SIZE=3)


def test_grid_may_depend_on_arguments() -> None:
    x, out = torch.randn(64), torch.zeros(64)
    KERNELS.copy[lambda meta: (meta["size"] // meta["N"],)](x, out, 64, N=16)
    assert torch.equal(x, out)
