"""What all kernels share: where a program works, how tiles are addressed, operands of matrix products.

A tensor argument is a tuple (pointer, strides of batch, token, head, channel). Every kernel counts its tokens in the
order of the recurrence: position 0 is the sequence's first token, or its last under ``reverse``.
"""

import triton
import triton.language as tl


@triton.jit
def locate(slot, cu_seqlens, tokens, sequences, unit, PACKED: tl.constexpr):
    """Return (sequence, batch row, its first token, its length, piece) of a slot; pieces are ``unit`` tokens long.

    A packed sequence n that starts at token s owns the slots from s // unit + n on: enough for its pieces, whatever
    the other sequences are, so the grid follows from shapes alone. A slot may own no token of its sequence.
    """
    if PACKED:
        low, high = 0, sequences  # the answer lies in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            if tl.load(cu_seqlens + middle).to(tl.int32) // unit + middle <= slot:
                low = middle
            else:
                high = middle
        start = tl.load(cu_seqlens + low).to(tl.int32)
        length = tl.load(cu_seqlens + low + 1).to(tl.int32) - start
        sequence, batch, piece = low, 0, slot - (start // unit + low)
    else:
        pieces = tl.cdiv(tokens, unit)
        sequence, batch, start, length, piece = slot // pieces, slot // pieces, 0, tokens, slot % pieces
    return sequence, batch, start, length, piece


@triton.jit
def link_index(sequence, start, piece, tokens, unit, PACKED: tl.constexpr):
    """Return the row of the state that enters piece 1 or later: such states alone are kept."""
    if PACKED:
        row = start // unit + piece - 1
    else:
        row = sequence * (tl.cdiv(tokens, unit) - 1) + piece - 1
    return row


@triton.jit
def arange(SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Count from 0, in 64 bits where offsets within a tile need them."""
    count = tl.arange(0, SIZE)
    if WIDE:
        count = count.to(tl.int64)
    return count


@triton.jit
def row_pointer(x, batch, head, start, length, position, REVERSE: tl.constexpr):
    """Point at the first channel of one token."""
    token = start + position
    if REVERSE:
        token = start + length - 1 - position
    return x[0] + tl.cast(batch, tl.int64) * x[1] + tl.cast(token, tl.int64) * x[2] + tl.cast(head, tl.int64) * x[3]


@triton.jit
def row_step(x, REVERSE: tl.constexpr):
    """Return the stride from one position to the next."""
    return -x[2] if REVERSE else x[2]


@triton.jit
def load_rows(x, batch, head, start, length, position, valid, columns, column_mask, SIZE: tl.constexpr,
              REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Load the tile of SIZE positions by some channels; what lies outside is 0."""
    rows = arange(SIZE, WIDE)
    pointers = row_pointer(x, batch, head, start, length, position, REVERSE)
    offsets = rows[:, None] * row_step(x, REVERSE) + columns[None, :] * x[4]
    return tl.load(pointers + offsets, mask=valid[:, None] & column_mask[None, :], other=0.0)


@triton.jit
def store_rows(x, value, batch, head, start, length, position, valid, columns, column_mask, SIZE: tl.constexpr,
               REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """Store a tile, cast to the tensor's dtype."""
    rows = arange(SIZE, WIDE)
    pointers = row_pointer(x, batch, head, start, length, position, REVERSE)
    offsets = rows[:, None] * row_step(x, REVERSE) + columns[None, :] * x[4]
    tl.store(pointers + offsets, value.to(x[0].dtype.element_ty), mask=valid[:, None] & column_mask[None, :])


@triton.jit
def load_state(state, row, head, keys, key_mask, values, value_mask):
    """Load a tile of a state [rows, H, K, V] in float32; the tuple is (pointer, strides of the four)."""
    pointer = state[0] + tl.cast(row, tl.int64) * state[1] + tl.cast(head, tl.int64) * state[2]
    offsets = keys[:, None].to(tl.int64) * state[3] + values[None, :].to(tl.int64) * state[4]
    return tl.load(pointer + offsets, mask=key_mask[:, None] & value_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_state(state, value, row, head, keys, key_mask, values, value_mask):
    """Store a tile of a state, cast to its dtype."""
    pointer = state[0] + tl.cast(row, tl.int64) * state[1] + tl.cast(head, tl.int64) * state[2]
    offsets = keys[:, None].to(tl.int64) * state[3] + values[None, :].to(tl.int64) * state[4]
    tl.store(pointer + offsets, value.to(state[0].dtype.element_ty), mask=key_mask[:, None] & value_mask[None, :])


@triton.jit
def operand(x, KIND: tl.constexpr):
    """Round a tile to what the matrix unit multiplies: "bf16", "tf32" (to nearest: the hardware would truncate), ...

    "bf16x6" and "ieee" leave float32 as it is; see ``operands.py``.
    """
    if KIND == "bf16":
        x = x.to(tl.bfloat16)
    else:
        x = x.to(tl.float32)
    if KIND == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def product(a, b, onto, KIND: tl.constexpr):
    """Add a matrix product of two operands to a float32 tile."""
    return tl.dot(a, b, onto, input_precision=KIND if KIND != "bf16" else "ieee")
