// The forward pass in float16: a program walks one segment of one head for BV columns of V, its state in registers.
//
// Grid: slots x heads x tiles of V, these fastest: programs that share q, k and g run side by side.
// Compiled in: KP, BV, WV, WK (state.cuh); CHANNEL: gates per channel, else per head, constant or none; WHOLE: the readers
// of all channels stay till the state is read, else it is read tile by tile, which takes more registers and barriers.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"
#include "tiles.cuh"
#include "column.cuh"
#include "vectors.cuh"
#include "scores.cuh"
#include "operands.cuh"
#include "state.cuh"

// Shared memory: readers; v; keys; the scores. A warp that has its columns of v for itself leaves o in their place; else
// parts of o meet from the readers' place on, and o lies there.
constexpr int VALUES_AT = (WHOLE ? TILES : 1) * TILE_BYTES, KEYS_AT = VALUES_AT + CHUNK * BV * 2, SCORES_AT = KEYS_AT + TILES * TILE_BYTES;
constexpr int O_AT = WK == 1 ? VALUES_AT : 0;
// Per channel: the chunk's decay times a lift, and the upper half of one over the lift; of a tile's channels the decays of
// every side and its largest keys with their suffixes.
constexpr int TOTALS = SCORES_AT + SCORE_BYTES, LIFTS = TOTALS + 4 * KP;
constexpr int SIDE_TOTALS = LIFTS + 2 * KP, SIDE_KEYS = SIDE_TOTALS + 4 * SIDES * KT;
constexpr int VECTORS = SIDE_KEYS + 4 * SIDES * KT;
constexpr int READER_LIFTS = VECTORS;  // per channel: one over each tile's lift of its readers
constexpr int VOTES = VECTORS + VECTOR_BYTES + OCTET_BYTES;
constexpr int LARGEST = VOTES + 16;
constexpr int APART = LARGEST + 16;  // sums of every warp
constexpr int STARTS = APART + 6 * HELD * WARPS;  // of the rows of q, k, v, g and o: few registers are left beside a state
constexpr int STRIP_BYTES = 2048;  // a warp's part of o, of 16 columns
constexpr bool LIFTED = TILES == 1;  // the scores' operands: see scores.cuh
constexpr int PARTS_OF_O = WK / 2 * BV * CHUNK * 4;
static_assert(PARTS_OF_O <= KEYS_AT && (WK == 1 || BV * CHUNK * 2 <= KEYS_AT));

// Of a warp: strips of 16 columns by both halves of every octet of positions.
struct Out {
  float strip[STRIPS][2][8];
};

DEVICE void scale(Out& o, float factor) {
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int i = 0; i < 8; i++) o.strip[v][half][i] *= factor;
}

// Where number i of a half's results lies.
DEVICE int out_position(int half, int i) {
  return 16 * quad_column() + 8 * (i >> 2) + 4 * half + (lane() & 2) + (i & 1);
}

// o += the state in a tile's channels, times `factor`, read by q. `lift`: by how much o is too large.
DEVICE void read_by(Out& o, float& lift, const Carried& state, int tile, float factor) {
  if (CHANNEL) {
    float next = inverse_power(shared_float(READER_LIFTS + 4 * tile));
    scale(o, next * inverse_power(lift));
    lift = next;
  }
  int channel = warp_keys() + quad_lane(), octet = 2 * quad_column() + upper();
  int readers = WHOLE ? tile_offset(0, tile) : 0;
  int place[2] = {opaque(operand_at(readers, channel, octet)), opaque(operand_at(readers, channel + 4, octet))};
  UNROLL for (int p = 0; p < PARTS; p++) {
    if (p / SHARE != tile) continue;
    if (FENCED && p % SHARE) warp_barrier();  // or too many operands would be fetched at once
    UNROLL for (int half = 0; half < 2; half++) {
      unsigned own[STRIPS][2][2], other[STRIPS][2][2];
      UNROLL for (int v = 0; v < STRIPS; v++) {
        round_state(state, v, p, half, factor, own[v]);
        UNROLL for (int t = 0; t < 2; t++)
          UNROLL for (int n = 0; n < 2; n++) other[v][t][n] = shuffle_xor(own[v][t][n], 8);
      }
      UNROLL for (int column = 0; column < 2; column++) {
        bool mine = quad_column() == column;
        UNROLL for (int t = 0; t < 2; t++) {
          Words<4> words = shared_load<4>(place[t] + ROW_BYTES * (32 * (p % SHARE) + 16 * column + 8 * half));
          UNROLL for (int v = 0; v < STRIPS; v++) {
            unsigned a[2] = {mine ? own[v][t][0] : other[v][t][0], mine ? own[v][t][1] : other[v][t][1]};
            UNROLL for (int part = 0; part < 2; part++) {
              unsigned b[2] = {words.word[2 * part], words.word[2 * part + 1]};
              mma<true, false>(o.strip[v][part], a, b);
            }
          }
        }
      }
    }
  }
}

