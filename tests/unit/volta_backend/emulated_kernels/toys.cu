// Small kernels for tests of the emulator: what each does, right or wrong, is chosen by MODE.
#include "target.cuh"

#ifndef MODE
#define MODE 0
#endif

struct Arguments {
  const void* from;
  void* to;
  int count;
};

DEVICE float read(const void* from, int at) { return bits_to_float(global_load<1>((const float*)from + at).word[0]); }
DEVICE void write(void* to, int at, float value) { global_store<1>((float*)to + at, {{float_to_bits(value)}}); }

// to = 2 from
KERNEL(doubled, 64, 1, Arguments) {
  const int at = 64 * block() + thread();
  if (at >= arguments.count) return;
  write(arguments.to, at, 2.0f * read(arguments.from, at));
}

// to[i] = from[63 - i], through shared memory. MODE 1: without the barrier. 2: half the threads skip it. 3: threads of
// one warp wait at another. 4: a barrier of the warp in its place. 5: some threads have left. 6: the last is not stored.
KERNEL(turned, 64, 1, Arguments) {
  const int at = thread();
  if (MODE != 6 || at != 63) shared_set(4 * at, read(arguments.from, at));
  if (MODE == 0 || MODE == 6) barrier();
  if (MODE == 2 && at < 32) barrier();
  if (MODE == 3) {
    if (at & 1) barrier();
    else barrier(
      );
  }
  if (MODE == 4) warp_barrier();
  if (MODE == 5) {
    if (at == 7) return;
    barrier();
  }
  write(arguments.to, at, shared_float(4 * (63 - at)));
}

// Within a warp: to[i] = from[i ^ 1]. MODE 1: without the barrier.
KERNEL(swapped, 32, 1, Arguments) {
  const int at = thread();
  shared_set(4 * at, read(arguments.from, at));
  if (MODE == 0) warp_barrier();
  write(arguments.to, at, shared_float(4 * (at ^ 1)));
  if (MODE == 2) shared_set(4 * at, 0.0f);  // another has still to read it
}

// One fault of memory each, by MODE.
KERNEL(astray, 32, 1, Arguments) {
  const int at = thread();
  shared_set(4 * at, 1.0f);
  if (MODE == 0 && at == 3) shared_set(128, 1.0f);
  if (MODE == 1 && at == 3) shared_float(-4);
  if (MODE == 2 && at == 3) shared_load<2>(12);
  if (MODE == 3 && at == 3) read(arguments.from, arguments.count);
  if (MODE == 4 && at == 3) write(arguments.to, -1, 0.0f);
  if (MODE == 5 && at == 3) global_load<2>((const float*)arguments.from + 1);
  if (MODE == 6 && at == 3) shared_set_half(127, 1);
  if (MODE == 7 && at == 3) shared_load<4>(128 - 12);
}

// Sums over the warp. MODE 1: half the warp skips a step. 2: with different masks. 3: lanes at two places.
KERNEL(summed, 32, 1, Arguments) {
  float sum = read(arguments.from, thread());
  for (int mask = 16; mask; mask >>= 1) {
    if (MODE == 1 && mask == 4 && lane() < 16) continue;
    if (MODE == 3 && lane() == 9) sum += shuffle_xor(sum, mask);
    else
      sum += shuffle_xor(sum, MODE == 2 && lane() == 5 ? 1 : mask);
  }
  write(arguments.to, thread(), shuffle(sum, 31 - thread()));
}

// Blocks: each stores its own 32. MODE 1: and all the first. 2: and loads its neighbour's. 3: what all
// load is stored to by one. 4: two threads store to one place.
KERNEL(apart, 32, 1, Arguments) {
  const int at = 32 * block() + thread(), next = 32 * ((block() + 1) % arguments.count);
  if (MODE == 3) {
    if (thread()) return;
    const float seen = read(arguments.to, 0);
    if (block() == 2) write(arguments.to, 0, seen);
    return;
  }
  write(arguments.to, at, (float)at);
  if (MODE == 1 && thread() == 0) write(arguments.to, 0, 0.0f);
  if (MODE == 2 && thread() == 0) read(arguments.to, next);
  if (MODE == 4 && thread() < 2) write(arguments.to, 32 * block() + 5, 1.0f);
}

