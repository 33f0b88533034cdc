"""Kernels that show what the device's rules do."""

import triton
import triton.language as tl


@triton.jit
def product(x, y, out):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


@triton.jit
def twice(x, y, out, AGAIN: tl.constexpr):
    """Multiply twice: by the operand as the first product left it (``AGAIN``), or loaded again."""
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    a, b = tl.load(x + at), tl.load(y + at)
    found = tl.dot(a, b)
    if not AGAIN:
        a = tl.load(x + at)
    tl.store(out + at, found + tl.dot(a, b))


@triton.jit
def rounded(x, out):
    i = tl.arange(0, 256)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))
