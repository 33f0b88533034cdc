"""The porting guide's own code, on a model of two layers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import torch

import portable_gla
from portable_gla import nn
from portable_gla.compat import fla

GUIDE = Path(__file__).parents[4] / "docs" / "porting_to_ascend.md"


def code():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    namespace = {}
    exec(next(block for block in blocks if "def compare" in block), namespace)
    return namespace


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.GatedLinearAttention(32, num_heads=2)
        self.mix = torch.nn.Linear(32, 32)

    def forward(self, x):
        o = self.attention(x)
        return x + self.mix(o[0] if isinstance(o, tuple) else o)


def test_layers_are_compared():
    model = torch.nn.Sequential(Layer(), Layer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", portable_gla.PortabilityWarning)  # triton-ascend may be missing here
        errors = code()["compare"](model, torch.randn(2, 70, 32))
    assert {"0.attention", "1.mix", "1"} <= set(errors)
    assert max(errors.values()) < 1e-5
    assert next(model.parameters()).device.type == "npu"


def test_the_import_that_the_guide_changes():
    q, k, v = (torch.randn(1, 70, 2, 16, device="npu", requires_grad=True) for _ in range(3))
    g = torch.nn.functional.logsigmoid(torch.randn(1, 70, 2, 16, device="npu"))
    with portable_gla.override(operations=1):
        o, _ = fla.chunk_gla(q, k, v, g)
        once, _ = fla.fused_recurrent_gla(q, k, v, g)
    o.sum().backward()
    assert q.grad is not None and torch.allclose(o.cpu(), once.cpu(), atol=1e-5)
