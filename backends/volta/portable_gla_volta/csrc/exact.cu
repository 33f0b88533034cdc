// The forward pass and the states in float32, token by token: no arithmetic is saved by chunks on the vector unit, and
// the recurrence itself is right for every gate. A thread holds some rows of one column of the state.
//
// Grid: slots x heads x tiles of 32 columns of V, these fastest. Compiled in: KP (K padded); CHANNEL: gates per
// channel, else per head, constant or none; READ: the forward pass, else states as in states.cu.
#define FLOAT32
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"

constexpr int GROUPS = 8, THREADS = 32 * GROUPS, HELD = KP / GROUPS;  // a warp holds HELD rows of 32 columns
constexpr int STEPS = 8;                                               // tokens that are fetched at once
constexpr int KEPT = 32;                                               // tokens between kept states
constexpr int ROW = 4 * KP;
constexpr int X = 0, Q = X + STEPS * ROW, E = READ ? Q + STEPS * ROW : Q, Y = E + (CHANNEL ? STEPS * ROW : 4 * STEPS);
// Each warp's part of o: where there is little room it takes the place of the keys that this warp has just read.
constexpr bool OVER_KEYS = READ && ROW == GROUPS * 128;
constexpr int OUT = OVER_KEYS ? X : Y + STEPS * 128, U = Y + STEPS * 128 + (READ && !OVER_KEYS ? STEPS * GROUPS * 128 : 0);

DEVICE void four(float (&numbers)[4], int offset) {
  Words<4> words = shared_load<4>(offset);
  UNROLL for (int n = 0; n < 4; n++) numbers[n] = bits_to_float(words.word[n]);
}

// STEPS positions of K numbers each, times `factor`; what lies outside is 0.
DEVICE void fetch(int offset, const Rows& rows, int position, int first, int end, int key_dim, float factor) {
  for (int item = thread(); item < STEPS * KP; item += THREADS) {
    int step = item / KP, channel = item % KP;
    bool inside = position + step >= first && position + step < end && channel < key_dim;
    shared_set(offset + 4 * item, inside ? row_float(rows, position + step, channel) * factor : 0.0f);
  }
}

DEVICE void fetch_decays(const Rows& g, int position, int end, int key_dim) {
  for (int item = thread(); item < (CHANNEL ? STEPS * KP : STEPS); item += THREADS) {
    int step = CHANNEL ? item / KP : item, channel = CHANNEL ? item % KP : 0;
    bool inside = g.tensor->data && position + step < end && channel < key_dim;
    shared_set(E + 4 * item, inside ? exponential(row_number(g, position + step, channel)) : 1.0f);
  }
}

