"""The emulator's arithmetic against arithmetic in float64 and PyTorch's."""

from __future__ import annotations

import helpers_volta_toys as toys
import pytest
import torch
from portable_gla_volta import emulator
from torch import Tensor


def product(mode: int, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return toys.launch("multiplied", torch.cat([a.reshape(-1), b.reshape(-1)]), c.clone(), mode=mode)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_every_layout_of_mma(mode: int) -> None:
    a, b, c = (toys.numbers(*shape) for shape in ((4, 8, 4), (4, 4, 8), (4, 8, 8)))
    a, b = a.half(), b.half()
    exact = c.double() + a.double() @ b.double()
    assert torch.equal(product(mode, a, b, c), exact.float())
    with emulator.options(truncate=True):
        cut = product(mode, a, b, c)
    # Five terms are cut by less than a unit each of the last of 24 bits of the largest, and the sum once more.
    largest = torch.maximum((a.double().unsqueeze(3) * b.double().unsqueeze(1)).abs().amax(2), c.double().abs())
    assert ((cut.double() - exact).abs() <= 6 * 2.0**-23 * torch.maximum(largest, exact.abs())).all()
    assert not torch.equal(cut, exact.float())


@pytest.mark.parametrize(("terms", "c", "rounded", "truncated"), [
    # 1 + 2^-24 is 1 either way; 1 + 3 * 2^-25 rounds up; cut, the parts below 2^-23 are lost one by one.
    ((2.0**-24, 0, 0, 0), 1.0, 1.0, 1.0),
    ((2.0**-24, 2.0**-24, 0, 0), 1.0, 1.0 + 2.0**-23, 1.0),
    ((-(2.0**-24), 0, 0, 0), 1.0, 1.0 - 2.0**-24, 1.0),  # cut towards zero before it is subtracted
    ((2.0**-20, 2.0**-23, 0, 0), 1.0, 1.0 + 2.0**-20 + 2.0**-23, 1.0 + 2.0**-20 + 2.0**-23),
    ((1.0, 1.0, 1.0, 1.0), 2.0**-22, 4.0 + 2.0**-21 * 0.5, 4.0),
    ((0, 0, 0, 0), 0.0, 0.0, 0.0),
])
def test_sums_are_rounded_or_cut(terms: tuple[float, ...], c: float, rounded: float, truncated: float) -> None:
    a, b = torch.zeros(4, 8, 4, dtype=torch.half), torch.zeros(4, 4, 8, dtype=torch.half)
    factors = [(t, 1.0) if abs(t) >= 2.0**-14 or t == 0 else (t * 2.0**12, 2.0**-12) for t in terms]
    a[:] = torch.tensor([x for x, _ in factors])
    b[:] = torch.tensor([y for _, y in factors]).unsqueeze(1)
    sums = torch.full((4, 8, 8), c)
    wanted = torch.tensor(c + sum(terms), dtype=torch.float64).float()
    assert wanted == torch.tensor(rounded).float()
    assert (product(3, a, b, sums) == wanted).all()
    with emulator.options(truncate=True):
        assert (product(3, a, b, sums) == truncated).all()


def test_infinity_and_nan_pass_through_mma() -> None:
    a, b, c = torch.ones(4, 8, 4).half(), torch.ones(4, 4, 8).half(), torch.zeros(4, 8, 8)
    a[0, 2, 1], b[1, 3, 4] = float("inf"), float("nan")
    for truncate in (False, True):
        with emulator.options(truncate=truncate):
            found = product(1, a, b, c)
        assert (found[0, 2] == float("inf")).all()
        assert found[1, :, 4].isnan().all()
        assert (found[2:] == 4).all()


def test_half_is_converted_as_pytorch_does() -> None:
    every = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(torch.half).float()
    between = (every[:-1].double() + every[1:].double()).div(2).float()  # ties, where neighbours are finite
    other = torch.randn(1 << 14, generator=torch.Generator().manual_seed(3)) * torch.logspace(-12, 6, 1 << 14)
    special = torch.tensor([65519.996, 65520.0, 1e30, -1e30, 5.9e-8, 2.98e-8, 2.9e-8, 1e-45, -0.0])
    x = torch.cat([every, between, between.nextafter(torch.tensor(torch.inf)), other, special])
    x = torch.cat([x, torch.zeros(-len(x) % 32)])
    found = toys.launch("halved", x, torch.empty(3 * len(x)), grid=len(x) // 32).view(-1, 3)
    wanted = x.half().float()
    for column, sign in ((0, 1), (1, 1), (2, -1)):
        assert torch.equal(found[:, column].nan_to_num(12345.0), (sign * wanted).nan_to_num(12345.0))
