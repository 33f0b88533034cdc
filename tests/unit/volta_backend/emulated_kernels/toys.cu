// Kernels with one right and several wrong ways through them, chosen by MODE, for tests of the emulator.
#include "target.cuh"

struct Arguments {
  const void* from;
  void* to;
  int count;
};

#ifndef MODE
#define MODE 0
#endif

KERNEL(doubled, 64, 1, Arguments) {
  const int at = 64 * block() + thread();
  if (at >= arguments.count) return;
  const float* from = (const float*)arguments.from;
  float* to = (float*)arguments.to;
  Words<1> value = global_load<1>(from + at);
  value.word[0] = float_to_bits(2.0f * bits_to_float(value.word[0]));
  global_store<1>(to + at, value);
}
