// One channel of 16 or 8 positions in a thread: q, k and decays, and what is made of them for the matrix unit.
//
// Decays are products of exp(g): nothing is subtracted, and nothing divided but where a range is known small. `prefix`
// runs over the gates up to a reader (its own included, but with a bonus), `suffix` over those after a key.
#pragma once

constexpr int SUB = 16;

#ifdef FLOAT32
template <int ROWS> struct Positions {
  float e[ROWS], q[ROWS], k[ROWS];
};

template <int ROWS> DEVICE float q_of(const Positions<ROWS>& column, int r) { return column.q[r]; }
template <int ROWS> DEVICE float k_of(const Positions<ROWS>& column, int r) { return column.k[r]; }
DEVICE float decay_of(float g) { return exponential(g); }
#else
template <int ROWS> struct Positions {
  float e[ROWS];
  unsigned qk[ROWS];  // q low, k high
};

// Converted where they are used: kept as float32 they would take twice the registers.
template <int ROWS> DEVICE float q_of(const Positions<ROWS>& column, int r) {
  return half_low((unsigned)opaque((int)column.qk[r]));
}
template <int ROWS> DEVICE float k_of(const Positions<ROWS>& column, int r) {
  return half_high((unsigned)opaque((int)column.qk[r]));
}
DEVICE float decay_of(float g) { return quick_exponential(g); }
#endif
using Column = Positions<SUB>;

// Rows outside the sequence and channels beyond the last are 0.
template <int ROWS> DEVICE void load_pairs(Positions<ROWS>& column, const Rows& q, const Rows& k, int position, int end,
                                           int channel, bool inside) {
  int count = inside ? end - position : 0;
  const char* from = row_address(q, position, channel, SIZE);
  int64 step = SIZE * row_step(q);
  UNROLL for (int r = 0; r < ROWS; r++, from += step)
#ifdef FLOAT32
    column.q[r] = r < count ? bits_to_float(global_load<1>(from).word[0]) : 0.0f;
#else
    column.qk[r] = r < count ? global_half(from) : 0;
#endif
  from = row_address(k, position, channel, SIZE);
  step = SIZE * row_step(k);
  UNROLL for (int r = 0; r < ROWS; r++, from += step)
#ifdef FLOAT32
    column.k[r] = r < count ? bits_to_float(global_load<1>(from).word[0]) : 0.0f;
#else
    column.qk[r] |= r < count ? (unsigned)global_half(from) << 16 : 0;
#endif
}

// The exponentials of these positions' gates: 1 outside the sequence, or beyond the last channel.
template <int ROWS> DEVICE void load_decays(float (&e)[ROWS], const Rows& g, int position, int end, int channel,
                                            bool inside) {
  int count = inside ? end - position : 0, size = size_of(g.tensor->kind);
  const char* from = row_address(g, position, channel, size);
  int64 step = size * row_step(g);
  if (size == 4) {
    UNROLL for (int r = 0; r < ROWS; r++, from += step)
      e[r] = decay_of(r < count ? bits_to_float(global_load<1>(from).word[0]) : 0.0f);
  } else {
    UNROLL for (int r = 0; r < ROWS; r++, from += step)
      e[r] = decay_of(r < count ? from_half(global_half(from)) : 0.0f);
  }
}

// The largest of k times the suffix within these positions.
template <int ROWS> DEVICE float largest_key(const Positions<ROWS>& column) {
  float suffix = 1.0f, most = 0.0f;
  UNROLL for (int r = ROWS - 1; r >= 0; r--) {
    most = larger(most, magnitude(k_of(column, r) * suffix));
    suffix *= column.e[r];
  }
  return most;
}

template <int ROWS> DEVICE float product_of(const float (&e)[ROWS]) {
  float total = 1.0f;
  UNROLL for (int r = 0; r < ROWS; r++) total *= e[r];
  return total;
}
