"""Number formats in the emulator: casts, bfloat16 arithmetic, elementary functions, NaN and infinities."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

from portable_gla_triton import emulator

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")
INF, NAN = float("inf"), float("nan")


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.zeros(x.numel(), dtype=dtype)
    KERNELS.cast[(1,)](x, out, N=x.numel())
    return out


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_float32_to_bfloat16_rounds_to_nearest_even() -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 2 - 2**-8, 2 - 2**-9, -1 - 2**-8, 3.4e38, -3.4e38, 1e-40])
    odd = torch.tensor([INF, -INF, NAN, -NAN, 0.0, -0.0, 2**-133, 1.5])
    x = torch.cat([torch.randn(1008), ties, odd])
    assert same(cast(x, torch.bfloat16), x.to(torch.bfloat16))


def test_nan_with_any_payload_stays_nan() -> None:
    x = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    assert x.isnan().all()
    assert cast(x, torch.bfloat16).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_casts_from_bfloat16_are_exact(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(60), torch.tensor([INF, -INF, NAN, 0.0])]).to(torch.bfloat16)
    assert same(cast(x, dtype), x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_casts_of_integers(dtype: torch.dtype) -> None:
    x = torch.randint(-1000, 1000, (64,), dtype=torch.int32)
    assert same(cast(x, dtype), x.to(dtype))


def test_float32_to_float16_overflows_to_infinity_in_silence() -> None:
    x = torch.tensor([1e9, -1e9, NAN, 65504.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(cast(x, torch.float16), x.to(torch.float16))


def test_bfloat16_arithmetic_is_done_on_values() -> None:
    a, b = torch.randn(64).to(torch.bfloat16), torch.randn(64).to(torch.bfloat16)
    out = torch.zeros(6, 64, dtype=torch.bfloat16)
    KERNELS.bfloat16_arithmetic[(1,)](a, b, out, N=64)
    expected = [a + b, a * b, torch.where(a < b, a, -b), a.abs().clamp(min=0.5), (a > b).bfloat16(), a.int().bfloat16()]
    for row, wanted in zip(out, expected, strict=True):
        assert torch.equal(row, wanted)


def test_elementary_functions_stay_float32_and_silent() -> None:
    x = torch.cat([torch.randn(60), torch.tensor([-INF, INF, -200.0, 100.0])])
    out = torch.zeros(4, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KERNELS.elementary[(1,)](x, out, N=64)
    torch.testing.assert_close(out[0], x.exp())
    torch.testing.assert_close(out[1][:60], x.exp()[:60])
    torch.testing.assert_close(out[2], x.exp().log2(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[3], x.sigmoid())


def test_minimum_and_maximum_prefer_a_number_to_nan() -> None:
    out = torch.zeros(3)
    KERNELS.extremes[(1,)](torch.tensor([3.0, NAN, 1.0, 2.0]), out)
    assert out.tolist() == [1.0, 3.0, 1.0]
    KERNELS.extremes[(1,)](torch.full((4,), NAN), out)
    assert math.isnan(out[0]) and math.isnan(out[1]) and out[2] == 9.0
