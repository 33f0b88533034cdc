"""Bytes that the kernels move, counted in Triton's interpreter: beside flash-linear-attention's, and the plan's."""

from __future__ import annotations

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


@pytest.fixture(scope="module", params=[64, 128])
def counted(request):
    size = request.param
    done = subprocess.run(
        [sys.executable, str(HERE / "beside_fla.py"), str(TOKENS), str(size), str(size), "float16"],
        capture_output=True, text=True, timeout=900,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-4000:]
    return size, json.loads(done.stdout.splitlines()[-1])


def unique(found, passes):
    return sum(found[name]["unique"] for name in passes)


@pytest.mark.parametrize("passes", [("forward",), ("forward", "backward")], ids=["forward", "both"])
def test_at_most_half_of_flash_linear_attention(counted, passes) -> None:
    _, found = counted
    assert unique(found["ours"], passes) <= 0.5 * unique(found["theirs"], passes)


def test_theirs_is_what_was_counted_elsewhere(counted) -> None:
    """6,432 and 22,976 bytes a token and head at K = V = 128: so their kernels ran, all of them."""
    size, found = counted
    expected = {128: (6_432, 22_976), 64: (3_168, 10_496)}[size]
    both = unique(found["theirs"], ("forward",)), unique(found["theirs"], ("forward", "backward"))
    assert tuple(x / TOKENS for x in both) == pytest.approx(expected, rel=0.01)


def test_the_plan_predicts_them(counted) -> None:
    size, found = counted
    case = Case("traffic", batch=1, tokens=TOKENS, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=size,
                value_dim=size, dtype=torch.float16, final_state=False)
    problem = case.problem(devices.named("910b"))
    soc = socs.of("Ascend910B2")
    assert soc is not None
    plan = schedule.schedule(problem, soc)
    masks = 64 * 64 * 4  # the table of masks, which every launch reads
    assert plan.launches_forward == 2
    assert plan.bytes_forward + 2 * masks == pytest.approx(unique(found["ours"], ("forward",)), rel=0.05)
    assert plan.launches_backward == 4
    assert plan.bytes_backward + 4 * masks == pytest.approx(unique(found["ours"], ("backward",)), rel=0.05)
