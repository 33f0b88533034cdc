import triton
import triton.language as tl

from .tiles import offsets


@triton.jit
def multiply(a, b, onto, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    x = tl.load(a + offsets(M, K))
    y = tl.load(b + offsets(K, N))
    z = tl.load(onto + offsets(M, N))
    tl.store(out + offsets(M, N), tl.dot(x, y, z, input_precision=PRECISION))


@triton.jit
def batched(a, b, out, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    x = tl.reshape(tl.load(a + tl.arange(0, B * M * K)), (B, M, K))
    y = tl.reshape(tl.load(b + tl.arange(0, B * N * K)), (B, N, K))
    z = tl.dot(x, tl.trans(y, 0, 2, 1), input_precision="ieee")
    tl.store(out + tl.arange(0, B * M * N), tl.reshape(z, (B * M * N,)))
