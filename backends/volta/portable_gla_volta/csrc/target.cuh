// What the kernels use of a device, and nothing else: this version is for NVRTC, without headers; the emulator has the
// same names for g++. C++17.
#pragma once

typedef long long int64;

#define KERNEL(entry, THREADS, BLOCKS, ARGUMENTS) \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) entry(const ARGUMENTS arguments)
#define DEVICE static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLL _Pragma("unroll 1")

DEVICE int thread() { return threadIdx.x; }
DEVICE int block() { return blockIdx.x; }
// Found anew wherever it is asked for: what follows from it would else be kept in registers through the longest loop.
DEVICE int lane() {
  int x = threadIdx.x;
  asm volatile("" : "+r"(x));
  return x & 31;
}
DEVICE int warp() { return threadIdx.x >> 5; }

// All threads of a block arrive; what each wrote to shared memory is seen by all.
DEVICE void barrier() { __syncthreads(); }
// The same for the 32 lanes of a warp.
DEVICE void warp_barrier() { __syncwarp(); }

// Values of other lanes: all 32 lanes arrive.
template <class T> DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <class T> DEVICE T shuffle(T value, int from) { return __shfl_sync(0xffffffffu, value, from); }

// N 32-bit words that move as one.
template <int N> struct Words;
template <> struct alignas(4) Words<1> { unsigned word[1]; };
template <> struct alignas(8) Words<2> { unsigned word[2]; };
template <> struct alignas(16) Words<4> { unsigned word[4]; };

DEVICE float bits_to_float(unsigned x) { return __uint_as_float(x); }
DEVICE unsigned float_to_bits(float x) { return __float_as_uint(x); }

// Shared memory is one array of bytes, addressed by offsets; every access is naturally aligned.
extern __shared__ __align__(16) unsigned char shared_bytes[];
template <int N> DEVICE Words<N> shared_load(int offset) { return *(const Words<N>*)(shared_bytes + offset); }
template <int N> DEVICE void shared_store(int offset, Words<N> value) { *(Words<N>*)(shared_bytes + offset) = value; }
DEVICE float shared_float(int offset) { return *(const float*)(shared_bytes + offset); }
DEVICE void shared_set(int offset, float value) { *(float*)(shared_bytes + offset) = value; }
DEVICE unsigned short shared_half(int offset) { return *(const unsigned short*)(shared_bytes + offset); }
DEVICE void shared_set_half(int offset, unsigned short value) { *(unsigned short*)(shared_bytes + offset) = value; }

// Global memory, naturally aligned too.
template <int N> DEVICE Words<N> global_load(const void* from) { return *(const Words<N>*)from; }
template <int N> DEVICE void global_store(void* to, Words<N> value) { *(Words<N>*)to = value; }
DEVICE unsigned short global_half(const void* from) { return *(const unsigned short*)from; }
DEVICE void global_set_half(void* to, unsigned short value) { *(unsigned short*)to = value; }

// A place in global memory as a number, and the place again, which the compiler knows to be global.
DEVICE int64 place_to_bits(const void* place) { return (int64)__cvta_generic_to_global(place); }
DEVICE char* bits_to_place(int64 bits) { return (char*)__cvta_global_to_generic((unsigned long long)bits); }

// The same number, by a way that the compiler does not see through: what follows from it is not kept in registers from
// one round of a loop to the next.
DEVICE int opaque(int x) { asm volatile("" : "+r"(x)); return x; }
DEVICE float opaque(float x) { asm volatile("" : "+f"(x)); return x; }

DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Products and sums that are never fused with a neighbour.
DEVICE float mul_(float a, float b) { return __fmul_rn(a, b); }
DEVICE float add_(float a, float b) { return __fadd_rn(a, b); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float magnitude(float x) { return fabsf(x); }
// The nearest integer, ties to even.
DEVICE float nearest(float x) { return rintf(x); }
// 2 to the power x, to about 2 units in the last place; results below the normal range are 0.
DEVICE float exp2_approx(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }

// Half precision: rounds to nearest even, keeps subnormal numbers.
DEVICE unsigned pack_half(float low, float high) {
  unsigned r;
  asm("{.reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}" : "=r"(r) : "f"(low), "f"(high));
  return r;
}
DEVICE float half_low(unsigned x) {
  float r;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a;}" : "=f"(r) : "r"(x));
  return r;
}
DEVICE float half_high(unsigned x) {
  float r;
  asm("{.reg .b16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b;}" : "=f"(r) : "r"(x));
  return r;
}
DEVICE unsigned short to_half(float x) { unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE float from_half(unsigned short x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }

// c += a b for four products of 8 x 8 x 4 at once, one for each quad pair (lanes 4p..4p+3 and 16+4p..16+4p+3).
// With l4 = lane & 3 and h = lane >> 4 an operand's four halves are: row l4 + 4h of A by row, k = 0..3; column l4 + 4h
// of B by column, k = 0..3; k = l4 of A by column or B by row, at 4h + 0..3. c[i] is row (lane & 1) + (i & 2) + 4h,
// column (i & 4) + (lane & 2) + (i & 1). All 32 lanes arrive.
#define VOLTA_MMA(LAYOUTS)                                                                                     \
  asm volatile("mma.sync.aligned.m8n8k4." LAYOUTS ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, "      \
               "{%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};"                                                         \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]) \
               : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]))
template <bool A_ROW, bool B_COL> DEVICE void mma(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2]) {
  if constexpr (A_ROW && B_COL) VOLTA_MMA("row.col");
  else if constexpr (A_ROW) VOLTA_MMA("row.row");
  else if constexpr (B_COL) VOLTA_MMA("col.col");
  else VOLTA_MMA("col.row");
}
#undef VOLTA_MMA
