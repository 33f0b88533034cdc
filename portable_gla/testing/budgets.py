"""Error budgets from data: how far from the truth may a result be?

For every element of every output (o, the final state, each gradient) four runs of the oracle's recurrence say what is
fair:

``truth``
    in float64, on the very inputs that the backend saw (rounded to their dtypes), never rounded;
``baseline``
    the straightforward computation: token by token in float32;
``nudged``
    as truth, with every decay exp(g) off by one unit roundoff u of float32 (2⁻²⁴), all in one direction;
``terms``
    the sum of the absolute values of the products that add up to the element: the recurrence on absolute values.

An element's *noise* is then ::

    |baseline - truth|  +  |nudged - truth|  +  u_out · |truth|  +  u · terms

the baseline's error, one rounding of every decay (no library's exp is exact, and its errors may all go one way: of a
constant gate they do), one rounding of the truth to the output's dtype (unit roundoff u_out), and one rounding of the
terms that were summed. Two things keep this fair and sharp:

- A baseline can be right by luck, in a single element above all. So its error counts for at least the row's typical one
  in proportion to the element's terms: RMS over the row of (error / terms), times terms.
- Everything is relative to what an element is made of, so no row of tiny norm hides behind its neighbours: the gradient
  of a gate of -60 is made of terms that all carry exp(-60), and has to be right relative to itself. Where no term
  exists (dg at the first token of a sequence without a state) the budget is zero but for underflow.

Underflow: a backend may flush what falls under the smallest normal float32 to zero, as hardware does, in the middle of
a product too. So numbers end at 64 times that, 7.5e-37: no budget is below it, and in ``terms`` decays, v and do are
clamped from below at values that u brings to it. Then a flushed decay, and a flushed state or adjoint state at any
token (whose loss later growth may magnify), lie within the budget.

A result is held to its budget at three levels: the RMS over the whole tensor, the RMS over every row (the last
dimension: a token's channels, a row of a state), and every single element, with the factors of ``FACTORS``. At the
level of elements, terms are rounded to the inputs' dtype: a matrix unit takes its operands in it, and a sum that
cancels shows that in single elements, not in the norm of a row.

A backend that feeds 16-bit inputs to a matrix unit says so (``rounds_operands``): what it multiplies, decays included,
is rounded to the inputs' dtype, as in any straightforward computation in that dtype. Its rows and tensors may then be
off by that too, each term independently: u of the inputs' dtype times the root of the sum of the terms' squares (the
recurrence on squares). Without it a final state, which is float32 for 16-bit inputs, would be held to float32. The
scores of two tokens are such operands as well: where that is more, a pair of tokens is a term (``scores.py``). In the
gradient of a constant gate, a path from a key to an output counts as often as it crosses the gate, n times, with one
and the same rounding: its term is n times the path, and its square n² times the path's.

float64: no wider computation is at hand on every machine, so the truth has an error like the backend's own. The
baseline's error is then what float32 makes of the same case (inputs rounded to float32), and that and the nudge count
times the ratio of the two units, 2⁻²⁹; u is float64's.

Not held to a budget: elements whose truth passes the range of the output's dtype, or where the float32 baseline
overflows. Where the budget alone passes the range, infinity stands for the largest number.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from portable_gla.backend import Call
from portable_gla.testing import inputs as numbers
from portable_gla.testing import scores
from portable_gla.testing.inputs import Inputs
from portable_gla.testing.oracle import Oracle


class Factors(NamedTuple):
    """How many times its noise a result may be off, per level."""

    whole: float
    row: float
    element: float


FACTORS = {
    torch.float64: Factors(1.5, 4.0, 5.0),
    torch.float32: Factors(1.5, 4.0, 5.0),
    torch.bfloat16: Factors(1.5, 2.0, 2.0),
    torch.float16: Factors(1.5, 2.0, 2.0),
}
"""By the output's dtype.

Needed at most, over all conformance cases and three seeds each: eager 0.7, 2.2, 2.8 in float32 (whole, row, element),
0.5, 1.7, 2.6 in float64, 0.8, 1.2, 1.0 in 16 bits; cpu 0.5, 1.8, 2.4 in float32, 0.8, 1.1, 1.0 in 16 bits.
"""
_FEW = 32
"""A norm over fewer elements is held to the next finer level's factor: a few errors vary as much as one does."""

QUANTITIES = ("o", "final_state", "dq", "dk", "dv", "dg", "dinitial_state", "dbonus")
_TINY = 2**6 * torch.finfo(torch.float32).smallest_normal  # a flushed product may have met factors of 64 afterwards
_SMALLEST_TERM = 2 * _TINY / torch.finfo(torch.float32).eps  # u times it is _TINY
_SMALLEST_ADDED = 2**7 * _SMALLEST_TERM  # of v and do: they meet k and scale · q, which may well be below 1


