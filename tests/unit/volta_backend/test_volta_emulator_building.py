"""Compiling for the emulator: once, anywhere it can be kept, and with the compiler's own words where it fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from portable_gla_volta import cache, emulator, sources
from portable_gla_volta.emulator import EmulatorRunner, building
from portable_gla_volta.kernel import Kernel

SOURCE = """#include "target.cuh"
struct Given { int n; };
KERNEL(empty, 32, 1, Given) { if (arguments.n < LEAST) return; }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(sources.FOLDER / "target.cuh", tmp_path)
    (tmp_path / "own.cu").write_text(SOURCE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, empty."""
    building._folder.cache_clear()
    building._compiler.cache_clear()
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")
    yield tmp_path / "cache" / "emulator"
    building._folder.cache_clear()
    building._compiler.cache_clear()


def kernel(n: int) -> Kernel:
    return Kernel("empty", "own.cu", (("LEAST", n),), 32, 0)


def test_each_constant_and_each_source_is_compiled_once(folder: Path, fresh: Path) -> None:
    first = EmulatorRunner(folder=folder).build(kernel(1))
    made = first.stat().st_mtime_ns
    assert EmulatorRunner(folder=folder).build(kernel(1)) == first
    assert first.stat().st_mtime_ns == made
    assert EmulatorRunner(folder=folder).build(kernel(2)) != first
    other = folder / "other"
    other.mkdir()
    shutil.copy(folder / "target.cuh", other)
    (other / "own.cu").write_text(SOURCE + "// changed\n", encoding="utf-8")
    assert EmulatorRunner(folder=other).build(kernel(1)) != first
    assert len(list(fresh.glob("*.so"))) == 3
    assert not list(fresh.glob("*.part"))
    assert not list(fresh.glob("*.lock"))


def test_what_does_not_compile_is_shown(folder: Path, fresh: Path) -> None:
    (folder / "own.cu").write_text(SOURCE.replace("return;", "no_such_thing();"), encoding="utf-8")
    sources._read.cache_clear()
    with pytest.raises(building.BuildError, match="no_such_thing"):
        EmulatorRunner(folder=folder).build(kernel(1))
    assert not list(fresh.glob("*.so"))


def test_without_a_compiler_the_emulator_says_so(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulator.missing() == ""
    building._compiler.cache_clear()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "g++" in emulator.missing()


def test_without_a_cache_libraries_last_as_long_as_the_process(folder: Path, fresh: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FOLDER", None)
    first = EmulatorRunner(folder=folder).build(kernel(1))
    assert first.exists()
    assert EmulatorRunner(folder=folder).build(kernel(1)) == first
