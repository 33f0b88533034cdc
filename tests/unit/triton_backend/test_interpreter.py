"""The same kernels in Triton's own interpreter: a second opinion on the emulator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = """
import torch, portable_gla
from portable_gla.testing import cases, checks, inputs
from portable_gla.testing.running import Target
for name in ("gate-channel-bf16", "gate-head-f16", "gate-channel-f32", "regime-resets-channel-bf16-g-f32"):
    rows = list(checks.CHECKS["within_budget"](Target("triton", emulated=True), cases.named(name), 0))
    assert all(row.ok for row in rows), [str(row) for row in rows if not row.ok]
    print(name, len(rows))
"""


def test_budgets_hold_in_tritons_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 4
