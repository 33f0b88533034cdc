// One channel of 16 positions in a thread: q, k and decays, and what is made of them for the matrix unit.
//
// Decays are products of exp(g): nothing is subtracted, and nothing divided but where a range is known small. `prefix`
// runs over the gates up to a reader (its own included, but with a bonus), `suffix` over those after a key.
#pragma once

constexpr int SUB = 16;

#ifdef FLOAT32
struct Column {
  float e[SUB], q[SUB], k[SUB];
};

DEVICE float q_of(const Column& column, int r) { return column.q[r]; }
DEVICE float k_of(const Column& column, int r) { return column.k[r]; }
DEVICE float decay_of(float g) { return exponential(g); }
#else
struct Column {
  float e[SUB];
  unsigned qk[SUB];  // q low, k high
};

DEVICE float q_of(const Column& column, int r) { return half_low(column.qk[r]); }
DEVICE float k_of(const Column& column, int r) { return half_high(column.qk[r]); }
DEVICE float decay_of(float g) { return quick_exponential(g); }
#endif

// Rows outside the sequence and channels beyond the last are 0.
DEVICE void load_pairs(Column& column, const Rows& q, const Rows& k, int position, int end, int channel, bool inside) {
  UNROLL for (int r = 0; r < SUB; r++) {
    bool there = inside && position + r < end;
#ifdef FLOAT32
    column.q[r] = there ? row_float(q, position + r, channel) : 0.0f;
    column.k[r] = there ? row_float(k, position + r, channel) : 0.0f;
#else
    unsigned low = there ? row_half(q, position + r, channel) : 0;
    unsigned high = there ? row_half(k, position + r, channel) : 0;
    column.qk[r] = low | high << 16;
#endif
  }
}

// The exponentials of 16 positions' gates: 1 outside the sequence, or beyond the last channel.
DEVICE void load_decays(float (&e)[SUB], const Rows& g, int position, int end, int channel, bool inside) {
  if (g.kind == 0) {
    UNROLL for (int r = 0; r < SUB; r++)
      e[r] = inside && position + r < end ? row_float(g, position + r, channel) : 0.0f;
  } else {
    UNROLL for (int r = 0; r < SUB; r++)
      e[r] = inside && position + r < end ? from_half(row_half(g, position + r, channel)) : 0.0f;
  }
  UNROLL for (int r = 0; r < SUB; r++) e[r] = decay_of(e[r]);
}

DEVICE float product_of(const float (&e)[SUB]) {
  float total = 1.0f;
  UNROLL for (int r = 0; r < SUB; r++) total *= e[r];
  return total;
}
