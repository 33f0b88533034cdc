"""The conformance checks: what the contract promises of any backend, one function a promise.

``pytest tests/conformance`` and ``portable-gla verify`` both run these. A check takes a target, a case and a seed, and
yields rows: an error, the budget it is held to (0: equal to the bit), and whether it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import portable_gla
from portable_gla import settings
from portable_gla.testing import budgets
from portable_gla.testing import inputs as numbers
from portable_gla.testing.budgets import Expected
from portable_gla.testing.cases import Case
from portable_gla.testing.inputs import Inputs
from portable_gla.testing.poison import poisoned_memory
from portable_gla.testing.running import Target, run


@dataclass(frozen=True)
class CheckRow:
    """One promise held against one case."""

    case: str
    quantity: str  # "o", "dq", ..., or the promise: "repeatable", "packed = separate"
    error: float
    budget: float
    ok: bool
    note: str = ""

    def __str__(self) -> str:
        return (f"{self.case}: {self.quantity}: error {self.error:.3g}, budget {self.budget:.3g}"
                f"{f' ({self.note})' if self.note else ''}{'' if self.ok else ' FAILED'}")


Check = Callable[[Target, Case, int], Iterator[CheckRow]]
CHECKS: dict[str, tuple[Check, Callable[[Case], bool]]] = {}
"""Every check by name, with the cases that it applies to."""


def _check(applies: Callable[[Case], bool]) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        @functools.wraps(check)
        def guarded(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
            reasons = target.reasons_against(case)
            with poisoned_memory():
                if reasons:
                    yield _refusal(target, case, seed)
                else:
                    yield from check(target, case, seed)

        CHECKS[check.__name__] = guarded, applies
        return guarded

    return register


def verify(backend: str, device: torch.device, cases: Iterable[Case], seed: int) -> Iterator[CheckRow]:
    """Run every check that applies on every case; within ``testing.emulate(backend)``, on the emulator."""
    target = Target(backend, device, emulated=settings.current().emulated == backend)
    for case in cases:
        for check, applies in CHECKS.values():
            if applies(case):
                yield from check(target, case, seed)


@functools.lru_cache(maxsize=64)
def _expected(case: Case, seed: int, without: str = "") -> Mapping[str, Expected]:
    return budgets.expected(_drop_root(numbers.make(case, seed), without))


def _drop_root(inputs: Inputs, without: str) -> Inputs:
    """Let no gradient come back to o or to the final state."""
    if without == "o":
        return dataclasses.replace(inputs, do=torch.zeros_like(inputs.do))
    if without == "final_state" and inputs.dfinal_state is not None:
        return dataclasses.replace(inputs, dfinal_state=torch.zeros_like(inputs.dfinal_state))
    return inputs


def _held(case: Case, found: Mapping[str, Tensor], expected: Mapping[str, Expected], what: str = "",
          ) -> Iterator[CheckRow]:
    """Hold results to their budgets; a missing or an unasked quantity fails."""
    for name in {**expected, **found}:
        quantity = f"{what}: {name}" if what else name
        if name not in found or name not in expected:
            yield CheckRow(case.name, quantity, math.inf, 0.0, False, "missing" if name in expected else "unexpected")
            continue
        verdict = budgets.compare(found[name], expected[name])
        yield CheckRow(case.name, quantity, verdict.error, verdict.budget, verdict.ok, verdict.where)


def _same(case: Case, promise: str, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> CheckRow:
    """Hold pairs of results to equality, to the bit; the row tells which differ."""
    worst, differing = 0.0, []
    for name, left, right in pairs:
        if left.shape != right.shape or left.dtype != right.dtype:
            worst, differing = math.inf, [*differing, f"{name}: {list(left.shape)} {left.dtype} against "
                                                      f"{list(right.shape)} {right.dtype}"]
        elif not torch.equal(_bits(left), _bits(right)):
            differing.append(name)
            worst = max(worst, (left.double() - right.double()).abs().nan_to_num(nan=math.inf).max().item())
    return CheckRow(case.name, promise, worst, 0.0, not differing, ", ".join(differing))


def _bits(x: Tensor) -> Tensor:
    x = x + 0.0  # -0.0 becomes 0.0: the sign of zero is no result
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _refusal(target: Target, case: Case, seed: int) -> CheckRow:
    """Hold a backend to its refusal: the call must raise, with the backend's reasons."""
    reasons = target.reasons_against(case)
    note = "; ".join(reason.text for reason in reasons)
    try:
        run(target, numbers.make(case, seed, target.device))
    except portable_gla.UnsupportedProblem as error:
        told = all(reason.text in str(error) for reason in reasons)
        return CheckRow(case.name, "refused", 0.0, 0.0, told, note if told else f"the error does not say: {note}")
    return CheckRow(case.name, "refused", math.inf, 0.0, False, f"ran, against its own reasons: {note}")


