"""The kernels' parameters: what Python fills in is what the sources declare."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from portable_gla_volta import arguments, sources

STRUCTURES = ("Tokens", "State", "Sequences", "SweepArguments", "ScanArguments", "GradientsArguments", "FoldJob",
              "FoldArguments", "DecodeArguments")


def declared() -> str:
    return (sources.FOLDER / "arguments.cuh").read_text()


def fields(name: str) -> list[str]:
    found = re.search(rf"struct {name} {{(.*?)}};", declared(), re.DOTALL)
    assert found
    plain = re.sub(r"//.*", "", found[1])
    return [re.sub(r"[*\s]|\[\d+\]", "", one).rpartition(" ")[2] for line in plain.split(";") if line.strip()
            for one in re.sub(r"^\s*(const\s+)?\w+", "", line.strip()).split(",")]


def test_every_structure_is_mirrored() -> None:
    assert set(re.findall(r"^struct (\w+)", declared(), re.MULTILINE)) == set(STRUCTURES)


@pytest.mark.parametrize("name", STRUCTURES)
def test_names(name: str) -> None:
    assert [field[0] for field in getattr(arguments, name)._fields_] == fields(name)


def test_sizes_and_offsets(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    asked = [(name, field) for name in STRUCTURES for field in ("", *fields(name))]
    lines = "\n".join(
        f'std::printf("%zu\\n", offsetof({name}, {field}));' if field else f'std::printf("%zu\\n", sizeof({name}));'
        for name, field in asked)
    program = tmp_path / "sizes.cpp"
    program.write_text(f"#include <cstddef>\n#include <cstdio>\ntypedef long long int64;\n{declared()}\n"
                       f"int main() {{ {lines} }}\n")
    subprocess.run([compiler, "-std=c++17", "-w", "-o", tmp_path / "sizes", program], check=True)
    found = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout.split()
    for (name, field), number in zip(asked, found, strict=True):
        structure = getattr(arguments, name)
        expected = getattr(structure, field).offset if field else ctypes.sizeof(structure)
        assert int(number) == expected, (name, field)
