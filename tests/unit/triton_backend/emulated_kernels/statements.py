import triton
import triton.language as tl

from .tiles import offsets


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _decay_and_add(decay_a, value_a, decay_b, value_b):
    return decay_a * decay_b, value_a * decay_b + value_b


@triton.jit
def scans(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    a = tl.load(x + offsets(ROWS, COLUMNS))
    size: tl.constexpr = ROWS * COLUMNS
    tl.store(out + offsets(ROWS, COLUMNS), tl.cumsum(a, axis=0))
    tl.store(out + size + offsets(ROWS, COLUMNS), tl.cumsum(a, axis=1, reverse=True))
    tl.store(out + 2 * size + offsets(ROWS, COLUMNS), tl.cumprod(a, axis=0))
    tl.store(out + 3 * size + offsets(ROWS, COLUMNS), tl.cumprod(a, axis=0, reverse=True))
    tl.store(out + 4 * size + offsets(ROWS, COLUMNS), tl.associative_scan(a, 1, _larger, reverse=True))


@triton.jit
def two_scans(decay, value, out, N: tl.constexpr):
    i = tl.arange(0, N)
    _, states = tl.associative_scan((tl.load(decay + i), tl.load(value + i)), 0, _decay_and_add)
    tl.store(out + i, states)


@triton.jit
def standard(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    a = tl.load(x + offsets(ROWS, COLUMNS))
    rows = tl.arange(0, ROWS)
    tl.store(out + rows, tl.sum(a, axis=1))
    tl.store(out + ROWS + rows, a.max(axis=1))
    tl.store(out + 2 * ROWS + rows, tl.min(a, axis=1) + tl.zeros((ROWS,), tl.float32))
    tl.store(out + 3 * ROWS + rows, tl.flip(tl.sum(a, axis=1), 0))
    tl.store(out + 4 * ROWS + rows, tl.sum(a, axis=1, keep_dims=True).reshape(ROWS))


@triton.jit
def argmax_rows(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tl.store(out + tl.arange(0, ROWS), tl.argmax(tl.load(x + offsets(ROWS, COLUMNS)), axis=1))


@triton.jit
def branch(x, out, N: tl.constexpr):
    a = tl.load(x + tl.program_id(0) * N + tl.arange(0, N))
    result = 0.0
    if tl.min(a) > 0:
        result = tl.sum(a)
    elif not (tl.max(a) > 0):
        result = -1.0
    tl.store(out + tl.program_id(0), result)


@triton.jit
def logical(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    tl.store(out + i, (((a > 0) and (a < 2)) or (a == 5)).to(tl.int32))


@triton.jit
def _advance(state, step):
    return state[0] + step, state[1] * 2.0


@triton.jit
def carry(out, T, N: tl.constexpr):
    state = (tl.zeros((N,), tl.float32), tl.full((N,), 1.0, tl.float32))
    for t in range(T):
        tl.static_assert(t.dtype == tl.int32)
        state = _advance(state, t.to(tl.float32))
    tl.store(out + tl.arange(0, N), state[0])
    tl.store(out + N + tl.arange(0, N), state[1])


@triton.jit
def loops(out, T, N: tl.constexpr):
    count = tl.zeros((N,), tl.int32)
    for i in tl.static_range(1, 6, 2):
        if i == 3:
            count += tl.arange(0, N)
        count += i
    for j in tl.range(0, T, 2, num_stages=3):
        count += j * 100
    low = 0
    while low < T:
        low += 1
    tl.store(out + tl.arange(0, N), count + max(low, 3) * 10000)


@triton.jit
def shapes(x, out, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    a = tl.reshape(tl.load(x + tl.arange(0, A * B * C)), (A, B, C))
    b = tl.where(a > 0, a, 0.0).to(tl.float32)
    c = tl.reshape(tl.trans(b, 2, 0, 1), (C, A * B)).T
    tl.store(out + offsets(A * B, C), c)


@triton.jit
def far(x, out, stride, N: tl.constexpr):
    i = tl.arange(0, N).to(tl.int64)
    base = x + i * stride  # past 2**31 elements: only the way back is loaded
    tl.store(out + i, tl.load(base - i * stride + i))
    tl.store(out + N + i, i * stride)


@triton.jit
def block_condition(x, out, N: tl.constexpr):
    if tl.load(x + tl.arange(0, N)) > 0:
        tl.store(out, 1.0)


@triton.jit
def chained(x, out):
    a = tl.load(x)
    if 0 < a < 1:
        tl.store(out, 1.0)
