// A state in registers, transposed: a warp holds 16 or 32 of its columns (V) by some of its rows (K), as results of the
// matrix unit. So it is what the next product adds to, and with a few shuffles the left operand of the product that
// reads it; it never goes through shared memory.
//
// Compiled in: KP (K padded: 32, 64, 128, 256), BV (the program's columns), WV x WK warps.
#pragma once

constexpr int WARPS = WV * WK, THREADS = 32 * WARPS;
constexpr int KT = KP < 64 ? KP : 64, TILES = KP / KT;  // tiles of channels
constexpr int CHUNKS = KT / 8, PARTS = KP / WK / 32;      // a warp's channels, 32 at a time
constexpr int TILE_BYTES = CHUNK * KT * 2;
constexpr int STRIPS = BV / 16 / WV;                      // of 16 columns, a warp's
constexpr int HELD = THREADS >= 4 * KT ? SUB / 2 : SUB;   // positions of a channel that a thread has
constexpr int SIDES = CHUNK / HELD;
constexpr int SHARE = PARTS / TILES;                      // a warp's parts of a tile: all warps have work at each
constexpr bool FENCED = PARTS * STRIPS > 2;               // a state that leaves few registers for anything else
static_assert(STRIPS * WV * 16 == BV && SHARE * TILES * 32 * WK == KP && THREADS == SIDES * KT);

struct Carried {
  float s[STRIPS][PARTS][2][8];
};

DEVICE int warp_values() { return 16 * STRIPS * (warp() % WV); }
DEVICE int warp_keys() { return warp() / WV * (KT / WK); }  // of the first tile
DEVICE constexpr int part_keys(int p) { return p / SHARE * KT + p % SHARE * 32; }  // behind these

// Where number i of a strip, of part p, half t lies.
DEVICE int carried_value(int i, int strip = 0) { return warp_values() + 16 * strip + result_row(i); }
DEVICE int carried_key(int p, int t, int i) {
  return warp_keys() + part_keys(p) + 16 * quad_column() + 8 * (i >> 2) + 4 * t + (lane() & 2) + (i & 1);
}

DEVICE void zero_state(Carried& state) {
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++) clear(state.s[v][p][t]);
}

DEVICE void read_state(Carried& state, const State& from, int row, int head, int first_value, int key_dim,
                       int value_dim) {
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i++) {
          int key = carried_key(p, t, i), value = first_value + carried_value(i, v);
          state.s[v][p][t][i] = key < key_dim && value < value_dim ? state_number(from, row, head, key, value) : 0.0f;
        }
}

DEVICE void write_state(const Carried& state, const State& to, int row, int head, int first_value, int key_dim,
                        int value_dim) {
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i++) {
          int key = carried_key(p, t, i), value = first_value + carried_value(i, v);
          if (key < key_dim && value < value_dim) set_state_number(to, row, head, key, value, state.s[v][p][t][i]);
        }
}

// Where a tile of channels lies, and a chunk of 8 channels of all in rows of positions.
DEVICE int tile_offset(int tiles, int tile) { return tiles + TILE_BYTES * tile; }
DEVICE int row_operand_at(int tiles, int row, int chunk) {
  return tile_offset(tiles, chunk / CHUNKS) + tile_at<CHUNKS>(row, chunk % CHUNKS);
}

// A channel's decays outside a thread's positions: in its own block of 16 before and after them, and of the other block.
// And the largest of all its numbers, each times the decays between it and the chunk's end (`later`), or its start: at
// `totals` and `numbers` is every side's product, and its largest as far as its own end, or start.
struct Around {
  float before, after, other, largest;
};

DEVICE Around around(int totals, int numbers, int own, int side, float total, float most, bool later) {
  auto number = [&](int at, int turn) { return shared_float(at + 4 * ((side ^ turn) * KT + own)); };
  auto join = [&](bool second, float mine, float my_total, float others, float their_total) {
    return second == later ? larger(mine, others * my_total) : larger(mine * their_total, others);
  };
  Around found = {1.0f, 1.0f, number(totals, SIDES / 2)};
  float others = number(numbers, SIDES / 2);
  if (SIDES == 4) {
    bool odd = side & 1;
    float next = number(totals, 1), far = number(totals, 3);
    most = join(odd, most, total, number(numbers, 1), next);
    others = join(odd, others, found.other, number(numbers, 3), far);
    found.other *= far;
    total *= next;
    found.before = odd ? next : 1.0f;
    found.after = odd ? 1.0f : next;
  }
  found.largest = join(side >= SIDES / 2, most, total, others, found.other);
  return found;
}