// Four 8 x 8 blocks of c += a b, one for each quad-pair, layouts by MODE: 1 A by row, 2 B by column. from is a then b,
// [4][8][4] and [4][4][8] in float16; to is c, [4][8][8] in float32.
KERNEL(multiplied, 32, 1, Arguments) {
  constexpr bool A_ROW = MODE & 1, B_COL = MODE & 2;
  const int pair = (lane() & 15) >> 2, l4 = lane() & 3, h = lane() >> 4;
  const unsigned short* a = (const unsigned short*)arguments.from + 32 * pair;
  const unsigned short* b = a + 128;
  unsigned x[4], y[4];
  for (int i = 0; i < 4; ++i) {
    x[i] = global_half(a + (A_ROW ? 4 * (l4 + 4 * h) + i : 4 * (i + 4 * h) + l4));
    y[i] = global_half(b + (B_COL ? 8 * i + l4 + 4 * h : 8 * l4 + i + 4 * h));
  }
  const unsigned as[2] = {x[0] | x[1] << 16, x[2] | x[3] << 16}, bs[2] = {y[0] | y[1] << 16, y[2] | y[3] << 16};
  float* c = (float*)arguments.to + 64 * pair;
  float sums[8];
  for (int i = 0; i < 8; ++i)
    sums[i] = read(c, 8 * ((lane() & 1) + (i & 2) + 4 * h) + (i & 4) + (lane() & 2) + (i & 1));
  mma<A_ROW, B_COL>(sums, as, bs);
  for (int i = 0; i < 8; ++i)
    write(c, 8 * ((lane() & 1) + (i & 2) + 4 * h) + (i & 4) + (lane() & 2) + (i & 1), sums[i]);
}

// Conversions: to[i] = from_half(to_half(from[i])), and through a pair.
KERNEL(halved, 32, 1, Arguments) {
  const int at = 32 * block() + thread();
  const float x = read(arguments.from, at);
  const unsigned pair = pack_half(x, -x);
  write(arguments.to, 3 * at, from_half(to_half(x)));
  write(arguments.to, 3 * at + 1, half_low(pair));
  write(arguments.to, 3 * at + 2, half_high(pair));
}

// Patterns of shared memory, by MODE; what each costs is in the test.
KERNEL(banks, 32, 1, Arguments) {
  for (int i = 0; i < 32; ++i) shared_set(4 * (32 * i + lane()), 0.0f);
  barrier();
  float sum = 0.0f;
  if (MODE == 0) sum += shared_float(4 * lane());
  if (MODE == 1) sum += shared_float(8 * lane());
  if (MODE == 2) sum += shared_float(128 * lane());
  if (MODE == 3) sum += shared_float(0);
  if (MODE == 4) sum += bits_to_float(shared_load<2>(8 * lane()).word[0]);
  if (MODE == 5) sum += bits_to_float(shared_load<4>(16 * lane()).word[0]);
  if (MODE == 6) sum += bits_to_float(shared_load<4>(128 * lane()).word[0]);
  if (MODE == 7) sum += bits_to_float(shared_load<4>(128 * (lane() & 7) + 16 * (lane() & 7)).word[0]);
  if (MODE == 8 && lane() < 16) sum += bits_to_float(shared_load<4>(16 * lane()).word[0]);
  if (MODE == 9) sum += from_half(shared_half(2 * lane()));
  if (MODE == 10) sum += bits_to_float(shared_load<2>(128 * (lane() & 15)).word[0]);
  if (MODE == 11)
    for (int i = 0; i < 4; ++i) sum += shared_float(4 * lane() + 128 * i);
  if (MODE == 12)
    for (int i = 0; i <= (lane() & 1); ++i) sum += shared_float(4 * lane() + 128 * i);
  if (MODE == 13) {
    if (lane() & 1) sum += shared_float(4 * lane());
    else sum += shared_float(4 * lane() + 128);
  }
  write(arguments.to, thread(), sum);
}

// What is not written before it is read.
KERNEL(twice, 64, 1, Arguments) {
  float sum = 0.0f;
  for (int round = 0; round < arguments.count; ++round) {
    shared_set(4 * thread(), read(arguments.from, thread()) + (float)round);
    barrier();
    sum += shared_float(4 * (63 - thread()));
    if (MODE == 0) barrier();
  }
  write(arguments.to, thread(), sum);
}

// A register that nothing was stored to.
KERNEL(forgotten, 32, 1, Arguments) {
  float value[4];
  if (arguments.count > 1) value[1] = 1.0f;
  write(arguments.to, thread(), value[arguments.count & 3]);
}
