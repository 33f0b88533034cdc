// The forward pass in float16: a program walks one segment of one head for BV columns of V, its state in registers.
//
// Grid: slots x heads x tiles of V, these fastest: programs that share q, k and g run side by side.
// Compiled in: KP, BV, WV, WK (state.cuh); CHANNEL: gates per channel, else per head, constant or none.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"
#include "tiles.cuh"
#include "column.cuh"
#include "vectors.cuh"
#include "scores.cuh"
#define OPERANDS 2
#include "state.cuh"

// Shared memory: the operands; partial scores, and after them v, which o takes over, and the scores.
constexpr int VALUES_AT = OPERANDS * TILE_BYTES * TILES, SCORES_AT = VALUES_AT + CHUNK * BV * 2;
constexpr int PARTIALS = VALUES_AT, PARTIALS_END = PARTIALS + partials_bytes(WARPS);
constexpr int SCORES_END = SCORES_AT + CHUNK * CHUNK * 2;
// Per channel: the decays of both blocks, of the chunk times a lift, one over it, the largest keys of both blocks.
constexpr int TOTALS = PARTIALS_END > SCORES_END ? PARTIALS_END : SCORES_END;
constexpr int VECTORS = TOTALS + 24 * KP;
constexpr int VOTES = VECTORS + VECTOR_BYTES;
constexpr int LARGEST = VOTES + 4 * WARPS;
static_assert(WK == 1 || 4 * BV * CHUNK <= 2 * TILE_BYTES);

// o += the state read by q: both sides of one chunk, from registers and the first tiles.
DEVICE void read_by(float (&o)[2][8], const Carried& state, int tiles, float factor) {
  int row = opaque(row_of_b()), first = opaque(warp_keys() / 8);
  UNROLL for (int p = 0; p < PARTS; p++) {
    if (PARTS > 2 && p) warp_barrier();  // or operands of all parts would be fetched at once, and registers not suffice
    UNROLL for (int half = 0; half < 2; half++) {
      unsigned own[2][2], other[2][2];
      round_state(state, p, half, factor, own);
      UNROLL for (int t = 0; t < 2; t++)
        UNROLL for (int n = 0; n < 2; n++) other[t][n] = shuffle_xor(own[t][n], 8);
      UNROLL for (int column = 0; column < 2; column++) {
        bool mine = quad_column() == column;
        UNROLL for (int block = 0; block < 2; block++) {
          int chunk = first + 4 * p + 2 * column + half;
          Words<4> words = shared_load<4>(operand_at(tiles, 16 * block + row, chunk));
          UNROLL for (int t = 0; t < 2; t++) {
            unsigned a[2] = {mine ? own[t][0] : other[t][0], mine ? own[t][1] : other[t][1]};
            unsigned b[2] = {words.word[2 * t], words.word[2 * t + 1]};
            mma<true, true>(o[block], a, b);
          }
        }
      }
    }
  }
}

// o += the chunk's own values by its scores; warps that share columns of V share the positions j.
DEVICE void read_scores(float (&o)[2][8], const Values& values, int tile) {
  int row = opaque(row_of_b());
  UNROLL for (int chunk = 0; chunk < CHUNK / 8; chunk++) {
    if (chunk % WK != warp() / WV) continue;
    UNROLL for (int block = 0; block < 2; block++) {
      if (block == 0 && chunk >= 2) continue;
      Words<4> words = shared_load<4>(tile + tile_at<4, SCORES>(16 * block + row, chunk));
      UNROLL for (int t = 0; t < 2; t++) {
        unsigned b[2] = {words.word[2 * t], words.word[2 * t + 1]};
        mma<false, true>(o[block], values.word[2 * chunk + t], b);
      }
    }
  }
}

