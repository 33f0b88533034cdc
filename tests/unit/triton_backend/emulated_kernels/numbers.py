import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def cast(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.load(x + tl.arange(0, N)).to(out.dtype.element_ty))


@triton.jit
def bfloat16_arithmetic(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.static_assert((a * b).dtype == tl.bfloat16)
    tl.store(out + i, a + b)
    tl.store(out + N + i, a * b)
    tl.store(out + 2 * N + i, tl.where(a < b, a, -b))
    tl.store(out + 3 * N + i, tl.maximum(tl.abs(a), 0.5))
    tl.store(out + 4 * N + i, (a > b).to(tl.bfloat16))
    tl.store(out + 5 * N + i, a.to(tl.int32))


@triton.jit
def elementary(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    e, e2, l2, s = tl.exp(a), tl.exp2(LOG2E * a), tl.log2(tl.exp(a)), tl.sigmoid(a)
    tl.static_assert(e.dtype == tl.float32 and e2.dtype == tl.float32 and l2.dtype == tl.float32)
    tl.store(out + i, e)
    tl.store(out + N + i, e2)
    tl.store(out + 2 * N + i, l2)
    tl.store(out + 3 * N + i, s)


@triton.jit
def extremes(x, out):
    a = tl.load(x + tl.arange(0, 4))
    tl.store(out, tl.min(a))
    tl.store(out + 1, tl.max(a))
    tl.store(out + 2, tl.min(tl.minimum(a, 9.0)))
