"""Checks of what a result must not depend on: the rest of the batch, how memory lies, later tokens, NaN elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from portable_gla.testing import budgets
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.checking import CheckRow, check, expected, same, variant
from portable_gla.testing.inputs import Inputs
from portable_gla.testing.running import Target, run


@check(lambda case: case.sequences > 1 and case.layout == "BTHD")
def batch_invariant(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold a sequence alone to the bits that it gives in a batch or a pack (one segment being pinned)."""
    inputs = numbers.make(case, seed, target.device)
    together = run(target, inputs, segments=1)
    promise = "batch-invariant" if case.lengths is None else "packed = separate"
    for index in sorted({0, case.sequences // 2, case.sequences - 1}):
        alone = run(target, _alone(inputs, index), segments=1)
        yield same(case, promise, (
            (f"{name} of sequence {index}", _sequence_of(inputs, name, together[name], index), alone[name])
            for name in _own(case) if name in together))


@check(lambda case: case.strides != "contiguous")
def strided(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold strided and expanded inputs to the bits of contiguous ones."""
    inputs = numbers.make(case, seed, target.device)
    dense = inputs.changed(**{
        name: value.clone(memory_format=torch.contiguous_format) for name, value in numbers.tensors(inputs)})
    left, right = run(target, inputs), run(target, dense)
    yield same(case, "strided = contiguous", ((name, left[name], right[name]) for name in right))
    # The loss o.sum() sends back a gradient with stride 0 everywhere.
    ones = torch.ones((), dtype=case.dtype, device=target.device).expand(inputs.do.shape)
    left, right = run(target, inputs, do=ones), run(target, dense, do=ones.contiguous())
    yield same(case, "expanded do = contiguous do", ((name, left[name], right[name]) for name in right))


@check(lambda case: case.layout == "BHTD")
def either_layout(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold layout BHTD to the bits of BTHD."""
    inputs = numbers.make(case, seed, target.device)
    other = inputs.changed(case=dataclasses.replace(case, layout="BTHD"))
    left, right = run(target, inputs), run(target, other)
    yield same(case, "BHTD = BTHD", ((name, left[name], right[name]) for name in right))


@check(lambda case: variant(case) and case.tokens > 1 and case.lengths is None and case.layout == "BTHD"
        and case.strides == "contiguous")
def causal(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold earlier outputs to their budgets when what comes later changes, however large it becomes."""
    inputs = numbers.make(case, seed, target.device)
    budget = expected(target, case, seed)["o"]
    for cut in sorted({case.tokens // 2, min(17, case.tokens - 1), case.tokens - 1} - {0}):
        later = slice(None, case.tokens - cut) if case.reverse else slice(cut, None)
        changed = {name: value.clone() for name, value in numbers.tensors(inputs)}
        for name in "qkv":
            changed[name][:, later] *= 100.0
        if "g" in changed and changed["g"].dim() > 1:
            changed["g"][:, later] = -1000.0
        o = run(target, inputs.changed(**changed))["o"].cpu()
        ignored = budget.ignored.clone()
        ignored[:, later] = True
        verdict = budgets.compare(o, dataclasses.replace(budget, ignored=ignored))
        yield CheckRow(case.name, "causal", verdict.error, verdict.budget, verdict.ok,
                       f"tokens {later.start or 0} to {later.stop or case.tokens} changed, {verdict.where}")


@check(lambda case: variant(case) and case.sequences > 1 and case.tokens > 0 and case.layout == "BTHD"
        and case.strides == "contiguous")
def isolated_sequences(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold every other sequence to its bits when one is NaN."""
    inputs = numbers.make(case, seed, target.device)
    bounds = None if inputs.cu_seqlens is None else inputs.cu_seqlens.tolist()
    broken = next(i for i in range(case.sequences) if bounds is None or bounds[i] < bounds[i + 1])
    changed = {name: value.clone() for name, value in numbers.tensors(inputs)}
    for name, value in changed.items():
        if name == "initial_state" and value.shape[0] > 1:
            value[broken] = math.nan
        elif name != "initial_state" and name != "bonus" and value.dim() > 1:
            _sequence_of(inputs, name, value, broken).fill_(math.nan)
    sound, found = run(target, inputs), run(target, inputs.changed(**changed))
    yield same(case, "NaN stays in its sequence", (
        (f"{name} of sequence {index}", _sequence_of(inputs, name, sound[name], index),
         _sequence_of(inputs, name, found[name], index))
        for index in range(case.sequences) if index != broken for name in _own(case) if name in sound))


@check(lambda case: variant(case) and case.heads > 1 and case.v_heads > 1 and case.tokens > 0
        and case.layout == "BTHD" and case.strides == "contiguous")
def isolated_heads(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold to their bits the heads that do not read a head of v that is NaN."""
    inputs = numbers.make(case, seed, target.device)
    v = inputs.v.clone()
    v[:, :, 0] = math.nan
    sound, found = run(target, inputs), run(target, inputs.changed(v=v))
    reading = [head for head in range(case.heads) if head * case.v_heads // case.heads == 0]
    counts = {"q": case.q_heads, "k": case.k_heads, "v": case.v_heads, "g": case.gate_heads}

    def sane(name: str, value: Tensor) -> Tensor:
        counted = counts.get(name[1:], case.heads)
        kept = [head for head in range(counted) if head not in {h * counted // case.heads for h in reading}]
        return value.index_select(
            0 if value.dim() < 3 else 1 if name in ("final_state", "dinitial_state") else 2,
            torch.tensor(kept, dtype=torch.int64, device=value.device))

    yield same(case, "NaN stays in its heads", ((name, sane(name, sound[name]), sane(name, found[name]))
                                                for name in sound))


def _alone(inputs: Inputs, index: int) -> Inputs:
    """Take one sequence out of a batch or a pack."""
    case = inputs.case
    if inputs.cu_seqlens is None:
        rows, tokens, length = slice(index, index + 1), slice(None), case.tokens
    else:
        start, end = inputs.cu_seqlens[index:index + 2].tolist()
        rows, tokens, length = slice(None), slice(start, end), end - start
    own = slice(None) if case.initial_state == "broadcast" else slice(index, index + 1)

    def part(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.dim() == 1 else x[rows, tokens]

    return inputs.changed(
        case=dataclasses.replace(case, batch=1, lengths=None, tokens=length), cu_seqlens=None,
        **{name: part(getattr(inputs, name)) for name in ("q", "k", "v", "g", "do")},
        initial_state=None if inputs.initial_state is None else inputs.initial_state[own],
        dfinal_state=None if inputs.dfinal_state is None else inputs.dfinal_state[index:index + 1])


def _own(case: Case) -> list[str]:
    """List the quantities that each sequence has for itself: others are sums over the batch or the pack."""
    shared = {"dg"} if case.gate == "constant" else set()
    if case.initial_state == "broadcast":
        shared.add("dinitial_state")
    return [name for name in budgets.QUANTITIES if name not in {"dbonus", *shared}]


def _sequence_of(inputs: Inputs, name: str, value: Tensor, index: int) -> Tensor:
    if inputs.cu_seqlens is None or name in ("final_state", "dinitial_state"):
        return value[index:index + 1]
    start, end = inputs.cu_seqlens[index:index + 2].tolist()
    return value[:, start:end]
