"""``portable-gla build``: a backend's kernels ahead of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from portable_gla import registry
from portable_gla.backend import Built
from portable_gla.errors import KernelError
from portable_gla.testing import oracle


class Building(type(oracle.backend)):  # type: ignore[misc]
    """A backend with three kernels, which are files."""

    name = "building"
    prebuild_targets = ("sm_70", "sm_75")

    def __init__(self, home: Path) -> None:
        self.home, self.fault = home, ""

    def prebuild(self, target: str, cache: Path | None) -> tuple[int, Iterator[Built]]:
        folder = (cache or self.home) / "building"

        def build() -> Iterator[Built]:
            for number in range(3):
                if self.fault:
                    raise KernelError(self.fault)
                path = folder / f"key{number}" / f"{target}.image"
                new = not path.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"1234")
                yield Built(f"kernel {number}", path, new)

        return 3, build()


@pytest.fixture
def building(tmp_path: Path) -> Iterator[Building]:
    backend = Building(tmp_path / "home")
    registry.register(backend)
    yield backend
    registry.unregister("building")


def test_the_second_time_nothing_is_compiled(cli, building, tmp_path):
    first = cli("build", "--backend", "building", "--target", "sm_70", "--cache", str(tmp_path / "out"))
    again = cli("build", "--backend", "building", "--target", "sm_70", "--out", str(tmp_path / "out"))
    assert first.exit_code == again.exit_code == 0
    where = tmp_path / "out" / "building"
    assert f"sm_70: 3 kernels, 3 compiled now, 12 bytes in {where}" in first.stdout
    assert "sm_70: 3 kernels, 0 compiled now" in again.stdout


def test_all_targets_as_json(cli, building):
    result = cli("build", "--backend", "building", "--json")
    found = json.loads(result.stdout)
    assert [row["target"] for row in found["targets"]] == ["sm_70", "sm_75"] and found["ok"]
    assert all(row["kernels"] == row["compiled"] == 3 for row in found["targets"])
    assert Path(found["targets"][0]["folder"]) == building.home / "building"


def test_a_kernel_that_does_not_compile_is_1_with_the_compilers_log(cli, building):
    building.fault = "forward.cu does not compile\nerror: expected a ;\noptions: -DX=1"
    result = cli("build", "--backend", "building")
    assert result.exit_code == 1
    for words in ("expected a ;", "-DX=1"):
        assert words in result.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (["--backend", "nosuch"], ["--backend", "'nosuch'", "building"]),
    (["--backend", "eager"], ["--backend", "building", "'eager'", "ahead of time"]),
    (["--backend", "building", "--target", "sm_80"], ["--target", "sm_70, sm_75", "'sm_80'"]),
    ([], ["--backend"]),
])
def test_a_wrong_argument_is_2_and_named(cli, building, arguments, words):
    result = cli("build", *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    for word in words:
        assert word in message, message


def test_a_file_in_the_place_of_the_folder_is_2(cli, building, tmp_path):
    (tmp_path / "file").touch()
    result = cli("build", "--backend", "building", "--cache", str(tmp_path / "file"))
    assert result.exit_code == 2 and "expected a folder" in " ".join(result.stderr.replace("│", " ").split())
