"""Corners that the conformance suite does not reach: NaN, huge strides, calls that do not fit together, threads."""

import math
import shutil

import pytest
import torch
from portable_gla_cpu import native, tiling
from portable_gla_cpu.backend import CpuBackend

import portable_gla
from portable_gla.backend import Call, DecodeCall


def make_call(tokens, heads=1, key_dim=20, value_dim=36, bonus=False, segments=0):
    q, k = torch.randn(1, tokens, heads, key_dim), torch.randn(1, tokens, heads, key_dim)
    g = -torch.rand(1, tokens, heads, key_dim)
    return Call(q, k, torch.randn(1, tokens, heads, value_dim), g, None,
                torch.randn(heads, key_dim) if bonus else None, None, 0.3, False, True,
                {"segments": segments} if segments else {})


@pytest.mark.parametrize("name", ["q", "k", "v", "g"])
@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("token", [0, 5, 15, 16, 30])
def test_nan_reaches_what_depends_on_it_and_nothing_else(name, bonus, token):
    call = make_call(40, bonus=bonus)
    getattr(call, name)[0, token, 0, 3] = math.nan
    o, state, _ = CpuBackend().forward(call, save=False)
    assert not o[:, :token].isnan().any()
    reads_itself = name != "g" or not bonus
    assert o[0, token].isnan().any() == reads_itself
    if name == "q":
        assert not o[:, token + 1:].isnan().any() and not state.isnan().any()
    else:
        assert o[:, token + 1:].isnan().any(-1).all() and state.isnan().any()


@pytest.mark.parametrize("token", [0, 5, 16, 39])
def test_nan_in_do_reaches_no_later_gradient(token):
    call = make_call(40)
    o, _, residual = CpuBackend().forward(call, save=True)
    do = torch.randn_like(o)
    do[0, token] = math.nan
    found = CpuBackend().backward(call, residual, do, None)
    for gradient in (found.q, found.k, found.v, found.g):
        assert not gradient[:, token + 1:].isnan().any()
    assert found.q[0, token].isnan().all() and found.v[0, :token + 1].isnan().any(-1).all()


def test_offsets_beyond_32_bits():
    """Four tokens whose rows lie 2^30 elements apart."""
    tokens, stride = 4, 2**30
    memory = torch.empty(3 * stride + 64, dtype=torch.float16)
    far = memory.as_strided((1, tokens, 1, 64), (0, stride, 64, 1))
    near = torch.randn(1, tokens, 1, 64).half()
    far.copy_(near)
    call = make_call(tokens, key_dim=64, value_dim=64)
    call.q, call.k, call.g = near, near, call.g.half()
    call.v = far
    o, _, residual = CpuBackend().forward(call, save=True)
    do = torch.randn_like(o)
    found = CpuBackend().backward(call, residual, do, None)
    call.v = near
    assert torch.equal(o, CpuBackend().forward(call, save=True)[0])
    for x, y in zip(found, CpuBackend().backward(call, residual, do, None), strict=True):
        assert x is y is None or torch.equal(x, y)


@pytest.mark.parametrize("ends", [[1, 40], [0, 30, 20, 40], [0, 39], [0, 41]])
def test_sequences_that_do_not_cover_the_tokens_are_refused(ends):
    call = make_call(40)
    call.cu_seqlens = torch.tensor(ends)
    with pytest.raises(ValueError, match="cu_seqlens"):
        CpuBackend().forward(call, save=False)


@pytest.mark.parametrize("slot", [-2, 3])
def test_slots_outside_the_pool_are_refused(slot):
    call = make_call(1)
    state = torch.zeros(3, 1, 20, 36)
    with pytest.raises(ValueError, match="slots"):
        CpuBackend().decode(DecodeCall(call.q, call.k, call.v, call.g, state, torch.tensor([slot]), None, 1.0,
                                       torch.empty(1, 1, 1, 36)))
    assert not state.any()


def test_threads_of_its_own_give_the_same_bits(monkeypatch, tmp_path):
    """Where the process has no OpenMP runtime to borrow from."""
    call = make_call(600, heads=4, key_dim=64, value_dim=64, segments=2)
    o, state, residual = CpuBackend().forward(call, save=True)
    do = torch.randn_like(o)
    gradients = CpuBackend().backward(call, residual, do, state)
    monkeypatch.setattr(native, "_openmp", lambda: None)
    own = native.Native(shutil.copy(native.LIBRARY, tmp_path / "own.so"))  # a copy: another library to the loader
    assert own.threads == "POSIX threads"
    monkeypatch.setattr(native, "library", lambda: own)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = CpuBackend().forward(call, save=True)
        again_gradients = CpuBackend().backward(call, residual, do, state)
    finally:
        torch.set_num_threads(before)
    for x, y in zip((o, state, residual, *gradients), (*again, *again_gradients), strict=True):
        assert x is y is None or torch.equal(x, y)


@pytest.mark.parametrize("segments", [2, 3, 5])
def test_segments_whose_decays_would_overflow(segments):
    """Growth, then a reset: the product over a segment is infinity times zero, the recurrence is finite."""
    call = make_call(200, segments=segments)
    call.g[:, :60] = 1.0
    call.g[:, 60] = -math.inf
    call.k[:, :60] *= 1e-20
    o, state, residual = CpuBackend().forward(call, save=True)
    do = torch.randn_like(o)
    do[:, :60] *= 1e-20
    found = (o, state, *CpuBackend().backward(call, residual, do, torch.randn_like(state)))
    assert all(x is None or x.isfinite().all() for x in found)
    call.pins = {"segments": 1}
    torch.testing.assert_close(o, CpuBackend().forward(call, save=False)[0], rtol=1e-4, atol=1e-5)


def test_every_core_has_work():
    one = {"sequences": 1, "tokens": 4096, "key_dim": 128, "threads": 8, "segments": 0}
    assert tiling.forward(heads=8, value_dim=128, **one) == (1, 1, 256, 8)  # heads are enough
    for value_dim in (32, 128, 256):
        plan = tiling.forward(heads=1, value_dim=value_dim, **one)
        assert plan.value_tiles * plan.segments >= 8
    assert tiling.forward(heads=1, value_dim=128, **{**one, "threads": 2})[:2] == (1, 2)
    assert tiling.backward(heads=1, groups=1, value_dim=128, **one).segments >= 8
    assert tiling.backward(heads=8, groups=8, value_dim=128, **one).segments == 1
    assert tiling.forward(heads=1, value_dim=32, **{**one, "tokens": 100}) == (1, 1, 256, 1)


def test_the_schedule_knows_what_is_allocated():
    problem = portable_gla.Problem(tokens=4096, heads=4, key_dim=128, value_dim=128, training=True)
    schedule = CpuBackend().schedule(problem)
    call = make_call(4096, heads=4, key_dim=128, value_dim=128)
    shape, dtype = CpuBackend().residual_spec(call)
    assert schedule.residual_bytes == math.prod(shape) * dtype.itemsize
    inputs = 4 * 4 * 4096 * 4 * 128
    assert 0 < schedule.workspace_bytes < inputs
