"""``portable-gla demo``: the arguments reach the demo; training has tests of its own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def called(monkeypatch):
    """Stand in for the demo; collects its arguments and ends with 0."""
    demo = pytest.importorskip("portable_gla.demo")
    calls = []

    def run(out, seconds, json, seed):
        calls.append((out, seconds, json, seed))
        return 3 if seed == 13 else 0

    monkeypatch.setattr(demo, "run", run)
    return calls


def test_the_arguments_reach_the_demo(cli, called, tmp_path):
    assert cli("demo", "--out", str(tmp_path / "x"), "--seconds", "2.5", "--seed", "4", "--json").exit_code == 0
    assert cli("demo").exit_code == 0
    assert called == [(tmp_path / "x", 2.5, True, 4), (Path("demo-out"), 60.0, False, 0)]


def test_its_exit_status_is_the_command_s(cli, called):
    assert cli("demo", "--seed", "13").exit_code == 3


@pytest.mark.parametrize(("arguments", "words"), [
    (["--seconds", "0"], ["--seconds", "expected a number of 1 or more", "'0'"]),
    (["--seed", "x"], ["--seed", "expected an integer", "'x'"]),
    (["--out", __file__], ["--out"]),
])
def test_a_wrong_argument_is_2_and_named(cli, called, arguments, words):
    result = cli("demo", *arguments)
    assert result.exit_code == 2 and not called
    for word in words:
        assert word in " ".join(result.stderr.replace("│", " ").split())
