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

// Converted where they are used: kept as float32 they would take twice the registers.
DEVICE float q_of(const Column& column, int r) { return half_low((unsigned)opaque((int)column.qk[r])); }
DEVICE float k_of(const Column& column, int r) { return half_high((unsigned)opaque((int)column.qk[r])); }
DEVICE float decay_of(float g) { return quick_exponential(g); }
#endif

// Rows outside the sequence and channels beyond the last are 0.
DEVICE void load_pairs(Column& column, const Rows& q, const Rows& k, int position, int end, int channel, bool inside) {
  int count = inside ? end - position : 0;
  const char* from_q = row_address(q, position, channel, SIZE);
  const char* from_k = row_address(k, position, channel, SIZE);
  int64 step_q = SIZE * row_step(q), step_k = SIZE * row_step(k);
  UNROLL for (int r = 0; r < SUB; r++) {
#ifdef FLOAT32
    column.q[r] = r < count ? bits_to_float(global_load<1>(from_q).word[0]) : 0.0f;
    column.k[r] = r < count ? bits_to_float(global_load<1>(from_k).word[0]) : 0.0f;
#else
    unsigned low = r < count ? global_half(from_q) : 0;
    unsigned high = r < count ? global_half(from_k) : 0;
    column.qk[r] = low | high << 16;
#endif
    from_q += step_q;
    from_k += step_k;
  }
}

// The exponentials of 16 positions' gates: 1 outside the sequence, or beyond the last channel.
DEVICE void load_decays(float (&e)[SUB], const Rows& g, int position, int end, int channel, bool inside) {
  int count = inside ? end - position : 0, size = size_of(g.tensor->kind);
  const char* from = row_address(g, position, channel, size);
  int64 step = size * row_step(g);
  if (size == 4) {
    UNROLL for (int r = 0; r < SUB; r++, from += step)
      e[r] = decay_of(r < count ? bits_to_float(global_load<1>(from).word[0]) : 0.0f);
  } else {
    UNROLL for (int r = 0; r < SUB; r++, from += step)
      e[r] = decay_of(r < count ? from_half(global_half(from)) : 0.0f);
  }
}

DEVICE float product_of(const float (&e)[SUB]) {
  float total = 1.0f;
  UNROLL for (int r = 0; r < SUB; r++) total *= e[r];
  return total;
}
