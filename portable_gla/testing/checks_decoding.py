"""Checks of ``decode_``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

import portable_gla
from portable_gla.testing import budgets
from portable_gla.testing import inputs as numbers
from portable_gla.testing.cases import Case
from portable_gla.testing.checking import CheckRow, check, held, same, variant
from portable_gla.testing.running import Target


@check(lambda case: variant(case) and case.lengths is None and not case.reverse and case.layout == "BTHD"
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
        inputs = inputs.changed(initial_state=before[rows])
        expected = budgets.expected(inputs, dtype)
        given = {name: value.to(target.device) for name, value in numbers.tensors(inputs)}
        out = None if step == 0 else torch.full_like(inputs.do, math.nan, device=target.device)
        with torch.no_grad(), target.pinned():
            o = portable_gla.decode_(
                given["q"], given["k"], given["v"], given.get("g"), pool,
                slots=None if order is None else order.to(target.device), scale=case.scale,
                bonus=given.get("bonus"), out=out, backend=target.backend)
        budget = {"o": expected["o"], "final_state": expected["final_state"]}
        after = pool.clone().cpu()
        found = {"o": o.cpu(), "final_state": after[rows]}
        if with_slots:
            kept = [0, 2]
            others = [1, 2, 4]
            yield same(case, f"{what}: a skipped sequence's o is 0", [
                ("o", o[skipped], torch.zeros_like(o[skipped]))])
            yield same(case, f"{what}: other rows untouched", [("state", before[others], after[others])])
            budget = {name: e.part(kept) for name, e in budget.items()}
            found = {name: x[kept] for name, x in found.items()}
        if out is not None:
            yield CheckRow(case.name, f"{what}: out is returned", 0.0, 0.0, o is out)
        yield from held(case, found, budget, what)
