"""Kernels built ahead of time: by the compiler, into a folder that a machine without one uses."""

from __future__ import annotations

import json
from pathlib import Path

import helpers_volta_images as helpers
import pytest
from portable_gla_volta import build, configurations, driver
from portable_gla_volta.cache import Cache, under
from portable_gla_volta.images import Images

from portable_gla.errors import KernelError

KERNELS = [helpers.kernel(3), helpers.kernel(4), helpers.kernel(3)]


@pytest.fixture
def own_kernels(own_sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(configurations, "kernels", lambda target: iter(KERNELS))
    return own_sources


@pytest.mark.parametrize("target", build.TARGETS)
def test_what_is_built_serves_a_machine_without_a_compiler(own_kernels: Path, tmp_path: Path, target: str) -> None:
    total, built = build.prebuild(target, tmp_path / "out")
    rows = list(built)
    assert total == len(rows) == 2 and all(row.compiled for row in rows)
    there = Images(Cache(under(tmp_path / "out")), helpers.no_compiler)
    for kernel in KERNELS:
        image = there.get(kernel, target, 12)
        assert not image.compiled
        assert image.code.startswith(b"//" if target == "compute_70" else b"\x7fELF")
    with pytest.raises(KernelError, match="not in the cache"):
        there.get(helpers.kernel(5), target, 12)


def test_a_second_run_compiles_nothing_and_mends_what_is_damaged(own_kernels: Path, tmp_path: Path) -> None:
    rows = list(build.prebuild("sm_70", tmp_path)[1])
    assert [row.compiled for row in build.prebuild("sm_70", tmp_path)[1]] == [False, False]
    path = rows[0].path
    assert path is not None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert [row.compiled for row in build.prebuild("sm_70", tmp_path)[1]] == [True, False]
    assert path.read_bytes() == whole  # the compiler is deterministic


def test_it_is_found_by_a_runner_with_a_driver(own_kernels: Path, tmp_path: Path) -> None:
    """Made where there is no driver; a driver's version is no part of what is looked for."""
    list(build.prebuild("sm_70", tmp_path)[1])
    for version in (12060, 12080, 13000):
        cuda = driver.Driver(helpers.FakeCuda(version))
        assert not Images(Cache(under(tmp_path)), helpers.no_compiler).get(KERNELS[0], "sm_70", cuda.cuda).compiled


def test_an_unknown_target() -> None:
    with pytest.raises(ValueError, match="expected one of sm_70, sm_75, compute_70, got 'sm_80'"):
        build.prebuild("sm_80")


def test_a_kernel_that_does_not_compile_stops_it(own_kernels: Path, tmp_path: Path) -> None:
    path = own_kernels / "own.cu"
    path.write_text(path.read_text(encoding="utf-8").replace("a.n", "a.size"), encoding="utf-8")
    with pytest.raises(KernelError, match=r"has no member[\s\S]*--define-macro=FACTOR=3"):
        list(build.prebuild("sm_70", tmp_path)[1])


def test_the_command_line(cli, own_kernels: Path, tmp_path: Path) -> None:
    arguments = ("build", "--backend", "volta", "--target", "sm_70", "--cache", str(tmp_path), "--json")
    first, again = (json.loads(cli(*arguments).stdout)["targets"][0] for _ in range(2))
    assert (first["kernels"], first["compiled"], again["compiled"]) == (2, 2, 0)
    assert Path(first["folder"]) == tmp_path / "volta" and first["bytes"] > 1000
    result = cli("build", "--backend", "volta", "--target", "sm_80")
    assert result.exit_code == 2 and "sm_80" in result.stderr and "sm_75" in result.stderr


def test_the_command_line_without_a_compiler(cli, own_kernels: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build.nvrtc, "find", helpers.no_compiler)
    result = cli("build", "--backend", "volta", "--target", "sm_70", "--cache", str(tmp_path))
    assert result.exit_code == 1 and "no NVRTC" in result.stderr
