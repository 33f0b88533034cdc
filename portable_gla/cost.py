"""Bytes, operations, floor times and peak memory of a problem: a model, never a measurement.

Compulsory bytes are each input read once and each output written once, forward and backward. Gated linear attention
with 16-bit inputs is bound by them on every device of ``devices.yaml``; with float32 inputs and wide heads the products
bind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from portable_gla import devices
from portable_gla.problem import Problem, Schedule


@dataclass(frozen=True)
class Cost:
    """Figures of one problem on one device; times in seconds, None where ``devices.yaml`` has no row for the device."""

    compulsory_forward: int
    compulsory_backward: int  # what the backward pass adds: inputs and do read again, gradients written
    operations_forward: int  # of the recurrence's products, a multiply-add counted as two: k vᵀ and Sᵀ q
    operations_backward: int  # five such products: the states again, their adjoints, dq, dk and dv
    floor_forward: float | None
    floor_backward: float | None
    peak_memory: int | None  # inputs, outputs, gradients, residuals and workspace; None without a schedule
    inputs: int  # bytes of q, k, v, g, bonus and the initial state
    outputs: int  # bytes of o and the final state


def cost(problem: Problem, schedule: Schedule | None = None) -> Cost:
    """Model one problem; with a schedule, peak memory as well."""
    size = problem.dtype.itemsize
    tokens = problem.batch * problem.tokens
    q = tokens * problem.q_heads * problem.key_dim * size
    k = tokens * problem.k_heads * problem.key_dim * size
    v = tokens * problem.v_heads * problem.value_dim * size
    o = tokens * problem.heads * problem.value_dim * size
    g = _gate_elements(problem) * (problem.gate_dtype or problem.dtype).itemsize
    state = problem.sequences * problem.heads * problem.key_dim * problem.value_dim * problem.state_dtype.itemsize
    # A Problem has no dtype of bonus or initial state; they may be wider or narrower than is taken here, and are small.
    bonus = problem.heads * problem.key_dim * size if problem.bonus else 0
    states_in, states_out = state * problem.initial_state, state * problem.final_state
    inputs = q + k + v + g + bonus + states_in
    forward = inputs + o + states_out
    backward = inputs + o + states_out + inputs if problem.training else 0
    products = problem.token_heads * problem.key_dim * problem.value_dim
    operations = 4 * products, (10 * products if problem.training else 0)
    memory = None
    if schedule is not None:
        gradients = o + states_out + inputs if problem.training else 0
        memory = inputs + o + states_out + gradients + schedule.residual_bytes + schedule.workspace_bytes
    return Cost(forward, backward, *operations, _floor(problem, forward, operations[0]),
                _floor(problem, backward, operations[1]), memory, inputs, o + states_out)


def _gate_elements(problem: Problem) -> int:
    per_head = problem.batch * problem.tokens * problem.gate_heads
    return {"channel": per_head * problem.key_dim, "head": per_head, "constant": problem.gate_heads,
            "none": 0}[problem.gate]


def _floor(problem: Problem, moved: int, operations: int) -> float | None:
    figures = devices.table().get(problem.device.kind)
    if figures is None:
        return None
    rate = {2: figures.matrix_tflop_s, 4: figures.float32_tflop_s, 8: figures.vector_tflop_s / 2}[
        problem.dtype.itemsize]
    return max(moved / (figures.bandwidth_gb_s * 1e9), operations / (rate * 1e12))


def format_bytes(count: float) -> str:
    """Write a byte count in a unit that reads well: ``12.5 MiB``."""
    power = min(4, int(math.log(count, 1024))) if count >= 1 else 0
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def format_seconds(seconds: float) -> str:
    """Write a time in a unit that reads well: ``3.4 ms``."""
    if seconds >= 1000:
        return f"{seconds:.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
