"""The emulator's rules, the table that masks are cut from, and grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from portable_gla_ascend import launch, places, socs

import portable_gla
from portable_gla.backend import Call
from portable_gla.testing import emulate

triton = pytest.importorskip("triton", reason="Triton is not installed")
import toy_kernels  # noqa: E402 - needs triton
from portable_gla_ascend import emulator  # noqa: E402
from portable_gla_ascend.emulator import interpreted, kernels  # noqa: E402

from portable_gla_emulator.language import emulated  # noqa: E402


@pytest.fixture(params=["emulator", "interpreter"])
def toys(request):
    """The kernels of the tests' own by name, run by the emulator and by Triton's interpreter."""
    def one(name):
        function = getattr(toy_kernels, name)
        if request.param == "emulator":
            return kernels.Kernel(emulated(function))
        return interpreted.Kernel(interpreted.Helper(function.fn))

    return one


def test_a_left_operand_is_gone_after_a_product(toys, seed) -> None:
    torch.manual_seed(seed)
    a, b, out = torch.randn(16, 16), torch.randn(16, 16), torch.empty(16, 16)
    toys("twice")[(1,)](a, b, out, AGAIN=False)
    assert torch.allclose(out, 2 * a @ b, rtol=1e-4, atol=1e-4)
    toys("twice")[(1,)](a, b, out, AGAIN=True)
    assert out.isnan().all()


def test_bfloat16_is_multiplied_as_values(toys, seed) -> None:
    torch.manual_seed(seed)
    a, b, out = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
    toys("product")[(1,)](a, b, out)
    assert torch.allclose(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_casts_to_bfloat16_round_to_nearest_even(toys, seed) -> None:
    torch.manual_seed(seed)
    values = torch.cat((torch.randn(240), torch.tensor([float("inf"), -float("inf"), 3.4e38, 1e-40] * 4)))
    out = torch.empty(256, dtype=torch.bfloat16)
    toys("rounded")[(1,)](values, out)
    assert torch.equal(out.view(torch.int16), values.bfloat16().view(torch.int16))


def test_a_grid_of_65536_programs_is_refused(toys) -> None:
    out = torch.empty(16, 16)
    with pytest.raises(emulator.RuleError, match="65,536 programs"):
        toys("product")[(256, 256)](out, out, out)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_every_mask_is_cut_from_one_table(size) -> None:
    near = launch.near_table(torch.device("cpu"), size).numpy()
    i, j = np.indices((size, size))
    assert np.array_equal(near > 0, i > j)
    assert np.array_equal(near == 0, i == j)
    block = 1
    while block <= size:
        assert np.array_equal(np.abs(near) < block, i // block == j // block)
        block *= 2
    depth = size.bit_length() - 1
    pairs = sum((near == size >> level + 1).astype(int) for level in range(depth))
    assert np.array_equal(pairs, (i > j).astype(int))  # every pair in one level, and only pairs j < i


@pytest.mark.parametrize("lengths", [(3,), (0, 0, 5), (64, 64), (63, 65, 0, 130, 1)])
def test_packed_slots(lengths) -> None:
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)])
    tokens, unit = sum(lengths), 64
    slots = tokens // unit + len(lengths)
    found = places.packed_places(cu_seqlens, unit, slots).tolist()
    assert len(found) == slots
    held = [(n, chunk) for n, chunk in found if chunk * unit < lengths[n]]
    assert held == [(n, chunk) for n, length in enumerate(lengths) for chunk in range(-(-length // unit))]


@pytest.mark.parametrize("heads", [1, 70_000])
@pytest.mark.parametrize(("dtype", "halves"), [(torch.float16, 2), (torch.float32, 1)])
def test_grids_are_the_chips_cores(heads, dtype, halves) -> None:
    """However much work there is, a launch has one program a core at most; items are walked."""
    grids = {}

    class Recorder:
        """Notes the grids of what it is asked to launch."""

        def __getattr__(self, name):
            return Launches(name)

    class Launches:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids.setdefault(self.name, []).append(grid)
            return lambda *_, **__: None

    soc = socs.of("Ascend910B2")
    assert soc is not None
    q = torch.empty(1, 130, heads, 16, dtype=dtype, device="meta")
    call = Call(q, q, q, q, None, None, None, 1.0, False, False, {})
    launch.forward(Recorder(), call, soc)
    launch.backward(Recorder(), call, q, None, soc)
    assert {name: len(each) for name, each in grids.items()} == {
        "sweep": 1, "outputs": 1, "sweep_both": 1, "gradients": halves}
    assert all(grid[0] <= soc.cube_cores for each in grids.values() for grid in each)
    if heads > 1:
        assert all(grid == (soc.cube_cores,) for each in grids.values() for grid in each)


def test_channels_with_strides_and_expanded_heads_are_read(seed) -> None:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(1, 16, 2, 70).transpose(1, 3) for _ in range(3))
    g = -torch.rand(1, 70, 1, 1).expand(1, 70, 2, 16)
    with emulate("ascend"):
        found = portable_gla.attention(q, k, v, g)
    expected = portable_gla.attention(*(x.double() for x in (q, k, v, g)), backend="reference")
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