KERNEL(forward, THREADS, 2, SweepArguments) {
  const Sequences& sequences = arguments.sequences;
  int tiles_of_v = ceil_div(arguments.value_dim, BV);
  int first_value = block() % tiles_of_v * BV, head = block() / tiles_of_v % sequences.heads;
  Place place = locate(sequences, block() / tiles_of_v / sequences.heads);
  int start = place.piece * sequences.unit;
  if (place.piece > 0 && start >= place.length) return;
  int end = start + sequences.unit < place.length ? start + sequences.unit : place.length;
  int key_dim = arguments.key_dim, value_dim = arguments.value_dim;
  bool exclusive = arguments.exclusive;
  Carried state;
  zero_state(state);
  if (place.piece > 0)
    read_state(state, arguments.links, link_row(sequences, place, place.piece), head, first_value, key_dim, value_dim);
  else if (arguments.first.data)
    read_state(state, arguments.first, place.sequence, head, first_value, key_dim, value_dim);
  Rows q = rows_of(arguments.q, sequences, place, head), k = rows_of(arguments.x, sequences, place, head);
  Rows v = rows_of(arguments.y, sequences, place, head), g = rows_of(arguments.g, sequences, place, head);
  Rows o = rows_of(arguments.o, sequences, place, head);
  // This thread's channel of a tile, and its block of 16 positions.
  int own = thread() % KT, side = thread() / KT;
  bool active = thread() < 2 * KT;

  int my_channel = own, my_side = side;
  for (int position = start; position < end; position += CHUNK) {
    own = opaque(my_channel);
    side = opaque(my_side);
    if (!CHANNEL && warp() == 0) head_vectors(VECTORS, g, position, end, exclusive);
    Scores<WARPS> scores;
    clear(scores.diagonal);
    clear(scores.between);
    int tiles = TILES == 1 ? 1 : opaque(TILES);  // one after another
    for (int tile = 0; tile < tiles; tile++) {
      int channel = tile * KT + own, readers = tile_offset(0, tile), keys = readers + TILE_BYTES;
      bool inside = active && channel < key_dim;
      int first = position + SUB * side;
      Column column;
      load_pairs(column, q, k, first, end, channel, inside);
      float bonus = arguments.bonus && inside ? bits_to_float(
          global_load<1>(arguments.bonus + (int64)head * key_dim + channel).word[0]) : 1.0f;
      if (CHANNEL) {
        load_decays(column.e, g, first, end, channel, inside);
        float total = product_of(column.e);
        float key = 0.0f;
        UNROLL for (int r = 0; r < SUB; r++) key = larger(key, magnitude(k_of(column, r)));
        if (active) {
          shared_set(TOTALS + 4 * (side * KP + channel), total);
          shared_set(TOTALS + 4 * ((4 + side) * KP + channel), key);
        }
        vote(VOTES, column, active);
        barrier();
        int near = outcome<WARPS>(VOTES);
        float before = 1.0f, after = 1.0f, lift = 1.0f;
        if (active) {
          float other = shared_float(TOTALS + 4 * ((1 - side) * KP + channel));
          before = side ? other : 1.0f;
          after = side ? 1.0f : other;
          lift = lift_of(larger(key, shared_float(TOTALS + 4 * ((5 - side) * KP + channel))));
          shared_set(TOTALS + 4 * ((2 + side) * KP + channel), side ? inverse_power(lift) : other * total * lift);
        }
        channel_scores<WARPS, CHUNKS>(scores, readers, keys, column, active, own, side, near, exclusive, bonus, before);
        if (active) {
          if (near != 2) put_readers<CHUNKS>(readers, column, own, side, exclusive, before);
          put_keys<CHUNKS>(keys, column, own, side, after * lift);
        }
      } else {
        head_scores<WARPS, CHUNKS>(scores, readers, keys, column, active, own, side, exclusive, bonus);
      }
    }
    store_partials<WARPS>(scores, PARTIALS);
    barrier();
    Blocks<WARPS> blocks;
    sum_partials<WARPS>(blocks, PARTIALS);
    if (!CHANNEL)
      UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
        int mine = warp() + n * WARPS;
        if (mine < BLOCKS) decay_pairs(blocks.value[n], VECTORS, block_row(mine), block_column(mine), exclusive);
      }
    store_largest<WARPS>(blocks, LARGEST);
    barrier();
    float unit = unit_of_scores<WARPS>(LARGEST);
    put_scores<WARPS>(blocks, SCORES_AT, inverse_power(unit), false);
    stage_values(VALUES_AT, v, position, end, first_value, value_dim);
    barrier();

    float out[2][8];
    clear(out[0]);
    clear(out[1]);
    float state_unit = unit_of_state(state);
    read_by(out, state, 0, inverse_power(state_unit));
    UNROLL for (int side = 0; side < 2; side++)
      UNROLL for (int i = 0; i < 8; i++) {
        float factor = state_unit * inverse_power(unit);
        if (!CHANNEL) factor *= shared_float(VECTORS + VECTOR_PREFIX + 4 * (16 * side + result_column(i)));
        out[side][i] *= factor;
      }
    Values values;
    load_values(values, VALUES_AT);
    read_scores(out, values, SCORES_AT);
    float lift = 1.0f;
    if (CHANNEL) decay_state(state, TOTALS + 8 * KP, true);
    else {
      lift = weigh_values(values, VECTORS + VECTOR_SUFFIX);
      scale_state(state, shared_float(VECTORS + VECTOR_TOTAL) * lift);
    }
    add_to_state(state, values, TILE_BYTES);
    if (CHANNEL) decay_state(state, TOTALS + 12 * KP, true);
    else scale_state(state, inverse_power(lift));
    if (WK > 1) {  // warps that share columns of V add up what they found, where the operands were
      UNROLL for (int part = 1; part < WK; part++) {
        barrier();
        if (warp() / WV == part) {
          store_result(2048 * (warp() % WV), out[0]);
          store_result(2048 * (warp() % WV) + 1024, out[1]);
        }
        barrier();
        if (warp() / WV == 0) {
          add_result(2048 * (warp() % WV), out[0]);
          add_result(2048 * (warp() % WV) + 1024, out[1]);
        }
      }
    } else {
      warp_barrier();
    }
    if (warp() / WV == 0) {  // each warp its own columns of the tile that v was in
      int row_of = opaque(result_column(0)), value_of = opaque(carried_value(0));
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int i = 0; i < 8; i++)
          shared_set_half(VALUES_AT + element_at<BV / 8, VALUES>(16 * block + row_of + (i & 1) + 8 * (i >> 2),
                                                                 value_of + (i & 2)),
                          to_half(out[block][i] * (unit * arguments.scale)));
      warp_barrier();
      int column_of = opaque(warp_values() + (lane() & 15));
      UNROLL for (int n = 0; n < CHUNK / 2; n++) {
        int row = 4 * (n / 2) + (n & 1) + 2 * upper();
        unsigned short half = shared_half(VALUES_AT + element_at<BV / 8, VALUES>(row, column_of));
        if (position + row < end && first_value + column_of < value_dim)
          global_set_half(row_address(o, position + row, first_value + column_of, 2), half);
      }
    }
    barrier();
  }
  if (arguments.last.data && end >= place.length)
    write_state(state, arguments.last, place.sequence, head, first_value, key_dim, value_dim);
}
