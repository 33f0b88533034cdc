"""What a new user sees first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import portable_gla

COMMANDS = ("doctor", "plan", "verify", "bench", "demo", "build")


def test_the_overview_lists_every_command(cli):
    text = cli("--help").stdout
    for command in COMMANDS:
        assert command in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command(cli, command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout and "Usage" in result.stdout


def test_no_command_shows_the_overview(cli):
    result = cli()
    assert "doctor" in result.stdout + result.stderr


def test_the_version(cli):
    assert cli("--version").stdout.strip() == portable_gla.__version__


def test_an_unknown_command_is_2(cli):
    result = cli("benchmark")
    assert result.exit_code == 2 and "benchmark" in result.stderr


@pytest.mark.parametrize("module", ["portable_gla", "portable_gla_doctor"])
def test_both_ways_to_start_it(module, tmp_path):
    found = subprocess.run([sys.executable, "-m", module, "plan", "--device", "nowhere"], cwd=tmp_path,
                           capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2 and found.stdout == "" and "Traceback" not in found.stderr
    assert "Usage: portable-gla plan" in found.stderr
