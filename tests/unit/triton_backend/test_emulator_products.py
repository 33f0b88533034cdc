"""Matrix products in the emulator: operands are rounded as the hardware does, and added up in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

from portable_gla_triton import emulator

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")
M, N, K = 32, 16, 64


def multiply(a: torch.Tensor, b: torch.Tensor, precision: str = "tf32") -> tuple[torch.Tensor, torch.Tensor]:
    """What the emulator makes of c + a b, and c."""
    c = torch.randn(M, N)
    out = torch.full((M, N), float("nan"))
    KERNELS.multiply[(1,)](a, b, c, out, M=M, N=N, K=K, PRECISION=precision, num_warps=4, num_stages=1)
    return out, c


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)


def cut(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_operands_are_multiplied_as_their_values(dtype: torch.dtype) -> None:
    a, b = operands(dtype)
    out, c = multiply(a, b)
    assert (out.double() - (c.double() + a.double() @ b.double())).abs().max() < 2e-5


def test_float16_products_exceed_float16() -> None:
    a, b = torch.full((M, K), 200.0, dtype=torch.float16), torch.full((K, N), 200.0, dtype=torch.float16)
    assert torch.isfinite(multiply(a, b)[0]).all()


def test_ieee_is_float32() -> None:
    a, b = operands(torch.float32)
    out, c = multiply(a, b, "ieee")
    assert (out.double() - (c.double() + a.double() @ b.double())).abs().max() < 2e-5


def test_tf32_cuts_operands() -> None:
    a, b = operands(torch.float32)
    out, c = multiply(a, b)
    exact = c.double() + a.double() @ b.double()
    as_cut = c.double() + cut(a).double() @ cut(b).double()
    assert (out.double() - as_cut).abs().max() < 2e-5
    assert (out.double() - exact).abs().max() > 2e-4


def test_tf32_cuts_towards_zero_where_rounding_would_not() -> None:
    a, b = torch.zeros(M, K), torch.zeros(K, N)
    a[0, 0], b[0, 0] = 1 + 1.9 * 2**-10, 1.0
    out, c = multiply(a, b)
    assert out[0, 0] == c[0, 0] + (1 + 2**-10)


def test_tf32x3_adds_what_was_cut() -> None:
    a, b = operands(torch.float32)
    out, c = multiply(a, b, "tf32x3")
    a_low, b_low = cut(a - cut(a)), cut(b - cut(b))
    parts = [(cut(a), cut(b)), (cut(a), b_low), (a_low, cut(b))]
    expected = c.double() + sum(x.double() @ y.double() for x, y in parts)
    assert (out.double() - expected).abs().max() < 2e-5
    assert (out.double() - (c.double() + a.double() @ b.double())).abs().max() < 5e-5


def test_bf16x6_is_float32_but_for_its_last_bits() -> None:
    a, b = operands(torch.float32)
    out, c = multiply(a, b, "bf16x6")
    exact = c.double() + a.double() @ b.double()
    terms = c.double().abs() + a.double().abs() @ b.double().abs()
    assert ((out.double() - exact).abs() <= 2**-22 * terms).all()
    assert not torch.equal(out, multiply(a, b, "ieee")[0])


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x6", "ieee"])
def test_infinities_and_nans_survive(precision: str) -> None:
    a, b = torch.ones(M, K), torch.ones(K, N)
    a[0, 3], a[1, 5] = float("inf"), float("nan")
    out, _ = multiply(a, b, precision)
    assert (out[0] == float("inf")).all()
    assert out[1].isnan().all()
    assert torch.isfinite(out[2:]).all()


def test_batches() -> None:
    a, b = torch.randn(2, 16, 32), torch.randn(2, 8, 32)
    out = torch.zeros(2, 16, 8)
    KERNELS.batched[(1,)](a, b, out, B=2, M=16, N=8, K=32)
    torch.testing.assert_close(out, a @ b.mT)
