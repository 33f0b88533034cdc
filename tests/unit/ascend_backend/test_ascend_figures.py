"""The predictions of the PyTorch operations' schedule, against what these launch and move."""

from __future__ import annotations

import pytest
import torch
from helpers_ascend import TARGET
from portable_gla_ascend.operations import backward, forward
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import portable_gla
from portable_gla import devices
from portable_gla.testing import cases, inputs
from portable_gla.testing.cases import Case


class Count(TorchDispatchMode):
    """Counts operations that are no views, and the bytes of their operands and results."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in function.name():
            self.launches += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


def counted(case, seed):
    given = inputs.make(case, seed)
    call = given.call()
    with Count() as there:
        forward(call)
    with Count() as back:
        backward(call, given.do, given.dfinal_state)
    return there, back


def schedule(case):
    with TARGET.pinned():
        found = portable_gla.plan(case.problem(devices.of(torch.device("cpu"))), backend="ascend")
    return found.schedule


@pytest.mark.parametrize("gate", cases.GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_prediction(gate, dtype, seed):
    case = Case("count", tokens=640, batch=2, key_dim=64, value_dim=96, gate=gate, dtype=dtype, initial_state="each")
    there, back = counted(case, seed)
    found = schedule(case)
    for predicted, seen in ((found.bytes_forward, there.bytes), (found.bytes_backward, back.bytes),
                            (found.launches_forward, there.launches), (found.launches_backward, back.launches)):
        assert predicted == pytest.approx(seen, rel=0.12)


def test_a_longer_call_adds_operations_for_its_states_alone(seed):
    short, long = (counted(Case("count", tokens=64 * chunks), seed) for chunks in (8, 16))
    assert long[0].launches - short[0].launches == 8
    assert long[1].launches - short[1].launches == 16


def test_the_note_names_the_path():
    assert "path: PyTorch operations: operations=1 is pinned" in schedule(Case("note")).notes[0]
