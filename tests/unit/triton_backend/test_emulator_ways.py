"""Programs that run together give what each gives alone, to the bit, and no fault of theirs is lost."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

import portable_gla_emulator
from portable_gla.testing import cases, inputs
from portable_gla.testing.running import Target, run
from portable_gla_emulator import EmulationError, RaceError, programs, statements, together, walks, ways

KERNELS = portable_gla_emulator.load(Path(__file__).parent / "emulated_kernels")
NAMES = ("gate-channel-f32", "gate-head-f16", "gate-constant-f32", "gate-none-bf16", "packed-many-channel-bf16",
         "regime-slow-channel-bf16", "heads-grouped-channel", "reverse-bonus", "strides-channels-first")


@pytest.fixture
def never_alone(monkeypatch):
    """Fail where programs of a launch run one after another."""
    one_by_one = ways.Run._one_by_one

    def refuse(self):
        assert self._programs == 1 or programs.largest_group() == 1, f"{self._function.__name__}: program by program"
        return one_by_one(self)

    monkeypatch.setattr(ways.Run, "_one_by_one", refuse)


@pytest.mark.parametrize("backend", ["triton", "ascend"])
@pytest.mark.parametrize("name", NAMES)
def test_bits_of_programs_that_run_alone(backend, name, seed, never_alone):
    target, given = Target(backend, emulated=True), inputs.make(cases.named(name), seed)
    whole = run(target, given)
    with together(1):
        alone = run(target, given)
    assert [key for key in alone if not torch.equal(bits(alone[key]), bits(whole[key]))] == []


def bits(x):
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


@pytest.mark.parametrize("most", [1, 2, 3, 64])
def test_ways_that_part_after_stores(most):
    torch.manual_seed(0)
    size, count = 4, 11
    x, turns = torch.randn(count * size), torch.arange(count, dtype=torch.int32) % 4
    expected = torch.ones(count, size)
    for program in range(count):
        value = x[program * size:(program + 1) * size]
        if value.sum() > 0:
            expected[program] += value
            if program % 3 == 0:
                continue
        for turn in range(int(turns[program])):
            expected[program] = expected[program] * 2 + program + turn
    out = torch.zeros(count * size)
    with together(most):
        KERNELS.apart[(count,)](x, turns, out, N=size)
    assert torch.equal(out.view(count, size), expected)


@pytest.mark.parametrize("items", [0, 1, 5, 200])
def test_pieces_run_together(items, never_alone):
    x, out = torch.randn(items * 8), torch.zeros(items * 8)
    KERNELS.walk[(3,)](x, out, items, N=8)
    factors = 2.0 + 2.0 * (torch.arange(items) % 2)
    assert torch.equal(out.view(items, 8), x.view(items, 8) * factors[:, None])


def test_what_a_walk_carries_is_carried():
    x, out = torch.ones(7 * 4), torch.zeros(7)
    KERNELS.walk_and_carry[(3,)](x, out, 7, N=4)
    assert out.tolist() == [4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 12.0]


def test_a_program_may_load_what_its_piece_before_stored():
    out = torch.zeros(7)
    KERNELS.walk_and_read_back[(3,)](out, 7)
    assert out.tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0]


def test_pieces_of_two_programs_that_meet_are_a_race():
    with pytest.raises(RaceError, match="program 1 stores what program 0 stores to"):
        KERNELS.walk_into_another[(2,)](torch.zeros(6), 5)


@pytest.mark.parametrize(("body", "found"), [
    ("    for item in range(tl.program_id(0), items, tl.num_programs(0)):\n        x = item\n", True),
    ("    for item in range(tl.program_id(0), items, tl.num_programs(0)):\n        items = item\n", False),
    ("    x = 0\n    for item in range(tl.program_id(0), items, tl.num_programs(0)):\n        x += item\n", False),
    ("    for item in range(tl.program_id(0), items, tl.num_programs(0)):\n        break\n", False),
    ("    for item in range(tl.program_id(0), items, tl.num_programs(0)):\n        x = item\n    y = 0\n", False),
    ("    for item in range(tl.program_id(0), items, 3):\n        x = item\n", False),
])
def test_what_a_walk_is(body, found):
    (function,) = ast.parse(f"def kernel(items):\n{body}").body
    assert isinstance(function, ast.FunctionDef)
    assert (walks.walk_of(function) is not None) == found


def test_what_fails_together_only_is_an_error(monkeypatch):
    def fail(values):
        if values.size > 1:
            raise ValueError("not for several")
        return values[0]

    monkeypatch.setattr(statements, "agreed", fail)
    out = torch.zeros(5 * 4)
    with pytest.raises(EmulationError, match="the emulator is wrong"):
        KERNELS.apart[(5,)](torch.ones(20), torch.zeros(5, dtype=torch.int32), out, N=4)


def test_what_groups_stored_is_taken_back_before_programs_run_alone(monkeypatch):
    """Else the first program alone would count up from what it counted together with others."""
    begun = []
    body = KERNELS.apart.body

    def twice(**values):
        body(**values)
        begun.append(1)
        if len(begun) == 1:
            raise programs.NotTogether

    monkeypatch.setattr(KERNELS.apart, "body", twice)
    out = torch.zeros(5 * 4)
    KERNELS.apart[(5,)](-torch.ones(20), torch.zeros(5, dtype=torch.int32), out, N=4)
    assert out.tolist() == [1.0] * 20


def test_keys_part_a_group_and_keep_its_order():
    seen = []

    def run_one(group):
        if (group % 3 != group[0] % 3).any():
            raise programs.Apart(group % 3)
        seen.append(group.tolist())

    programs.run_in_groups(7, run_one)
    assert seen == [[0, 3, 6], [1, 4], [2, 5]]
    assert np.array_equal(programs.agreed(np.array([2, 2])), 2)
