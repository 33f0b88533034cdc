"""The conformance checks: what the contract promises of any backend, one function a promise.

``pytest tests/conformance`` and ``portable-gla verify`` both run these. A check takes a target, a case and a seed, and
yields rows: an error, the budget it is held to (0: equal to the bit), and whether it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from portable_gla import settings
from portable_gla.testing.cases import Case
from portable_gla.testing.checking import Check, CheckRow
from portable_gla.testing.checks_decoding import decodes
from portable_gla.testing.checks_independence import (
    batch_invariant,
    causal,
    either_layout,
    isolated_heads,
    isolated_sequences,
    strided,
)
from portable_gla.testing.checks_numbers import chained, flipped, partial_gradients, segmented, within_budget
from portable_gla.testing.running import Target

__all__ = ["CHECKS", "Check", "CheckRow", "verify"]

CHECKS: dict[str, Check] = {check.name: check for check in (
    within_budget, segmented, batch_invariant, strided, either_layout, flipped, chained, causal, isolated_sequences,
    isolated_heads, partial_gradients, decodes)}
"""Every check, by name."""


def verify(backend: str, device: torch.device, cases: Iterable[Case], seed: int) -> Iterator[CheckRow]:
    """Run every check that applies on every case; within ``testing.emulate(backend)``, on the emulator."""
    target = Target(backend, device, emulated=settings.current().emulated == backend)
    for case in cases:
        for check in CHECKS.values():
            if check.applies(case):
                yield from check(target, case, seed)
