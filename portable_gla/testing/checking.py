"""What a check is made of: its rows, the truth it is held to, and the list of all checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import portable_gla
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


@dataclass(frozen=True)
class Check:
    """A promise: called with a target, a case that it applies to and a seed, it yields rows.

    A backend that refuses the case is held to its refusal instead. Memory is poisoned throughout.
    """

    name: str
    applies: Callable[[Case], bool]
    rows: Callable[[Target, Case, int], Iterator[CheckRow]]

    def __call__(self, target: Target, case: Case, seed: int) -> Iterator[CheckRow]:
        """Run the check."""
        with poisoned_memory(target.device):
            if target.reasons_against(case):
                yield refusal(target, case, seed)
            else:
                yield from self.rows(target, case, seed)


def check(applies: Callable[[Case], bool]) -> Callable[[Callable[[Target, Case, int], Iterator[CheckRow]]], Check]:
    """Make a check of a function, for the cases of which ``applies`` is true."""
    return lambda rows: Check(rows.__name__, applies, rows)


def refusal(target: Target, case: Case, seed: int) -> CheckRow:
    """Hold a backend to its refusal: the call must raise, with the backend's reasons."""
    reasons = target.reasons_against(case)
    note = "; ".join(reason.text for reason in reasons)
    try:
        run(target, numbers.make(case, seed, target.device))
    except portable_gla.UnsupportedProblem as error:
        told = all(reason.text in str(error) for reason in reasons)
        return CheckRow(case.name, "refused", 0.0, 0.0, told, note if told else f"the error does not say: {note}")
    return CheckRow(case.name, "refused", math.inf, 0.0, False, f"ran, against its own reasons: {note}")


def variant(case: Case) -> bool:
    """Tell whether a case stands for its kind in the checks that compare a backend with itself."""
    return bool({"quick", "large"} & case.tags) or case.lengths is not None


def expected(target: Target, case: Case, seed: int, without: str = "") -> Mapping[str, Expected]:
    """Compute the truth and the noise of a case; ``without`` "o" or "final_state": of a loss that leaves it out."""
    return _expected(case, seed, without, target.rounds_operands and case.dtype.itemsize == 2)


@functools.lru_cache(maxsize=64)
def _expected(case: Case, seed: int, without: str, rounds_operands: bool) -> Mapping[str, Expected]:
    return budgets.expected(drop_root(numbers.make(case, seed), without), rounds_operands=rounds_operands)


def drop_root(inputs: Inputs, without: str) -> Inputs:
    """Let no gradient come back to o or to the final state."""
    if without == "o":
        return inputs.changed(do=torch.zeros_like(inputs.do))
    if without == "final_state" and inputs.dfinal_state is not None:
        return inputs.changed(dfinal_state=torch.zeros_like(inputs.dfinal_state))
    return inputs


def held(case: Case, found: Mapping[str, Tensor], expected: Mapping[str, Expected], what: str = "",
          ) -> Iterator[CheckRow]:
    """Hold results to their budgets; a missing or an unasked quantity fails."""
    for name in {**expected, **found}:
        quantity = f"{what}: {name}" if what else name
        if name not in found or name not in expected:
            yield CheckRow(case.name, quantity, math.inf, 0.0, False, "missing" if name in expected else "unexpected")
            continue
        verdict = budgets.compare(found[name], expected[name])
        yield CheckRow(case.name, quantity, verdict.error, verdict.budget, verdict.ok, verdict.where)


def same(case: Case, promise: str, pairs: Iterable[tuple[str, Tensor, Tensor]]) -> CheckRow:
    """Hold pairs of results to equality, to the bit; the row tells which differ."""
    worst = 0.0
    differing: list[str] = []
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
