"""The cost model against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch

from portable_gla import devices
from portable_gla.cost import cost, format_bytes, format_seconds
from portable_gla.problem import Device, Problem, Schedule


def problem(**fields: object) -> Problem:
    plain = {"tokens": 1000, "heads": 4, "key_dim": 128, "value_dim": 128, "batch": 3, "dtype": torch.bfloat16}
    return Problem(**{**plain, **fields})


def per_token_head(**fields: object) -> tuple[float, float]:
    one = problem(**fields)
    found = cost(one)
    return found.compulsory_forward / one.token_heads, found.compulsory_backward / one.token_heads


def test_the_compulsory_bytes_of_the_design_document():
    # q, k, g of 128 channels and v, o of 128, 2 bytes each: 5 x 256. Backward: these four and do again, four gradients.
    assert per_token_head() == (1280, 0)
    assert per_token_head(training=True) == (1280, 3584 - 1280)


@pytest.mark.parametrize(("fields", "forward"), [
    ({"gate": "none"}, 1024),
    ({"gate": "head"}, 1024 + 2),  # one number per token and head
    ({"gate": "head", "gate_dtype": torch.float32}, 1024 + 4),
    ({"gate": "channel", "gate_dtype": torch.float32}, 1280 + 256),
    ({"gate": "constant"}, 1024 + 4 * 2 / 12000),  # H numbers in all
    ({"dtype": torch.float32}, 2560),
    ({"dtype": torch.float64}, 5120),
    ({"key_dim": 64}, 3 * 128 + 2 * 256),
    ({"value_dim": 64}, 3 * 256 + 2 * 128),
    ({"q_heads": 1, "gate_heads": 2}, 1280 - 256 * 3 / 4 - 256 / 2),  # shared heads are read once
    ({"initial_state": True}, 1280 + 3 * 4 * 128 * 128 * 4 / 12000),  # float32, one per sequence and head
    ({"final_state": True}, 1280 + 3 * 4 * 128 * 128 * 4 / 12000),
    ({"bonus": True}, 1280 + 4 * 128 * 2 / 12000),
])
def test_forward_bytes_by_hand(fields, forward):
    assert per_token_head(**fields)[0] == pytest.approx(forward, rel=1e-12)


def test_a_packed_problem_has_a_state_per_sequence():
    packed = problem(batch=1, packed=True, sequences=7, final_state=True)
    assert cost(packed).compulsory_forward == 1280 * 4000 + 7 * 4 * 128 * 128 * 4


def test_decode_reads_and_writes_the_state():
    decode = problem(tokens=1, mode="decode", initial_state=True, final_state=True)
    assert cost(decode).compulsory_forward == 12 * (1280 + 2 * 128 * 128 * 4)


def test_operations_are_those_of_the_recurrence():
    found = cost(problem(training=True))
    assert (found.operations_forward, found.operations_backward) == (4 * 128 * 128 * 12000, 10 * 128 * 128 * 12000)
    assert cost(problem()).operations_backward == 0


@pytest.mark.parametrize("kind", ["a100", "h200", "v100", "t4", "mi300", "910b"])
def test_16_bit_inputs_are_bound_by_memory(kind):
    one = problem(device=devices.named(kind), dtype=torch.float16, training=True)
    found, figures = cost(one), devices.table()[kind]
    assert found.floor_forward == pytest.approx(found.compulsory_forward / (figures.bandwidth_gb_s * 1e9))
    assert found.floor_backward == pytest.approx(found.compulsory_backward / (figures.bandwidth_gb_s * 1e9))


@pytest.mark.parametrize(("key_dim", "nanoseconds"), [(64, 0.85), (128, 1.71)])
def test_the_floor_of_the_v100_in_the_design_document(key_dim, nanoseconds):
    one = problem(key_dim=key_dim, value_dim=key_dim, dtype=torch.float16, gate_dtype=torch.float32,
                  device=devices.named("v100"))
    assert cost(one).floor_forward / one.token_heads * 1e9 == pytest.approx(nanoseconds, abs=0.005)


def test_float32_inputs_are_bound_by_the_rate_of_float32_products():
    one = problem(device=devices.named("v100"), dtype=torch.float32)
    assert cost(one).floor_forward == pytest.approx(4 * 128 * 128 * 12000 / 15.7e12)


def test_float64_takes_half_of_the_vector_rate():
    one = problem(device=devices.named("cpu"), dtype=torch.float64)
    rate = devices.table()["cpu"].vector_tflop_s * 1e12 / 2
    assert cost(one).floor_forward == pytest.approx(4 * 128 * 128 * 12000 / rate)


def test_no_row_no_floor():
    found = cost(problem(device=Device("xpu"), training=True))
    assert found.floor_forward is None and found.floor_backward is None


def test_peak_memory_holds_everything_that_lives_at_once():
    schedule = Schedule({}, 1, 1, 0, 0, residual_bytes=1000, workspace_bytes=10)
    tensors = 12000 * 1280
    assert cost(problem(), schedule).peak_memory == tensors + 1010
    assert cost(problem(training=True), schedule).peak_memory == 2 * tensors + 1010
    assert cost(problem()).peak_memory is None


@pytest.mark.parametrize("tokens", [0, 1])
def test_no_tokens_cost_nothing(tokens):
    found = cost(problem(tokens=tokens, training=True, device=devices.named("h200")))
    assert (found.compulsory_forward == 0) == (tokens == 0)
    assert (found.floor_forward == 0) == (tokens == 0)


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1024**2, "1 MiB"),
    (1024**3, "1 GiB"), (5 * 1024**4, "5 TiB"),
])
def test_bytes_read_well(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 ns"), (3.4e-9, "3.4 ns"), (1.5e-6, "1.5 µs"), (0.0123, "12.3 ms"), (2, "2 s"), (4321.4, "4321 s"),
])
def test_times_read_well(seconds, text):
    assert format_seconds(seconds) == text
