"""Where the kernels reach: far strides, many heads and chunks, no read by the host."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import portable_gla
from portable_gla.backend import Call
from portable_gla.testing import emulate

pytest.importorskip("triton", reason="Triton is not installed")
from portable_gla_triton import emulator, launch, tiles

from portable_gla import segments

FAR = 2**26 + 8  # elements from a token to the next: 32 tokens of a chunk pass 2**31


@pytest.mark.parametrize("reverse", [False, True])
def test_offsets_past_two_to_the_31(reverse):
    """Tensors whose tokens lie 128 MiB apart in memory that is reserved, not touched."""
    tokens, heads, size = 36, 2, 16
    base = torch.empty(tokens * FAR, dtype=torch.float16)
    torch.manual_seed(0)
    near = [torch.randn(1, tokens, heads, size, dtype=torch.float16) for _ in range(3)]
    near.append(torch.nn.functional.logsigmoid(torch.randn(1, tokens, heads, size)).half())
    far = []
    for index, x in enumerate(near):
        view = base.as_strided(x.shape, (tokens * FAR, FAR, size, 1), index * heads * size)
        far.append(view.copy_(x))
    results = []
    for given in (near, far):
        leaves = [x.detach().requires_grad_() for x in given]
        with emulator.checking(races=False), emulate("triton"):
            o = portable_gla.attention(*leaves, reverse=reverse)
            results.append([o, *torch.autograd.grad(o, leaves, torch.ones_like(o))])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_state_pool_past_two_to_the_31():
    rows, heads, size = 3, 2, 16
    base = torch.empty(rows * 2**30, dtype=torch.float32)
    state = base.as_strided((rows, heads, size, size), (2**30, size * size, size, 1)).zero_()
    q = torch.randn(1, 1, heads, size)
    with torch.no_grad(), emulator.checking(races=False), emulate("triton"):
        o = portable_gla.decode_(q, q, q, None, state, slots=torch.tensor([2]))
    torch.testing.assert_close(state[2], q[0, 0, :, :, None] * q[0, 0, :, None, :])
    torch.testing.assert_close(o[0, 0], size**-0.5 * (q * q).sum(-1, keepdim=True)[0, 0] * q[0, 0])


def test_grids_have_one_dimension_however_many_heads_and_chunks():
    """CUDA's second and third dimensions end at 65,535; the first at 2**31 - 1."""
    grids = []

    class Kernels:
        def __getattr__(self, name):
            class Kernel:
                def __getitem__(self, grid):
                    grids.append((name, grid))
                    return lambda *_, **__: None
            return Kernel()

    def empty(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    tokens, heads = 70_000 * 64, 3
    for t, h in ((tokens, heads), (64, 70_000)):
        call = Call(empty(1, t, h, 64), empty(1, t, h, 64), empty(1, t, h, 64), empty(1, t, h, 64), None, None, None,
                    1.0, False, False, {})
        cut = segments.choose(1, t, h, 64, 132, 0)
        chosen = tiles.choose("sm_90", "bf16", "channel", False, 64, 64)
        launcher = launch.Launcher(Kernels(), call, chosen, cut, "bf16")
        links = torch.empty(max(0, -(-t // cut.unit) - 1), h, 64, 64, device="meta")
        launcher.forward(links)
        launcher.backward(links, empty(1, t, h, 64), None)
    assert {name for name, _ in grids} == {"summarize", "scan", "forward", "chunk_states", "gradients"}
    assert all(len(grid) == 1 and 0 < grid[0] < 2**31 for _, grid in grids)
    assert max(grid[0] for _, grid in grids) > 65_535


def test_nothing_is_read_on_the_host(monkeypatch):
    """A captured graph cannot wait for the device: no value of a tensor decides what is launched."""
    q = torch.randn(1, 70, 2, 16, requires_grad=True)
    cu_seqlens = torch.tensor([0, 30, 30, 70])
    call = Call(q, q, q, None, None, None, cu_seqlens, 1.0, False, True, {})
    launched = []
    kernels = SimpleNamespace(**{name: _Silent(launched, name) for name in (
        "summarize", "scan", "forward", "chunk_states", "gradients", "fold")})
    launcher = launch.Launcher(kernels, call, tiles.choose("sm_90", "bf16", "none", False, 16, 16),
                               segments.choose(1, 70, 2, 16, 1, 2), "bf16")
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "nonzero", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, _refused(name))
    links = torch.empty(1, 2, 16, 16)
    launcher.forward(links)
    launcher.backward(links, torch.empty(1, 70, 2, 16), torch.empty(3, 2, 16, 16))
    assert launched == ["summarize", "scan", "forward", "summarize", "scan", "chunk_states", "gradients"]


class _Silent:
    def __init__(self, launched, name):
        self.launched, self.name = launched, name

    def __getitem__(self, grid):
        return lambda *_, **__: self.launched.append(self.name)


def _refused(name):
    def refuse(*_, **__):
        raise AssertionError(f"Tensor.{name}: the host would wait for the device")
    return refuse
