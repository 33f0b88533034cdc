"""Under ``TRITON_INTERPRET=1`` kernels run in Triton's own interpreter; what is wrong in it is mended here."""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from .floats import from_bfloat16, to_bfloat16


@functools.cache
def mend() -> None:
    """Let products of bfloat16 multiply values, casts to it round to nearest, and functions be called at once.

    Triton 3.7 multiplies the 16 bits as integers, cuts where hardware rounds, and patches its language anew for every
    call of a function, which is most of its time.
    """
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

    def cast_impl(self: Any, value: Any, kind: Any) -> Any:
        if value.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return TensorHandle(to_bfloat16(value.data), tl.bfloat16)
        return cast(self, value, kind)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        languages = [value for value in self.fn.__globals__.values() if value is tl or value is core]
        if any(core.is_builtin(language.load) for language in languages):
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpretedFunction.__call__ = call


def _widened(x: Any) -> Any:
    return TensorHandle(from_bfloat16(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
