"""The cache on disk, and when code from it may be used."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import helpers_volta_images as helpers
import pytest
from portable_gla_volta import images, sources
from portable_gla_volta.cache import Cache
from portable_gla_volta.images import Images

from portable_gla.errors import KernelError

KEY, NAME = "kernel-sm_70-0", "nvrtc-12.6"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_what_is_put_is_got(cache: Cache) -> None:
    assert cache.get(KEY, NAME) is None and cache.names(KEY) == []
    cache.put(KEY, NAME, b"\n\0code\n", target="sm_70")
    entry = cache.get(KEY, NAME)
    assert entry is not None and entry.code == b"\n\0code\n" and entry.facts["target"] == "sm_70"
    assert cache.names(KEY) == [NAME]
    cache.drop(KEY, NAME)
    assert cache.get(KEY, NAME) is None


@pytest.mark.parametrize("damage", [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: data[:-2] + b"X" + data[-1:],
    lambda data: data[: len(data) // 2],
    lambda data: data.replace(b'"target": "sm_70"', b'"target": "sm_75"'),
    lambda data: b"\xff" * len(data),
    lambda data: data.replace(b"image 1", b"image 2"),
    lambda data: data.replace(b"{", b"[").replace(b"}", b"]"),
])
def test_a_damaged_file_is_no_entry(cache: Cache, damage) -> None:
    cache.put(KEY, NAME, b"machine code", target="sm_70", defines={"N": 1})
    path = cache.path(KEY, NAME)
    assert path is not None and cache.get(KEY, NAME) is not None
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    assert cache.get(KEY, NAME) is None


def test_a_file_under_another_name_is_no_entry(cache: Cache) -> None:
    cache.put(KEY, NAME, b"machine code")
    path, other = cache.path(KEY, NAME), cache.path(KEY, "nvrtc-12.9")
    assert path is not None and other is not None
    path.rename(other)
    assert cache.get(KEY, "nvrtc-12.9") is None


def _write(folder: Path, letter: bytes) -> None:
    for _ in range(50):
        Cache(folder).put(KEY, NAME, letter * 100_000)


def test_a_reader_never_sees_half_a_file(cache: Cache) -> None:
    assert cache.folder is not None
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(cache.folder, letter)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    seen, reads = set(), 0
    while any(writer.is_alive() for writer in writers) or not reads:
        if cache.names(KEY):
            entry = cache.get(KEY, NAME)
            assert entry is not None
            seen.add(entry.code[:1])
            reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= {b"a", b"b"}
    assert [path.name for path in (cache.folder / KEY).iterdir()] == [f"{NAME}.image"]


def test_a_folder_that_cannot_be_written_to_is_said_and_lived_with(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="PORTABLE_GLA_CACHE"):
        Cache(tmp_path / "file" / "below").put(KEY, NAME, b"code")
    Cache(None).put(KEY, NAME, b"code")
    assert Cache(None).get(KEY, NAME) is None and Cache(None).names(KEY) == []


@pytest.mark.parametrize(("given", "found"), [
    ({"PORTABLE_GLA_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/volta"),
    ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/portable_gla/volta"),
    ({"HOME": "/c"}, "/c/.cache/portable_gla/volta"),
])
def test_where_it_is(given: dict[str, str], found: str) -> None:
    code = "from portable_gla_volta.cache import FOLDER; print(FOLDER)"
    result = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=60,
                            check=True)
    assert result.stdout.strip() == found


def test_the_second_time_nothing_is_compiled(own_sources: Path, cache: Cache) -> None:
    compiler = helpers.FakeNvrtc()
    first = Images(cache, compiler.find).get(helpers.kernel(), "sm_70")
    again = Images(cache, compiler.find).get(helpers.kernel(), "sm_70", 12)
    assert first.compiled and not again.compiled and first.code == again.code
    assert len(compiler.compiled) == 1
    assert first.path is not None and first.path.is_file()


def test_sources_options_and_target_each_make_another_key(own_sources: Path, cache: Cache) -> None:
    compiler = helpers.FakeNvrtc()
    given = Images(cache, compiler.find)
    given.get(helpers.kernel(), "sm_70")
    assert given.get(helpers.kernel(4), "sm_70").compiled
    assert given.get(helpers.kernel(), "sm_75").compiled
    for name in ("own.cu", "own.cuh"):
        path = own_sources / name
        path.write_text(path.read_text(encoding="utf-8") + "// changed\n", encoding="utf-8")
        sources._read.cache_clear()
        images.key.cache_clear()
        assert given.get(helpers.kernel(), "sm_70").compiled
        assert not given.get(helpers.kernel(), "sm_70").compiled


def test_a_damaged_entry_is_compiled_again(own_sources: Path, cache: Cache) -> None:
    compiler = helpers.FakeNvrtc()
    given = Images(cache, compiler.find)
    first = given.get(helpers.kernel(), "sm_70")
    assert first.path is not None
    first.path.write_bytes(first.path.read_bytes()[:-3])
    assert given.get(helpers.kernel(), "sm_70").compiled
    again = given.get(helpers.kernel(), "sm_70")
    assert not again.compiled and again.code == first.code


def test_an_upgraded_compiler_makes_its_own(own_sources: Path, cache: Cache) -> None:
    old, new = helpers.FakeNvrtc((12, 6)), helpers.FakeNvrtc((12, 9))
    Images(cache, old.find).get(helpers.kernel(), "sm_70")
    assert Images(cache, new.find).get(helpers.kernel(), "sm_70").code.startswith(b"(12, 9)")
    assert len(new.compiled) == 1
    assert not Images(cache, old.find).get(helpers.kernel(), "sm_70").compiled  # which keeps its own


def test_code_made_ahead_serves_another_compiler_and_none(own_sources: Path, cache: Cache) -> None:
    """Made on a machine without a driver, found on one with a driver."""
    builder, user = helpers.FakeNvrtc((12, 9)), helpers.FakeNvrtc((12, 6))
    Images(cache, builder.find).get(helpers.kernel(), "sm_70", None, ahead=True)
    for find in (user.find, helpers.no_compiler):
        for cuda in (12, 13):
            found = Images(cache, find).get(helpers.kernel(), "sm_70", cuda)
            assert not found.compiled and found.code.startswith(b"(12, 9)")
    assert user.compiled == []


def test_code_that_stands_there_already_is_marked_as_made_ahead(own_sources: Path, cache: Cache) -> None:
    builder, user = helpers.FakeNvrtc((12, 9)), helpers.FakeNvrtc((12, 6))
    Images(cache, builder.find).get(helpers.kernel(), "sm_70")
    assert not Images(cache, builder.find).get(helpers.kernel(), "sm_70", ahead=True).compiled
    assert not Images(cache, user.find).get(helpers.kernel(), "sm_70", 12).compiled


def test_building_ahead_takes_no_other_compilers_code(own_sources: Path, cache: Cache) -> None:
    old, new = helpers.FakeNvrtc((12, 6)), helpers.FakeNvrtc((12, 9))
    Images(cache, old.find).get(helpers.kernel(), "sm_70", ahead=True)
    assert Images(cache, new.find).get(helpers.kernel(), "sm_70", ahead=True).compiled


def test_code_of_a_newer_cuda_than_the_drivers_is_left_alone(own_sources: Path, cache: Cache) -> None:
    """CUDA promises to run code of its own major version or an older one: a driver's downgrade makes entries void."""
    newer, own = helpers.FakeNvrtc((13, 0)), helpers.FakeNvrtc((12, 6))
    Images(cache, newer.find).get(helpers.kernel(), "sm_75", ahead=True)
    assert Images(cache, own.find).get(helpers.kernel(), "sm_75", 12).code.startswith(b"(12, 6)")
    assert Images(cache, helpers.no_compiler).get(helpers.kernel(), "sm_75", 13).code.startswith(b"(13, 0)")


