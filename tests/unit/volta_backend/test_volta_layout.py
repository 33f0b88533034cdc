"""What shared memory costs: wavefronts of whole forward and backward passes, beside the least and the plain layout's.

``least`` is what the same instructions would take if no two lanes met in a bank.
"""

from __future__ import annotations

import helpers_volta_mutants as mutants
import pytest
from helpers_volta_mutants import Mutants, Patch, half
from portable_gla_volta import emulator
from portable_gla_volta.emulator import Launch

from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.running import run

MOST = 1.05  # times the least

PLAIN = (
    Patch("plain", "tiles.cuh", "#ifdef PLAIN\n  return row * (CHUNKS * 16) + chunk * 16;\n#else",
          "  if (MUTANT) return row * (CHUNKS * 16) + chunk * 16;\n#if 1"),
)
FORWARD = ("forward", "exact")  # the kernels that a forward pass in one segment launches


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants(tmp_path_factory.mktemp("layouts"), PLAIN)


def case(dim: int, gate: str, regime: str) -> Case:
    return half(f"layout-{dim}-{gate}-{regime}", key_dim=dim, value_dim=dim, gate=gate, regime=regime, tokens=128,
                batch=1, q_heads=1, k_heads=1, v_heads=1, gate_heads=1)


def launches(patched: Mutants, monkeypatch: pytest.MonkeyPatch, layout: str | None, which: Case) -> list[Launch]:
    with patched.on(layout, monkeypatch), emulator.options(count=True) as found:
        run(mutants.TARGET, numbers.make(which, mutants.SEED), segments=1)
    return found


def split(found: list[Launch]) -> tuple[list[Launch], list[Launch]]:
    """Launches of the forward pass, and of the backward pass."""
    forward = [launch for launch in found if launch.kernel in FORWARD]
    return forward, [launch for launch in found if launch.kernel not in FORWARD]


# Of gates per channel the regime decides how scores are made.
@pytest.mark.parametrize(("gate", "regime"), [
    ("channel", "usual"), ("channel", "slow"), ("head", "usual"), ("constant", "usual"), ("none", "usual")])
@pytest.mark.parametrize("dim", [64, 128])
def test_wavefronts(patched: Mutants, monkeypatch: pytest.MonkeyPatch, dim: int, gate: str, regime: str) -> None:
    which = case(dim, gate, regime)
    ours = split(launches(patched, monkeypatch, None, which))
    plain = split(launches(patched, monkeypatch, "plain", which))
    for name, mine, other in zip(("forward", "backward"), ours, plain, strict=True):
        assert mine
        fronts, least, others = (sum(getattr(launch, field) for launch in which_) for which_, field in (
            (mine, "wavefronts"), (mine, "least"), (other, "wavefronts")))
        ragged = sum(launch.ragged for launch in mine)
        words = sum(site.words for launch in mine for site in launch.sites) / 32
        tokens = which.tokens * which.heads
        print(f"| {dim} | {gate} | {regime} | {name} | {fronts / tokens:.1f} | {least / tokens:.1f} | "
              f"{fronts / least:.3f} | {others / tokens:.1f} | {words / tokens:.1f} | {ragged} |")
        if fronts > MOST * least or others < 1.5 * fronts:
            print(emulator.counts.table(mine))
        assert fronts <= MOST * least
        assert others > 1.5 * fronts  # the plain layout is told apart: this test can fail
        assert sum(launch.least for launch in other) == least