// o += the chunk's own values by its scores; warps that share columns of V share the positions j.
DEVICE void read_scores(Out& o, const Values& values, int tile) {
  int row = opaque(16 * quad_column() + 8 * upper() + quad_lane());
  UNROLL for (int octet = 0; octet < OCTETS; octet++) {
    if (octet % WK != warp() / WV) continue;
    UNROLL for (int half = 0; half < 2; half++) {
      Words<4> words = shared_load<4>(operand_at(tile, row + 4 * half, octet));
      UNROLL for (int t = 0; t < 2; t++) {
        unsigned b[2] = {words.word[2 * t], words.word[2 * t + 1]};
        UNROLL for (int v = 0; v < STRIPS; v++) mma<false, true>(o.strip[v][half], values.word[v][2 * octet + t], b);
      }
    }
  }
}

// The later one of two warps that share columns of V gives what it found to the first.
DEVICE void sum_parts(Out& o) {
  static_assert(WK <= 2);
  if (WK == 1) {
    warp_barrier();  // o takes the place of v
    return;
  }
  if (PARTS_OF_O > VALUES_AT) barrier();  // nobody needs v any more
  int strip = warp() % WV;
  if (warp() / WV)
    UNROLL for (int v = 0; v < STRIPS; v++)
      UNROLL for (int half = 0; half < 2; half++)
        store_result(STRIP_BYTES * (STRIPS * strip + v) + STRIP_BYTES / 2 * half, o.strip[v][half]);
  barrier();
  if (!(warp() / WV))
    UNROLL for (int v = 0; v < STRIPS; v++)
      UNROLL for (int half = 0; half < 2; half++)
        add_result(STRIP_BYTES * (STRIPS * strip + v) + STRIP_BYTES / 2 * half, o.strip[v][half]);
  barrier();
}

// Each warp its own columns, from where its results lie to rows.
DEVICE void store_out(const Out& out, const Rows& o, int position, int end, int first_value, int value_dim, float factor) {
  int row_of = opaque(out_position(0, 0)), value_of = opaque(carried_value(0));
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int i = 0; i < 8; i++)
        shared_set_half(O_AT + element_at<BV / 8, VALUES>(row_of + 4 * half + (i & 1) + 8 * (i >> 2),
                                                          value_of + 16 * v + (i & 2)),
                        to_half(out.strip[v][half][i] * factor));
  warp_barrier();
  int column = opaque(warp_values() + 2 * (lane() & 7)), row_in = opaque(2 * (lane() >> 3));
  bool whole = !(value_dim & 1);  // rows of o start at whole words
  UNROLL for (int v = 0; v < STRIPS; v++)
    UNROLL for (int n = 0; n < CHUNK / 4; n++) {
      int row = row_in + (n & 1) + 8 * (n >> 1), left = value_dim - first_value - column - 16 * v;
      Words<1> pair = shared_load<1>(O_AT + element_at<BV / 8, VALUES>(row, column + 16 * v));
      if (position + row >= end) continue;
      char* to = row_address(o, position + row, first_value + column + 16 * v, 2);
      if (whole && left >= 2) {
        global_store<1>(to, pair);
      } else {
        if (left >= 1) global_set_half(to, (unsigned short)pair.word[0]);
        if (left >= 2) global_set_half(to + 2, (unsigned short)(pair.word[0] >> 16));
      }
    }
}

