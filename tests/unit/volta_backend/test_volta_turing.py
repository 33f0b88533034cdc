"""Where Turing's kernels are other ones than Volta's: K above 128 in float16, the state read tile by tile."""

from __future__ import annotations

import pytest
import torch
from portable_gla_volta import backend, configurations, emulator, launch
from portable_gla_volta.emulator import EmulatorRunner

from portable_gla import segments
from portable_gla.problem import Device, Problem
from portable_gla.testing import checking
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.running import Target, run

TARGET = Target("volta", emulated=True)
T4 = Device("cuda", "t4", "sm_75", present=False)


def half(name: str, **fields: object) -> Case:
    return Case(f"turing-{name}", **{"dtype": torch.float16, "gate_dtype": torch.float32, "batch": 1,  # type: ignore
                                     "key_dim": 256, "value_dim": 72, "tokens": 70, "initial_state": "each", **fields})


CASES = [half("channel"), half("strong", regime="strong", reverse=True), half("slow", regime="slow", value_dim=33),
         half("bonus", bonus=True, regime="extreme", key_dim=200), half("resets", regime="resets", value_dim=20),
         half("range", regime="range", magnitudes=(1e-3, 1.0, 1.0)), half("head", gate="head"),
         half("head-bonus", gate="head", bonus=True, value_dim=30), half("constant", gate="constant", key_dim=129),
         half("none", gate="none", k_heads=1)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tile_by_tile(case: Case, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    turing = EmulatorRunner("sm_75")
    monkeypatch.setattr(backend, "_runner", lambda emulating: turing)
    for segments_of in (1, 2):
        with emulator.options(truncate=True, checks="all", count=True) as launches:
            found = run(TARGET, numbers.make(case, seed), segments=segments_of)
        rows = checking.held(case, found, checking.expected(TARGET, case, seed))
        assert [str(row) for row in rows if not row.ok] == []
        assert ("WHOLE", 0) in {constant for one in launches for constant in one.defines}


def test_a_plan_for_a_t4_has_its_programs() -> None:
    for gate, wide in (("channel", 32), ("head", 64)):
        problem = Problem(tokens=64, heads=2, key_dim=256, value_dim=256, dtype=torch.float16, gate=gate, device=T4)
        forward, _ = launch.planned(problem, segments.choose(1, 64, 2, 256, 1, 1))
        assert [grid for _, grid in forward] == [2 * 256 // wide]
        assert forward[0][0] in configurations.kernels("sm_75")
        assert backend.VoltaBackend().schedule(problem).tiles["values"] == wide
