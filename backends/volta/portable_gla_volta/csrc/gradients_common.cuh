// What the gradients of keys and of values share: the shared memory that both have, a chunk's kept states, and staging.
#pragma once

constexpr int THREADS = 2 * KT, WARPS = THREADS / 32, TILES = KP / KT;
constexpr int SLICE_CHUNKS = 4, SLICE = SLICE_CHUNKS * PER, CHUNKS = KT / PER;
constexpr int TILE_BYTES = CHUNK * KT * SIZE, SLICE_BYTES = CHUNK * SLICE * SIZE, KEPT_BYTES = SLICE * KT * SIZE;
constexpr int SHARES = THREADS / CHUNKS;  // threads that stage one chunk of a kept state's channels

// Shared memory of a tile of K: slices of v and do, of S and R, where results and operands take their turns.
constexpr int RESULT_BYTES = 4 * CHUNK * KT;
constexpr int V_AT = 0, D_AT = SLICE_BYTES, S_AT = 2 * SLICE_BYTES, R_AT = S_AT + KEPT_BYTES;
constexpr int RESULTS = S_AT, OPERAND = R_AT + KEPT_BYTES, PATHS = V_AT, KEYS_END = OPERAND + TILE_BYTES;
static_assert(RESULT_BYTES <= 2 * KEPT_BYTES && TILE_BYTES <= 2 * KEPT_BYTES && 4 * SHARES * KT <= 2 * KEPT_BYTES);
static_assert(4 * CHUNK * CHUNK <= 2 * SLICE_BYTES);
// Of a tile of V: two operands (then partial scores) and a slice of R; at the end do and dv.
constexpr int LINK_AT = 2 * TILE_BYTES, LINK_END = LINK_AT + KEPT_BYTES;
constexpr int DO_AT = 0, DV_AT = TILE_BYTES, DV_END = DV_AT + RESULT_BYTES;
constexpr int VALUES_END = LINK_END > DV_END ? LINK_END : DV_END;
static_assert(partials_bytes(WARPS) <= LINK_AT);
// Of both.
constexpr int WEIGHTS = KEYS_END > VALUES_END ? KEYS_END : VALUES_END;
constexpr int SELF = WEIGHTS + SCORE_BYTES, TOTALS = SELF + 4 * CHUNK, SUMS = TOTALS + 8 * KT, VECTORS = SUMS + 8 * KT;
constexpr int LARGEST = VECTORS + VECTOR_BYTES, VOTES = LARGEST + 16, ROW_SUMS = VOTES + 64;

struct Work {
  Place place;
  int head, position, end;
  int64 row;    // slot and head
};

// A kept state's rows of V are in units of their own: they are brought to the largest of them.
struct Kept {
  const char* data;
  const float* units;
  float unit;
};

DEVICE Kept kept_of(const GradientsArguments& arguments, const void* data, const float* units, int64 row) {
  Kept kept;
  kept.data = (const char*)data + row * ceil_div(arguments.value_dim, 16) * 16 * KP * SIZE;
  kept.units = units + row * arguments.groups * arguments.parts;
  kept.unit = 1.0f;
#ifndef FLOAT32
  float most = 0.0f;
  for (int n = lane(); n < arguments.groups * arguments.parts; n += 32)
    most = larger(most, bits_to_float(global_load<1>(kept.units + n).word[0]));
  kept.unit = largest_of_warp(most);
#endif
  return kept;
}

// One chunk of channels of row `value`.
DEVICE Words<4> kept_chunk(const GradientsArguments& arguments, const Kept& kept, int value, int key) {
  Words<4> words;
  UNROLL for (int n = 0; n < 4; n++) words.word[n] = 0;
  if (value >= ceil_div(arguments.value_dim, 16) * 16) return words;
  words = global_load<4>(kept.data + ((int64)value * KP + key) * SIZE);
#ifndef FLOAT32
  int place = value / 16 * arguments.parts + key % KT / (KT / arguments.parts);
  float factor = bits_to_float(global_load<1>(kept.units + place).word[0]) * inverse_power(kept.unit);
  if (factor != 1.0f)
    UNROLL for (int n = 0; n < 4; n++)
      words.word[n] = pack_half(half_low(words.word[n]) * factor, half_high(words.word[n]) * factor);
#endif
  return words;
}

DEVICE void numbers_of(const Words<4>& words, float (&numbers)[PER]) {
#ifdef FLOAT32
  UNROLL for (int n = 0; n < 4; n++) numbers[n] = bits_to_float(words.word[n]);
#else
  UNROLL for (int n = 0; n < 4; n++) {
    numbers[2 * n] = half_low(words.word[n]);
    numbers[2 * n + 1] = half_high(words.word[n]);
  }
#endif
}

// 32 positions of WIDTH columns, a word of one or two of them at a time; what lies outside is 0.
template <int WIDTH> DEVICE void stage(int tile, const Rows& rows, const Work& work, int first_column, int columns) {
  constexpr int PAIR = 4 / SIZE, WORDS = WIDTH / PAIR, AT_ONCE = THREADS / WORDS;
  static_assert(THREADS % WORDS == 0 && CHUNK % AT_ONCE == 0);
  int column = thread() % WORDS * PAIR, left = columns - first_column - column;
  for (int row = thread() / WORDS; row < CHUNK; row += AT_ONCE) {
    int position = work.position + row;
    Words<1> found = {{0}};
    if (position < work.end && left > 0)
#ifdef FLOAT32
      found = global_load<1>(row_address(rows, position, first_column + column, SIZE));
#else
      found.word[0] = row_pair(rows, position, first_column + column, left);
#endif
    shared_store<1>(tile + element_at<WIDTH / PER>(row, column), found);
  }
}

// One column of 16 positions from `first` on, as far as `end`.
DEVICE void store_column(const Rows& rows, int first, int end, int column, const float (&numbers)[SUB]) {
  int kind = rows.tensor->kind, size = size_of(kind);
  char* to = row_address(rows, first, column, size);
  int64 step = size * row_step(rows);
  UNROLL for (int n = 0; n < SUB; n++, to += step)
    if (first + n < end) store_number(to, 0, kind, numbers[n]);
}

DEVICE float weight_of(const GradientsArguments& arguments, int head, int channel, bool inside) {
  return arguments.bonus && inside
             ? bits_to_float(global_load<1>(arguments.bonus + (int64)head * arguments.key_dim + channel).word[0])
             : 1.0f;
}
