"""Runs the command line in this process."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from portable_gla.cli import app


@pytest.fixture
def cli():
    """Call the command line: ``cli("plan", "--device", "v100")`` gives exit_code, stdout and stderr."""

    def run(*arguments: str):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
