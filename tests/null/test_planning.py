"""The choice of a backend: reasons kept, priority, strictness, pins, absent devices, the explanation."""

import warnings

import pytest
import torch
from fakes import Fake, registered

import portable_gla
from portable_gla import Problem, Reason, planning, registry


@pytest.fixture
def q():
    return torch.randn(1, 7, 2, 3)


def test_the_highest_priority_that_serves_is_chosen_and_every_reason_kept(q):
    refusing = Fake("refusing", priority=300, reasons=[Reason("size", "too small for me", "take more tokens")])
    with registered(Fake("low", priority=150), Fake("high", priority=200), refusing):
        plan = portable_gla.plan(q, q, q)
        assert plan.backend == "high" and not plan.fallback
        assert {*plan.reasons, "high"} == set(registry.names())
        assert plan.reasons["refusing"] == (Reason("size", "too small for me", "take more tokens"),)
        assert plan.reasons["low"][0].code == "priority"
        assert plan.reasons["reference"][0].code == "by-name-only"
        text = str(plan)
        assert "backend   high" in text and "not refusing: too small for me [size] -> take more tokens" in text


def test_a_named_backend_is_used_or_refused_never_replaced(q):
    with registered(Fake("mine", reasons=[Reason("dtype", "no such dtype", "cast it")])):
        with pytest.raises(portable_gla.UnsupportedProblem) as raised:
            portable_gla.attention(q, q, q, backend="mine")
        assert raised.value.plan.backend is None and raised.value.plan.requested == "mine"
        for part in ("no such dtype", "cast it", "not eager", "'mine' was asked for"):
            assert part in str(raised.value)
        assert isinstance(raised.value, NotImplementedError)
        assert portable_gla.plan(q, q, q, backend="mine").backend is None  # a plan explains, it does not raise


def test_the_plain_backend_steps_in_with_one_warning_per_kind_of_problem():
    x = torch.randn(1, 5, 1, 11, dtype=torch.float64)
    with pytest.warns(portable_gla.PortabilityWarning, match="backend   eager .*the fallback") as caught:
        portable_gla.attention(x, x, x)
    assert "not cpu" in str(caught[0].message) and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        portable_gla.attention(x, x, x)
        portable_gla.attention(x[:, :3], x[:, :3], x[:, :3])  # another T is the same kind
        portable_gla.attention(x, x, x, backend="eager")
    with pytest.warns(portable_gla.PortabilityWarning):
        portable_gla.attention(x, x, x, reverse=True)


def test_strict_refuses_what_would_warn(q):
    x = q.double()
    with portable_gla.strict():
        with pytest.raises(portable_gla.UnsupportedProblem, match="strict mode"):
            portable_gla.attention(x, x, x)
        portable_gla.attention(x, x, x, backend="eager")
        assert portable_gla.plan(q, q, q).backend == "cpu"
    portable_gla.set_strict(True)
    try:
        with pytest.raises(portable_gla.UnsupportedProblem):
            portable_gla.attention(x, x, x)
    finally:
        portable_gla.set_strict(False)
    assert portable_gla.plan(x, x, x).backend == "eager"


def test_pins_reach_the_backend_in_both_passes(q):
    fake = Fake("pinned", priority=200)
    q.requires_grad_()
    with registered(fake):
        with portable_gla.override(segments=3), portable_gla.override(chunk=8):
            assert portable_gla.plan(q, q, q).problem.pins == (("chunk", 8), ("segments", 3))
            o = portable_gla.attention(q, q, q)
        o.sum().backward()  # outside the context
        assert fake.seen == [("forward", {"chunk": 8, "segments": 3}), ("backward", {"chunk": 8, "segments": 3})]
        assert portable_gla.plan(q, q, q).problem.pins == ()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_pin_is_a_positive_integer(value):
    with pytest.raises(ValueError, match="segments"):
        portable_gla.override(segments=value)


def test_a_pin_that_no_backend_has_is_refused(q):
    with portable_gla.override(warps=4), pytest.raises(portable_gla.UnsupportedProblem, match=r"\[pin\]"):
        portable_gla.attention(q, q, q)


@pytest.mark.parametrize("device", ["v100", "h200", "910b", "mi300", "cpu"])
@pytest.mark.parametrize("training", [False, True])
def test_a_problem_without_tensors_is_planned_for_any_device(device, training):
    problem = Problem(tokens=4096, heads=8, key_dim=128, value_dim=128, dtype=torch.float16, training=training)
    plan = portable_gla.plan(problem, device=device)
    assert plan.problem.device.kind == device
    assert plan.backend == {"cpu": "cpu", "910b": "ascend", "v100": "volta"}.get(device, "triton")
    assert plan.cost.compulsory_forward == 1280 * 4096 * 8
    assert plan.cost.compulsory_backward == (3584 - 1280) * 4096 * 8 * training
    assert plan.cost.floor_forward > 0 and plan.cost.peak_memory > plan.cost.compulsory_forward
    assert "floor" in str(plan) and ("not on this machine" in str(plan)) == (device != "cpu")


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match=r"device: expected one of .*v100.*, got 'v1000'"):
        portable_gla.plan(Problem(tokens=1, heads=1, key_dim=1, value_dim=1), device="v1000")


def test_plan_takes_a_device_only_beside_a_problem(q):
    with pytest.raises(TypeError, match="device="):
        portable_gla.plan(q, q, q, device="v100")
    with pytest.raises(TypeError, match="only beside a Problem"):
        portable_gla.plan(Problem(tokens=1, heads=1, key_dim=1, value_dim=1), scale=1.0)


def test_equal_calls_share_a_plan_until_something_changes(q):
    first = portable_gla.plan(q, q, q)
    assert portable_gla.plan(q.clone(), q, q) is first
    assert portable_gla.plan(q, q, q, reverse=True) is not first
    with portable_gla.override(segments=1):
        assert portable_gla.plan(q, q, q) is not first
    with registered(Fake("new", priority=200)):
        assert portable_gla.plan(q, q, q).backend == "new"
    assert portable_gla.plan(q, q, q).backend == "cpu"
    q.requires_grad_()
    assert portable_gla.plan(q, q, q).problem.training
    with torch.no_grad():
        assert not portable_gla.plan(q, q, q).problem.training


def test_the_cache_of_plans_is_bounded(monkeypatch):
    monkeypatch.setattr(planning, "_MOST_PLANS", 4)
    for tokens in range(20):
        x = torch.randn(1, tokens, 1, 1)
        portable_gla.plan(x, x, x)
    assert len(planning._plans) <= 4


def test_tensors_without_data_get_shapes():
    x = torch.empty(2, 9, 1, 4, device="meta", dtype=torch.bfloat16)
    o, state = portable_gla.attention(x, x, x, output_final_state=True, backend="eager")
    assert o.shape == x.shape and o.dtype == x.dtype and o.is_meta
    assert state.shape == (2, 1, 4, 4) and state.dtype == torch.float32
