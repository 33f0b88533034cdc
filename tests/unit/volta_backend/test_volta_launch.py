"""From calls to launches: how many, on what, and that a plan lists what a call does."""

import dataclasses

import pytest
import torch
from helpers_volta_calls import CASES, attend, problem_of
from portable_gla_volta import configurations, emulator, launch, targets
from portable_gla_volta.backend import backend

import portable_gla
from portable_gla import segments
from portable_gla.problem import Device, Problem

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


def test_sizes_are_rounded_up() -> None:
    for key_dim in range(1, configurations.LARGEST + 1):
        for value_dim in (1, 32, 33, 256):
            shape = configurations.sweep(key_dim, value_dim)
            assert shape.keys >= key_dim and shape.wide == 16 * shape.warps_v
            assert configurations.forward(shape, True) in set(configurations.kernels("sm_70"))
            assert configurations.states(shape, False) in set(configurations.kernels("sm_75"))
            assert configurations.gradients(shape.keys, True, torch.float32) in set(configurations.kernels("sm_75"))


@pytest.mark.parametrize("target", targets.TARGETS)
def test_two_blocks_of_shared_memory(target: str) -> None:
    """Every kernel finds room; on Volta, and for K up to 128 in float16 on Turing too, twice."""
    limits = targets.limits(target)
    for kernel in configurations.kernels(target):
        assert kernel.shared <= limits.shared
        defines = dict(kernel.defines)
        small = defines.get("KP", 0) <= 128 and "FLOAT32" not in defines
        if target == "sm_70" or small:
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


def test_a_batch_that_fills_the_device_has_one_segment() -> None:
    assert not segments.choose(8, 4096, 16, 128, 80, 0).several
    assert segments.choose(1, 4096, 1, 128, 80, 0) == (256, True)
