"""One small call of each kind, forward, backward and decode: what a sanitizer has the patience to watch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

import portable_gla
from portable_gla.testing import cases, inputs
from portable_gla.testing.running import Target, run

_TOKENS = 130  # past two blocks of 64, and no multiple of anything


def calls(backend: str, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Run them; return a line for each.

    Raises
    ------
    RuntimeError
        If a result has a NaN or an infinity.
    """
    lines = []
    for gate in cases.GATES:
        case = dataclasses.replace(cases.named(f"gate-{gate}-bf16"), name=f"small-{gate}", tokens=_TOKENS, key_dim=64,
                                   value_dim=64, dtype=dtype)
        found = run(Target(backend, device), inputs.make(case, 0, device))
        found |= _decode(case, backend, device)
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                raise RuntimeError(f"gate {gate}: {name} is not finite")
        lines.append(f"gate {gate}: {', '.join(found)}")
    return lines


def _decode(case: cases.Case, backend: str, device: torch.device) -> dict[str, Tensor]:
    given = inputs.make(dataclasses.replace(case, tokens=1), 0, device)
    assert given.initial_state is not None
    with torch.no_grad():
        o = portable_gla.decode_(given.q, given.k, given.v, given.g, given.initial_state, backend=backend)
    return {"decoded o": o, "decoded state": given.initial_state}
