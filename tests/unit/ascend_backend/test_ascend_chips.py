"""Every chip's tiles give right numbers, in the emulator: sizes that take several tiles each way, and a rest."""

from __future__ import annotations

import itertools

import pytest
import torch
from portable_gla_ascend import paths, tiles

import portable_gla
from portable_gla import devices
from portable_gla.testing import cases, emulate, running
from portable_gla.testing.cases import Case
from portable_gla.testing.checks import CHECKS


@pytest.fixture(params=tiles.CHIPS)
def chip(request, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(paths, "_assumed", {"910": "910B4", "950": "950"}[request.param])
    return request.param


@pytest.mark.parametrize(("dtype", "gate", "bonus"), [
    (dtype, gate, bonus) for dtype, gate, bonus in itertools.product(
        (torch.bfloat16, torch.float16, torch.float32), cases.GATES, (False, True))
    if gate == "channel" or bonus == (gate == "head")], ids=str)
def test_its_numbers(chip: str, dtype: torch.dtype, gate: str, bonus: bool, seed: int) -> None:
    target, _ = running.find("ascend")
    assert target is not None
    case = Case("tiles", lengths=(100, 33), q_heads=2, k_heads=1, v_heads=1, gate_heads=2, key_dim=144, value_dim=136,
                dtype=dtype, gate=gate, bonus=bonus, reverse=bonus, initial_state="each")
    rows = list(CHECKS["within_budget"](target, case, seed))
    assert rows and [str(row) for row in rows if not row.ok] == []


def test_its_tiles_are_those_of_the_table(chip: str) -> None:
    case = Case("tiles", key_dim=512, value_dim=512, dtype=torch.float16)
    with emulate("ascend"):
        found = portable_gla.plan(case.problem(devices.of(torch.device("cpu")))).schedule.tiles
    row = tiles.table()["forward", chip, "split", "channel"]
    assert (found["block_k"], found["block_v"]) == (row.block_k, row.block_v)


def test_a_chip_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_assumed", "920")
    problem = Case("chip").problem(devices.of(torch.device("cpu")))  # no call: its plan may be kept from another chip
    with emulate("ascend"):
        said = str(portable_gla.plan(problem))
    assert "not ascend: emulates no chip '920', which PORTABLE_GLA_ASCEND_SOC names" in said
