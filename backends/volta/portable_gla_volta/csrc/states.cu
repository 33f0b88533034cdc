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
#define OPERANDS 1
#include "state.cuh"

constexpr int VALUES_AT = TILE_BYTES * TILES;
constexpr int TOTALS = VALUES_AT + CHUNK * BV * 2;
// Per channel: the decays of both blocks, of the chunk times a lift, one over it times the first gate, the largest numbers
// of both blocks.
constexpr int VECTORS = TOTALS + 24 * KP;

// One chunk's state: [V padded, K padded] in float16, eight channels at a time, and its power of two.
DEVICE void keep(const Carried& state, const SweepArguments& arguments, int64 row, int first_value) {
  int rows = ceil_div(arguments.value_dim, 16) * 16, columns = KP;
  float unit = unit_of_state(state);
  if (first_value + warp_values() >= rows) return;
  if (lane() == 0) {
    Words<1> word;
    word.word[0] = float_to_bits(unit);
    global_store<1>(arguments.kept_units + (row * (rows / 16) + (first_value + warp_values()) / 16) * WK + warp() / WV,
                    word);
  }
  unsigned short* kept = (unsigned short*)arguments.kept + row * rows * columns;
  UNROLL for (int p = 0; p < PARTS; p++)
    UNROLL for (int half = 0; half < 2; half++) {
      unsigned found[2][2];
      round_state(state, p, half, inverse_power(unit), found);
      int value = first_value + warp_values() + row_of_a();
      int key = warp_keys() + 32 * p + 16 * quad_column() + 8 * half;
      Words<4> words;
      UNROLL for (int n = 0; n < 4; n++) words.word[n] = found[n >> 1][n & 1];
      global_store<4>(kept + value * columns + key, words);
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
  Rows x = rows_of(arguments.x, sequences, place, head), y = rows_of(arguments.y, sequences, place, head);
  Rows g = rows_of(arguments.g, sequences, place, head);
  int own = thread() % KT, side = thread() / KT;
  bool active = thread() < 2 * KT;
  // Backward every term carries the chunk's first gate, unless outputs precede their gates. It is multiplied in last, or
  // a strong one would leave nothing of a reader in float16.
  bool split = !forward && !arguments.exclusive;
  int64 slot = first_slot(sequences, place, CHUNK) + start / CHUNK;
  float decays[TILES];  // of the segment, in this thread's channels; per head in the first
  UNROLL for (int tile = 0; tile < TILES; tile++) decays[tile] = 1.0f;

  int count = ceil_div(end - start, CHUNK), my_channel = own, my_side = side;
  for (int step = 0; step < count; step++) {
    int chunk = forward ? step : count - 1 - step, position = start + chunk * CHUNK;
    own = opaque(my_channel);
    side = opaque(my_side);
    if (!arguments.summary) keep(state, arguments, (slot + chunk) * sequences.heads + head, first_value);
    stage_values(VALUES_AT, y, position, end, first_value, value_dim);
    if (!CHANNEL && warp() == 0) head_vectors(VECTORS, g, position, end, arguments.exclusive, split);
    UNROLL for (int tile = 0; tile < TILES; tile++) {
      int channel = tile * KT + own, operand = tile_offset(0, tile);
      bool inside = active && channel < key_dim;
      int first = position + SUB * side;
      float number[SUB];
      UNROLL for (int r = 0; r < SUB; r++)
        number[r] = inside && first + r < end ? from_half(row_half(x, first + r, channel)) : 0.0f;
      float e[SUB], weight = forward || !CHANNEL ? 1.0f : arguments.scale;  // per head it goes to the values
      if (CHANNEL) {
        load_decays(e, g, first, end, channel, inside);
        float first_gate = 1.0f, most = 0.0f;
        if (split && active && !side) {
          first_gate = e[0];
          e[0] = 1.0f;
        }
        UNROLL for (int r = 0; r < SUB; r++) most = larger(most, magnitude(number[r] * weight));
        float total = product_of(e), other = 1.0f, lift = 1.0f;
        if (active) {
          shared_set(TOTALS + 4 * (side * KP + channel), total);
          shared_set(TOTALS + 4 * ((4 + side) * KP + channel), most);
        }
        barrier();
        if (active) {
          other = shared_float(TOTALS + 4 * ((1 - side) * KP + channel));
          lift = lift_of(larger(most, shared_float(TOTALS + 4 * ((5 - side) * KP + channel))));
          shared_set(TOTALS + 4 * ((3 - side) * KP + channel),
                     side ? other * total * lift : first_gate * inverse_power(lift));
        }
        weight *= lift;
        if (side == (forward ? 0 : 1)) weight *= other;
        decays[tile] *= total * other * first_gate;
      }
      if (active) {
        UNROLL for (int n = 0; n < SUB; n++) {
          int r = forward ? SUB - 1 - n : n;
          float taken = weight;
          if (CHANNEL) {
            weight *= forward ? e[SUB - 1 - n] : e[n];
            if (!forward && !arguments.exclusive) taken = weight;
          }
          float found = forward ? number[SUB - 1 - n] : number[n];
          put<CHUNKS>(operand, SUB * side + r, own, found * taken);
        }
      }
    }
    barrier();
    Values values;
    load_values(values, VALUES_AT);
    float lift = 1.0f;
    if (CHANNEL) decay_state(state, TOTALS + 8 * KP, true);
    else {
      lift = weigh_values(values, VECTORS + (forward ? VECTOR_SUFFIX : VECTOR_PREFIX),
                          forward ? 1.0f : arguments.scale);
      scale_state(state, shared_float(VECTORS + VECTOR_TOTAL) * lift);
      decays[0] *= shared_float(VECTORS + VECTOR_TOTAL) * (split ? shared_float(VECTORS + VECTOR_FIRST) : 1.0f);
    }
    add_to_state(state, values, 0);
    if (CHANNEL) decay_state(state, TOTALS + 12 * KP, true);
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
          int channel = tile * KT + own;
          if (active && side == 0 && channel < key_dim) global_store<1>(arguments.decays + row * key_dim + channel, word);
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
