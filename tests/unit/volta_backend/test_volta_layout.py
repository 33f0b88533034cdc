"""What shared memory costs: wavefronts of whole forward and backward passes, beside the least and the plain layout's.

``least`` is what the same instructions would take if no two lanes met in a bank.
"""

from __future__ import annotations

import helpers_volta_mutants as mutants
import pytest
import torch
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


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants(tmp_path_factory.mktemp("layouts"), PLAIN)


def case(dim: int, gate: str, regime: str, dtype: torch.dtype) -> Case:
    return half(f"layout-{dim}-{gate}-{regime}", key_dim=dim, value_dim=dim, gate=gate, regime=regime, tokens=128,
                batch=1, q_heads=1, k_heads=1, v_heads=1, gate_heads=1, dtype=dtype)


def launches(patched: Mutants, monkeypatch: pytest.MonkeyPatch, layout: str | None, which: Case) -> list[Launch]:
    with patched.on(layout, monkeypatch), emulator.options(count=True) as found:
        run(mutants.TARGET, numbers.make(which, mutants.SEED), segments=1)
    return found


def split(found: list[Launch]) -> tuple[list[Launch], list[Launch]]:
    """Launches of a forward pass in one segment, and of the backward pass."""
    forward = [launch for launch in found if launch.kernel == "forward" or ("READ", 1) in launch.defines]
    return forward, [launch for launch in found if launch not in forward]


# Of gates per channel the regime decides how scores are made.
CASES = [(dim, gate, regime, torch.float16) for dim in (64, 128) for gate, regime in (
    ("channel", "usual"), ("channel", "slow"), ("head", "usual"), ("constant", "usual"), ("none", "usual"))]
CASES += [(64, "channel", "usual", torch.float32), (64, "head", "usual", torch.float32)]


@pytest.mark.parametrize(("dim", "gate", "regime", "dtype"), CASES)
def test_wavefronts(patched: Mutants, monkeypatch: pytest.MonkeyPatch, dim: int, gate: str, regime: str,
                    dtype: torch.dtype) -> None:
    which = case(dim, gate, regime, dtype)
    ours = split(launches(patched, monkeypatch, None, which))
    plain = split(launches(patched, monkeypatch, "plain", which))
    for name, mine, other in zip(("forward", "backward"), ours, plain, strict=True):
        assert mine
        fronts, least, others = (sum(getattr(launch, field) for launch in each) for each, field in (
            (mine, "wavefronts"), (mine, "least"), (other, "wavefronts")))
        words = sum(site.words for launch in mine for site in launch.sites) / 32
        guessed = sum(launch.ragged for launch in mine)
        # For the README, and for whoever sees this fail: per token and head.
        print(f"| {which} | {name} |", *(f"{x / which.tokens:.1f} |" for x in (fronts, least, others, words)),
              f"{fronts / least:.3f} | {guessed}")
        print(emulator.counts.table(mine))
        assert fronts <= MOST * least
        assert guessed < 0.05 * least
        assert sum(launch.least for launch in other) == least
        if dtype == torch.float16 or name == "backward":
            assert others > 1.5 * fronts  # the plain layout is told apart: this test can fail
