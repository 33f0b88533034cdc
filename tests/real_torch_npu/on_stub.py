"""The Ascend backend's PyTorch operations on tensors of the real torch_npu; ``run.py`` starts this."""

from __future__ import annotations

import argparse
import collections
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from host_operators import HostOperators

import portable_gla
from portable_gla.testing import cases, inputs, poison
from portable_gla.testing.cases import GATES, SHORT
from portable_gla.testing.checking import CheckRow
from portable_gla.testing.checks import CHECKS
from portable_gla.testing.running import Target

NPU = torch.device("npu", 0)
TARGET = Target("ascend", NPU)
BY_CHECK = {
    "within_budget": [*(f"gate-{gate}-{SHORT[dtype]}" for gate in GATES for dtype in cases.DTYPES),
                      *(f"packed-many-{gate}-f32" for gate in GATES), "packed-all-empty-grouped-heads",
                      "reverse-bonus", "bonus-head-bf16", "heads-grouped-channel", "strides-channels-first",
                      "layout-bhtd-channel", "tokens-0", "regime-resets-channel-f32"],
    "partial_gradients": [f"gate-{gate}-f32" for gate in GATES],
    "decodes": [f"gate-{gate}-{dtype}" for gate in GATES for dtype in ("f32", "bf16")],
}


def plans() -> Iterator[CheckRow]:
    """The real tensors reach this backend and this path, and the plan says so."""
    q, k, v, g = (torch.randn(2, 70, 2, 16).to(NPU) for _ in range(4))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        portable_gla.attention(q, k, v, -g.abs())
    plan = portable_gla.plan(q, k, v, g)
    print(plan, end="\n\n")
    said = [str(warning.message) for warning in seen if issubclass(warning.category, portable_gla.PortabilityWarning)]
    for promise, holds in (
            ("backends() has it", any(info.name == "ascend" and info.available for info in portable_gla.backends())),
            ("served by ascend", plan.backend == "ascend" and not plan.emulated),
            (f"chip {plan.problem.device}", str(plan.problem.device) == "910b (Ascend910B2)"),
            ("the path is PyTorch operations", "path: PyTorch operations: " in str(plan)),
            ("a warning says so", len(said) == 1 and "triton-ascend" in said[0])):
        yield CheckRow("plan", promise, 0.0, 0.0, holds)


def autocasts() -> Iterator[CheckRow]:
    """torch_npu's autocast is honoured, gradients included."""
    given = inputs.make(cases.named("gate-channel-f32"), 0, NPU)
    leaves = [x.detach().requires_grad_() for x in (given.q, given.k, given.v, given.g) if x is not None]
    with torch.autocast("npu", dtype=torch.bfloat16):
        o = portable_gla.attention(*leaves, backend="ascend")
    gradients = torch.autograd.grad(o, leaves, torch.ones_like(o))
    yield CheckRow("autocast", "o is bfloat16, gradients float32", 0.0, 0.0, o.dtype == torch.bfloat16 and all(
        gradient.dtype == torch.float32 and gradient.device == NPU for gradient in gradients))


def keeps_float32() -> Iterator[CheckRow]:
    """torch_npu's own switch is off inside a call, and as it was afterwards."""
    given = inputs.make(cases.named("gate-channel-f32"), 0, NPU)
    seen, bmm, switch = [], torch.bmm, torch.npu.matmul
    torch.bmm = lambda *args: (seen.append(switch.allow_hf32), bmm(*args))[1]
    switch.allow_hf32 = True
    try:
        portable_gla.attention(given.q, given.k, given.v, given.g, backend="ascend")
        yield CheckRow("allow_hf32", "off inside, on again", 0.0, 0.0, bool(seen) and not any(seen)
                       and switch.allow_hf32 is True)
    finally:
        switch.allow_hf32, torch.bmm = False, bmm


def poisons() -> Iterator[CheckRow]:
    """The conformance checks see to it that memory is full of NaN: here too."""
    with poison.poisoned_memory(NPU):
        yield CheckRow("poison", "new memory is NaN", 0.0, 0.0, poison.holds(NPU))


def main() -> int:
    """Run the checks; print a row a check and case, and the failures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=None)
    seed = parser.parse_args().seed
    seed = inputs.fresh_seed() if seed is None else seed
    torch.set_num_threads(1)
    began = time.monotonic()
    failed, counted = [], collections.Counter[str]()
    with HostOperators() as operators:
        for rows in (plans(), autocasts(), keeps_float32(), poisons()):
            for row in rows:
                counted["other"] += 1
                failed += [] if row.ok else [row]
        warnings.simplefilter("ignore", portable_gla.PortabilityWarning)
        print(f"{'check':18}{'case':32}{'rows':>6}{'failed':>8}   nearest to its budget")
        for check, names in BY_CHECK.items():
            for name in names:
                found = list(CHECKS[check](TARGET, cases.named(name), seed))
                bad = [row for row in found if not row.ok]
                failed += bad
                counted[check] += len(found)
                near = max((row for row in found if row.budget), key=lambda row: row.error / row.budget, default=None)
                words = f"{near.quantity}: {near.error:.2g} of {near.budget:.2g}" if near else found[0].quantity
                print(f"{check:18}{name:32}{len(found):6}{len(bad):8}   {words}", flush=True)
    print(f"\n{sum(counted.values())} rows ({', '.join(f'{count} {name}' for name, count in counted.items())}), "
          f"{len(failed)} failed, seed {seed}, {time.monotonic() - began:.0f} s")
    own = operators.by_itself
    print(f"torch {torch.__version__}, torch-npu {sys.modules['torch_npu'].__version__}; "
          f"{operators.counts.total()} calls of {len(operators.counts)} operators emulated; "
          f"{own.total()} of {len(own)} by torch_npu: {', '.join(sorted(own)).replace('aten.', '')}")
    print(*failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
