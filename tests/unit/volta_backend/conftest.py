"""What the tests of compiling and loading share."""

from __future__ import annotations

from pathlib import Path

import helpers_volta_images as helpers
import pytest
from portable_gla_volta import images, sources
from typer.testing import CliRunner

from portable_gla.cli import app


@pytest.fixture
def own_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources in the place of ``csrc``."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "own.cu").write_text(helpers.SOURCE, encoding="utf-8")
    (folder / "own.cuh").write_text(helpers.HEADER, encoding="utf-8")
    monkeypatch.setattr(sources, "FOLDER", folder)
    images.key.cache_clear()
    yield folder
    images.key.cache_clear()


@pytest.fixture
def cli():
    """Call the command line: ``cli("build", "--backend", "volta")`` gives exit_code, stdout and stderr."""

    def run(*arguments: str):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
