// One channel of 16 positions in a thread: q, k and decays, and what is made of them for the matrix unit.
//
// Decays are products of exp(g): nothing is subtracted, and nothing divided but where a range is known small. `prefix`
// runs over the gates up to a reader (its own included, but with a bonus), `suffix` over those after a key.
#pragma once

constexpr int SUB = 16;

struct Column {
  float e[SUB];
  unsigned qk[SUB];  // q low, k high
};

DEVICE float q_of(const Column& column, int r) { return half_low(column.qk[r]); }
DEVICE float k_of(const Column& column, int r) { return half_high(column.qk[r]); }

// The exponentials of 16 positions' gates: 1 outside the sequence, or beyond the last channel.
DEVICE void load_decays(float (&e)[SUB], const Rows& g, int position, int end, int channel, bool inside) {
  UNROLL for (int r = 0; r < SUB; r++)
    e[r] = inside && position + r < end ? quick_exponential(row_number(g, position + r, channel)) : 1.0f;
}

DEVICE float product_of(const float (&e)[SUB]) {
  float total = 1.0f;
  UNROLL for (int r = 0; r < SUB; r++) total *= e[r];
  return total;
}