KERNEL(exact, THREADS, 2, SweepArguments) {
  const Sequences& sequences = arguments.sequences;
  int tiles_of_v = ceil_div(arguments.value_dim, 32);
  int first_value = block() % tiles_of_v * 32, head = block() / tiles_of_v % sequences.heads;
  Place place = locate(sequences, block() / tiles_of_v / sequences.heads);
  int start = place.piece * sequences.unit;
  bool forward = arguments.forward, exclusive = arguments.exclusive, summary = arguments.summary;
  int boundary = forward ? place.piece + 1 : place.piece;
  if (summary ? boundary == 0 || (int64)boundary * sequences.unit >= place.length
              : place.piece > 0 && start >= place.length) return;
  int end = start + sequences.unit < place.length ? start + sequences.unit : place.length;
  int key_dim = arguments.key_dim, value_dim = arguments.value_dim;
  int column = thread() % 32, value = first_value + column, first_key = warp() * HELD;
  float s[HELD];
  UNROLL for (int n = 0; n < HELD; n++) s[n] = 0.0f;
  if (!summary) {
    bool edge = forward ? place.piece == 0 : end >= place.length;
    if (!edge || arguments.first.data) {
      const State& from = edge ? arguments.first : arguments.links;
      int row = edge ? place.sequence : link_row(sequences, place, forward ? place.piece : place.piece + 1);
      UNROLL for (int n = 0; n < HELD; n++)
        if (first_key + n < key_dim && value < value_dim) s[n] = state_number(from, row, head, first_key + n, value);
    }
  }
  int64 slot = first_slot(sequences, place, KEPT) + start / KEPT;
  int padded = ceil_div(value_dim, 16) * 16;
  float decays = 1.0f;  // of the segment: channel thread()'s, or the head's
  if (READ && exclusive) {
    for (int channel = thread(); channel < KP; channel += THREADS)
      shared_set(U + 4 * channel, channel < key_dim ? bits_to_float(global_load<1>(
          arguments.bonus + (int64)head * key_dim + channel).word[0]) : 0.0f);
  }

  int count = ceil_div(end - start, STEPS), own = head;
  for (int round = 0; round < count; round++) {
    int position = start + (forward ? round : count - 1 - round) * STEPS;
    int last_kept = (position - start) / KEPT * KEPT + KEPT;  // backward: where this state was to be kept
    bool keeping = forward ? (position - start) % KEPT == 0
                           : position - start + STEPS == last_kept || round == 0;
    if (!READ && !summary && keeping && value < padded) {
      int64 row = (slot + (position - start) / KEPT) * sequences.heads + head;
      float* kept = (float*)arguments.kept + (row * padded + value) * KP + first_key;
      UNROLL for (int n = 0; n < HELD; n += 4) {
        Words<4> words;
        UNROLL for (int m = 0; m < 4; m++) words.word[m] = float_to_bits(s[n + m]);
        global_store<4>(kept + n, words);
      }
    }
    head = opaque(own);  // rows are found again each time: registers are for the state
    Rows y = rows_of(arguments.y, sequences, place, head);
    fetch(X, rows_of(arguments.x, sequences, place, head), position, start, end, key_dim, forward ? 1.0f : arguments.scale);
    if (READ) fetch(Q, rows_of(arguments.q, sequences, place, head), position, start, end, key_dim, 1.0f);
    fetch_decays(rows_of(arguments.g, sequences, place, head), position, end, key_dim);
    {
      int row = position + warp();
      shared_set(Y + 128 * warp() + 4 * column, row < end && value < value_dim ? row_float(y, row, value) : 0.0f);
    }
    barrier();
    if (summary && thread() < (CHANNEL ? KP : 1))
      for (int step = 0; step < STEPS; step++) decays *= shared_float(E + (CHANNEL ? step * ROW + 4 * thread() : 4 * step));
    int turns = opaque(STEPS);  // one after another: unrolled they take too many registers
    for (int turn = 0; turn < turns; turn++) {
      int step = forward ? turn : STEPS - 1 - turn;
      float yv = shared_float(Y + 128 * step + 4 * column), out = 0.0f, itself = 0.0f;
      float shared_decay = CHANNEL ? 1.0f : shared_float(E + 4 * step);
      int keys = 4 * first_key;
      UNROLL for (int n = 0; n < HELD; n += 4) {
        float key[4], decay[4], query[4], u[4];
        four(key, X + step * ROW + keys + 4 * n);
        if (CHANNEL) four(decay, E + step * ROW + keys + 4 * n);
        if (READ) four(query, Q + step * ROW + keys + 4 * n);
        if (READ && exclusive) four(u, U + keys + 4 * n);
        UNROLL for (int m = 0; m < 4; m++) {
          float e = CHANNEL ? decay[m] : shared_decay;
          if (READ && exclusive) {
            out = fma_(query[m], s[n + m], out);
            itself = fma_(query[m] * u[m], key[m], itself);
          }
          s[n + m] = forward || exclusive ? fma_(key[m], yv, s[n + m] * e) : fma_(key[m], yv, s[n + m]) * e;
          if (READ && !exclusive) out = fma_(query[m], s[n + m], out);
        }
      }
      if (OVER_KEYS) warp_barrier();
      if (READ) shared_set(OUT + 128 * (GROUPS * step + warp()) + 4 * column, fma_(itself, yv, out));
    }
    barrier();
    if (READ) {  // warp by warp, one token each
      int row = position + warp();
      float out = 0.0f;
      UNROLL for (int n = 0; n < GROUPS; n++) out += shared_float(OUT + 128 * (GROUPS * warp() + n) + 4 * column);
      if (row < end && value < value_dim)
        set_row_number(rows_of(arguments.o, sequences, place, head), row, value, out * arguments.scale);
      if (OVER_KEYS) barrier();
    }
  }

  bool leaves = forward ? end >= place.length : place.piece == 0;
  if (summary || (arguments.last.data && leaves)) {
    const State& to = summary ? arguments.links : arguments.last;
    int row = summary ? link_row(sequences, place, boundary) : place.sequence;
    UNROLL for (int n = 0; n < HELD; n++)
      if (first_key + n < key_dim && value < value_dim) set_state_number(to, row, head, first_key + n, value, s[n]);
  }
  if (summary && first_value == 0 && thread() < (CHANNEL ? key_dim : 1)) {
    Words<1> word;
    word.word[0] = float_to_bits(decays);
    int64 row = (int64)link_row(sequences, place, boundary) * sequences.heads + head;
    global_store<1>(arguments.decays + row * (CHANNEL ? key_dim : 1) + thread(), word);
  }
}
