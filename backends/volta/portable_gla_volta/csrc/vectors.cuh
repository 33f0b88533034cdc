// Per head a chunk's decays are one number a position: one warp makes them for all.
#pragma once

constexpr int VECTOR_E = 0, VECTOR_PREFIX = 128, VECTOR_SUFFIX = 256, VECTOR_TOTAL = 384, VECTOR_FIRST = 388, VECTOR_BYTES = 400;
constexpr int OCTET_PREFIX = 400, OCTET_SUFFIX = 528, OCTET_TOTAL = 656, OCTET_BYTES = 272;

// Lane i takes position i of 32: e, the product up to i (before i if exclusive), after i, and of all. `split` leaves the
// first position's e out of all of them, and beside them.
DEVICE float head_vectors(int offset, const Rows& g, int position, int end, bool exclusive, bool split = false) {
  int i = lane();
  float e = g.tensor->data && position + i < end ? decay_of(row_number(g, position + i, 0)) : 1.0f;
  if (split && i == 0) {
    shared_set(offset + VECTOR_FIRST, e);
    e = 1.0f;
  }
  float prefix = e, suffix = e;
  UNROLL for (int step = 1; step < 32; step *= 2) {
    float before = shuffle(prefix, (i - step) & 31), after = shuffle(suffix, (i + step) & 31);
    prefix *= i >= step ? before : 1.0f;
    suffix *= i + step < 32 ? after : 1.0f;
  }
  float total = shuffle(prefix, 31), previous = shuffle(prefix, (i - 1) & 31), next = shuffle(suffix, (i + 1) & 31);
  shared_set(offset + VECTOR_E + 4 * i, e);
  shared_set(offset + VECTOR_PREFIX + 4 * i, !exclusive ? prefix : i ? previous : 1.0f);
  shared_set(offset + VECTOR_SUFFIX + 4 * i, i < 31 ? next : 1.0f);
  if (i == 0) shared_set(offset + VECTOR_TOTAL, total);
  return e;
}

// And within 8 positions, by what head_vectors returns: the products up to a reader and after a key, and of the eight.
DEVICE void octet_vectors(int offset, float e, bool exclusive) {
  int i = lane(), r = i & 7;
  float prefix = e, suffix = e;
  UNROLL for (int step = 1; step < 8; step *= 2) {
    float before = shuffle(prefix, (i - step) & 31), after = shuffle(suffix, (i + step) & 31);
    prefix *= r >= step ? before : 1.0f;
    suffix *= r + step < 8 ? after : 1.0f;
  }
  float previous = shuffle(prefix, (i - 1) & 31), next = shuffle(suffix, (i + 1) & 31);
  shared_set(offset + OCTET_PREFIX + 4 * i, !exclusive ? prefix : r ? previous : 1.0f);
  shared_set(offset + OCTET_SUFFIX + 4 * i, r < 7 ? next : 1.0f);
  if (r == 7) shared_set(offset + OCTET_TOTAL + 4 * (i >> 3), prefix);
}

// values[n] *= the decay from position column[n] to a reader at row[n]: a product over those in between.
DEVICE void decay_pairs(float (&values)[8], int offset, int first_row, int first_column, bool exclusive) {
  Result at = result();
  UNROLL for (int part = 7; part >= 0; part--) {
    Words<4> words = shared_load<4>(offset + VECTOR_E + 16 * part);
    UNROLL for (int n = 3; n >= 0; n--) {
      int s = 4 * part + n;
      float e = bits_to_float(words.word[n]);
      UNROLL for (int i = 0; i < 8; i++) {
        int row = first_row + row_of(at, i), column = first_column + column_of(at, i);
        if (column < s && (exclusive ? s < row : s <= row)) values[i] *= e;
      }
    }
  }
}
