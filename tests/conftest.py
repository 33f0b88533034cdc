"""Options of the whole suite, and the seed: fresh every run, printed, and set by ``--seed`` to repeat one."""

from __future__ import annotations

import os

import pytest
import torch

from portable_gla.testing import inputs

SEED = "PORTABLE_GLA_SEED"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("portable_gla")
    group.addoption("--backend", action="append", default=[], metavar="NAME",
                    help="a backend to run the conformance suite on; repeatable; default: all that load")
    group.addoption("--device", default=None, metavar="DEVICE",
                    help="the device to run it on; default: an accelerator that the backend serves, else the CPU")
    group.addoption("--cases", choices=("auto", "all", "quick"), default="auto",
                    help="quick: the small cases; auto: quick for emulated backends, else all")
    group.addoption("--seed", type=int, default=None, help=f"repeat the numbers of an earlier run (or set {SEED})")


def pytest_configure(config: pytest.Config) -> None:
    seed = config.getoption("--seed")
    if seed is None:
        seed = int(os.environ.get(SEED) or inputs.fresh_seed())
    os.environ[SEED] = str(seed)  # workers of pytest-xdist inherit it
    # The oracle's many small operations gain nothing from threads, and lose much where others share the cores.
    # tests/conformance/test_threads.py runs backends on more.
    torch.set_num_threads(1)
    config.addinivalue_line("markers", "slow: takes more than 20 seconds")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"seed {os.environ[SEED]}: repeat these numbers with --seed {os.environ[SEED]}")


@pytest.fixture(scope="session")
def seed() -> int:
    return int(os.environ[SEED])
