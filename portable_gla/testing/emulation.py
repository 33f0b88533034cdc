"""Emulation: a backend's real kernel sources on CPU tensors, so that its conformance needs no hardware."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from portable_gla import registry, settings


@contextlib.contextmanager
def emulate(backend: str, **pins: int) -> Iterator[None]:
    """Within the context, ``backend`` serves CPU tensors by running its kernels in its emulator.

    It serves every call that names it or names none, or refuses it: no other backend steps in. A call made within the
    context has its backward pass on the emulator too, wherever that runs.

    Parameters
    ----------
    backend
        A backend that brings an emulator, such as ``"triton"``.
    **pins
        Parts of the plan to fix, as in :func:`portable_gla.override`: ``emulate("triton", segments=2)``.

    Raises
    ------
    ValueError
        If there is no such backend, it failed to load, or it brings no emulator.
    """
    registry.emulated_handle(backend)
    with settings.emulating(backend), settings.override(**pins):
        yield
