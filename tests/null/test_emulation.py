"""``testing.emulate``: a backend without its hardware serves CPU tensors through its emulator."""

import pytest
import torch
from fakes import Fake, registered

import portable_gla
from portable_gla import Reason
from portable_gla.testing import emulate


class Kernels(Fake):
    """A backend for a device that is not here, with an emulator."""

    def __init__(self):
        super().__init__("kernels", reasons=[Reason("device", "serves another device", "buy one")])
        self.emulators = []

    def emulated(self):
        self.emulators.append(Fake("kernels"))
        return self.emulators[-1]


def test_it_serves_calls_that_name_it_or_none_and_no_other_backend_does():
    x = torch.randn(1, 5, 1, 3, requires_grad=True)
    kernels = Kernels()
    with registered(kernels):
        with pytest.raises(portable_gla.UnsupportedProblem):
            portable_gla.attention(x, x, x, backend="kernels")
        with emulate("kernels", segments=2):
            plan = portable_gla.plan(x, x, x)
            assert plan.backend == "kernels" and plan.emulated and "backend   kernels (emulated)" in str(plan)
            assert plan.reasons["cpu"][0].code in ("not-asked", "pin")
            first, second = portable_gla.attention(x, x, x), portable_gla.attention(x, x, x, backend="kernels")
        (first + second).sum().backward()  # outside the context, on the emulator all the same
        assert kernels.emulators[0].seen == [(which, {"segments": 2}) for which in
                                             ("forward", "forward", "backward", "backward")]
        assert kernels.seen == []
        assert portable_gla.plan(x, x, x).backend == "cpu"
        with emulate("kernels"):
            portable_gla.attention(x, x, x)
        assert len(kernels.emulators) == 1  # started once


def test_what_the_emulator_refuses_no_other_backend_takes():
    x = torch.randn(1, 5, 1, 3)
    kernels = Kernels()
    with registered(kernels), emulate("kernels"):
        portable_gla.plan(x, x, x)
        kernels.emulators[0].reasons = [Reason("size", "too small", "")]
        with pytest.raises(portable_gla.UnsupportedProblem, match="too small"):
            portable_gla.attention(x[:, :4], x[:, :4], x[:, :4])


def test_decoding_is_emulated_too():
    x, state = torch.randn(2, 1, 1, 3), torch.zeros(2, 1, 3, 3)
    kernels = Kernels()
    with registered(kernels), emulate("kernels"):
        portable_gla.decode_(x, x, x, None, state)
        assert kernels.emulators[0].seen == [("decode", {})]


@pytest.mark.parametrize(("name", "message"), [
    ("warp", "no such backend; there are .*cpu"), ("cpu", "brings no emulator"), ("cpu:emulated", "no such backend")])
def test_what_cannot_be_emulated_is_refused(name, message):
    with pytest.raises(ValueError, match=message), emulate(name):
        pass


def test_a_bad_pin_leaves_nothing_behind():
    x = torch.randn(1, 5, 1, 3)
    with registered(Kernels()):
        with pytest.raises(ValueError, match="segments"), emulate("kernels", segments=0):
            pass
        assert portable_gla.plan(x, x, x).backend == "cpu"
