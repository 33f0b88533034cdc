"""The compilers themselves, in the environment of their own that the offline check makes (once, some 230 MB)."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from portable_gla_ascend import offline
from portable_gla_ascend.offline import environment, planning
from portable_gla_ascend.offline.recording import Launch
from typer.testing import CliRunner

if str(Path(__file__).parents[3]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[3]))  # the hardware CI is run from the checkout, and is in no wheel

from hardware_ci import cli

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def compilers() -> environment.Environment:
    try:
        return environment.ensure()
    except environment.MissingEnvironment as error:
        pytest.skip(str(error))


def product(size: int, dim: int, dtype: str = "bf16") -> Launch:
    return Launch("product", {"a": f"*{dtype}", "b": f"*{dtype}", "c": "*fp32", "scale": "fp32", "rows": "i32"},
                  {"SIZE": size, "DIM": dim}, ["a", "b", "c"], {})


def compiled(launch: Launch, target: str) -> dict:
    return offline.compile_launch(launch, target, "helpers_ascend_toys", (HERE,))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("target", offline.TARGETS)
def test_a_kernel_compiles_and_its_memories_are_told(target: str, dtype: str) -> None:
    found, chip = compiled(product(64, 64, dtype), target), offline.soc(target)
    assert found["error"] == ""
    assert found["limits"] == {"ub": chip.unified_kib * 1024, "cc": chip.l0c_kib * 1024, "cbuf": chip.l1_kib * 1024}
    # The product [64, 64] in L0C, its operands in L1, and the state with what is added to it in the unified buffer.
    assert 64 * 64 * 4 <= found["used"]["cc"] <= chip.l0c_kib * 1024
    assert 2 * 64 * 64 * (4 if dtype == "fp32" else 2) <= found["used"]["cbuf"] <= chip.l1_kib * 1024
    assert 64 * 64 * 4 <= found["used"]["ub"] <= chip.unified_kib * 1024


def test_an_oversized_tile_is_refused() -> None:
    found = compiled(product(128, 512), "Ascend910B2")
    assert "overflow: needs" in found["error"]
    worst = max(found["used"][name] / found["limits"][name] for name in found["used"])
    assert worst > 1


def test_a_kernel_that_does_not_lower_says_why() -> None:
    found = compiled(Launch("misspelt", {"a": "*fp32"}, {"SIZE": 24}, ["a"], {}), "Ascend910B2")
    assert found["error"].startswith("does not lower: ") and "nosuch" in found["error"]
    assert compiled(product(32, 32), "Ascend910B2")["error"] == ""  # the child goes on


def test_a_crash_in_lowering_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel's masks spoil the memory of triton-adapter-opt 3.2.0: kernels have to bound rows otherwise."""
    launch = Launch("spoilt", {"a": "*bf16", "c": "*fp32", "n": "i32"}, {"SIZE": 64, "WIDTH": 512}, ["a", "c"], {})
    assert compiled(launch, "Ascend910B2")["error"] == "does not lower: triton-adapter-opt crashed"


def test_chips_described_alike_share_a_plan(monkeypatch: pytest.MonkeyPatch,
                                            compilers: environment.Environment) -> None:
    chips = {target: planning.chip(compilers, name) for target, name in offline.TARGETS.items()}
    assert chips["Ascend910B2"] == chips["Ascend910B4"] == chips["Ascend910_9391"] != chips["Ascend950"]
    assert "CORE_COUNT" not in chips["Ascend950"]
    first = compiled(product(32, 64), "Ascend910B2")
    monkeypatch.setattr(planning, "plan", lambda *arguments: pytest.fail("planned again"))
    assert compiled(product(32, 64), "Ascend910B4")["used"] == first["used"]
    with pytest.raises(environment.MissingEnvironment, match="Ascend7"):
        planning.chip(compilers, "Ascend7")


def test_the_command_refuses_a_planted_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "portable_gla_planted"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "offline.py").write_text(textwrap.dedent(f"""
        from pathlib import Path
        from portable_gla_ascend import offline
        from portable_gla_ascend.offline import MEMORY, Build, Compiled, compiler, prepare
        from portable_gla_ascend.offline.recording import Launch
        TARGETS = offline.TARGETS

        def builds(targets, sample):
            for target in targets:
                for size, dim in ((32, 32), (128, 512)):
                    yield Build("product", target, {{"SIZE": size, "DIM": dim}})

        def compile_one(build):
            launch = Launch("product", {{"a": "*bf16", "b": "*bf16", "c": "*fp32", "scale": "fp32", "rows": "i32"}},
                            build.configuration, ["a", "b", "c"], {{}})
            return offline.summed(build, [offline.compile_launch(launch, build.target, "helpers_ascend_toys",
                                                                 (Path({str(HERE)!r}),))])
        """), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "table.md"
    result = CliRunner().invoke(cli.app, ["compile", "--backend", "planted", "--targets", "Ascend910B4", "--jobs", "1",
                                          "--out", str(out)])
    assert result.exit_code == 1
    good, planted = yaml.safe_load(out.with_suffix(".yaml").read_text(encoding="utf-8"))["rows"]
    assert good["broken"] == "" and "overflow: needs" in planted["broken"]
    text = out.read_text(encoding="utf-8")
    assert "| target | kernel | configuration | unified buffer | L0C, L1, workspace, vector cores | |" in text
    assert "ascendnpu-ir 1.2.0" in text
