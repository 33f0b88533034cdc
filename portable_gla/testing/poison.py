"""Poisoned memory: what a backend allocates and forgets to write must show."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch

_M_PERTURB = -6  # of glibc's mallopt: fill what malloc gives with the complement of a byte, what free takes with it
_BYTE = 0x80  # malloc gives 0x7f7f...: NaN in float16, 3.4e38 in bfloat16 and float32, 1.4e306 in float64


@contextlib.contextmanager
def _filling() -> Iterator[None]:
    """Fill what Python allocates, for devices that do not do so themselves: inside operators too."""
    places: list[tuple[Any, str]] = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"),
                                     (torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")]
    with contextlib.ExitStack() as stack:
        for owner, name in places:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, _filled(getattr(owner, name)))
        yield


def _filled(allocate: Any) -> Any:
    @functools.wraps(allocate)
    def function(*args: Any, **kwargs: Any) -> Any:
        found = allocate(*args, **kwargs)
        return found.fill_(math.nan) if found.is_floating_point() and found.numel() else found

    return function


def holds(device: torch.device) -> bool:
    """Tell whether memory that the device gives now is full of NaN."""
    return bool(torch.empty(64, device=device).isnan().all())


@contextlib.contextmanager
def poisoned_memory(device: torch.device | None = None) -> Iterator[None]:
    """Within the context, ``torch.empty`` and its kin are full of NaN, and malloc's memory of huge numbers.

    The first holds on every device: PyTorch's deterministic mode fills what the CPU, CUDA and others allocate; on a
    ``device`` whose extension does not, what Python allocates is filled afterwards. The second, for kernels that
    allocate scratch themselves, holds with glibc only, and past the 1 KiB up to which it reuses blocks as they are.
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
        with contextlib.nullcontext() if device is None or holds(device) else _filling():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        if perturb is not None:
            perturb(_M_PERTURB, 0)