def _variant(case: Case) -> bool:
    """Tell whether a case stands for its kind in the checks that compare a backend with itself."""
    return bool({"quick", "large"} & case.tags) or case.lengths is not None


@_check(lambda case: True)
def within_budget(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """o, the final state and every gradient lie within their budgets, and a second run gives the same bits."""
    inputs = numbers.make(case, seed, target.device)
    found = run(target, inputs)
    yield from _held(case, found, _expected(case, seed))
    again = run(target, inputs)
    yield _same(case, "repeatable", ((name, found[name], again[name]) for name in found))
    given = numbers.make(case, seed, target.device)
    yield _same(case, "inputs untouched", (
        (name, value, getattr(given, name)) for name, value in numbers.tensors(inputs)))


@_check(lambda case: _variant(case) and case.tokens > 1)
def segmented(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Two and three segments give what one gives, within budget; a backend without segments refuses the pin."""
    for segments in (1, 2, 3):
        reasons = target.reasons_against(case, segments=segments)
        if reasons:
            codes = {reason.code for reason in reasons}
            yield CheckRow(case.name, f"segments = {segments} refused", 0.0, 0.0, codes == {"pin"} and segments > 1,
                           "; ".join(reason.text for reason in reasons))
            continue
        found = run(target, numbers.make(case, seed, target.device), segments=segments)
        yield from _held(case, found, _expected(case, seed), f"segments = {segments}")


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

    def state(x: Tensor | None, which: slice) -> Tensor | None:
        return None if x is None else x[which]

    return Inputs(
        dataclasses.replace(case, batch=1, lengths=None, tokens=length), *(part(x) for x in (  # type: ignore[arg-type]
            inputs.q, inputs.k, inputs.v, inputs.g)), state(inputs.initial_state, own), inputs.bonus, None,
        part(inputs.do), state(inputs.dfinal_state, slice(index, index + 1)))  # type: ignore[arg-type]


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


@_check(lambda case: case.sequences > 1 and case.layout == "BTHD")
def batch_invariant(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """A sequence alone gives the bits that it gives in a batch or a pack (one segment being pinned)."""
    inputs = numbers.make(case, seed, target.device)
    together = run(target, inputs, segments=1)
    promise = "batch-invariant" if case.lengths is None else "packed = separate"
    for index in sorted({0, case.sequences // 2, case.sequences - 1}):
        alone = run(target, _alone(inputs, index), segments=1)
        yield _same(case, promise, (
            (f"{name} of sequence {index}", _sequence_of(inputs, name, together[name], index), alone[name])
            for name in _own(case) if name in together))


@_check(lambda case: case.strides != "contiguous")
def strided(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Strided and expanded inputs give the bits of contiguous ones."""
    inputs = numbers.make(case, seed, target.device)
    dense = dataclasses.replace(inputs, **{
        name: value.clone(memory_format=torch.contiguous_format) for name, value in numbers.tensors(inputs)})
    left, right = run(target, inputs), run(target, dense)
    yield _same(case, "strided = contiguous", ((name, left[name], right[name]) for name in right))
    # The loss o.sum() sends back a gradient with stride 0 everywhere.
    ones = torch.ones((), dtype=case.dtype, device=target.device).expand(inputs.do.shape)
    left, right = run(target, inputs, do=ones), run(target, dense, do=ones.contiguous())
    yield _same(case, "expanded do = contiguous do", ((name, left[name], right[name]) for name in right))


@_check(lambda case: case.layout == "BHTD")
def either_layout(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Layout BHTD gives the bits of BTHD."""
    inputs = numbers.make(case, seed, target.device)
    other = dataclasses.replace(inputs, case=dataclasses.replace(case, layout="BTHD"))
    left, right = run(target, inputs), run(target, other)
    yield _same(case, "BHTD = BTHD", ((name, left[name], right[name]) for name in right))


@_check(lambda case: case.reverse and case.lengths is None)
def flipped(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """A sequence that is flipped by hand and run forward gives what ``reverse`` has to give."""
    inputs = numbers.make(case, seed, target.device)
    turned = dataclasses.replace(inputs, case=dataclasses.replace(case, reverse=False), **{
        name: value.flip(1) for name, value in (*numbers.tensors(inputs), ("do", inputs.do))
        if value.dim() > 2 and name != "initial_state"})
    found = run(target, turned)
    found.update({name: found[name].flip(1) for name in ("o", "dq", "dk", "dv", "dg")
                  if name in found and found[name].dim() > 2})
    yield from _held(case, found, _expected(case, seed), "flipped")


@_check(lambda case: _variant(case) and case.tokens > 1 and case.lengths is None and case.layout == "BTHD"
        and case.final_state)
def chained(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """Two calls, the second from the first one's final state, give what one call gives: gradients too."""
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
            g = leaves["g"] if "g" in leaves else None
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
        yield from _held(case, found, {name: x for name, x in _expected(case, seed).items() if name in found},
                         "chained")
        return
    yield from _held(case, found, _expected(case, seed), "chained")


@_check(lambda case: _variant(case) and case.tokens > 1 and case.lengths is None and case.layout == "BTHD"
        and case.strides == "contiguous")
def causal(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """What comes later leaves no trace in earlier outputs, however large it is."""
    inputs = numbers.make(case, seed, target.device)
    expected = {"o": _expected(case, seed)["o"]}
    for cut in sorted({case.tokens // 2, min(17, case.tokens - 1), case.tokens - 1} - {0}):
        later = slice(None, case.tokens - cut) if case.reverse else slice(cut, None)
        changed = {name: value.clone() for name, value in numbers.tensors(inputs)}
        for name in "qkv":
            changed[name][:, later] *= 100.0
        if "g" in changed and changed["g"].dim() > 1:
            changed["g"][:, later] = -1000.0
        o = run(target, dataclasses.replace(inputs, **changed))["o"].cpu()
        held = dataclasses.replace(expected["o"], ignored=expected["o"].ignored.clone())
        held.ignored[:, later] = True
        verdict = budgets.compare(o, held)
        yield CheckRow(case.name, "causal", verdict.error, verdict.budget, verdict.ok,
                       f"tokens {later.start or 0} to {later.stop or case.tokens} changed, {verdict.where}")


@_check(lambda case: _variant(case) and case.sequences > 1 and case.tokens > 0 and case.layout == "BTHD"
        and case.strides == "contiguous")
def isolated_sequences(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """NaN in one sequence stays in that sequence."""
    inputs = numbers.make(case, seed, target.device)
    bounds = None if inputs.cu_seqlens is None else inputs.cu_seqlens.tolist()
    broken = next(i for i in range(case.sequences) if bounds is None or bounds[i] < bounds[i + 1])
    changed = {name: value.clone() for name, value in numbers.tensors(inputs)}
    for name, value in changed.items():
        if name == "initial_state" and value.shape[0] > 1:
            value[broken] = math.nan
        elif name != "initial_state" and name != "bonus" and value.dim() > 1:
            _sequence_of(inputs, name, value, broken).fill_(math.nan)
    sound, found = run(target, inputs), run(target, dataclasses.replace(inputs, **changed))
    yield _same(case, "NaN stays in its sequence", (
        (f"{name} of sequence {index}", *(_sequence_of(inputs, name, x[name], index) for x in (sound, found)))
        for index in range(case.sequences) if index != broken for name in _own(case) if name in sound))


@_check(lambda case: _variant(case) and case.heads > 1 and case.v_heads > 1 and case.tokens > 0
        and case.layout == "BTHD" and case.strides == "contiguous")
def isolated_heads(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """NaN in one head of v stays in the heads that read it."""
    inputs = numbers.make(case, seed, target.device)
    v = inputs.v.clone()
    v[:, :, 0] = math.nan
    sound, found = run(target, inputs), run(target, dataclasses.replace(inputs, v=v))
    reading = [head for head in range(case.heads) if head * case.v_heads // case.heads == 0]
    counts = {"q": case.q_heads, "k": case.k_heads, "v": case.v_heads, "g": case.gate_heads}

    def sane(name: str, value: Tensor) -> Tensor:
        counted = counts.get(name[1:], case.heads)
        kept = [head for head in range(counted) if head not in {h * counted // case.heads for h in reading}]
        return value.index_select(
            0 if value.dim() < 3 else 1 if name in ("final_state", "dinitial_state") else 2,
            torch.tensor(kept, dtype=torch.int64, device=value.device))

    yield _same(case, "NaN stays in its heads", ((name, *(sane(name, x[name]) for x in (sound, found)))
                                                for name in sound))


@_check(lambda case: "quick" in case.tags and case.layout == "BTHD")
def partial_gradients(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """A gradient is the same whichever other inputs want one, and whichever output the loss uses."""
    inputs = numbers.make(case, seed, target.device)
    whole = run(target, inputs)
    for name, _ in numbers.tensors(inputs):
        one = run(target, inputs, wanted=(name,))
        yield _same(case, f"only d{name}", ((key, one[key], whole[key]) for key in one))
    for without in ("o", "final_state") if case.final_state else ():
        rest = "final_state" if without == "o" else "o"
        found = _without(target, inputs, rest)
        yield from _held(case, found, {name: x for name, x in _expected(case, seed, without).items()
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


@_check(lambda case: _variant(case) and case.lengths is None and not case.reverse and case.layout == "BTHD"
        and case.strides == "contiguous" and "large" not in case.tags)
def decodes(target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
    """``decode_`` gives what attention gives, step after step, in the rows that ``slots`` names and no other."""
    dtypes = [case.state_dtype, *([case.dtype] if case.dtype.itemsize == 2 else [])]
    for dtype in dtypes:
        for slots in (False, True):
            try:
                yield from _decode(target, case, seed, dtype, slots)
            except portable_gla.UnsupportedProblem as error:
                yield CheckRow(case.name, "decode refused", 0.0, 0.0, target.backend in str(error), str(error))


def _decode(target: Target, case: Case, seed: int, dtype: torch.dtype, with_slots: bool) -> Iterator[CheckRow]:
    skipped = 1  # of three sequences
    pool = None
    what = f"decode, {str(dtype).removeprefix('torch.')} states{', slots' if with_slots else ''}"
    for step, tokens in enumerate((1, 1, 3)):
        one = dataclasses.replace(case, name=f"{case.name}/{step}", batch=3, tokens=tokens, initial_state="each",
                                  initial_dtype=dtype, final_state=True)
        inputs = numbers.make(one, seed)
        assert inputs.initial_state is not None
        if pool is None:
            # A layer's states in a cache of all layers: [P, layers, H, K, V].
            drawn = numbers.make(dataclasses.replace(one, batch=5), seed).initial_state
            assert drawn is not None
            pool = torch.stack([drawn, drawn], 1).to(target.device)[:, 1]
            if not with_slots:
                pool = pool[:3]
        order = torch.tensor([3, -1, 0], dtype=torch.int32 if step else torch.int64) if with_slots else None
        rows = [3, 4, 0] if with_slots else [0, 1, 2]  # row 4 stands in for the skipped sequence
        before = pool.clone().cpu()
        inputs = dataclasses.replace(inputs, initial_state=before[rows])
        expected = budgets.expected(inputs, dtype)
        given = {name: value.to(target.device) for name, value in numbers.tensors(inputs)}
        out = None if step == 0 else torch.full_like(inputs.do, math.nan, device=target.device)
        with torch.no_grad(), target.pinned():
            o = portable_gla.decode_(
                given["q"], given["k"], given["v"], given.get("g"), pool,
                slots=None if order is None else order.to(target.device), scale=case.scale,
                bonus=given.get("bonus"), out=out, backend=target.backend)
        held = {"o": expected["o"], "final_state": expected["final_state"]}
        after = pool.clone().cpu()
        found = {"o": o.cpu(), "final_state": after[rows]}
        if with_slots:
            kept = [0, 2]
            others = [1, 2, 4]
            yield _same(case, f"{what}: a skipped sequence's o is 0", [
                ("o", o[skipped], torch.zeros_like(o[skipped]))])
            yield _same(case, f"{what}: other rows untouched", [("state", before[others], after[others])])
            held = {name: Expected(*(x[kept] for x in (e.truth, e.noise, e.element_noise, e.ignored)), e.factors)
                    for name, e in held.items()}
            found = {name: x[kept] for name, x in found.items()}
        if out is not None:
            yield CheckRow(case.name, f"{what}: out is returned", 0.0, 0.0, o is out)
        yield from _held(case, found, held, what)
