"""From calls to launches: how many, on what, and that a plan lists what a call does."""

import dataclasses

import pytest
import torch
from helpers_volta_calls import CASES, attend, problem_of
from portable_gla_volta import configurations, cutting, emulator, launch, targets
from portable_gla_volta.backend import backend

import portable_gla
from portable_gla import segments
from portable_gla.backend import Call
from portable_gla.problem import Device, Problem
from portable_gla.testing import inputs

V100 = Device("cuda", "v100", "sm_70", present=False)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_lists_what_a_call_launches(name: str) -> None:
    case = CASES[name]
    for pinned in (1, 2):
        with portable_gla.testing.emulate("volta", segments=pinned), emulator.options(count=True) as launches:
            attend(case)
        cut = segments.choose(case.batch, case.tokens, case.heads, case.value_dim, 1, pinned)
        forward, backward = launch.planned(problem_of(case), cut)
        assert [(kernel.entry, kernel.defines, grid) for kernel, grid in forward + backward] == [
            (one.kernel, one.defines, one.grid) for one in launches]
        assert len(forward) == (3 if cut.several else 1)
        assert len(backward) <= 6


@pytest.mark.parametrize("target", targets.TARGETS)
@pytest.mark.parametrize("channel", [True, False])
def test_sizes_are_rounded_up(target: str, channel: bool) -> None:
    for key_dim in range(1, configurations.LARGEST + 1):
        for value_dim in (1, 32, 33, 65, 256):
            shape = configurations.sweep(target, key_dim, value_dim, channel)
            assert shape.keys >= key_dim and shape.wide in (16 * shape.warps_v, 32 * shape.warps_v)
            assert shape.keys * shape.wide <= 128 * 32 * shape.warps  # the state: 128 registers a thread at most
            assert {configurations.forward(shape, channel), configurations.states(shape, channel),
                    configurations.gradients(shape.keys, channel, torch.float32)} <= set(configurations.kernels(target))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_two_blocks_of_shared_memory(target: str) -> None:
    """Every kernel finds room twice."""
    limits = targets.limits(target)
    for kernel in configurations.kernels(target):
        assert limits.blocks(128 if kernel.threads > 128 else 255, kernel.shared, kernel.threads) >= 2, kernel


@pytest.mark.parametrize(("changed", "code"), [
    ({"dtype": torch.bfloat16}, "dtype"), ({"dtype": torch.float64}, "dtype"), ({"key_dim": 257}, "size"),
    ({"value_dim": 300}, "size"), ({"pins": (("segments", 0),)}, "pin"), ({"pins": (("chunk", 16),)}, "pin"),
    ({"device": Device("cpu", "cpu")}, "device"), ({"device": Device("cuda", "h100", "sm_90", present=False)}, "arch"),
])
def test_refusals(changed: dict[str, object], code: str) -> None:
    served = Problem(tokens=64, heads=2, key_dim=64, value_dim=64, dtype=torch.float16, device=V100)
    assert not backend.reasons_against(served)
    reasons = backend.reasons_against(dataclasses.replace(served, **changed))  # type: ignore[arg-type]
    assert [reason.code for reason in reasons] == [code]
    assert reasons[0].hint


def programs(problem: Problem) -> int:
    """The programs of the forward pass, those without a token of their own included."""
    return launch.planned(problem, cutting.choose(cutting.of_problem(problem), 80, 0))[0][-1][1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [32, 64, 65, 128, 129, 256])
def test_segments_fill_a_device_twice(dim: int, dtype: torch.dtype) -> None:
    """Long sequences: 80 multiprocessors with two programs each, as far as whole chunks allow; a batch that gives each
    of them one is left in one piece.
    """
    for heads in (1, 3, 8, 16):
        problem = Problem(tokens=2**20, heads=heads, key_dim=dim, value_dim=dim, dtype=dtype, device=V100)
        assert 80 <= programs(problem) <= 160
    assert programs(Problem(tokens=2**20, heads=1, key_dim=dim, value_dim=dim, dtype=dtype, device=V100)) >= 140
    full = Problem(tokens=4096, batch=5, heads=16, key_dim=dim, value_dim=dim, dtype=dtype, device=V100)
    assert not cutting.choose(cutting.of_problem(full), 80, 0).several


def test_a_program_is_as_wide_as_v_may_be() -> None:
    for key_dim, value_dim, wide in ((32, 32, 32), (64, 64, 64), (128, 64, 64), (128, 65, 128), (256, 32, 32),
                                     (256, 33, 64), (256, 256, 64)):
        assert configurations.sweep("sm_70", key_dim, value_dim, True).wide == wide
        problem = Problem(tokens=64, heads=2, key_dim=key_dim, value_dim=value_dim, dtype=torch.float16, device=V100)
        assert programs(problem) == 2 * -(-value_dim // wide)


def test_a_call_is_cut_as_its_problem() -> None:
    for case in CASES.values():
        problem, tensors = problem_of(case), inputs.make(case, 1)
        q, k, v, g = (getattr(tensors, name) for name in ("q", "k", "v", "g"))
        call = Call(q, k, v, g, None, None, tensors.cu_seqlens, 1.0, False, False, {})
        assert cutting.of_call(call).traffic == cutting.of_problem(problem).traffic
        assert cutting.choose(cutting.of_call(call), 80, 0) == cutting.choose(cutting.of_problem(problem), 80, 0)
