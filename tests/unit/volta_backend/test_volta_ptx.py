"""What NVRTC compiles, executed: PTX translated to C++ beside the sources in the emulator."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import helpers_volta_ptx as helpers
import pytest
import torch
from portable_gla_volta import launch, sources
from portable_gla_volta.emulator import EmulatorRunner, options
from portable_gla_volta.emulator.errors import OutOfBoundsError, RaceError, UninitialisedError
from portable_gla_volta.kernel import Kernel, Runner
from portable_gla_volta.ptx import PtxError, PtxRunner
from portable_gla_volta.ptx.parse import parse
from portable_gla_volta.ptx.translate import translate

from portable_gla import segments
from portable_gla.backend import Call

EVERY = Kernel("every", "every.cu", (), 64, 2048)
HEAD = """
.version 8.8
.target sm_70
.address_size 64
.visible .entry tiny(
	.param .align 8 .b8 tiny_param_0[16]
)
.maxntid 32, 1, 1
{
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "every.cu").write_text(helpers.SOURCE, encoding="utf-8")
    (tmp_path / "target.cuh").write_text((sources.FOLDER / "target.cuh").read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def run(runner: Runner, seed: int, count: int = 20, kernel: Kernel = EVERY) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(3, 512, generator=generator).half(), torch.randn(8, generator=generator)
    out, integers = torch.full((3, 512), 7.0), torch.zeros(3, 64, dtype=torch.int32)
    arguments = helpers.Arguments(x.data_ptr(), y.data_ptr(), out.data_ptr(), integers.data_ptr(), 512, count, 0.3)
    runner.launch(kernel, 3, arguments, (x, y, out, integers))
    return out, integers


class Altered(PtxRunner):
    """Runs PTX that is not quite what the compiler wrote."""

    def __init__(self, folder: Path, what: str, by: str) -> None:
        super().__init__(("--fmad=false",), folder=folder)
        self.what, self.by = what, by

    def ptx(self, kernel: Kernel) -> str:
        text = super().ptx(kernel)
        assert self.what in text
        return text.replace(self.what, self.by, 1)


def test_every_kind_of_instruction_gives_the_bits_of_the_source(folder: Path, seed: int) -> None:
    for count in (20, 32):
        expected, found = run(EmulatorRunner(folder=folder), seed, count), run(
            PtxRunner(("--fmad=false",), folder=folder), seed, count)
        assert torch.equal(expected[0].view(torch.int32), found[0].view(torch.int32))
        assert torch.equal(expected[1], found[1]) and expected[1].unique().numel() > 50


def test_arrays_of_a_threads_own(folder: Path, seed: int) -> None:
    kernel = dataclasses.replace(EVERY, defines=(("LOCAL", 1),))
    runner = PtxRunner(("--fmad=false",), folder=folder)
    assert ".local" in runner.ptx(kernel)
    expected, found = run(EmulatorRunner(folder=folder), seed, kernel=kernel), run(runner, seed, kernel=kernel)
    assert torch.equal(expected[1], found[1])
    assert not torch.equal(expected[1], run(EmulatorRunner(folder=folder), seed)[1])


def test_products_fused_with_sums_differ_in_the_last_bits(folder: Path, seed: int) -> None:
    expected, found = run(EmulatorRunner(folder=folder), seed), run(PtxRunner(folder=folder), seed)
    assert torch.equal(expected[1], found[1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


def test_instructions_are_counted_as_they_run(folder: Path, seed: int) -> None:
    """A loop of n turns runs n times as many; all threads count."""
    runner, found = PtxRunner(folder=folder), []
    runner.instructions(EVERY)  # forgets what other tests ran
    for count in (8, 16, 24):
        run(runner, seed, count)
        found.append(runner.instructions(EVERY))
    assert runner.instructions(EVERY) == 0
    # The loop over `count` aside, threads below `count` fill shared memory: the same number more each time.
    assert found[2] - found[1] == found[1] - found[0] and (found[1] - found[0]) / (8 * 3 * 64) > 20


@pytest.mark.parametrize(("what", "by"), [
    ("m8n8k4.row.col", "m8n8k4.row.row"), ("m8n8k4.col.row", "m8n8k4.row.row"), ("shfl.sync.bfly", "shfl.sync.idx"),
    ("+6]", "+4]"), ("mad.lo.s32", "mad.lo.u32")])
def test_another_instruction_gives_other_numbers(folder: Path, seed: int, what: str, by: str) -> None:
    """The comparison can fail: each change is seen, but for the one that is none (mad.lo has no sign)."""
    expected, found = run(EmulatorRunner(folder=folder), seed), run(Altered(folder, what, by), seed)
    same = all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(expected, found, strict=True))
    assert same == (what == "mad.lo.s32")


@pytest.mark.parametrize(("what", "by", "error"), [
    ("bar.sync", "// bar.sync", (RaceError, UninitialisedError)),
    ("st.shared.v2", "// st.shared.v2", UninitialisedError),
    ("+6]", "+7]", OutOfBoundsError)])
def test_the_machine_checks_compiled_code_too(folder: Path, seed: int, what: str, by: str, error) -> None:
    with pytest.raises(error) as caught, options(checks="all"):
        run(Altered(folder, what, by), seed)
    assert "every.ptx:" in str(caught.value)


def test_an_instruction_that_is_not_known_is_an_error() -> None:
    for line in ("vote.sync.ballot.b32 %r1, %p1, -1;", "add.sat.f32 %f1, %f1, %f2;", "add.ftz.f32 %f1, %f1, %f2;",
                 "ld.local.u32 %r1, [%rd1];", "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r1}, "
                 "{%f1};", "bar.sync 1;", "mov.u32 %r1, %clock;", "ld.param.u32 %r1, [other];"):
        with pytest.raises(PtxError):
            translate(f"{HEAD}\t{line}\n\tret;\n}}\n")


def test_what_is_not_one_kernel_is_an_error() -> None:
    good = f"{HEAD}\tret;\n}}\n"
    assert parse(good).threads == 32 and parse(good).size == 16
    for text in (good.replace(".visible", ".const .b32 table[4];\n.visible"), good + good.split("64\n")[1],
                 good.replace(".maxntid 32, 1, 1", ""),
                 good.replace(".align 8 .b8 tiny_param_0[16]", ".u64 tiny_x"), ""):
        with pytest.raises(PtxError):
            parse(text)
    with pytest.raises(PtxError):
        translate(good.replace("\tret;", "\t.local .b32 spill[4];\n\tret;"))


class Called(NamedTuple):
    """What a call gave, and which kernels it launched."""

    tensors: dict[str, torch.Tensor]
    kernels: list[Kernel]


class Noting:
    """A runner that notes what another one launches."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.target, self.kernels = runner, runner.target, []

    def launch(self, kernel, grid, arguments, tensors) -> None:
        self.kernels.append(kernel)
        self.runner.launch(kernel, grid, arguments, tensors)


def called(runner: Runner, seed: int, backward: bool = True) -> Called:
    """Run one call in float16, gates per channel: 70 tokens, two segments, K = V = 32, strong gates in places."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, d = (torch.randn(1, 70, 1, 32, generator=generator).half() for _ in range(4))
    g = torch.nn.functional.logsigmoid(torch.randn(1, 70, 1, 32, generator=generator)) / 8
    g[:, 40:44] *= 200
    g[:, 50, :, ::3] = -math.inf
    call = Call(q, k, v, g, None, None, None, 32**-0.5, False, True, {})
    cut = segments.choose(1, 70, 1, 32, 1, 2)
    noting, links = Noting(runner), torch.zeros(1, 1, 32, 32)
    o, final = launch.Launcher(noting, call, cut).forward(links)
    found = {"o": o, "final state": final}
    if backward:
        gradients = launch.Launcher(noting, call, cut).backward(links, d, torch.ones(1, 1, 32, 32))
        found |= {"dq": gradients.q, "dk": gradients.k, "dv": gradients.v, "dg": gradients.g}
    return Called(found, noting.kernels)


def test_the_backends_kernels_compiled_give_the_bits_of_their_sources(seed: int) -> None:
    """Forward and backward, every launch of both: fragments, indices, barriers and roundings are the sources'."""
    expected = called(EmulatorRunner(), seed)
    with options(checks="all"):
        found = called(PtxRunner(("--fmad=false",)), seed)
    assert {kernel.entry for kernel in found.kernels} == {"states", "scan", "forward", "gradients"}
    for name, value in expected.tensors.items():
        assert value.isfinite().all() and value.count_nonzero() > 50, name
        assert torch.equal(value, found.tensors[name]), name


def test_as_they_are_shipped_they_differ_in_roundings_alone(seed: int) -> None:
    """With fused multiply-adds, as on the device."""
    expected, found = (called(runner, seed, False).tensors for runner in (EmulatorRunner(), PtxRunner()))
    for name, value in expected.items():
        error = (value - found[name]).abs().max() / value.abs().max()
        assert error <= (2**-10 if name == "o" else 2**-14), name
