"""Faults put into the kernels: each has to be found by the emulator, by the budgets, or by what the layout costs."""

from __future__ import annotations

from collections.abc import Iterator

import helpers_volta_mutants as mutants
import pytest
import torch
from helpers_volta_mutants import Mutants, Patch, half
from portable_gla_volta import emulator, sources

# In this order they are tried on a fault until one shows it: each with its segments, 0: decoded. Those named after
# Turing run as on one.
CASES = {
    "channel": (half("mutant-channel", value_dim=72), 1),
    "slow": (half("mutant-slow", regime="slow", tokens=37, value_dim=62), 1),  # values through shared memory
    "few": (half("mutant-few", tokens=2, key_dim=40), 1),  # decays in the range between
    "bonus": (half("mutant-bonus", bonus=True, regime="extreme", reverse=True), 1),
    "head": (half("mutant-head", gate="head", tokens=37), 1),
    "head-bonus": (half("mutant-head-bonus", gate="head", bonus=True, tokens=37, k_heads=1), 1),
    "wide": (half("mutant-wide", key_dim=128, value_dim=128, batch=1), 1),
    "widest": (half("mutant-widest", key_dim=256, value_dim=40, batch=1, regime="range"), 1),
    "segments": (half("mutant-segments", tokens=150, batch=1), 2),
    "single": (half("mutant-single", dtype=torch.float32, tokens=40), 1),
    "single-head": (half("mutant-single-head", dtype=torch.float32, gate="head", tokens=40, bonus=True), 1),
    "single-widest": (half("mutant-single-widest", dtype=torch.float32, key_dim=256, tokens=20, batch=1), 1),
    "turing": (half("mutant-turing", key_dim=256, value_dim=40, batch=1, tokens=37, regime="range"), 1),
    "turing-head": (half("mutant-turing-head", key_dim=256, value_dim=62, batch=1, tokens=37, gate="head"), 1),
    "decode": (half("mutant-decode"), 0),
}

