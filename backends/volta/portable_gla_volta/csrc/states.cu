// States in float16, in either direction of time: forward S <- T S + (k times suffix) vᵀ, backward, against time,
// R <- T R + scale (q times prefix) doᵀ. A summary leaves what a segment adds to a state that starts from zero, and its
// total decay; else a segment is walked from the state that enters it, and the state is kept at every chunk.
//
// Grid: slots x heads x tiles of V, these fastest. Compiled in: KP, BV, WV, WK (state.cuh); CHANNEL as in forward.cu.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"
#include "tiles.cuh"
#include "column.cuh"
#include "vectors.cuh"
#include "scores.cuh"
#include "operands.cuh"
#include "state.cuh"

constexpr int VALUES_AT = TILE_BYTES * TILES;
// Per channel: the chunk's decay times a lift, and one over the lift times the first gate; of a tile's channels the decays
// of every side and its largest numbers, of two tiles in turn.
constexpr int TOTALS = VALUES_AT + CHUNK * BV * 2, LIFTS = TOTALS + 4 * KP, SIDE_TOTALS = LIFTS + 4 * KP;
constexpr int SIDE_BYTES = 8 * SIDES * KT, VECTORS = SIDE_TOTALS + (TILES > 1 ? 2 : 1) * SIDE_BYTES;
constexpr int STARTS = VECTORS + VECTOR_BYTES;  // of the rows of x, y and g

// One chunk's state: [V padded, K padded] in float16, eight channels at a time, and its power of two.
DEVICE void keep(const Carried& state, const SweepArguments& arguments, int64 row, int first_value) {
  int rows = ceil_div(arguments.value_dim, 16) * 16, columns = KP;
  float unit = unit_of_state(state);
  if (first_value + warp_values() >= rows) return;
  if (lane() == 0) {
    Words<1> word;
    word.word[0] = float_to_bits(unit);
    UNROLL for (int v = 0; v < STRIPS; v++) {
      int strip = (first_value + warp_values()) / 16 + v;
      if (strip < rows / 16)
        global_store<1>(arguments.kept_units + (row * (rows / 16) + strip) * WK + warp() / WV, word);
    }
  }
  unsigned short* kept = (unsigned short*)arguments.kept + row * rows * columns;
  UNROLL for (int v = 0; v < STRIPS; v++) {
    int value = first_value + warp_values() + 16 * v + row_of_a();
    if (first_value + warp_values() + 16 * v >= rows) continue;
    UNROLL for (int p = 0; p < PARTS; p++)
      UNROLL for (int half = 0; half < 2; half++) {
        unsigned found[2][2];
        round_state(state, v, p, half, inverse_power(unit), found);
        int key = warp_keys() + part_keys(p) + 16 * quad_column() + 8 * half;
        Words<4> words;
        UNROLL for (int n = 0; n < 4; n++) words.word[n] = found[n >> 1][n & 1];
        global_store<4>(kept + value * columns + key, words);
      }
  }
}

