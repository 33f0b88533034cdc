"""Addresses, products and kept states: what every kernel uses."""

import inspect

import triton
import triton.language as tl


def kernel(function):
    """Make a kernel that is compiled once for all sizes: its whole numbers, which follow ``scale``, are any.

    Triton would compile it anew where one is 1, or 16 divides it; the device's compiler makes nothing of the latter. Of
    a last dimension's stride, named ``*_v``, it has to know that it is 1: then rows are copied whole.
    """
    names = list(inspect.signature(function).parameters)
    numbers = names[names.index("scale") + 1:]
    return triton.jit(function, do_not_specialize=[name for name in numbers if not name.endswith("_v")])


@triton.jit
def sequence(cu_seqlens, n, tokens, C: tl.constexpr, PACKED: tl.constexpr):
    """Return a sequence's row of the batch, first token, length, and the slot of its first chunk of C tokens."""
    if PACKED:
        first = tl.load(cu_seqlens + n).to(tl.int64)
        length = (tl.load(cu_seqlens + n + 1) - first).to(tl.int32)
        row = n * 0
        slot = (first // C).to(tl.int32) + n
    else:
        first = (n * 0).to(tl.int64)
        length = n * 0 + tokens
        row = n
        slot = n * ((tokens + C - 1) // C)
    return row, first, length, slot


@triton.jit
def chunk_of(item, tiles, heads, places, cu_seqlens, tokens, C: tl.constexpr, SPAN: tl.constexpr,
             PACKED: tl.constexpr):
    """Find the chunk of C tokens that an item = (slot x heads + head) x tiles + tile is about.

    Return the tile, the head, the slot, its chunk's number in the sequence, and what ``sequence`` says of that, with
    slots of SPAN chunks. ``places`` has a packed slot's sequence and chunk. What addresses are made of is int64.
    """
    slot = item // (tiles * heads)
    if PACKED:
        n = tl.load(places + 2 * slot)
        chunk = tl.load(places + 2 * slot + 1)
    else:
        chunks = (tokens + C - 1) // C
        n = slot // chunks
        chunk = slot % chunks
    row, first, length, kept_slot = sequence(cu_seqlens, n, tokens, C * SPAN, PACKED)
    head = (item // tiles) % heads
    return item % tiles, head.to(tl.int64), slot.to(tl.int64), chunk, row.to(tl.int64), first, length, kept_slot


@triton.jit
def masks(near_table, C: tl.constexpr, REVERSE: tl.constexpr):
    """Return the table that masks are cut from, see ``gates.py``, and the positions of a chunk's rows.

    Rows are tokens as they lie in memory, for the device copies descending rows one by one; with ``REVERSE`` the last
    row has position 0.
    """
    row = tl.arange(0, C)
    near = tl.load(near_table + row[:, None] * C + row[None, :])
    if REVERSE:
        return -near, C - 1 - row
    else:
        return near, row


@triton.jit
def tokens_of(first, length, chunk, present, C: tl.constexpr, REVERSE: tl.constexpr):
    """Return the tokens of a chunk's rows (int64) and which of them exist; chunk 0 is where the recurrence starts.

    A mask has one bound only: more, and the compiler fails. A lower one is of a sum with 0: comparing rows with a
    number below it spoils the compiler's memory, where columns are bounded by a loop's variable.
    """
    at = tl.arange(0, C)
    if REVERSE:
        start = length - (chunk + 1) * C
        inside = at + tl.where(present, start, -C) >= 0
    else:
        start = chunk * C
        inside = at < tl.where(present, length - start, 0)
    return first + start + at.to(tl.int64), inside


@triton.jit
def rows(x, start, tokens, stride, columns, inside, size):
    """Load [tokens, columns]; zero where there is none."""
    return tl.load(x + start + tokens[:, None] * stride + columns[None, :],
                   mask=inside[:, None] & (columns < size)[None, :], other=0.0)


@triton.jit
def product(a, b, KIND: tl.constexpr):
    """Multiply on the cube, sums in float32.

    ``bf16``: operands rounded to it. ``split``: each as two bfloat16, 16 bits of mantissa with float32's range.
    ``f32``: float32. A product may overwrite its left operand, so each left operand is a value of its own.
    """
    if KIND == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif KIND == "split":
        a, b = a.to(tl.float32), b.to(tl.float32)
        low_a = (a - a.to(tl.bfloat16).to(tl.float32))
        high_b = b.to(tl.bfloat16)
        low_b = (b - high_b.to(tl.float32)).to(tl.bfloat16)
        small = tl.dot(low_a.to(tl.bfloat16), high_b) + tl.dot((a - low_a).to(tl.bfloat16), low_b)
        return small + tl.dot(a.to(tl.bfloat16), high_b)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def keep(kept, scales, at, place, state, valid, inside, SCALED: tl.constexpr):
    """Store a state [BK, BV]; ``SCALED``: each row by a power of two that brings it near 1."""
    if SCALED:
        largest = tl.maximum(tl.max(tl.abs(state), 1), 1e-30)
        power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        tl.store(scales + place, power, mask=valid)
        state = state / power[:, None]
    tl.store(kept + at, state.to(kept.dtype.element_ty), mask=inside)


@triton.jit
def kept_state(kept, scales, place, at_k, at_v, tile_v, K, V, SCALED: tl.constexpr, KEPT_V: tl.constexpr):
    """Load a tile [BK, BV] of the state kept at ``place``: as float32 where it was scaled, else as it was kept.

    ``at_v`` is the tile ``tile_v``. A row's scales are one for each KEPT_V columns.
    """
    within = (at_k < K)[:, None] & (at_v < V)[None, :]
    state = tl.load(kept + (place * (K * V) + at_k[:, None] * V + at_v[None, :]), mask=within, other=0.0)
    if SCALED:
        kept_tiles = (V + KEPT_V - 1) // KEPT_V
        kept_tile = (tile_v * at_v.shape[0]) // KEPT_V
        scale = tl.load(scales + ((place * kept_tiles + kept_tile) * K + at_k), mask=at_k < K, other=0.0)
        state = state.to(tl.float32) * scale[:, None]
    return state
