"""``triton.language`` for emulated functions: namespaces of their own, so that nothing in Triton is ever patched.

Triton's builtins take the semantics to work with as an argument, which its compiler supplies. Here each is bound to the
emulator's, and each function of Triton's library that is written in Triton (``tl.sum``, ``tl.zeros``, ...) is rewritten
like a kernel. Compilation in the same process, even in another thread, meets Triton as it was.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.language import core
from triton.runtime.jit import JITFunction

from . import arithmetic, reductions, statements
from .rewriting import rewrite, rewrite_piece
from .semantics import semantic
from .tensors import EmulatedDescriptor, EmulatedTensor, own


def _bound(builtin: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(builtin)
    def call(*args: Any, _semantic: Any = None, **kwargs: Any) -> Any:
        return own(builtin(*args, _semantic=semantic, **kwargs))

    return call


def _same(value: Any, *_: Any, **__: Any) -> Any:
    return value


class EmulatedFunction:
    """A Triton function: called by another it runs at once; ``function[grid](...)`` launches it."""

    def __init__(self, jit: JITFunction[Any], namespace: Callable[[], dict[str, Any]]) -> None:
        self.jit = jit
        self.__name__ = jit.fn.__name__
        self.__doc__ = jit.fn.__doc__
        self._namespace = namespace

    @functools.cached_property
    def body(self) -> Callable[..., Any]:
        """The rewritten Python function."""
        return rewrite(self.jit, self._namespace())

    @functools.cached_property
    def piece(self) -> Callable[..., Any] | None:
        """The function that does one piece of the work that programs walk; None if they walk none."""
        return rewrite_piece(self.jit, self._namespace())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as part of the launch in progress."""
        return self.body(*args, **kwargs)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """Make the launcher on ``grid``: a tuple of up to three ints, or a function of the arguments."""
        from .launching import launch

        return functools.partial(launch, self, grid)


_INSTEAD: dict[Any, Any] = {
    core.tensor: EmulatedTensor,
    core.range: statements.loop_range,
    core.static_range: statements.static_range,
    core.static_assert: statements.static_assert,
    core.static_print: print,
    core.reduce: reductions.reduce,
    core._reduce_with_indices: reductions.reduce_with_indices,
    core.associative_scan: reductions.associative_scan,
    core.where: arithmetic.where(_bound(core.where)),
    core.cast: arithmetic.cast(_bound(core.cast)),
    core.multiple_of: _same,
    core.max_contiguous: _same,
    core.max_constancy: _same,
}
_functions: dict[int, EmulatedFunction] = {}
_modules: dict[str, types.SimpleNamespace] = {}


def emulated(value: Any) -> Any:
    """Return what an emulated function sees in place of ``value``, one of its globals."""
    if isinstance(value, JITFunction):
        if id(value) not in _functions:  # by identity: Triton's hash of a function reads all that the function uses
            _functions[id(value)] = EmulatedFunction(value, functools.partial(namespace, value.fn.__globals__))
        return _functions[id(value)]
    if inspect.ismodule(value):
        return _module(value) if value.__name__.startswith("triton.language") else value
    if isinstance(value, tl.constexpr):
        return value.value
    try:
        if value in _INSTEAD:
            return _INSTEAD[value]
    except TypeError:  # not hashable: none of those
        return value
    return _bound(value) if core.is_builtin(value) else value


_namespaces: dict[int, dict[str, Any]] = {}


def namespace(names: dict[str, Any]) -> dict[str, Any]:
    """Return the globals of emulated functions whose module has ``names``; one dictionary per module."""
    if id(names) not in _namespaces:
        _namespaces[id(names)] = made = {"__builtins__": names["__builtins__"]}
        made.update({name: emulated(value) for name, value in names.items() if not name.startswith("__")})
        made.update({name: value for name, value in statements.GLOBALS.items() if name not in made})
    return _namespaces[id(names)]


def _module(module: types.ModuleType) -> types.SimpleNamespace:
    if module.__name__ not in _modules:
        _modules[module.__name__] = made = types.SimpleNamespace()
        vars(made).update({name: emulated(value) for name, value in vars(module).items() if name[:2] != "__"})
    return _modules[module.__name__]


def _complete(kind: type) -> None:
    """Bind the builtin methods of ``kind``, a subclass of a type of Triton's, and those written in Triton."""
    for name, member in inspect.getmembers(kind):
        if isinstance(member, JITFunction):
            setattr(kind, name, functools.partialmethod(emulated(member)))
        elif core.is_builtin(member):
            setattr(kind, name, _bound(member))


_complete(EmulatedTensor)
_complete(EmulatedDescriptor)
for _name in ("reduce", "associative_scan"):
    setattr(EmulatedTensor, _name, functools.partialmethod(getattr(reductions, _name)))
arithmetic.install()