@dataclass(frozen=True)
class Expected:
    """What a quantity should be, and the noise of its elements by level; all float64, on the CPU."""

    truth: Tensor
    noise: Tensor
    element_noise: Tensor
    ignored: Tensor  # bool: beyond the range of the output's dtype or of float32, so that any computation may overflow
    factors: Factors

    def part(self, rows: list[int]) -> Expected:
        """Take some rows of the first dimension."""
        return Expected(self.truth[rows], self.noise[rows], self.element_noise[rows], self.ignored[rows], self.factors)


class Verdict(NamedTuple):
    """A result against its budget, at the level where it does worst."""

    error: float
    budget: float
    ok: bool
    where: str

    @property
    def ratio(self) -> float:
        """Error over budget."""
        return self.error / self.budget if self.budget else math.inf if self.error else 0.0


def unit(dtype: torch.dtype) -> float:
    """Return the unit roundoff of a dtype."""
    return torch.finfo(dtype).eps / 2


def rounding(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the most by which rounding to a dtype may move a value, subnormal numbers included."""
    info = torch.finfo(dtype)
    return (value.abs() * unit(dtype)).clamp(min=info.smallest_normal * unit(dtype))


def outputs(oracle: Oracle, call: Call, do: Tensor, dfinal_state: Tensor | None) -> dict[str, Tensor]:
    """Run an oracle forward and backward; name what it returns as in ``QUANTITIES``."""
    o, final_state, residual = oracle.forward(call, save=True)
    assert residual is not None
    found = {"o": o, "final_state": final_state}
    gradients = oracle.backward(call, residual, do, dfinal_state)
    found.update({f"d{name}": gradient for name, gradient in gradients._asdict().items()})
    return {name: value.cpu() for name, value in found.items() if value is not None}


def expected(inputs: Inputs, final_dtype: torch.dtype | None = None, *,
             rounds_operands: bool = False) -> dict[str, Expected]:
    """Compute truth and noise of every quantity of a case.

    The inputs lie on the CPU; ``final_dtype`` is the final state's where it is not the case's own; ``rounds_operands``
    allows what a matrix unit does to 16-bit inputs.
    """
    call, case = inputs.call(), inputs.case
    dtypes = {"o": case.dtype, "final_state": final_dtype or case.state_dtype}
    dtypes.update({f"d{name}": value.dtype for name, value in numbers.tensors(inputs)})
    wide, do, dfinal = _converted(call, inputs, torch.float64)
    truth = outputs(Oracle(), wide, do, dfinal)
    terms = outputs(Oracle(), _absolute(wide), _magnitude(do), None if dfinal is None else dfinal.abs())
    operands = dict.fromkeys(terms, torch.zeros(()))
    if rounds_operands and case.dtype.itemsize == 2:
        squares = _squares(wide, do, dfinal)
        for name, value in scores.squares(wide, do).items():
            squares[name] = squares[name].maximum(value)
        operands = {name: unit(case.dtype) * value.sqrt() for name, value in squares.items()}
    step = unit(torch.float32)
    nudged = truth if wide.g is None else outputs(Oracle(), dataclasses.replace(wide, g=wide.g + step), do, dfinal)
    narrow = _converted(call, inputs, torch.float32)
    baseline = outputs(Oracle(torch.float32), *narrow)
    found, ratio = {}, 1.0
    exact = truth
    if case.dtype == torch.float64:
        ratio = unit(torch.float64) / unit(torch.float32)
        exact = outputs(Oracle(), *_converted(narrow[0], inputs, torch.float64))
    for name, value in truth.items():
        error = ratio * (baseline[name].double() - exact[name]).abs()
        dtype = dtypes[name]
        ignored = ~(baseline[name].isfinite() & (value.abs() <= torch.finfo(dtype).max))
        error = torch.where(ignored, 0.0, error)
        relative = torch.where(error == 0, 0.0, error / terms[name])
        error = error.maximum(_rms(relative, -1)[..., None] * terms[name]) if error.numel() else error
        error = error + ratio * (nudged[name] - value).abs()
        common = error + rounding(value, dtype) + _TINY
        found[name] = Expected(
            value, common + unit(call.state_dtype) * terms[name] + operands[name],
            common + unit(case.dtype) * terms[name], ignored,
            FACTORS[dtype])
    return found


def _squares(call: Call, do: Tensor, dfinal: Tensor | None) -> dict[str, Tensor]:
    """Return the sum of the squares of the terms of every quantity."""
    squared, do, dfinal = _squared(call), do.square(), None if dfinal is None else dfinal.square()
    found = outputs(Oracle(), squared, do, dfinal)
    if squared.g is not None and squared.g.dim() == 1:
        # The recurrence sums n · path² over the paths. Its derivative by the logarithm of the gate sums n² · path².
        step = 1 / (16 * max(call.q.shape[1], 1))
        after, before = (
            outputs(Oracle(), dataclasses.replace(squared, g=squared.g + by), do, dfinal)["dg"] for by in (step, -step))
        found["dg"] = found["dg"].maximum((after - before) / (2 * step))
    return found


def compare(found: Tensor, expected: Expected) -> Verdict:
    """Hold one result to its budget at every level; NaN, or infinity where a large number is not as good, fails."""
    truth = expected.truth
    if tuple(found.shape) != tuple(truth.shape):
        return Verdict(math.inf, 0.0, False, f"shape {list(found.shape)}, expected {list(truth.shape)}")
    whole, row, element = expected.factors
    largest = torch.finfo(found.dtype).max
    value = found.detach().cpu().double()
    overflows = truth.abs() + element * expected.noise.maximum(expected.element_noise) > largest
    value = torch.where(overflows & (value == truth.sign() * math.inf), truth.sign() * largest, value)
    error = (value - truth).abs().nan_to_num(nan=math.inf)
    error, noise, element_noise = (
        x.masked_fill(expected.ignored, 0.0) for x in (error, expected.noise, expected.element_noise))
    if error.numel() == 0:
        return Verdict(0.0, 0.0, True, "empty")
    if error.shape[-1] < _FEW:
        row = element
    if error.numel() < _FEW:
        whole = element
    verdicts = [Verdict(_rms(error).item(), whole * _rms(noise).item(), True, "whole"),
                _worst(_rms(error, -1), row * _rms(noise, -1), "row"),
                _worst(error, element * element_noise, "element")]
    worst = max(verdicts, key=lambda verdict: verdict.ratio)
    return worst._replace(ok=worst.ratio <= 1.0)


def _worst(error: Tensor, budget: Tensor, level: str) -> Verdict:
    ratio = torch.where(error == 0, 0.0, error / budget)
    place = int(ratio.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), error.shape)]
    return Verdict(error.flatten()[place].item(), budget.flatten()[place].item(), True, f"{level} {index}")


def _rms(x: Tensor, dim: int | None = None) -> Tensor:
    # Scaled by the largest element: squares of what is below 1e-154 or above 1e154 leave float64.
    largest = x.amax(dim, keepdim=True) if dim is not None else x.max()
    scaled = torch.where(largest.isinf(), torch.where(x.isinf(), 1.0, 0.0), x / largest.clamp(min=1e-300))
    mean = scaled.square().mean(dim, keepdim=True) if dim is not None else scaled.square().mean()
    found = torch.where(largest == 0, 0.0, largest * mean.sqrt())
    return found.squeeze(dim) if dim is not None else found


def _converted(call: Call, inputs: Inputs, dtype: torch.dtype) -> tuple[Call, Tensor, Tensor | None]:
    names = ("q", "k", "v", "g", "initial_state", "bonus")
    values: dict[str, Any] = {name: getattr(call, name) for name in names}
    dfinal = inputs.dfinal_state
    changed: dict[str, Any] = {name: None if x is None else x.to(dtype) for name, x in values.items()}
    return (dataclasses.replace(call, **changed),
            inputs.do.to(dtype), None if dfinal is None else dfinal.to(dtype))


def _absolute(call: Call) -> Call:
    names = ("q", "k", "initial_state", "bonus")
    values: dict[str, Any] = {name: getattr(call, name) for name in names}
    changed: dict[str, Any] = {name: None if x is None else x.abs() for name, x in values.items()}
    return dataclasses.replace(
        call, scale=abs(call.scale), g=None if call.g is None else call.g.clamp(min=math.log(_SMALLEST_TERM)),
        v=_magnitude(call.v), **changed)


def _squared(call: Call) -> Call:
    names = ("q", "k", "v", "initial_state", "bonus")
    values: dict[str, Any] = {name: getattr(call, name) for name in names}
    changed: dict[str, Any] = {name: None if x is None else x.square() for name, x in values.items()}
    return dataclasses.replace(call, scale=call.scale**2, g=None if call.g is None else 2 * call.g, **changed)


def _magnitude(x: Tensor) -> Tensor:
    return x.abs().clamp(min=_SMALLEST_ADDED)
