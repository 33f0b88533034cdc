"""The build: with a compiler, without one, with a broken one; and a backend whose library is missing or foreign."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from portable_gla_cpu import native

import portable_gla

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "backends/cpu/portable_gla_cpu/csrc"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sources_compile_without_a_warning(hook, tmp_path):
    compiler = hook.find_compiler()
    hook.compile_library(compiler, SOURCES, tmp_path / "library.so", extra=("-Werror",))
    assert native.Native(tmp_path / "library.so").isa == native.library().isa


def test_a_compiler_that_fails_stops_the_build(hook, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'gla.h:1: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"gla.h:1: no such thing"):
        hook.compile_library([str(broken)], SOURCES, tmp_path / "library.so")
    assert not (tmp_path / "library.so").exists()


def test_without_a_compiler_the_wheel_is_pure_and_says_so(hook, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.find_compiler() is None
    assert "no C compiler" in hook.why_not(None)
    checkout = tmp_path / "checkout"
    files = subprocess.run(["/usr/bin/env", "-S", "git", "ls-files"], cwd=ROOT, capture_output=True, text=True,
                           env={**os.environ, "PATH": os.defpath}, check=True).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    result = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
                            cwd=checkout, capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "no C compiler" in result.stdout + result.stderr
    wheel, = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.fixture
def reason_with(monkeypatch):
    """Plan a call with another library; return the one reason against the CPU backend, which eager stands in for."""
    def reason(path, isa=""):
        monkeypatch.setattr(native, "LIBRARY", path)
        monkeypatch.setattr(native, "library", lambda: native.Native(path, isa))
        native.unavailable.cache_clear()
        plan = portable_gla.plan(portable_gla.Problem(tokens=8, heads=1, key_dim=4, value_dim=4))
        assert plan.backend == "eager" and plan.fallback
        only, = plan.reasons["cpu"]
        return only

    yield reason
    monkeypatch.undo()
    native.unavailable.cache_clear()


def test_a_missing_library_is_a_reason(reason_with, tmp_path):
    reason = reason_with(tmp_path / "none.so")
    assert reason.code == "native-missing" and "gcc" in reason.hint


def test_a_foreign_library_is_a_reason(reason_with, tmp_path):
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF of another machine")
    reason = reason_with(tmp_path / "foreign.so")
    assert reason.code == "native-load" and "cannot be loaded" in reason.text


def test_a_processor_without_the_instructions_is_a_reason(reason_with):
    reason = reason_with(native.LIBRARY, "avx1024")
    assert reason.code == "instruction-set" and "lacks avx1024" in reason.text
