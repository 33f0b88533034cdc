"""What a user sets around a call: strictness, pinned parts of the plan, emulation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple


class Settings(NamedTuple):
    """The settings in force; part of the key under which plans are cached."""

    strict: bool = False
    pins: tuple[tuple[str, int], ...] = ()  # sorted, so that equal pins are one cache entry
    emulated: str | None = None  # the backend whose emulator serves CPU tensors


_initial = Settings(strict=os.environ.get("PORTABLE_GLA_STRICT", "0") not in ("", "0"))
_current: ContextVar[Settings] = ContextVar("portable_gla_settings", default=_initial)
current = _current.get


@contextlib.contextmanager
def _changed(settings: Settings) -> Iterator[None]:
    token = _current.set(settings)
    try:
        yield
    finally:
        _current.reset(token)


def strict() -> contextlib.AbstractContextManager[None]:
    """Within the context, refuse (UnsupportedProblem) where the plain-PyTorch backend would step in with a warning."""
    return _changed(current()._replace(strict=True))


def set_strict(value: bool = True) -> None:
    """Set strictness for good, in this thread and those that inherit its context.

    The environment variable ``PORTABLE_GLA_STRICT=1``, read at import, sets it for the whole process.
    """
    _current.set(current()._replace(strict=bool(value)))


def override(**pins: int) -> contextlib.AbstractContextManager[None]:
    """Within the context, fix parts of the plan, such as ``segments=1``.

    A backend that cannot honour a pin refuses with a reason. Forward and backward of one call use the same pins,
    wherever the backward runs; under ``torch.compile`` they are those at the time of tracing.
    """
    for name, value in pins.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"override({name}=...): expected an integer of 1 or more, got {value!r}")
    settings = current()
    return _changed(settings._replace(pins=tuple(sorted({**dict(settings.pins), **pins}.items()))))


def emulating(name: str) -> contextlib.AbstractContextManager[None]:
    """Within the context, backend ``name`` serves CPU tensors through its emulator; see ``testing.emulate``."""
    return _changed(current()._replace(emulated=name))
