"""The switch between fibers: this processor's, the one for others, and aarch64's where it can be run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from portable_gla_volta.emulator import building

SOURCE = Path(__file__).with_name("emulated_kernels") / "fibers.cpp"


def wanted() -> str:
    sums = []
    for me in range(3):
        a, b, c, d = (n * (me + 1.0) for n in (1, 2, 3, 4))
        i, j, k, m, n = (me + x for x in range(5))
        for _ in range(1000):
            a += 1
            b += a
            c += 1
            d += c
            i, j = i + 1, j + 2
            k, m = k + i, m + 3
            n += m
        sums.append(f"{a + b + c + d + i + j + k + m + n:.0f}")
    return " ".join(sums)


def ran(folder: Path, compiler: str, *options: str, through: tuple[str, ...] = ()) -> str:
    program = folder / "fibers"
    command = [compiler, "-std=c++17", f"-I{building.FOLDER}", *options, "-o", str(program), str(SOURCE)]
    subprocess.run(command, check=True)
    return subprocess.run([*through, str(program)], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
@pytest.mark.parametrize("way", [(), ("-DEMULATOR_UCONTEXT",)], ids=["own", "ucontext"])
def test_switches_keep_what_a_function_keeps(tmp_path: Path, way: tuple[str, ...], level: str) -> None:
    assert ran(tmp_path, "g++", level, *way) == wanted()


@pytest.mark.skipif(not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
                    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 to run another processor's code")
@pytest.mark.parametrize("level", ["-O0", "-O2", "-O3"])
def test_aarch64(tmp_path: Path, level: str) -> None:
    assert ran(tmp_path, "aarch64-linux-gnu-g++", level, "-static", through=("qemu-aarch64",)) == wanted()