// A power of two that brings the warp's numbers to where float16 is precise.
DEVICE float unit_of_state(const Carried& state) {
  float most = 0.0f;
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i++) most = larger(most, magnitude(state.s[v][p][t][i]));
  return power_below(largest_of_warp(most)) * (1.0f / TOP);
}

// Eight channels of one row of the transposed state as a left operand: those of part p at 16 quad_column() + 8 half on.
DEVICE void round_state(const Carried& state, int v, int p, int half, float factor, unsigned (&found)[2][2]) {
  bool odd = lane() & 2;
  UNROLL for (int t = 0; t < 2; t++) {
    const float(&s)[8] = state.s[v][p][t];
    unsigned first = pack_half(s[4 * half] * factor, s[4 * half + 1] * factor);
    unsigned second = pack_half(s[4 * half + 2] * factor, s[4 * half + 3] * factor);
    unsigned got = shuffle_xor(odd ? first : second, 2);
    found[t][0] = odd ? got : first;
    found[t][1] = odd ? second : got;
  }
}

// The columns of V as left operands, four positions at a time.
struct Values {
  unsigned word[STRIPS][CHUNK / 4][2];
};

DEVICE void load_values(Values& values, int tile) {
  int row = opaque(quad_lane()), chunk = opaque(warp_values() / 8 + upper());
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int step = 0; step < CHUNK / 4; step++) {
      Words<2> words = shared_load<2>(tile + tile_at<BV / 8, VALUES>(4 * step + row, chunk + 2 * v) + 8 * quad_row());
      values.word[v][step][0] = words.word[0];
      values.word[v][step][1] = words.word[1];
    }
}

// Each position by its number in `weights`. Returns the power of two by which they are multiplied besides, so that a
// strong gate leaves something of them.
DEVICE float weigh_values(Values& values, int weights, float factor = 1.0f) {
  float most = 0.0f, weight[CHUNK / 4];
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    weight[step] = shared_float(weights + 4 * (4 * step + quad_lane()));
    float largest = 0.0f;
    UNROLL for (int v = 0; v < STRIPS; v++)
      UNROLL for (int n = 0; n < 2; n++) {
        unsigned pair = values.word[v][step][n];
        largest = larger(largest, larger(magnitude(half_low(pair)), magnitude(half_high(pair))));
      }
    most = larger(most, largest * weight[step]);
  }
  float lift = lift_of(largest_of_warp(most) * magnitude(factor));
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    float taken = weight[step] * factor * lift;
    UNROLL for (int v = 0; v < STRIPS; v++)
      UNROLL for (int n = 0; n < 2; n++) {
        unsigned pair = values.word[v][step][n];
        values.word[v][step][n] = pack_half(half_low(pair) * taken, half_high(pair) * taken);
      }
  }
  return lift;
}

DEVICE void scale_state(Carried& state, float factor) {
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i++) state.s[v][p][t][i] *= factor;
}

// S <- S times the decays at `totals`, one float a channel.
DEVICE void decay_state(Carried& state, int totals) {
  int first = totals + 4 * opaque(carried_key(0, 0, 0));
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i += 4) {
        Words<2> words = shared_load<2>(first + 4 * (carried_key(p, t, i) - carried_key(0, 0, 0)));
        UNROLL for (int v = 0; v < STRIPS; v++)
          UNROLL for (int n = 0; n < 4; n++) state.s[v][p][t][i + n] *= bits_to_float(words.word[n & 1]);
      }
}

// S <- S times the powers of two at `powers`, the upper half of a float a channel.
DEVICE void scale_channels(Carried& state, int powers) {
  int first = powers + 2 * opaque(carried_key(0, 0, 0));
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i += 4) {
        unsigned pair = shared_load<1>(first + 2 * (carried_key(p, t, i) - carried_key(0, 0, 0))).word[0];
        float factor[2] = {bits_to_float(pair << 16), bits_to_float(pair & 0xFFFF0000u)};
        UNROLL for (int v = 0; v < STRIPS; v++)
          UNROLL for (int n = 0; n < 4; n++) state.s[v][p][t][i + n] *= factor[n & 1];
      }
}