def test_neither_code_nor_a_compiler(own_sources: Path, cache: Cache) -> None:
    with pytest.raises(KernelError, match=r"scaled \(FACTOR 3\) is not in the cache for sm_70.*no NVRTC"):
        Images(cache, helpers.no_compiler).get(helpers.kernel(), "sm_70", 12)


def test_what_the_driver_translates_is_kept_under_its_version(own_sources: Path, cache: Cache) -> None:
    given = Images(cache, helpers.FakeNvrtc().find)
    ptx = given.get(helpers.kernel(), "compute_70", 12)
    asked: list[bytes] = []

    def translate(code: bytes) -> bytes:
        asked.append(code)
        return b"machine code %d" % len(asked)

    first = given.translated(ptx, "sm_90", "580.95.05 CUDA 13.0", translate)
    again = given.translated(ptx, "sm_90", "580.95.05 CUDA 13.0", translate)
    assert first.compiled and not again.compiled and again.code == first.code
    assert given.translated(ptx, "sm_90", "580.95.06 CUDA 13.0", translate).compiled
    assert given.translated(ptx, "sm_100", "580.95.05 CUDA 13.0", translate).compiled
    assert asked == [ptx.code] * 3


def test_other_users_may_read_it(cache: Cache) -> None:
    before = os.umask(0o022)
    try:
        cache.put(KEY, NAME, b"code")
    finally:
        os.umask(before)
    path = cache.path(KEY, NAME)
    assert path is not None and stat.S_IMODE(path.stat().st_mode) == 0o644
