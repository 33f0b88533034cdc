"""Kernels of the tests' own, for the compilers. They import triton alone."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, c, scale, rows, SIZE: tl.constexpr, DIM: tl.constexpr):
    """Carry a state [SIZE, DIM] that decays, and write what it says of each block."""
    at, along = tl.arange(0, SIZE), tl.arange(0, DIM)
    state = tl.zeros([SIZE, DIM], dtype=tl.float32)
    for start in range(0, rows, SIZE):
        inside = (start + at < rows)[:, None]
        left = tl.load(a + (start + at)[:, None] * SIZE + at[None, :], mask=inside, other=0.0)
        right = tl.load(b + (start + at)[:, None] * DIM + along[None, :], mask=inside, other=0.0)
        state = state * scale + tl.dot(left, right)
        tl.store(c + (start + at)[:, None] * DIM + along[None, :], state, mask=inside)


@triton.jit
def misspelt(a, SIZE: tl.constexpr):
    """Use what the language does not have."""
    tl.store(a + tl.arange(0, SIZE), tl.nosuch(0.0))


@triton.jit
def spoilt(a, c, n, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Copy rows from a bound on, with masks that this release of Triton-Ascend does not survive."""
    at = tl.arange(0, SIZE)
    for tile in range(WIDTH // SIZE):
        inside = (at >= -n)[:, None] & (tile * SIZE + at < WIDTH)[None, :]
        place = (n + at)[:, None] * WIDTH + (tile * SIZE + at)[None, :]
        tl.store(c + place, tl.load(a + place, mask=inside, other=0.0).to(tl.float32), mask=inside)
