"""The committed offline table: it is whole, of the present kernels, and nothing in it is against a rule."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from portable_gla_ascend import offline

pytest.importorskip("triton", reason="Triton is not installed")
TABLE = Path(__file__).parents[3] / "hardware_ci" / "offline" / "ascend.yaml"


@pytest.fixture(scope="module")
def table() -> dict:
    return yaml.load(TABLE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def test_every_build_has_a_row_and_no_other_has(table: dict) -> None:
    assert not table["sample"]
    found = Counter((row["target"], row["kernel"], *row["configuration"].values()) for row in table["rows"])
    assert found == Counter((build.target, build.kernel, *build.configuration.values()) for build in offline.builds())


def test_all_fits_the_chips(table: dict) -> None:
    assert table["broken"] == 0 and table["targets"] == list(offline.TARGETS)
    assert table["compiler"] == offline.compiler() and table["memory"] == offline.MEMORY
    for row in table["rows"]:
        assert row["broken"] == "", row
        assert 0 < row["shared"] <= row["shared_limit"] == offline.soc(row["target"]).unified_kib * 1024, row
        for name, most in (("L0C", "l0c_kib"), ("L1", "l1_kib")):
            used, limit = row["extra"][name].removesuffix(" KiB").split(" of ")
            assert float(used) <= float(limit) == getattr(offline.soc(row["target"]), most), row


def test_it_is_of_the_present_kernels(table: dict) -> None:
    """Without compiling: the key is a hash of the kernels' sources and of how they are launched."""
    found = {row["extra"]["key"] for row in table["rows"]}
    assert found == {offline.key(build) for build in offline.builds()}, (
        "run python -m hardware_ci compile --backend ascend")
