// A state in registers, transposed: a warp holds 16 of its columns (V) by some of its rows (K), as results of the
// matrix unit. So it is what the next product adds to, and with a few shuffles the left operand of the product that
// reads it; it never goes through shared memory.
//
// Compiled in: KP (K padded: 32, 64, 128, 256), BV (the program's columns), WV x WK warps, WV = BV / 16; OPERANDS, the
// tiles that a source has of each K tile.
#pragma once

constexpr int WARPS = WV * WK, THREADS = 32 * WARPS;
constexpr int KT = KP < 64 ? KP : 64, TILES = KP / KT;  // tiles of channels
constexpr int CHUNKS = KT / 8, PARTS = KP / WK / 32;      // a warp's channels, 32 at a time
constexpr int TILE_BYTES = CHUNK * KT * 2;
static_assert(WV * 16 == BV && PARTS * 32 * WK == KP && THREADS >= 2 * KT);

struct Carried {
  float s[PARTS][2][8];
};

DEVICE int warp_values() { return 16 * (warp() % WV); }
DEVICE int warp_keys() { return warp() / WV * (KP / WK); }

// Where number i of part p, half t lies.
DEVICE int carried_value(int i) { return warp_values() + result_row(i); }
DEVICE int carried_key(int p, int t, int i) {
  return warp_keys() + 32 * p + 16 * quad_column() + 8 * (i >> 2) + 4 * t + (lane() & 2) + (i & 1);
}

DEVICE void zero_state(Carried& state) {
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++) clear(state.s[p][t]);
}

DEVICE void read_state(Carried& state, const State& from, int row, int head, int first_value, int key_dim,
                       int value_dim) {
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i++) {
        int key = carried_key(p, t, i), value = first_value + carried_value(i);
        state.s[p][t][i] = key < key_dim && value < value_dim ? state_number(from, row, head, key, value) : 0.0f;
      }
}

DEVICE void write_state(const Carried& state, const State& to, int row, int head, int first_value, int key_dim,
                        int value_dim) {
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i++) {
        int key = carried_key(p, t, i), value = first_value + carried_value(i);
        if (key < key_dim && value < value_dim) set_state_number(to, row, head, key, value, state.s[p][t][i]);
      }
}

// Where a tile of channels lies, and a chunk of 8 channels of all.
DEVICE int tile_offset(int tiles, int tile) { return tiles + OPERANDS * TILE_BYTES * tile; }
DEVICE int operand_at(int tiles, int row, int chunk) {
  return tile_offset(tiles, chunk / CHUNKS) + tile_at<CHUNKS>(row, chunk % CHUNKS);
}

// A power of two that brings the warp's numbers to where float16 is precise.
DEVICE float unit_of_state(const Carried& state) {
  float most = 0.0f;
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i++) most = larger(most, magnitude(state.s[p][t][i]));
  return power_below(largest_of_warp(most)) * (1.0f / TOP);
}

// Eight channels of one row of the transposed state as a left operand: those of part p at 16 quad_column() + 8 half on.
DEVICE void round_state(const Carried& state, int p, int half, float factor, unsigned (&found)[2][2]) {
  bool odd = lane() & 2;
  UNROLL for (int t = 0; t < 2; t++) {
    const float(&s)[8] = state.s[p][t];
    unsigned first = pack_half(s[4 * half] * factor, s[4 * half + 1] * factor);
    unsigned second = pack_half(s[4 * half + 2] * factor, s[4 * half + 3] * factor);
    unsigned got = shuffle_xor(odd ? first : second, 2);
    found[t][0] = odd ? got : first;
    found[t][1] = odd ? second : got;
  }
}

// The columns of V as left operands, four positions at a time, each multiplied by its number in `weights` if given.
struct Values {
  unsigned word[CHUNK / 4][2];
};

DEVICE void load_values(Values& values, int tile) {
  int row = opaque(quad_lane()), chunk = opaque(warp_values() / 8 + upper());
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    Words<2> words = shared_load<2>(tile + tile_at<BV / 8, VALUES>(4 * step + row, chunk) + 8 * quad_row());
    values.word[step][0] = words.word[0];
    values.word[step][1] = words.word[1];
  }
}