DEVICE void add_head_scores(Products<WARPS>& products, int readers, int keys, int channels, bool exclusive) {
  if (exclusive) multiply<WARPS, EARLIER>(products, readers, keys, channels, true, true);
  else multiply<WARPS, ADDED>(products, readers, keys, channels, true, true);
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
  int last = arguments.last.data && end >= place.length ? place.sequence : -1;  // the sequence that ends here
  Carried state;
  zero_state(state);
  if (place.piece > 0)
    read_state(state, arguments.links, link_row(sequences, place, place.piece), head, first_value, key_dim, value_dim);
  else if (arguments.first.data)
    read_state(state, arguments.first, place.sequence, head, first_value, key_dim, value_dim);
  auto keep = [&](int n, const Tokens& x) { keep_start(STARTS + 8 * n, rows_of(x, sequences, place, head)); };
  auto rows = [&](int n, const Tokens& x) { return kept_rows(x, sequences, STARTS + 8 * n); };
  if (thread() == 0) {
    keep(0, arguments.q);
    keep(1, arguments.x);
    keep(2, arguments.y);
    keep(3, arguments.g);
    keep(4, arguments.o);
  }
  for (int n = thread(); n < SCORE_BYTES / 16; n += THREADS) shared_store<4>(SCORES_AT + 16 * n, {{0, 0, 0, 0}});
  barrier();
  for (int position = start; position < end; position += CHUNK) {
    // This thread's channel of a tile, and which of its positions.
    int number = opaque(thread()), own = number % KT, side = number / KT;
    if (!CHANNEL && warp() == 0) {
      float e = head_vectors(VECTORS, rows(3, arguments.g), position, end, exclusive);
      octet_vectors(VECTORS, e, exclusive);
    }
    Products<WARPS> products;
    clear(products);
    float scores_lifted = 1.0f;
    Apart apart = {0.0f, 0.0f};
    bool some_apart = exclusive;
    Rows of_q, of_k;  // per head there are registers for them
    if (!CHANNEL) {
      of_q = rows(0, arguments.q);
      of_k = rows(1, arguments.x);
    }
    Out out;
    UNROLL for (int v = 0; v < STRIPS; v++)
      UNROLL for (int half = 0; half < 2; half++) clear(out.strip[v][half]);
    float state_unit = 1.0f, out_lift = 1.0f;
    if (!WHOLE) state_unit = unit_of_state(state);
    int tiles = TILES == 1 ? 1 : opaque(TILES);  // one after another
    for (int tile = 0; tile < tiles; tile++) {
      int channel = tile * KT + own, readers = WHOLE ? tile_offset(0, tile) : 0, keys = tile_offset(KEYS_AT, tile);
      bool inside = channel < key_dim;
      int first = position + HELD * side;
      Positions<HELD> column;
      load_pairs(column, CHANNEL ? rows(0, arguments.q) : of_q, CHANNEL ? rows(1, arguments.x) : of_k, first, end, channel,
                 inside);
      float bonus = arguments.bonus && inside ? bits_to_float(
          global_load<1>(arguments.bonus + (int64)head * key_dim + channel).word[0]) : 1.0f;
      if (CHANNEL) {
        load_decays(column.e, rows(3, arguments.g), first, end, channel, inside);
        vote(VOTES, column, bonus);
        float total = product_of(column.e), key = largest_key(column);
        shared_set(SIDE_TOTALS + 4 * (side * KT + own), total);
        shared_set(SIDE_KEYS + 4 * (side * KT + own), key);
        barrier();
        Outcome voted = outcome<WARPS, LIFTED>(VOTES);
        if (LIFTED) scores_lifted = voted.readers * voted.keys;
        if (thread() == 0) shared_set(READER_LIFTS + 4 * tile, inverse_power(voted.read));
        if (exclusive || voted.near == 0) {
          some_apart = true;  // before decays are at hand: there are no registers for both
          add_own(apart, column, bonus);
          if (voted.near == 0) add_next(apart, column, exclusive);
        }
        Around decay = around(SIDE_TOTALS, SIDE_KEYS, own, side, total, key, true);
        float lift = lift_of(decay.largest);
        if (side == 0) shared_set(TOTALS + 4 * channel, total * decay.after * decay.other * lift);
        if (side == 1) shared_set_half(LIFTS + 2 * channel, (unsigned short)(float_to_bits(inverse_power(lift)) >> 16));
        float earlier = side < SIDES / 2 ? 1.0f : decay.other;
        float later = opaque((side < SIDES / 2 ? decay.other : 1.0f) * decay.after * lift);
        add_scores(products, readers, keys, column, own, side, KT, voted, exclusive, earlier, decay.before,
                   decay.after);
        if (voted.near != 2)
          put_prefixed(readers, column, own, side, exclusive,
                       earlier * decay.before * inverse_power(shared_float(READER_LIFTS + 4 * tile)));
        put_suffixed(keys, column, own, side, later);
      } else {
        put_queries(readers, column, own, side);
        put_untouched_keys(keys, column, own, side);
        if (exclusive) add_own(apart, column, bonus);
      }
      if (!WHOLE) {
        barrier();
        if (!CHANNEL) add_head_scores(products, readers, keys, KT, exclusive);
        read_by(out, out_lift, state, tile, inverse_power(state_unit));
        if (!CHANNEL) barrier();
      }
    }
    if (some_apart) store_apart<WARPS, HELD>(APART, apart);
    if (!CHANNEL || some_apart) barrier();
    if (!CHANNEL && WHOLE) add_head_scores(products, 0, KEYS_AT, KP, exclusive);
    Pairs<WARPS> scores;
    finish(scores, products, CHANNEL && LIFTED ? inverse_power(scores_lifted) : 1.0f);
    if (some_apart) add_apart<WARPS, HELD>(scores, APART, KT / 32);
    if (!CHANNEL) decay_scores(scores, VECTORS, exclusive);
    store_largest(scores, LARGEST);
    barrier();
    float unit = unit_of_pairs<WARPS>(LARGEST);
    put_pairs(scores, SCORES_AT, inverse_power(unit));
    Rows of_v = rows(2, arguments.y);
    if (!fetched_by_fours(of_v, value_dim)) stage_values(VALUES_AT, of_v, position, end, opaque(first_value), value_dim);

    if (WHOLE) {
      state_unit = unit_of_state(state);
      UNROLL for (int tile = 0; tile < TILES; tile++) read_by(out, out_lift, state, tile, inverse_power(state_unit));
    }
    state_unit *= inverse_power(out_lift);
    UNROLL for (int half = 0; half < 2; half++)
      UNROLL for (int n = 0; n < 4; n++) {
        int i = (n & 1) + 4 * (n >> 1);  // i + 2 is of the same position
        float factor = state_unit * inverse_power(unit);
        if (!CHANNEL) factor *= shared_float(VECTORS + VECTOR_PREFIX + 4 * out_position(half, i));
        UNROLL for (int v = 0; v < STRIPS; v++) {
          out.strip[v][half][i] *= factor;
          out.strip[v][half][i + 2] *= factor;
        }
      }
    barrier();  // the scores are there; the readers are not needed any more
    Values values;
    of_v = rows(2, arguments.y);
    if (fetched_by_fours(of_v, value_dim)) fetch_values(values, of_v, position, end, opaque(first_value), value_dim);
    else load_values(values, VALUES_AT);
    read_scores(out, values, SCORES_AT);
    sum_parts(out);
    if (warp() / WV == 0)
      store_out(out, rows(4, arguments.o), position, end, opaque(first_value), value_dim, unit * arguments.scale);
    float lift = 1.0f;
    if (CHANNEL) decay_state(state, TOTALS);
    else {
      lift = weigh_values(values, VECTORS + VECTOR_SUFFIX);
      scale_state(state, shared_float(VECTORS + VECTOR_TOTAL) * lift);
    }
    add_to_state(state, values, KEYS_AT);
    if (CHANNEL) scale_channels(state, LIFTS);
    else scale_state(state, inverse_power(lift));
    barrier();
  }
  if (last >= 0)
    write_state(state, arguments.last, last, head, first_value, key_dim, value_dim);
}
