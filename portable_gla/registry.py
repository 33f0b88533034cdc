"""Finds the backends: by the entry points of the group ``portable_gla.backends``, or by :func:`register`.

A handle names a backend inside the ops. It is the backend's name, or ``name:emulated`` for its emulator, so that the
backward pass finds the same one outside any context.
"""

from __future__ import annotations

import importlib.metadata
from typing import NamedTuple

from portable_gla.backend import Backend, Emulatable
from portable_gla.problem import Reason

GROUP = "portable_gla.backends"
_EMULATED = ":emulated"


class BackendInfo(NamedTuple):
    """A row of :func:`portable_gla.backends`."""

    name: str
    available: bool
    reasons: tuple[Reason, ...]  # why it is not available
    priority: int | None  # None where it failed to load


_backends: dict[str, Backend] = {}
_failures: dict[str, Reason] = {}
_generation = 0


def generation() -> int:
    """Return a number that changes whenever the set of backends does: part of the key under which plans are cached."""
    return _generation


def register(backend: Backend) -> None:
    """Add a backend that no entry point announces (an experiment, a test); its name must be free.

    Raises
    ------
    TypeError
        If it lacks a part of the :class:`~portable_gla.backend.Backend` protocol.
    ValueError
        If a backend of that name stands already, or the name has a colon.
    """
    if not isinstance(backend, Backend):
        missing = [part for part in ("name", "priority", "plain", "unavailable", "reasons_against", "schedule",
                                     "residual_spec", "forward", "backward", "decode") if not hasattr(backend, part)]
        raise TypeError(f"register(backend): {backend!r} is no backend: it lacks {', '.join(missing)}")
    if ":" in backend.name or backend.name in _backends:
        raise ValueError(f"register(backend): the name {backend.name!r} is taken or has a colon")
    _add(backend.name, backend)


def unregister(name: str) -> None:
    """Remove a backend that :func:`register` added, and its emulator."""
    global _generation
    del _backends[name]
    _backends.pop(name + _EMULATED, None)
    _generation += 1


def get(handle: str) -> Backend:
    """Return the backend behind a handle that a plan gave out."""
    return _backends[handle]


def handles() -> list[str]:
    """Return the handles of all loaded backends, highest priority first, emulators left out."""
    return sorted((handle for handle in _backends if not handle.endswith(_EMULATED)),
                  key=lambda handle: (-_backends[handle].priority, handle))


def names() -> list[str]:
    """Every backend's name, those that failed to load included."""
    return handles() + sorted(_failures)


def failures() -> dict[str, Reason]:
    """Return the backends that could not be loaded, and why."""
    return dict(_failures)


def emulated_handle(name: str) -> str:
    """Return the handle of a backend's emulator, starting it on first use.

    Raises
    ------
    ValueError
        If there is no such backend, it failed to load, or it brings no emulator.
    """
    handle = name + _EMULATED
    if handle not in _backends:
        if name in _failures:
            raise ValueError(f"emulate({name!r}): the backend failed to load: {_failures[name].text}")
        if name not in _backends:
            raise ValueError(f"emulate({name!r}): no such backend; there are {', '.join(names())}")
        backend = _backends[name]
        if not isinstance(backend, Emulatable):
            raise ValueError(f"emulate({name!r}): this backend brings no emulator")
        _add(handle, backend.emulated())
    return handle


def backends() -> list[BackendInfo]:
    """List every backend, whether it can serve anything on this machine, and why not."""
    rows = []
    for handle in handles():
        reasons = tuple(_backends[handle].unavailable())
        rows.append(BackendInfo(handle, not reasons, reasons, _backends[handle].priority))
    rows += [BackendInfo(name, False, (reason,), None) for name, reason in sorted(_failures.items())]
    return rows


def _add(handle: str, backend: Backend) -> None:
    global _generation
    _backends[handle] = backend
    _generation += 1


def load() -> None:
    """Load the claims of every announced backend; called once, when the package is imported.

    A backend that raises while loading is kept as a reason: it must not take the package down.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name in _backends:
            continue
        try:
            backend = entry.load()
            if not isinstance(backend, Backend) or backend.name != entry.name:
                raise TypeError(f"{entry.value} is no backend named {entry.name!r}")
        except Exception as error:
            _failures[entry.name] = Reason(
                "load-error", f"{entry.value} raised {type(error).__name__}: {error}",
                f"see the whole error: python -c 'import portable_gla, {entry.module}'")
        else:
            _failures.pop(entry.name, None)
            _add(entry.name, backend)
