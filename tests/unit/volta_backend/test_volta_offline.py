"""The offline table: what NVRTC makes of every kernel for sm_70 and sm_75, and whether the committed table says so."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import helpers_volta_ptx
import pytest
import yaml
from portable_gla_volta import configurations, images, nvrtc, offline, sass, sources
from portable_gla_volta.kernel import Kernel
from portable_gla_volta.targets import Limits, limits

TABLE = Path(__file__).parents[3] / "hardware_ci" / "offline" / "volta.yaml"
EVERY = Kernel("every", "every.cu", (), 64, 2048)


@pytest.fixture
def every(own_sources: Path) -> Path:
    """A kernel that has every kind of instruction, as a source of the backend's."""
    target = Path(configurations.__file__).with_name("csrc") / "target.cuh"
    (own_sources / "target.cuh").write_text(target.read_text(encoding="utf-8"), encoding="utf-8")
    (own_sources / "every.cu").write_text(helpers_volta_ptx.SOURCE, encoding="utf-8")
    return own_sources


def rows() -> list[dict]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["rows"]


def test_the_table_has_every_kernel_for_both_targets() -> None:
    found = Counter((row["target"], row["kernel"], tuple(row["configuration"].items())) for row in rows())
    wanted = Counter((target, kernel.entry, tuple((name, int(value)) for name, value in kernel.defines))
                     for target in offline.TARGETS for kernel in configurations.kernels(target))
    assert found == wanted


def test_no_spills_two_blocks_and_the_matrix_instruction_everywhere() -> None:
    for row in rows():
        name = f"{row['target']} {row['kernel']} {row['configuration']}"
        assert row["broken"] == "" and row["spills"] == 0, name
        assert row["occupancy"] >= 2 and row["registers"] * 32 * row["warps"] * 2 <= 65536, name
        assert 2 * row["shared"] <= row["shared_limit"] == limits(row["target"]).shared, name
        single = "FLOAT32" in row["configuration"] or row["kernel"] not in ("forward", "states", "gradients")
        assert row["extra"]["hmma"] >= 4 * row["extra"]["mma"] and bool(row["extra"]["mma"]) != single, name


def test_the_table_is_of_the_present_sources() -> None:
    """Without compiling: the key is a hash of the sources, the options and the target."""
    found = {row["extra"]["key"] for row in rows()}
    wanted = {images.key(kernel, target) for target in offline.TARGETS for kernel in configurations.kernels(target)}
    assert found == wanted, "run python -m hardware_ci compile --backend volta"


@pytest.mark.parametrize("target", offline.TARGETS)
def test_a_sample_compiles_to_what_the_table_says(target: str) -> None:
    build = next(build for build in offline.builds([target]) if build.kernel == "forward"
                 and build.configuration["KP"] == 32 and build.configuration["CHANNEL"])
    found = offline.compile_one(build)
    row, = (row for row in rows() if row["target"] == target and row["kernel"] == build.kernel
            and row["configuration"] == build.configuration)
    assert (found.registers, found.spills, found.shared, found.occupancy, found.extra, found.error) == (
        row["registers"], row["spills"], row["shared"], row["occupancy"], row["extra"], "")


def test_a_sample_is_one_of_each_kernel() -> None:
    entries = Counter(build.kernel for build in offline.builds(["sm_70"], sample=True))
    assert set(entries) == {kernel.entry for kernel in configurations.kernels("sm_70")} and set(entries.values()) == {1}


def test_figures_of_a_kernel_of_our_own(every: Path) -> None:
    for target in offline.TARGETS:
        found = offline.compile_kernel(EVERY, target)
        assert found.error == "" and found.spills == 0 and 16 < found.registers <= 255
        assert (found.extra["mma"], found.extra["hmma"]) == (4, 16)
        assert found.shared_limit == limits(target).shared and found.warps == 2


