"""Poisoned memory: what a backend allocates and forgets to write must show."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch

_M_PERTURB = -6  # of glibc's mallopt: fill what malloc gives with the complement of a byte, what free takes with it
_BYTE = 0x80  # malloc gives 0x7f7f...: NaN in float16, 3.4e38 in bfloat16 and float32, 1.4e306 in float64


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the context, ``torch.empty`` and its kin are full of NaN, and malloc's memory of huge numbers.

    The first holds on every device (PyTorch's deterministic mode fills what it allocates); the second, for kernels
    that allocate scratch themselves, with glibc only, and past the 1 KiB up to which it reuses blocks as they are.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    perturb = getattr(ctypes.CDLL(None), "mallopt", None)
    # Only the filling is wanted: an operation that has no deterministic form is for the test of repeatability to find.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    if perturb is not None:
        perturb(_M_PERTURB, _BYTE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        if perturb is not None:
            perturb(_M_PERTURB, 0)
