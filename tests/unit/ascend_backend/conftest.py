"""What the tests of the Ascend backend share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_npu
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@pytest.fixture(scope="session")
def device_library() -> Path:
    """The fake device, compiled: about half a minute on the first run."""
    return fake_npu.build()


@pytest.fixture
def python_on_npu(device_library: Path) -> Callable[..., str]:
    """Run Python in a process of its own, where ``fake_npu`` can be imported; return what it printed."""

    def run(*arguments: str, **environment: str) -> str:
        path = os.pathsep.join([str(HERE), *sys.path])
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment})
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run
