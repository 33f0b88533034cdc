"""A kernel that has every kind of instruction, to be run from its source and from its PTX."""

from __future__ import annotations

import ctypes

SOURCE = '''\
#include "target.cuh"

struct Arguments {
  const unsigned short* x;
  const float* y;
  float* out;
  int* integers;
  int64 stride;
  int count;
  float factor;
};

DEVICE int mixed(int a, unsigned b, int64 c) {
  int found = a * 7 - (int)(b >> 3) + (int)(c >> 33) + a / 3 + (int)(b % 11u);
  found ^= (a << 5) | (int)(b & 0xf0u);
  found += (a < (int)b ? 3 : -4) + (int)((unsigned long long)c % 97u) + (b > 77u && a != 5);
  return found - (a > 0 ? a : -a) + (int)(short)a + (int)(unsigned char)b;
}

KERNEL(every, 64, 2, Arguments) {
  const int base = warp() * 1024;
  const int64 row = (int64)block() * arguments.stride;
  if (lane() < arguments.count) {
    UNROLL for (int n = 0; n < 4; n++)
      shared_set_half(base + 2 * (lane() * 4 + n), global_half(arguments.x + row + lane() * 4 + n));
  } else {
    shared_store<2>(base + 8 * lane(), Words<2>{{0u, 0u}});
  }
  barrier();
  Words<2> a = shared_load<2>(base + 8 * lane()), b = shared_load<2>((1024 - base) + 8 * lane());
  float c[8];
  UNROLL for (int i = 0; i < 8; i++) c[i] = arguments.y[i] + (float)lane();
  const unsigned left[2] = {a.word[0], a.word[1]}, right[2] = {b.word[0], b.word[1]};
  mma<true, true>(c, left, right);
  mma<true, false>(c, left, right);
  mma<false, true>(c, right, left);
  mma<false, false>(c, left, left);
  float sum = 0.0f;
  UNROLL for (int i = 0; i < 8; i++) sum = fma_(c[i], arguments.factor, sum) + c[i] * 0.125f;
  for (int mask = 16; mask; mask >>= 1) {
    if (mask == 4) continue;
    sum += shuffle_xor(sum, mask);
  }
  const unsigned pair = pack_half(sum, c[3]);
  sum += half_low(pair) - half_high(pair) + from_half(to_half(sum * 0.5f));
  sum += shuffle(c[5], (lane() * 3) & 31);
  sum = larger(smaller(sum, 4096.0f), -4096.0f) + magnitude(nearest(sum * 0.37f));
  sum += exp2_approx(-magnitude(sum) * 0.01f) * exp2_approx(-200.0f + 0.1f * (float)lane());
  if (sum != sum || c[2] < 0.0f) sum = -1.0f;
  warp_barrier();
  shared_set(base + 4 * lane(), sum);
  shared_store<1>(base + 128 + 4 * lane(), Words<1>{{float_to_bits(c[1])}});
  barrier();
  const Words<4> four = shared_load<4>(base + 16 * (lane() & 7));
  global_store<4>(arguments.out + row + thread() * 8, four);
  Words<4> rest;
  UNROLL for (int n = 0; n < 4; n++) rest.word[n] = float_to_bits(shared_float(1024 - base + 4 * ((lane() + n) & 31)));
  global_store<4>(arguments.out + row + thread() * 8 + 4, rest);
  int found = 0;
  for (int n = 0; n < arguments.count; n++)
    found += mixed(n - thread(), (unsigned)(n * 2654435761u) + (unsigned)thread(), row * 104729 - ((int64)n << 40));
#ifdef LOCAL
  int kept[12];  // indexed at run time: in local memory
  for (int n = 0; n < 12; n++) kept[n] = n * n + thread();
  found += kept[(arguments.count + thread()) % 12];
#endif
  arguments.integers[block() * 64 + thread()] = found;
}
'''


class Arguments(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("out", ctypes.c_void_p), ("integers", ctypes.c_void_p),
                ("stride", ctypes.c_int64), ("count", ctypes.c_int), ("factor", ctypes.c_float))
