"""Kernels whose programs go different ways, or walk pieces of work."""

import triton
import triton.language as tl


@triton.jit
def apart(x, turns, out, N: tl.constexpr):
    """Count up in place, then branch by what is there, and go on for as many turns as the program is given."""
    program = tl.program_id(0)
    i = program * N + tl.arange(0, N)
    tl.store(out + i, tl.load(out + i) + 1)
    value = tl.load(x + i)
    if tl.sum(value, axis=0) > 0:
        tl.store(out + i, tl.load(out + i) + value)
        if program % 3 == 0:
            return
    for turn in range(program, program + tl.load(turns + program)):
        tl.store(out + i, tl.load(out + i) * 2 + turn)


@triton.jit
def walk(x, out, items, N: tl.constexpr):
    """Double N elements a piece."""
    i = tl.arange(0, N)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        factor = 2.0 if item % 2 == 0 else 4.0
        tl.store(out + item * N + i, tl.load(x + item * N + i) * factor)


@triton.jit
def walk_and_carry(x, out, items, N: tl.constexpr):
    """Sum N elements a piece, and forget to begin each sum anew."""
    i = tl.arange(0, N)
    total = 0.0
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        total += tl.sum(tl.load(x + item * N + i), axis=0)
        tl.store(out + item, total)


@triton.jit
def walk_and_read_back(out, items):
    """Add one to what the program's piece before it stored."""
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        before = item - tl.num_programs(0)
        found = tl.load(out + before, mask=before >= 0, other=0.0)
        tl.store(out + item, found + 1)


@triton.jit
def walk_into_another(out, items):
    """Store where the next piece, another program's, stores as well."""
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tl.store(out + item + tl.arange(0, 2), 1.0)