KERNEL(states, THREADS, 2, SweepArguments) {
  const Sequences& sequences = arguments.sequences;
  int tiles_of_v = ceil_div(arguments.value_dim, BV);
  int first_value = block() % tiles_of_v * BV, head = block() / tiles_of_v % sequences.heads;
  Place place = locate(sequences, block() / tiles_of_v / sequences.heads);
  int start = place.piece * sequences.unit;
  bool forward = arguments.forward;
  int boundary = forward ? place.piece + 1 : place.piece;
  if (arguments.summary ? boundary == 0 || (int64)boundary * sequences.unit >= place.length
                        : place.piece > 0 && start >= place.length) return;
  int end = start + sequences.unit < place.length ? start + sequences.unit : place.length;
  int key_dim = arguments.key_dim, value_dim = arguments.value_dim;
  Carried state;
  zero_state(state);
  if (!arguments.summary) {
    bool edge = forward ? place.piece == 0 : end >= place.length;
    if (!edge)
      read_state(state, arguments.links, link_row(sequences, place, forward ? place.piece : place.piece + 1), head,
                 first_value, key_dim, value_dim);
    else if (arguments.first.data)
      read_state(state, arguments.first, place.sequence, head, first_value, key_dim, value_dim);
  }
  auto keep_rows = [&](int n, const Tokens& x) { keep_start(STARTS + 8 * n, rows_of(x, sequences, place, head)); };
  auto rows = [&](int n, const Tokens& x) { return kept_rows(x, sequences, STARTS + 8 * n); };
  if (thread() == 0) {
    keep_rows(0, arguments.x);
    keep_rows(1, arguments.y);
    keep_rows(2, arguments.g);
  }
  barrier();
  // Backward every term carries the chunk's first gate, unless outputs precede their gates. It is multiplied in last, or
  // a strong one would leave nothing of a reader in float16.
  bool split = !forward && !arguments.exclusive;
  int64 slot = first_slot(sequences, place, CHUNK) + start / CHUNK;
  float decays[TILES];  // of the segment, in this thread's channels; per head in the first
  UNROLL for (int tile = 0; tile < TILES; tile++) decays[tile] = 1.0f;

  int count = ceil_div(end - start, CHUNK);
  for (int step = 0; step < count; step++) {
    int chunk = forward ? step : count - 1 - step, position = start + chunk * CHUNK;
    int number_of = opaque(thread()), own = number_of % KT, side = number_of / KT;
    bool active = number_of < SIDES * KT;
    if (!arguments.summary) keep(state, arguments, (slot + chunk) * sequences.heads + head, first_value);
    stage_values(VALUES_AT, rows(1, arguments.y), position, end, first_value, value_dim);
    if (!CHANNEL && warp() == 0) head_vectors(VECTORS, rows(2, arguments.g), position, end, arguments.exclusive, split);
    UNROLL for (int tile = 0; tile < TILES; tile++) {
      int channel = tile * KT + own, operand = tile_offset(0, tile);
      bool inside = active && channel < key_dim;
      int first = position + HELD * side;
      float number[HELD];
      Rows x = rows(0, arguments.x);
      const char* from = row_address(x, first, channel, 2);
      UNROLL for (int r = 0; r < HELD; r++, from += 2 * row_step(x))
        number[r] = inside && first + r < end ? from_half(global_half(from)) : 0.0f;
      float e[HELD], weight = forward || !CHANNEL ? 1.0f : arguments.scale;  // per head it goes to the values
      if (CHANNEL) {
        load_decays(e, rows(2, arguments.g), first, end, channel, inside);
        float first_gate = 1.0f, most = 0.0f;
        if (split && active && !side) {
          first_gate = e[0];
          e[0] = 1.0f;
        }
        float total = product_of(e), lift = 1.0f;
        UNROLL for (int n = 0; n < HELD; n++) {
          float gate = forward ? e[HELD - 1 - n] : e[n], next = weight * gate;
          float taken = forward || arguments.exclusive ? weight : next;
          if (forward) number[HELD - 1 - n] *= taken;
          else number[n] *= taken;
          weight = next;
        }
        UNROLL for (int r = 0; r < HELD; r++) most = larger(most, magnitude(number[r]));
        int side_totals = SIDE_TOTALS + tile % 2 * SIDE_BYTES, side_numbers = side_totals + SIDE_BYTES / 2;
        Around decay = {1.0f, 1.0f, 1.0f, 0.0f};
        if (active) {
          shared_set(side_totals + 4 * (side * KT + own), total);
          shared_set(side_numbers + 4 * (side * KT + own), most);
        }
        barrier();
        if (active) {
          decay = around(side_totals, side_numbers, own, side, total, most, forward);
          lift = lift_of(decay.largest);
          total *= decay.before * decay.after * decay.other;
          if (side == 0) shared_set(LIFTS + 4 * channel, first_gate * inverse_power(lift));
          if (side == 1) shared_set(TOTALS + 4 * channel, total * lift);
        }
        weight = lift * (forward ? decay.after : decay.before);
        if (forward == side < SIDES / 2) weight *= decay.other;
        decays[tile] *= total * first_gate;
      }
      if (active)
        UNROLL for (int r = 0; r < HELD; r++) put<CHUNKS>(operand, HELD * side + r, own, number[r] * weight);
    }
    barrier();
    Values values;
    load_values(values, VALUES_AT);
    float lift = 1.0f;
    if (CHANNEL) decay_state(state, TOTALS);
    else {
      lift = weigh_values(values, VECTORS + (forward ? VECTOR_SUFFIX : VECTOR_PREFIX),
                          forward ? 1.0f : arguments.scale);
      scale_state(state, shared_float(VECTORS + VECTOR_TOTAL) * lift);
      decays[0] *= shared_float(VECTORS + VECTOR_TOTAL) * (split ? shared_float(VECTORS + VECTOR_FIRST) : 1.0f);
    }
    add_rows_to_state(state, values, 0);
    if (CHANNEL) decay_state(state, LIFTS);
    else scale_state(state, inverse_power(lift) * (split ? shared_float(VECTORS + VECTOR_FIRST) : 1.0f));
    barrier();
  }

  if (arguments.summary) {
    int64 row = (int64)link_row(sequences, place, boundary) * sequences.heads + head;
    write_state(state, arguments.links, link_row(sequences, place, boundary), head, first_value, key_dim, value_dim);
    if (first_value == 0) {
      Words<1> word;
      if (CHANNEL) {
        UNROLL for (int tile = 0; tile < TILES; tile++) {
          word.word[0] = float_to_bits(decays[tile]);
          int channel = tile * KT + thread();
          if (thread() < KT && channel < key_dim) global_store<1>(arguments.decays + row * key_dim + channel, word);
        }
      } else if (thread() == 0) {
        word.word[0] = float_to_bits(decays[0]);
        global_store<1>(arguments.decays + row, word);
      }
    }
  } else if (arguments.last.data && (forward ? end >= place.length : place.piece == 0)) {
    write_state(state, arguments.last, place.sequence, head, first_value, key_dim, value_dim);
  }
}
