"""Runs the hardware CI's command line in this process, on tiny pieces of its work."""

from __future__ import annotations

import sys

import pytest
import yaml
from helpers_hardware import ROOT, TINY
from typer.testing import CliRunner

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # the package is run from the checkout, and is in no wheel

from hardware_ci import bandwidth
from hardware_ci.cli import app
from portable_gla import registry


@pytest.fixture
def hardware_ci(monkeypatch):
    """Call the command line: ``hardware_ci("run", "--quick")`` gives exit_code, stdout and stderr."""
    monkeypatch.setattr(bandwidth, "_BRIEF", 2**20)

    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def tiny(hardware_ci, tmp_path):
    """Run the least there is, with more arguments; gives the outcome and the document that was written."""

    def run(*arguments, base=TINY):
        for path in tmp_path.glob("*.yaml"):
            path.unlink()
        result = hardware_ci("run", *base, "--out", tmp_path, *arguments)
        path, = tmp_path.glob("*.yaml")
        return result, yaml.safe_load(path.read_text(encoding="utf-8"))

    return run


@pytest.fixture
def broken():
    """Register a backend, "broken", that is the eager one with a fault; its ``fault`` is called with o."""
    eager = type(registry.get("eager"))

    class Broken(eager):
        name = "broken"
        priority = -1

        @staticmethod
        def fault(o):
            return o * 1.01

        def forward(self, call, *, save):
            o, state, residual = super().forward(call, save=save)
            return self.fault(o), state, residual

    backend = Broken()
    registry.register(backend)
    yield backend
    registry.unregister("broken")