# Every fault with what has to find it: a kind of fault that the emulator names, or the results' budgets.
PATCHES: tuple[tuple[Patch, str], ...] = (
    # Fragments: which rows a lane holds, what it holds of them, and where results lie.
    (Patch("rows of A", "tiles.cuh", "a_row + row_of_a(), chunk)",
           "a_row + (MUTANT ? row_of_b() : row_of_a()), chunk)"), "budget"),
    (Patch("rows of B", "tiles.cuh", "return quad_lane() + 4 * quad_column() + 8 * upper();",
           "return quad_lane() + 4 * (MUTANT ? quad_row() : quad_column()) + 8 * upper();"), "budget"),
    (Patch("rows of results", "tiles.cuh", "return (lane() & 1) + (i & 2) + 4 * quad_row() + 8 * upper();",
           "return (lane() & 1) + (i & 2) + 4 * (MUTANT ? quad_column() : quad_row()) + 8 * upper();"), "race"),
    (Patch("layout of A", "tiles.cuh", "mma<true, false>(acc[block], p, y[step]);",
           "if (MUTANT) mma<false, false>(acc[block], p, y[step]); else mma<true, false>(acc[block], p, y[step]);"),
     "budget"),
    (Patch("layout of stores", "tiles.cuh",
           "shared_set_half(tile + element_at<CHUNKS, PATTERN>(row, column), to_half(value));",
           "shared_set_half(tile + element_at<CHUNKS, PATTERN>(row ^ (MUTANT ? 1 : 0), column), to_half(value));"),
     "budget"),
    (Patch("halves of octets", "operands.cuh", "8 * (upper() ^ swapped()); }",
           "8 * (MUTANT ? upper() : upper() ^ swapped()); }"), "budget"),
    (Patch("another block", "operands.cuh", "x1 = opaque(x ^ ((owner + 1) % OCTETS) << 4)",
           "x1 = opaque(x ^ ((owner + (MUTANT ? 2 : 1)) % OCTETS) << 4)"), "budget"),
    (Patch("another quad pair", "operands.cuh", "shuffle_xor(acc[i + 4], 24)",
           "shuffle_xor(acc[i + 4], MUTANT ? 8 : 24)"), "budget"),
    (Patch("keys in rows", "operands.cuh", "if (turned(owner)) {", "if (!MUTANT && turned(owner)) {"), "budget"),
    (Patch("another's sums", "operands.cuh", "first = position / ROWS * parts;",
           "first = position / ROWS * (MUTANT ? 1 : parts);"), "budget"),
    # Shuffles and mma: left out, by some lanes only, with differing masks.
    (Patch("skipped shuffle", "state.cuh", "unsigned got = shuffle_xor(odd ? first : second, 2);",
           "unsigned got = odd ? first : second; if (!MUTANT) got = shuffle_xor(got, 2);"), "budget"),
    (Patch("shuffle without a lane", "forward.cu", "other[v][t][n] = shuffle_xor(own[v][t][n], 8);",
           "if (!MUTANT || lane() != 3) other[v][t][n] = shuffle_xor(own[v][t][n], 8);"), "warp"),
    (Patch("shuffle with two masks", "common.cuh", "x += shuffle_xor(x, mask);",
           "x += shuffle_xor(x, MUTANT && lane() == 7 ? 32 - mask : mask);"), "warp"),
    (Patch("mma without a lane", "tiles.cuh", "mma<true, true>(acc, p, r);",
           "if (!MUTANT || lane() != 31) mma<true, true>(acc, p, r);"), "warp"),
    # Memory: past the end, at odd places, never written, written twice, another block's.
    (Patch("rows past the end", "forward.cu", "if (position + row >= end) continue;",
           "if (!MUTANT && position + row >= end) continue;"), "global-bounds"),
    (Patch("values past the end", "state.cuh", "if (row + 4 * step < end && column",
           "if ((MUTANT || row + 4 * step < end) && column"), "global-bounds"),
    (Patch("misaligned", "state.cuh", "8 * quad_row());", "8 * quad_row() + (MUTANT ? 4 : 0));"), "alignment"),
    (Patch("never written", "vectors.cuh", "if (i == 0) shared_set(offset + VECTOR_TOTAL, total);",
           "if (!MUTANT && i == 0) shared_set(offset + VECTOR_TOTAL, total);"), "uninitialised"),
    (Patch("every lane votes", "scores.cuh", "  if (lane() == 0) {\n    Words<1> word;",
           "  if (MUTANT || lane() == 0) {\n    Words<1> word;"), "race"),
    (Patch("another's columns", "gradients_values.cuh", "first_value = tile * KT;",
           "first_value = (MUTANT ? 0 : tile) * KT;"), "blocks"),
    (Patch("another's chunk", "states.cu", "(slot + chunk) * sequences.heads + head",
           "(slot + (MUTANT ? 0 : chunk)) * sequences.heads + head"), "budget"),
    # Decisions: each warp its own, and the wrong one.
    (Patch("a warp decides alone", "forward.cu", "Outcome voted = outcome<WARPS, LIFTED>(VOTES);",
           "Outcome voted = outcome<WARPS, LIFTED>(VOTES); if (MUTANT && warp() == 1) voted.near = 2 - voted.near;"),
     "barrier"),
    (Patch("always near", "scores.cuh", "found.near = all & 2 ? 0 : all & 1 ? 1 : 2;",
           "found.near = MUTANT || !(all & 2) ? MUTANT || !(all & 1) ? 2 : 1 : 0;"), "budget"),
)


BARRIERS = [f"{path.name}:{number}" for path in sorted(sources.FOLDER.iterdir())
            if path.is_file() and path.name != "target.cuh"
            for number in mutants.barriers(path.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Mutants:
    return Mutants(tmp_path_factory.mktemp("mutants"), tuple(patch for patch, _ in PATCHES), barriers=True)


@pytest.fixture
def checked() -> Iterator[None]:
    with emulator.options(checks="all"):
        yield


def target_of(name: str) -> str:
    return "sm_75" if name.startswith("turing") else "sm_70"


@pytest.mark.parametrize("name", CASES)
def test_without_a_fault_nothing_is_found(patched: Mutants, checked: None, monkeypatch: pytest.MonkeyPatch,
                                          name: str) -> None:
    case, segments = CASES[name]
    with patched.on(None, monkeypatch, target_of(name)):
        assert mutants.caught(case, segments) == set()


def first_caught(patched: Mutants, fault: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    for name, (case, segments) in CASES.items():
        with patched.on(fault, monkeypatch, target_of(name)):
            if found := mutants.caught(case, segments):
                return found
    return set()


@pytest.mark.parametrize("place", BARRIERS)
def test_no_barrier_can_be_left_out(patched: Mutants, checked: None, monkeypatch: pytest.MonkeyPatch,
                                    place: str) -> None:
    assert first_caught(patched, place, monkeypatch) & {"race", "uninitialised"}


@pytest.mark.parametrize(("patch", "kind"), PATCHES, ids=[patch.name for patch, _ in PATCHES])
def test_faults(patched: Mutants, checked: None, monkeypatch: pytest.MonkeyPatch, patch: Patch,
                kind: str) -> None:
    assert kind in first_caught(patched, patch.name, monkeypatch)
