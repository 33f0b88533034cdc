"""The launcher where PyTorch cannot be imported: a diagnosis, never a traceback. Fake packages stand in for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NO_CANN = ('raise RuntimeError("Failed to load the backend extension: torch_npu. You can disable extension '
           'auto-loading with TORCH_DEVICE_BACKEND_AUTOLOAD=0.")\n')


@pytest.fixture
def launch(tmp_path):
    """Run ``portable-gla`` with ``torch`` replaced by a package with the given source."""

    def run(torch: str, *arguments: str, torch_npu: bool = False) -> subprocess.CompletedProcess[str]:
        for name, source in (("torch", torch), *([("torch_npu", "")] if torch_npu else [])):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(source)
            info = tmp_path / f"{name}-2.7.1.dist-info"
            info.mkdir()
            info.joinpath("METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 2.7.1\n")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND")}
        environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "LD_LIBRARY_PATH": ""}
        return subprocess.run([sys.executable, "-m", "portable_gla_doctor", *arguments], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, timeout=60, check=False)

    return run


def test_torch_npu_without_cann_is_diagnosed(launch):
    result = launch(NO_CANN, "doctor", torch_npu=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "[cann-missing]" in result.stderr and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in result.stderr


def test_a_real_pytorch_that_loads_a_torch_npu_without_cann(tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')\n")
    info = tmp_path / "torch_npu-2.7.1.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.7.1\n")
    info.joinpath("entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("ASCEND") and name != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "LD_LIBRARY_PATH": ""}

    def start(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "portable_gla_doctor", "doctor"], env=environment | more,
                              cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    result = start()
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "[cann-missing]" in result.stderr and "[torch-broken]" not in result.stderr
    # With the remedy PyTorch imports, the rest of the doctor runs, and CANN is still missed.
    mended = start(TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert mended.returncode == 0
    assert "warning [cann-missing]" in mended.stdout and "right" in mended.stdout


def test_the_diagnosis_as_json(launch):
    result = launch(NO_CANN, "doctor", "--json", torch_npu=True)
    found = json.loads(result.stdout)
    assert result.returncode == 1 and found["ok"] is False
    assert "backend extension" in found["torch_error"]
    assert found["findings"][0]["code"] == "cann-missing" and found["findings"][0]["severity"] == "error"


@pytest.mark.parametrize("source", [
    "raise OSError('libcudnn.so.9: cannot open shared object file')\n",
    "import no_such_module\n",
    "raise AttributeError('half installed')\n",
])
def test_any_other_failure_is_diagnosed_too(launch, source):
    result = launch(source, "plan")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "[torch-broken]" in result.stderr and "`import torch` fails" in result.stderr


def test_a_package_that_imports_and_is_no_pytorch(launch):
    result = launch("", "doctor")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "[import-failed]" in result.stderr