def test_what_breaks_a_rule_is_an_error(every: Path) -> None:
    source = every / "every.cu"
    text = source.read_text(encoding="utf-8")
    # An array that is indexed at run time lives in local memory.
    source.write_text(text.replace("int found = 0;", "int kept[64]; for (int n = 0; n < 64; n++) kept[n] = n * n - "
                                   "arguments.count; int found = kept[arguments.count & 63];"), encoding="utf-8")
    sources._read.cache_clear()
    assert "bytes of spills" in offline.compile_kernel(EVERY, "sm_70").error
    source.write_text(text, encoding="utf-8")
    sources._read.cache_clear()
    large = Kernel("every", "every.cu", (), 64, 50 * 1024)
    assert offline.compile_kernel(large, "sm_70").error == "1 block a multiprocessor, expected 2"
    source.write_text(text.replace("KERNEL(every", "KERNEL(every,"), encoding="utf-8")
    sources._read.cache_clear()
    found = offline.compile_kernel(EVERY, "sm_70")
    assert "does not compile" in found.error and "--gpu-architecture=sm_70" in found.error and found.registers is None


def test_arithmetic_in_the_place_of_the_matrix_instruction_is_an_error(every: Path, monkeypatch) -> None:
    monkeypatch.setattr(sass, "HMMA_884", 0x223)  # look for FFMA: there are fewer than four an mma
    assert re.search(r"\d+ HMMA.884 for 4 mma", offline.compile_kernel(EVERY, "sm_70").error)


def test_instructions_are_counted_as_a_disassembler_does(every: Path, tmp_path: Path) -> None:
    """On sm_75, whose encoding is sm_70's: cuobjdump of CUDA 13 knows no older one. (12.8's, on sm_70, agreed.)"""
    triton = pytest.importorskip("triton", reason="Triton, which brings cuobjdump, is not installed")
    source = sources.read("every.cu")
    cubin = nvrtc.find("sm_75").compile(source.name, source.text, source.headers,
                                        sources.options(EVERY, "sm_75")).code
    path = tmp_path / "every.cubin"
    path.write_bytes(cubin)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    text = subprocess.run([tools / "cuobjdump", "--dump-sass", path], check=True, capture_output=True, text=True,
                          env={"PATH": str(tools)}).stdout
    names = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)", text, re.MULTILINE))
    found = sass.operations(cubin, "every")
    assert found[sass.HMMA_884] == names["HMMA"] == 16
    assert sum(found.values()) == sum(names.values())
    assert not any(found[code] for code in sass.LOCAL) and not names["LDL"] and not names["STL"]


def test_what_is_no_cubin_is_an_error(every: Path) -> None:
    with pytest.raises(ValueError, match="ELF"):
        sass.operations(b"//\n.version 8.8", "every")
    source = sources.read("every.cu")
    code = nvrtc.find("sm_70").compile(source.name, source.text, source.headers, sources.options(EVERY, "sm_70")).code
    with pytest.raises(ValueError, match=r"\.text\.other"):
        sass.operations(code, "other")


@pytest.mark.parametrize(("registers", "shared", "threads", "blocks"), [
    (128, 0, 256, 2), (129, 0, 256, 1), (128, 0, 128, 4), (32, 0, 1024, 2), (32, 48 * 1024, 128, 2),
    (32, 48 * 1024 + 1, 128, 1), (16, 0, 32, 32), (255, 0, 256, 1)])
def test_how_many_blocks_fit(registers: int, shared: int, threads: int, blocks: int) -> None:
    assert Limits(96 * 1024, 65536, 255, 2048, 32).blocks(registers, shared, threads) == blocks


def test_the_assembler_that_says_nothing() -> None:
    with pytest.raises(offline.KernelError, match="does not say"):
        offline.usage("ptxas info    : 0 bytes gmem")
    assert offline.usage("16 bytes stack frame, 4 bytes spill stores, 20 bytes spill loads\nUsed 40 registers, x") == (
        40, 20)
