"""Rules of the layout, read from the sources: who imports whom, and what the wheel holds."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = sorted(path.name for path in (ROOT / "backends").iterdir() if path.is_dir())
DEVICE_LIBRARIES = {"triton", "torch_npu", "numba", "cupy", "cuda"}


def imports(path):
    """Name the top-level packages that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "portable_gla").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_backend_and_no_device_library(path):
    found = set(imports(path))
    assert not found & {f"portable_gla_{name}" for name in BACKENDS}
    assert not found & DEVICE_LIBRARIES


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_imports_no_other(name):
    others = {f"portable_gla_{other}" for other in BACKENDS if other != name}
    for path in (ROOT / "backends" / name).rglob("*.py"):
        assert not set(imports(path)) & others, path


def test_the_emulator_imports_no_backend():
    for path in (ROOT / "portable_gla_emulator").rglob("*.py"):
        assert not set(imports(path)) & {"portable_gla", *(f"portable_gla_{name}" for name in BACKENDS)}, path


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_what_the_layout_says(name):
    folder = ROOT / "backends" / name
    for part in (f"portable_gla_{name}/backend.py", f"portable_gla_{name}/py.typed", "README.md", "xfails.txt"):
        assert (folder / part).is_file(), part


def test_the_wheel_holds_the_core_and_every_backend(tmp_path):
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT,
                   check=True, capture_output=True, env=environment, timeout=300)
    wheel, = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"portable_gla", *(f"portable_gla_{name}" for name in ("doctor", "emulator", *BACKENDS))}
    for top in tops:
        assert f"{top}/py.typed" in names
    assert "portable_gla/devices.yaml" in names
    assert ("portable_gla_cpu/_native.so" in names) == ("none-any" not in wheel.name)
    assert "-py3-none-" in wheel.name  # one wheel for every Python
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert required and not any(library in line for line in required for library in DEVICE_LIBRARIES)
