"""Bytes that the kernels move, counted in Triton's interpreter: beside flash-linear-attention's, and the plan's."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from portable_gla_ascend import schedule, socs

from portable_gla import devices
from portable_gla.testing.cases import Case

pytest.importorskip("triton", reason="Triton is not installed")
pytest.importorskip("fla.ops.gla.backends.triton_ascend", reason="fla-core is not installed")

TOKENS = 256
HERE = Path(__file__).parent


INPUTS = [(dtype, size) for dtype in (torch.float16, torch.float32) for size in (64, 128)]
THEIRS = {(torch.float16, 64): (3_168, 10_496), (torch.float16, 128): (6_432, 22_976),
          (torch.float32, 64): (4_640, 14_016), (torch.float32, 128): (9_888, 30_528)}
"""Bytes a token and head of theirs as they were counted elsewhere, forward and with the backward pass."""


@functools.cache
def everything():
    """Count all inputs in one process, which imports both libraries once."""
    done = subprocess.run(
        [sys.executable, str(HERE / "beside_fla.py"), str(TOKENS),
         *(f"{str(dtype).removeprefix('torch.')}:{size}" for dtype, size in INPUTS)],
        capture_output=True, text=True, timeout=1800,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(INPUTS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(params=INPUTS, ids=lambda one: f"{str(one[0]).removeprefix('torch.')}-{one[1]}")
def counted(request):
    return *request.param, everything()[request.param]


def unique(found, passes):
    return sum(found[name]["unique"] for name in passes)


@pytest.mark.parametrize("passes", [("forward",), ("forward", "backward")], ids=["forward", "both"])
@pytest.mark.parametrize("ours", ["ours", "bonus", "950"])
def test_at_most_half_of_flash_linear_attention(counted, passes, ours) -> None:
    """Theirs is counted with the 910's tiles: its backward pass does not compile for the 950."""
    _, _, found = counted
    assert unique(found[ours], passes) <= 0.5 * unique(found["theirs"], passes)


@pytest.mark.parametrize("passes", [("forward",), ("forward", "backward")], ids=["forward", "both"])
def test_a_bonus_adds_little(counted, passes) -> None:
    """Itself, and in the backward pass what dbonus sums: a row of K a chunk, in float32."""
    _, size, found = counted
    most = size * 4 * (len(passes) + TOKENS // 64)
    assert 0 < unique(found["bonus"], passes) - unique(found["ours"], passes) <= most


def test_theirs_is_what_was_counted_elsewhere(counted) -> None:
    """So their kernels ran, all of them."""
    dtype, size, found = counted
    both = unique(found["theirs"], ("forward",)), unique(found["theirs"], ("forward", "backward"))
    assert tuple(x / TOKENS for x in both) == pytest.approx(THEIRS[dtype, size], rel=0.01)


def planned(dtype, size, soc, device):
    case = Case("traffic", batch=1, tokens=TOKENS, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=size,
                value_dim=size, dtype=dtype, final_state=False)
    known = socs.of(soc)
    assert known is not None
    return schedule.schedule(case.problem(devices.named(device)), known)


@pytest.mark.parametrize(("ours", "soc", "device"), [("ours", "Ascend910B2", "910b"), ("950", "Ascend950", "950")])
def test_the_plan_predicts_them(counted, ours, soc, device) -> None:
    dtype, size, found = counted
    plan = planned(dtype, size, soc, device)
    masks = 64 * 64 * 4  # the table of masks, which every launch reads
    assert (plan.launches_forward, plan.launches_backward) == (2, 2 if dtype == torch.float32 else 3)
    for passes, bytes_, launches in (("forward", plan.bytes_forward, plan.launches_forward),
                                     ("backward", plan.bytes_backward, plan.launches_backward)):
        assert bytes_ + launches * masks == pytest.approx(unique(found[ours], (passes,)), rel=0.05)
