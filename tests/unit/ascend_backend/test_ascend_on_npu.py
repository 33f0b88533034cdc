"""The whole path on a fake NPU, each part in a process of its own: see ``on_npu/``."""

from __future__ import annotations

from pathlib import Path

import pytest

PARTS = sorted(path.name for path in (Path(__file__).parent / "on_npu").glob("npu_*.py"))
CHIPS = {"npu_unknown_chip.py": "Ascend310P3"}


@pytest.mark.parametrize("part", PARTS)
def test_on_a_fake_npu(part, python_on_npu, seed):
    path = Path(__file__).parent / "on_npu" / part
    said = python_on_npu(
        "-m", "pytest", "-p", "fake_npu.plugin", "-p", "no:xdist", "-o", "python_files=npu_*.py", "--seed", str(seed),
        str(path), FAKE_NPU=CHIPS.get(part, "Ascend910B2"), PYTEST_ADDOPTS="")
    assert " passed" in said or "[100%]" in said
    assert "skipped" not in said


def test_the_operators_on_a_fake_npu(python_on_npu, seed):
    """``opcheck``, autocast, second derivatives and claims, as the conformance suite has them, on NPU tensors."""
    said = python_on_npu(
        "-m", "pytest", "-p", "fake_npu.plugin", "-p", "no:xdist", "--backend", "ascend", "--device", "npu", "--seed",
        str(seed), "tests/conformance/test_operators.py", "tests/conformance/test_claims.py", PYTEST_ADDOPTS="")
    assert "backend ascend: on npu" in said and "skipped" not in said
