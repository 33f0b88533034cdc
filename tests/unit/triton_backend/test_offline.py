"""The kernels compile for devices that are not here, as the table of tiles says: a sample of what CI compiles."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from portable_gla_triton import offline, tiles, tune
from portable_gla_triton.targets import TARGETS, limits

FULL = ("sm_80", "sm_90")  # whose kernels may not spill
SAMPLE = [build for target in TARGETS for build in offline.builds([target], sample=True)
          if build.configuration["dtype"] == "bf16" and (target in FULL or (
              build.kernel in ("forward", "gradients") and build.configuration["gate"] == "channel"))]


@pytest.mark.parametrize("build", SAMPLE, ids=lambda build: f"{build.target}-{build.kernel}-"
                                                            f"{build.configuration['gate']}")
def test_compiles_within_the_device(build: offline.Build) -> None:
    found = offline.compile_one(build)
    assert found.error == ""
    assert found.registers is not None and 0 < found.registers <= limits(build.target).most_registers
    assert found.shared <= found.shared_limit == limits(build.target).shared
    assert found.occupancy is not None and found.occupancy >= 1
    if build.target in FULL:
        assert found.spills == 0


def test_a_kernel_that_does_not_compile_is_a_row_with_its_error() -> None:
    build = offline.Build("forward", "sm_90", {"dtype": "bf16", "gate": "channel", "K": 64, "V": 64,
                                               "features": "plain"})
    key = tiles.row_name("sm_90", "forward", "bf16", "channel", False, 64)
    with offline.table_with({key: tiles.Tile(24, 64, 64, 4)}):  # arange wants a power of two
        found = offline.compile_one(build)
    assert "power of 2" in found.error
    assert found.registers is None and found.occupancy is None


def test_a_spilling_tile_is_seen() -> None:
    build = offline.Build("forward", "sm_80", {"dtype": "bf16", "gate": "channel", "K": 128, "V": 64,
                                               "features": "plain"})
    key = tiles.row_name("sm_80", "forward", "bf16", "channel", False, 128)
    with offline.table_with({key: tiles.Tile(64, 64, 64, 8)}):
        found = offline.compile_one(build)
    assert found.spills and found.spills > 64


@pytest.mark.parametrize("target", TARGETS)
def test_the_table_has_a_row_for_every_call(target: str) -> None:
    for row in tune.rows(target):
        tile = tiles.table().get(tiles.row_name(*row)) or (tiles.table()[tiles.row_name(*row[:6])] if row[6] else None)
        assert tile in tune.candidates(row[1], row[2]), row
    for kind in ("bf16", "ieee") if target.startswith("gfx") else ("bf16", "tf32", "bf16x6"):
        for key_dim, value_dim in ((1, 1), (40, 72), (512, 512)):
            chosen = tiles.choose(target, kind, "channel", False, key_dim, value_dim)
            assert chosen.states.chunk == 2 * chosen.gradients.chunk  # gradients take a pair of chunks a kept state
            assert chosen.states.block_v == chosen.gradients.block_v  # whose scales are per tile of V


def test_every_launch_of_a_call_is_recorded() -> None:
    names = [name for name, _, _ in offline.record("sm_90", {"dtype": "bf16", "gate": "channel", "K": 64, "V": 64,
                                                             "features": "bonus"})]
    assert names == ["summarize", "scan", "forward", "summarize", "scan", "chunk_states", "gradients", "fold", "decode"]
