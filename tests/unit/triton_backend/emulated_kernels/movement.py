import triton
import triton.language as tl


@triton.jit
def copy(x, out, size, N: tl.constexpr):
    """Each program copies N elements; masks keep the last within ``size``."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out + i, tl.load(x + i, mask=i < size, other=7.0), mask=i < size)


@triton.jit
def window(x, out, N: tl.constexpr):
    """Each program sums N elements, of which the next loads all but one again."""
    tl.store(out + tl.program_id(0), tl.sum(tl.load(x + tl.program_id(0) + tl.arange(0, N)), axis=0))


@triton.jit
def shift(x, out, by, N: tl.constexpr):
    """Copy N elements, the loads ``by`` elements off."""
    i = tl.arange(0, N)
    tl.store(out + i, tl.load(x + i + by))


@triton.jit
def overwrite(out, step, N: tl.constexpr):
    """Program p stores N elements from ``p * step`` on."""
    tl.store(out + tl.program_id(0) * step + tl.arange(0, N), 1.0)


@triton.jit
def exchange(x, loaded_from, stored_to, N: tl.constexpr):
    """Program p loads at ``loaded_from[p]`` and stores at ``stored_to[p]``, both in x."""
    i = tl.arange(0, N)
    value = tl.load(x + tl.load(loaded_from + tl.program_id(0)) + i)
    tl.store(x + tl.load(stored_to + tl.program_id(0)) + i, value)


@triton.jit
def scale_in_place(x, N: tl.constexpr):
    """Each program doubles its own N elements, twice."""
    i = tl.program_id(0) * N + tl.arange(0, N)
    for _ in range(2):
        tl.store(x + i, tl.load(x + i) * 2)


@triton.jit
def gather_rows(x, out, stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Copy a strided matrix to a dense one."""
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(out + rows * COLUMNS + columns, tl.load(x + rows * stride_row + columns * stride_column))


@triton.jit
def through_descriptor(x, out, rows, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """Copy [rows, COLUMNS]: loads by a tensor descriptor, stores by a block pointer."""
    source = tl.make_tensor_descriptor(x, shape=[rows, COLUMNS], strides=[COLUMNS, 1], block_shape=[TILE, COLUMNS])
    target = tl.make_block_ptr(out, shape=(rows, COLUMNS), strides=(COLUMNS, 1), offsets=(tl.program_id(0) * TILE, 0),
                               block_shape=(TILE, COLUMNS), order=(1, 0))
    tl.store(target, source.load([tl.program_id(0) * TILE, 0]), boundary_check=(0,))
