"""Bits that do not depend on what else is in the batch, where PyTorch sums what kernels found apart."""

from __future__ import annotations

import pytest
import torch

from portable_gla.testing import running
from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dg_per_head_of_several_tiles_of_k_is_the_same_alone(dtype):
    """PyTorch's sum over tiles took another order for three sequences than for one; in float32 a program sums."""
    target, _ = running.find("ascend")
    assert target is not None
    case = Case("tiles", tokens=31, batch=3, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=192, value_dim=9,
                dtype=dtype, gate="head", initial_state="each", final_state=False, bonus=True, regime="range")
    failed = [str(row) for row in CHECKS["batch_invariant"](target, case, 42189) if not row.ok]
    assert not failed


@pytest.mark.parametrize(("gate", "regime"), [("none", "usual"), ("channel", "slow"), ("head", "extreme")])
def test_float16_is_the_same_alone(gate: str, regime: str):
    """Scales of kept states were of tiles as wide as the number of sequences allowed."""
    target, _ = running.find("ascend")
    assert target is not None
    case = Case("scales", tokens=85, batch=3, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, key_dim=64, value_dim=128,
                dtype=torch.float16, gate=gate, regime=regime, reverse=True, initial_state="each")
    for seed in range(3):
        assert [str(row) for row in CHECKS["batch_invariant"](target, case, seed) if not row.ok] == []
