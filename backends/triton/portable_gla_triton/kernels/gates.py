"""Decays, as products of exp(g): nothing is subtracted and nothing divided but where a block's range is known small.

Sums of gates would lose what a gate of -1e5 stands beside, and differences of sums are NaN beside -inf. Products are
exact resets where they should be, and each carries the error of its factors alone.

GATE is "none", "constant", "head" or "channel". For a chunk of C positions, with e = exp(g):

    prefix  P_i = Π e_s over s ≤ i (over s < i with a bonus, whose outputs read the state before their own decay)
    suffix  Q_j = Π e_s over s > j
    total   T   = Π e_s

Per head they are vectors [C]; per channel tiles [C, BLOCK].
"""

import triton
import triton.language as tl

from .common import arange, load_rows, row_pointer, row_step


@triton.jit
def head_decays(g, batch, head, start, length, position, SIZE: tl.constexpr, GATE: tl.constexpr,
                REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Return exp(g) of SIZE positions from ``position`` on: 1 outside the sequence; [SIZE]."""
    rows = arange(SIZE, WIDE)
    inside = (position + tl.arange(0, SIZE) >= 0) & (position + tl.arange(0, SIZE) < length)
    if GATE == "none":
        e = tl.full([SIZE], 1.0, tl.float32)
    elif GATE == "constant":
        e = tl.where(inside, tl.exp(tl.load(g[0] + tl.cast(head, tl.int64) * g[3]).to(tl.float32)), 1.0)
    else:
        pointers = row_pointer(g, batch, head, start, length, position, REVERSE) + rows * row_step(g, REVERSE)
        e = tl.exp(tl.load(pointers, mask=inside, other=0.0).to(tl.float32))
    return e


@triton.jit
def channel_decays(g, batch, head, start, length, position, columns, column_mask, SIZE: tl.constexpr,
                   REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Return exp(g) of a tile: 1 outside the sequence; [SIZE, columns]."""
    places = position + tl.arange(0, SIZE)
    tile = load_rows(g, batch, head, start, length, position, (places >= 0) & (places < length), columns, column_mask,
                     SIZE, REVERSE, WIDE)
    return tl.exp(tile.to(tl.float32))


@triton.jit
def pair_decays(e, SIZE: tl.constexpr, BONUS: tl.constexpr):
    """Return, per head, the decay from position j to the reader at i, 0 where j > i; [SIZE, SIZE].

    That is Π e_s over j < s ≤ i; with a bonus over j < s < i, and 0 where j = i.
    """
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    if BONUS:
        e = tl.where(tl.arange(0, SIZE) == 0, 1.0, tl.gather(e, tl.maximum(tl.arange(0, SIZE) - 1, 0), axis=0))
        decays = tl.where(i > j, tl.cumprod(tl.where(i - 1 > j, e[:, None], 1.0), axis=0), 0.0)
    else:
        decays = tl.where(i >= j, tl.cumprod(tl.where(i > j, e[:, None], 1.0), axis=0), 0.0)
    return decays


@triton.jit
def vector_decays(e, SIZE: tl.constexpr, BONUS: tl.constexpr):
    """Return prefix [SIZE], suffix [SIZE] and total of a chunk, per head."""
    places = tl.arange(0, SIZE)
    inclusive = tl.cumprod(e, axis=0)
    total = tl.sum(tl.where(places == SIZE - 1, inclusive, 0.0), axis=0)
    if BONUS:
        inclusive = tl.where(places == 0, 1.0, tl.gather(inclusive, tl.maximum(places - 1, 0), axis=0))
    later = tl.where(places == SIZE - 1, 1.0, tl.gather(e, tl.minimum(places + 1, SIZE - 1), axis=0))
    return inclusive, tl.cumprod(later, axis=0, reverse=True), total


@triton.jit
def moved_rows(x, BY: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the tile whose row i is row i + BY of x, and 1 where there is none."""
    rows = tl.arange(0, SIZE)
    source = tl.minimum(tl.maximum(rows + BY, 0), SIZE - 1)
    moved = tl.gather(x, tl.broadcast_to(source[:, None], [SIZE, BLOCK]), axis=0)
    return tl.where((rows + BY == source)[:, None], moved, 1.0)


@triton.jit
def channel_weights(e, SIZE: tl.constexpr, BLOCK: tl.constexpr, FORWARD: tl.constexpr, BONUS: tl.constexpr):
    """Return the suffix (FORWARD) or the prefix of a chunk [SIZE, BLOCK], and its total [BLOCK], per channel."""
    weight = tl.cumprod(e, axis=0, reverse=FORWARD)
    edge = tl.arange(0, SIZE) == (0 if FORWARD else SIZE - 1)
    total = tl.sum(tl.where(edge[:, None], weight, 0.0), axis=0)
    if FORWARD:
        weight = moved_rows(weight, 1, SIZE, BLOCK)
    elif BONUS:
        weight = moved_rows(weight, -1, SIZE, BLOCK)
    return weight, total


@triton.jit
def last_row(x, SIZE: tl.constexpr):
    """Return the last row of a tile."""
    return tl.sum(tl.where((tl.arange(0, SIZE) == SIZE - 1)[:, None], x, 0.0), axis=0)