// Returns the power of two by which they are multiplied besides, so that a strong gate leaves something of them.
DEVICE float weigh_values(Values& values, int weights, float factor = 1.0f) {
  float most = 0.0f;
  UNROLL for (int step = 0; step < CHUNK / 4; step++)
    UNROLL for (int n = 0; n < 2; n++)
      most = larger(most, larger(magnitude(half_low(values.word[step][n])), magnitude(half_high(values.word[step][n]))));
  float lift = lift_of(largest_of_warp(most) * magnitude(factor));
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    float weight = shared_float(weights + 4 * (4 * step + quad_lane())) * (lift * factor);
    UNROLL for (int n = 0; n < 2; n++)
      values.word[step][n] = pack_half(half_low(values.word[step][n]) * weight, half_high(values.word[step][n]) * weight);
  }
  return lift;
}

DEVICE void scale_state(Carried& state, float factor) {
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int t = 0; t < 2; t++)
      UNROLL for (int i = 0; i < 8; i++) state.s[p][t][i] *= factor;
}

// S <- S times the decays at `totals`, one float a channel, or one for all.
DEVICE void decay_state(Carried& state, int totals, bool per_channel) {
  if (per_channel) {
    int first = totals + 4 * opaque(carried_key(0, 0, 0));
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i += 4) {
          Words<2> words = shared_load<2>(first + 4 * (carried_key(p, t, i) - carried_key(0, 0, 0)));
          UNROLL for (int n = 0; n < 4; n++) state.s[p][t][i + n] *= bits_to_float(words.word[n & 1]);
        }
  } else {
    float total = shared_float(totals);
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int i = 0; i < 8; i++) state.s[p][t][i] *= total;
  }
}

// S <- S + Vᵀ X, with X in the tiles at `tiles`.
DEVICE void add_to_state(Carried& state, const Values& values, int tiles) {
  int row = opaque(quad_lane()), first = opaque(warp_keys() / 8 + 2 * quad_column() + upper());
  UNROLL for (int step = 0; step < CHUNK / 4; step++) {
    if (PARTS > 2 && step % 2 == 0) warp_barrier();  // or too many operands would be fetched at once
    UNROLL for (int p = 0; p < PARTS; p++) {
      Words<4> words = shared_load<4>(operand_at(tiles, 4 * step + row, first + 4 * p));
      UNROLL for (int t = 0; t < 2; t++) {
        unsigned b[2] = {words.word[2 * t], words.word[2 * t + 1]};
        mma<false, false>(state.s[p][t], values.word[step], b);
      }
    }
  }
}

// 32 positions of the program's columns into shared memory, a few loads in flight at a time; what lies outside is 0.
constexpr int FLIGHT = 8;
static_assert(CHUNK * BV % (FLIGHT * THREADS) == 0 && THREADS % BV == 0);

DEVICE void stage_values(int tile, const Rows& rows, int position, int end, int first_value, int value_dim) {
  constexpr int ROWS_AT_ONCE = THREADS / BV;
  int column = thread() % BV, first = thread() / BV;
  bool inside = first_value + column < value_dim;
  int rounds = opaque(CHUNK / (FLIGHT * ROWS_AT_ONCE));
  for (int round = 0; round < rounds; round++, first += FLIGHT * ROWS_AT_ONCE) {
    unsigned short found[FLIGHT];
    UNROLL for (int n = 0; n < FLIGHT; n++) {
      int row = first + n * ROWS_AT_ONCE;
      found[n] = inside && position + row < end ? row_half(rows, position + row, first_value + column)
                                                : (unsigned short)0;
    }
    UNROLL for (int n = 0; n < FLIGHT; n++)
      shared_set_half(tile + element_at<BV / 8, VALUES>(first + n * ROWS_AT_ONCE, column), found[n]);
  }
}
