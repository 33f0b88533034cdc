"""``portable-gla doctor`` on this machine; its checks have tests of their own."""

from __future__ import annotations

import json

import pytest
import torch
from portable_gla_eager.backend import EagerBackend

from portable_gla import registry
from portable_gla.cli import doctor, smoke
from portable_gla_doctor import Finding, Severity


def test_this_machine_in_words(cli):
    result = cli("doctor")
    assert result.exit_code == 0, result.stdout
    for text in ("Python ", "PyTorch ", "eager", "reference", "by name", "cpu", "right"):
        assert text in result.stdout


def test_this_machine_as_json(cli):
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["ok"] and found["torch_error"] is None and "torch" in found["packages"]
    assert found["devices"][0]["type"] == "cpu" and found["runs"][0]["device"] == "cpu"
    assert all(run["ok"] and run["backward"] < 1e-3 for run in found["runs"])
    assert {"eager", "reference"} <= {backend["name"] for backend in found["backends"]}


@pytest.mark.parametrize(("severity", "status"), [(Severity.ERROR, 1), (Severity.WARNING, 0)])
def test_an_error_is_1_and_a_warning_0(cli, monkeypatch, severity, status):
    monkeypatch.setattr(doctor, "examine", lambda facts: [Finding("made-up", severity, "what is wrong", "what to do")])
    result = cli("doctor")
    assert result.exit_code == status
    assert f"{severity.value} [made-up] what is wrong" in result.stdout and "-> what to do" in result.stdout


class Faulty(EagerBackend):
    """Gradients a little off, above every other backend."""

    name = "faulty"
    priority = 1000
    plain = False

    def backward(self, *arguments):
        found = super().backward(*arguments)
        return found._replace(q=found.q * 1.01)


class Raising(Faulty):
    """Raises in the forward pass."""

    def forward(self, *arguments, **options):
        raise OSError("the driver is gone")


@pytest.fixture
def registered():
    """Register a backend for the test."""
    names = []

    def register(backend):
        registry.register(backend)
        names.append(backend.name)

    yield register
    for name in names:
        registry.unregister(name)


def test_a_backend_with_wrong_gradients_is_seen(cli, registered):
    registered(Faulty())
    found = json.loads(cli("doctor", "--json").stdout)
    assert not found["ok"] and not found["runs"][0]["ok"]
    assert found["runs"][0]["backend"] == "faulty" and found["runs"][0]["backward"] > smoke.TOLERANCE
    assert found["runs"][0]["forward"] < 1e-5
    result = cli("doctor")
    assert result.exit_code == 1 and "WRONG" in result.stdout and "broken: 1 error" in result.stdout


def test_a_backend_that_raises_is_reported_without_a_traceback(cli, registered):
    registered(Raising())
    result = cli("doctor")
    assert result.exit_code == 1 and "OSError: the driver is gone" in result.stdout


def test_a_device_that_takes_no_tensor_is_a_failed_row() -> None:
    found = smoke.smoke(torch.device("cuda:99"))
    assert not found.ok and found.backend is None and found.problem
