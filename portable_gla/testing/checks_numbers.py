"""Checks of the numbers: every way to compute a case lies within the case's budgets."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

import portable_gla
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.checking import CheckRow, check, expected, held, same, variant
from portable_gla.testing.inputs import Inputs
from portable_gla.testing.running import Target, run


@check(lambda case: True)
def within_budget(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold o, the final state and every gradient to their budgets, and a second run to the same bits."""
    inputs = numbers.make(case, seed, target.device)
    found = run(target, inputs)
    yield from held(case, found, expected(target, case, seed))
    again = run(target, inputs)
    yield same(case, "repeatable", ((name, found[name], again[name]) for name in found))
    given = numbers.make(case, seed, target.device)
    yield same(case, "inputs untouched", (
        (name, value, getattr(given, name)) for name, value in numbers.tensors(inputs)))


@check(lambda case: variant(case) and case.tokens > 1)
def segmented(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold one, two and three segments to the budgets; a backend without segments refuses the pin."""
    for segments in (1, 2, 3):
        reasons = target.reasons_against(case, segments=segments)
        if reasons:
            codes = {reason.code for reason in reasons}
            yield CheckRow(case.name, f"segments = {segments} refused", 0.0, 0.0, codes == {"pin"} and segments > 1,
                           "; ".join(reason.text for reason in reasons))
            continue
        found = run(target, numbers.make(case, seed, target.device), segments=segments)
        yield from held(case, found, expected(target, case, seed), f"segments = {segments}")


@check(lambda case: case.reverse and case.lengths is None)
def flipped(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold a sequence that is flipped by hand and run forward to what ``reverse`` has to give."""
    inputs = numbers.make(case, seed, target.device)
    turned = inputs.changed(case=dataclasses.replace(case, reverse=False), **{
        name: value.flip(1) for name, value in (*numbers.tensors(inputs), ("do", inputs.do))
        if value.dim() > 2 and name != "initial_state"})
    found = run(target, turned)
    found.update({name: found[name].flip(1) for name in ("o", "dq", "dk", "dv", "dg")
                  if name in found and found[name].dim() > 2})
    yield from held(case, found, expected(target, case, seed), "flipped")


@check(lambda case: variant(case) and case.tokens > 1 and case.lengths is None and case.layout == "BTHD"
        and case.final_state)
def chained(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold two calls, the second from the first one's final state, to what one call gives: gradients too."""
    inputs = numbers.make(case, seed, target.device)
    leaves = {name: value.detach().requires_grad_() for name, value in numbers.tensors(inputs)}
    cut = case.tokens // 3 + 1
    parts = [slice(None, cut), slice(cut, None)]
    if case.reverse:
        parts.reverse()
    outputs: list[Tensor] = []
    state = leaves.get("initial_state")
    with target.pinned():
        for tokens in parts:
            q, k, v = (leaves[name][:, tokens] for name in "qkv")
            g = leaves.get("g")
            o, state = portable_gla.attention(
                q, k, v, g if g is None or g.dim() == 1 else g[:, tokens], scale=case.scale, initial_state=state,
                output_final_state=True, reverse=case.reverse, bonus=leaves.get("bonus"), backend=target.backend)
            outputs.append(o)
        if case.reverse:
            outputs.reverse()
    o = torch.cat(outputs, 1)
    assert state is not None and inputs.dfinal_state is not None
    gradients = torch.autograd.grad([o, state], list(leaves.values()), [inputs.do, inputs.dfinal_state])
    found = {"o": o, "final_state": state, **{f"d{n}": x for n, x in zip(leaves, gradients, strict=True)}}
    if case.dtype in (torch.float16, torch.bfloat16):
        # Each call rounds its part of a sum over calls to the input's dtype: another rounding than one call's.
        found = {name: value for name, value in found.items() if value.dim() == 4 and name != "dinitial_state"}
        yield from held(case, found, {name: x for name, x in expected(target, case, seed).items() if name in found},
                         "chained")
        return
    yield from held(case, found, expected(target, case, seed), "chained")


@check(lambda case: "quick" in case.tags and case.layout == "BTHD")
def partial_gradients(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Hold each gradient to the same bits when it alone is wanted, and to its budget when the loss uses one output.

    An emulator is slow: there it is one gradient of each case, which one changes from case to case and seed to seed.
    """
    inputs = numbers.make(case, seed, target.device)
    whole = run(target, inputs)
    names = [name for name, _ in numbers.tensors(inputs)]
    if target.emulated:
        names = [names[(zlib.crc32(case.name.encode()) + seed) % len(names)]]
    for name in names:
        one = run(target, inputs, wanted=(name,))
        yield same(case, f"only d{name}", ((key, one[key], whole[key]) for key in one))
    for without in ("o", "final_state") if case.final_state else ():
        rest = "final_state" if without == "o" else "o"
        found = _without(target, inputs, rest)
        yield from held(case, found, {name: x for name, x in expected(target, case, seed, without).items()
                                       if name not in ("o", "final_state")}, f"loss of {rest} only")


def _without(target: Target, inputs: Inputs, root: str) -> dict[str, Tensor]:
    """Take the gradients of a loss that uses one output only."""
    leaves = {name: value.detach().requires_grad_() for name, value in numbers.tensors(inputs)}
    with target.pinned():
        o, final_state = portable_gla.attention(
            leaves["q"], leaves["k"], leaves["v"], leaves.get("g"), scale=inputs.case.scale,
            initial_state=leaves.get("initial_state"), output_final_state=True, cu_seqlens=inputs.cu_seqlens,
            reverse=inputs.case.reverse, bonus=leaves.get("bonus"), backend=target.backend)
    output, seed = (o, inputs.do) if root == "o" else (final_state, inputs.dfinal_state)
    gradients = torch.autograd.grad(output, list(leaves.values()), seed)
    return {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
