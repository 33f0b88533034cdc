"""Worlds of 2, 3 and 4 processes, started when a test first wants them, and used by all."""

from __future__ import annotations

import pytest
from worlds import World


@pytest.fixture(scope="session")
def world():
    started = {}

    def of(size):
        if size not in started:
            started[size] = World(size)
        return started[size]

    yield of
    for each in started.values():
        each.close()