// S <- S + Vᵀ X, with X in the tiles at `tiles`.
DEVICE void add_to_state(Carried& state, const Values& values, int tiles) {
  int channel = warp_keys() + 16 * quad_column() + 8 * upper() + quad_lane();
  int place[2] = {opaque(operand_at(tiles, channel, 0)), opaque(operand_at(tiles, channel + 4, 0))};
  UNROLL for (int octet = 0; octet < OCTETS; octet++) {
    int from[2] = {opaque(place[0] ^ octet << 4), opaque(place[1] ^ octet << 4)};
    UNROLL for (int p = 0; p < PARTS; p++) {
      if (FENCED) warp_barrier();  // or too many operands would be fetched at once
      UNROLL for (int t = 0; t < 2; t++) {
        Words<4> words = shared_load<4>(from[t] + ROW_BYTES * part_keys(p));
        UNROLL for (int step = 0; step < 2; step++) {
          unsigned b[2] = {words.word[2 * step], words.word[2 * step + 1]};
          UNROLL for (int v = 0; v < STRIPS; v++)
            mma<false, true>(state.s[v][p][t], values.word[v][2 * octet + step], b);
        }
      }
    }
  }
}

// The same with X in row-major tiles of positions: with other operands ptxas runs out of registers in states.cu.
DEVICE void add_rows_to_state(Carried& state, const Values& values, int tiles) {
  // Eight rows or chunks on, a place differs by a constant.
  constexpr int NEXT = SHARE > 1 ? 4 : 0;
  int row = quad_lane(), first = warp_keys() / 8 + 2 * quad_column() + upper();
  int place[2][2] = {{opaque(row_operand_at(tiles, row, first)), opaque(row_operand_at(tiles, row, first + NEXT))},
                     {opaque(row_operand_at(tiles, 4 + row, first)), opaque(row_operand_at(tiles, 4 + row, first + NEXT))}};
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    if (FENCED) warp_barrier();  // or too many operands would be fetched at once
    UNROLL for (int p = 0; p < PARTS; p++) {
      Words<4> words = shared_load<4>(place[step % 2][p % SHARE] + step / 2 * (8 * CHUNKS * 16) + p / SHARE * TILE_BYTES);
      UNROLL for (int t = 0; t < 2; t++) {
        unsigned b[2] = {words.word[2 * t], words.word[2 * t + 1]};
        UNROLL for (int v = 0; v < STRIPS; v++) mma<false, false>(state.s[v][p][t], values.word[v][step], b);
      }
    }
  }
}

// 32 positions of the program's columns into shared memory, two columns a thread and a few loads in flight at a time;
// what lies outside is 0.
constexpr int FLIGHT = 4;
static_assert(CHUNK * BV % (2 * FLIGHT * THREADS) == 0 && THREADS % (BV / 2) == 0);

DEVICE void stage_values(int tile, const Rows& rows, int position, int end, int first_value, int value_dim) {
  constexpr int ROWS_AT_ONCE = 2 * THREADS / BV;
  int column = 2 * (thread() % (BV / 2)), first = thread() / (BV / 2), left = value_dim - first_value - column;
  int rounds = opaque(CHUNK / (FLIGHT * ROWS_AT_ONCE));
  for (int round = 0; round < rounds; round++, first += FLIGHT * ROWS_AT_ONCE) {
    Words<1> found[FLIGHT];
    UNROLL for (int n = 0; n < FLIGHT; n++) {
      int row = first + n * ROWS_AT_ONCE;
      found[n].word[0] = position + row < end ? row_pair(rows, position + row, first_value + column, left) : 0;
    }
    UNROLL for (int n = 0; n < FLIGHT; n++)
      shared_store<1>(tile + element_at<BV / 8, VALUES>(first + n * ROWS_AT_ONCE, column), found[n]);
  }
}

// Whether a row's columns can be fetched four at a time, which are all there or not.
DEVICE bool fetched_by_fours(const Rows& rows, int value_dim) {
  return rows.tensor->channel == 1 && !((int64)rows.start & 7) && !(rows.tensor->token & 3) && !(value_dim & 3);
}

// The same operands as load_values', past shared memory.
DEVICE void fetch_values(Values& values, const Rows& rows, int position, int end, int first_value, int value_dim) {
  int column = first_value + opaque(warp_values() + 8 * upper() + 4 * quad_row()), row = position + opaque(quad_lane());
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    if (FENCED) warp_barrier();  // or too many addresses would be kept
    const char* from = row_address(rows, opaque(row + 4 * step), column, 2);
    UNROLL for (int v = 0; v < STRIPS; v++) {
      Words<2> words = {{0, 0}};
      if (row + 4 * step < end && column + 16 * v < value_dim) words = global_load<2>(from + 32 * v);
      values.word[v][step][0] = words.word[0];
      values.word[v][step][1] = words.word[1];
    }
  }
}
