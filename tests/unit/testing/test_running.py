"""Where the suite tests a backend: on a device that it serves, else in its emulator, else nowhere, with the reasons."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import portable_gla
from portable_gla import Reason
from portable_gla.testing import cases, checks
from portable_gla.testing.emulation import emulate
from portable_gla.testing.running import Target, find

sys.path.insert(0, str(Path(__file__).parents[2] / "null"))
from fakes import Fake, registered

CPU = torch.device("cpu")
ELSEWHERE = [Reason("device", "serves another device", "buy one")]


class Kernels(Fake):
    """A backend for a device that is not here, whose emulator is the eager backend under another name."""

    def emulated(self):
        from portable_gla_eager.backend import EagerBackend

        return type("Emulator", (EagerBackend,), {"name": self.name})()


def test_a_device_that_it_serves():
    assert find("eager", CPU) == (Target("eager", CPU), ())
    assert str(Target("eager", CPU)) == "eager"
    assert str(Target("triton", torch.device("cuda", 0))) == "triton@cuda:0"


def test_the_emulator_where_the_device_is_absent():
    with registered(Kernels("kernels", reasons=ELSEWHERE)):
        target, reasons = find("kernels")
        assert target == Target("kernels", CPU, emulated=True) and not reasons
        assert str(target) == "kernels:emulated"
        for row in checks.CHECKS["within_budget"](target, cases.named("gate-channel-f32"), 1):
            assert row.ok


def test_verify_follows_the_emulation_around_it():
    case = cases.named("heads-grouped-channel")
    with registered(Kernels("kernels", reasons=ELSEWHERE)):
        with emulate("kernels"):
            rows = list(checks.verify("kernels", CPU, [case], 1))
        assert {"o", "dq", "dk", "dv", "dg", "repeatable"} <= {row.quantity for row in rows}
        assert all(row.ok for row in rows)
        refused = list(checks.verify("kernels", CPU, [case], 1))
    assert {row.quantity for row in refused} == {"refused"}
    assert all(row.ok and "serves another device" in row.note for row in refused)


@pytest.mark.parametrize("device", [None, CPU])
def test_nowhere(device):
    with registered(Fake("far", reasons=ELSEWHERE)):
        target, reasons = find("far", device)
    assert target is None
    assert [reason.code for reason in reasons] == ["device", "emulator"]


def test_a_backend_that_failed_to_load(monkeypatch):
    broken = Reason("load-error", "raised OSError: no driver", "install it")
    monkeypatch.setitem(portable_gla.registry._failures, "broken", broken)
    assert find("broken") == (None, (broken,))
