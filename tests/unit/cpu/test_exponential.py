"""The kernels' own exp, on which every decay rests."""

import math

import torch
from portable_gla_cpu import native


def exponential(x):
    return native.library().exponential(x.contiguous())


def test_accuracy():
    for low in (-0.01, -1.0, -10.0, -87.0):
        x = torch.rand(2**16) * low
        truth = x.double().exp()
        ulps = (exponential(x).double() - truth) / truth / 2**-23
        assert ulps.abs().max() <= 1.1
        assert ulps.mean().abs() <= 0.02  # products over many tokens would add a bias up


def test_positive_and_extreme():
    x = torch.tensor([0.0, -0.0, 1.0, 80.0, 88.7, 88.8, 1e4, math.inf, -87.0, -88.0, -104.0, -1e5, -math.inf, math.nan,
                      -1e-30, 1e-30])
    found = exponential(x)
    assert found[0] == found[1] == found[14] == found[15] == 1.0
    assert torch.allclose(found[2:5].double(), x[2:5].double().exp(), rtol=2e-7)
    assert found[5:8].isinf().all()
    assert found[8] > 0 and found[9] < 1.2e-38  # flushed within a task
    assert (found[10:13] == 0).all()  # exact resets
    assert found[13].isnan()
