"""NVRTC through ctypes: needs no GPU."""

from __future__ import annotations

from pathlib import Path

import helpers_volta_images as helpers
import pytest
from portable_gla_volta import nvrtc, sources

from portable_gla.errors import KernelError


def compiled(target: str, text: str = helpers.SOURCE) -> nvrtc.Compiled:
    return nvrtc.find(target).compile("own.cu", text, {"own.cuh": helpers.HEADER},
                                      sources.options(helpers.kernel(), target))


@pytest.mark.parametrize("target", ["sm_70", "sm_75"])
def test_a_cubin(target: str) -> None:
    code = compiled(target).code
    assert code.startswith(b"\x7fELF") and b".text.scaled" in code


def test_ptx_is_text() -> None:
    code = compiled("compute_70").code
    assert b".target sm_70" in code and b".visible .entry scaled(" in code and b"\0" not in code


def test_constants_reach_the_source() -> None:
    assert b"0f40400000" in compiled("compute_70").code  # 3.0f


def test_a_failure_has_the_log_and_the_options() -> None:
    with pytest.raises(KernelError) as error:
        compiled("sm_70", helpers.SOURCE.replace("a.n", "a.size"))
    for words in ("own.cu", "has no member", "size", "--gpu-architecture=sm_70", "--define-macro=FACTOR=3", "NVRTC 1"):
        assert words in str(error.value)


def test_the_version_and_what_it_compiles_for() -> None:
    found = nvrtc.find("sm_70")
    assert found.version[0] == 12  # the last with sm_70
    assert found.serves("compute_70") and not found.serves("sm_10")


def test_no_compiler_for_a_target_says_what_was_found() -> None:
    with pytest.raises(KernelError, match=r"no NVRTC that compiles for sm_10: .*is NVRTC 12\.\d+, without sm_10"):
        nvrtc.find("sm_10")


def test_a_newer_nvrtc_without_the_target_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    right = nvrtc.find("sm_70").path

    class Newer:
        path, version, architectures = "newer", (13, 0), (75, 80)
        serves = nvrtc.Nvrtc.serves

    opened = nvrtc._open
    monkeypatch.setattr(nvrtc, "candidates", lambda: ["newer", right])
    monkeypatch.setattr(nvrtc, "_open", lambda path: Newer() if path == "newer" else opened(path))
    nvrtc.find.cache_clear()
    try:
        assert nvrtc.find("sm_70").path == right
        assert nvrtc.find("sm_75").path == "newer"
    finally:
        nvrtc.find.cache_clear()


def test_a_broken_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libnvrtc.so.12"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(nvrtc, "candidates", lambda: [str(broken)])
    nvrtc.find.cache_clear()
    try:
        with pytest.raises(KernelError, match="cannot be loaded"):
            nvrtc.find("sm_70")
    finally:
        nvrtc.find.cache_clear()


def test_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wheels of CUDA 12 builds first, PyTorch's own copy and the toolkit after them, the loader's last."""
    wheel, old, home = tmp_path / "nvidia" / "cuda_nvrtc" / "lib", tmp_path / "torch" / "lib", tmp_path / "cuda"
    for folder, name in ((wheel, "libnvrtc.so.12"), (old, "libnvrtc-672ee683.so.11.2"), (home / "lib64",
                                                                                        "libnvrtc.so.12")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    (wheel / "libnvrtc-builtins.so.12.9").touch()
    (wheel / "libnvrtc.alt.so.12").touch()
    monkeypatch.setattr(nvrtc, "_packages", lambda: iter([tmp_path / "nvidia"]))
    monkeypatch.setattr(nvrtc, "_torch", lambda: old)
    monkeypatch.setattr(nvrtc, "_SYSTEM", ())
    for name in nvrtc._HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert nvrtc.candidates() == [
        str(wheel / "libnvrtc.so.12"), str(home / "lib64" / "libnvrtc.so.12"), str(old / "libnvrtc-672ee683.so.11.2"),
        "libnvrtc.so.12", "libnvrtc.so.13"]


def test_sources_come_with_all_they_include(own_sources: Path) -> None:
    (own_sources / "own.cuh").write_text('#include "deep.cuh"\n' + helpers.HEADER, encoding="utf-8")
    (own_sources / "deep.cuh").write_text('#include "own.cuh"\n', encoding="utf-8")
    (own_sources / "other.cuh").write_text("int unrelated;\n", encoding="utf-8")
    assert set(sources.read("own.cu").headers) == {"own.cuh", "deep.cuh"}
