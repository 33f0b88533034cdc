// Where a program works, how tensors are addressed, exponentials. Positions count in the order of the recurrence:
// position 0 is a sequence's first token, or its last one under `reverse`.
#pragma once

struct Place {
  int sequence, batch, start, length, piece;
};

DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Which piece of which sequence a slot is. A packed sequence n that starts at token s owns the slots from s / unit + n
// on: enough for its pieces whatever the others are, so that a grid follows from shapes alone. A slot may own nothing.
DEVICE Place locate(const Sequences& s, int slot) {
  Place place;
  if (s.cu_seqlens) {
    int low = 0, high = s.sequences;  // the answer lies in [low, high)
    while (high - low > 1) {
      int middle = (low + high) / 2;
      int start = (int)global_load<1>(s.cu_seqlens + middle).word[0];
      if (start / s.unit + middle <= slot) low = middle; else high = middle;
    }
    place.start = (int)global_load<1>(s.cu_seqlens + low).word[0];
    place.length = (int)global_load<1>(s.cu_seqlens + low + 1).word[0] - place.start;
    place.sequence = low;
    place.batch = 0;
    place.piece = slot - (place.start / s.unit + low);
  } else {
    int pieces = ceil_div(s.tokens, s.unit);
    place.sequence = place.batch = slot / pieces;
    place.start = 0;
    place.length = s.tokens;
    place.piece = slot % pieces;
  }
  return place;
}

// The slot of a sequence's first piece of `unit` tokens.
DEVICE int first_slot(const Sequences& s, const Place& place, int unit) {
  return s.cu_seqlens ? place.start / unit + place.sequence : place.sequence * ceil_div(s.tokens, unit);
}

// The row of the state that enters piece 1 or later: such states alone are kept.
DEVICE int link_row(const Sequences& s, const Place& place, int piece) {
  if (s.cu_seqlens) return place.start / s.unit + piece - 1;
  return place.sequence * (ceil_div(s.tokens, s.unit) - 1) + piece - 1;
}

DEVICE float load_number(const void* data, int64 index, int kind) {
  if (kind == 0) return bits_to_float(global_load<1>((const float*)data + index).word[0]);
  unsigned short bits = global_half((const unsigned short*)data + index);
  return kind == 1 ? from_half(bits) : bits_to_float((unsigned)bits << 16);
}

DEVICE void store_number(void* data, int64 index, int kind, float value) {
  if (kind == 0) {
    Words<1> word;
    word.word[0] = float_to_bits(value);
    global_store<1>((float*)data + index, word);
  } else if (kind == 1) {
    global_set_half((unsigned short*)data + index, to_half(value));
  } else {
    unsigned bits = float_to_bits(value);
    bits = value == value ? bits + 0x7FFF + (bits >> 16 & 1) : bits | 0x400000;
    global_set_half((unsigned short*)data + index, (unsigned short)(bits >> 16));
  }
}

// One head of one sequence of a tensor of tokens. Strides are read where they are needed, from the arguments: a few of
// these in registers would leave too few for anything else.
struct Rows {
  const Tokens* tensor;
  char* start;  // of position 0
  int reverse;
};

DEVICE int size_of(int kind) { return kind == 0 ? 4 : 2; }

DEVICE Rows rows_of(const Tokens& x, const Sequences& s, const Place& place, int head) {
  Rows rows;
  int64 token = s.reverse ? place.start + place.length - 1 : place.start;
  rows.tensor = &x;
  rows.reverse = s.reverse;
  rows.start = (char*)x.data +
               size_of(x.kind) * (place.batch * x.batch + token * x.token + head / (x.data ? x.group : 1) * x.head);
  return rows;
}

// Where rows start, by way of shared memory.
DEVICE void keep_start(int offset, const Rows& rows) {
  int64 bits = place_to_bits(rows.start);
  Words<2> words;
  words.word[0] = (unsigned)bits;
  words.word[1] = (unsigned)(bits >> 32);
  shared_store<2>(offset, words);
}

DEVICE Rows kept_rows(const Tokens& x, const Sequences& s, int offset) {
  Words<2> words = shared_load<2>(offset);
  Rows rows;
  rows.tensor = &x;
  rows.reverse = s.reverse;
  rows.start = bits_to_place((int64)words.word[1] << 32 | words.word[0]);
  return rows;
}

// From one position to the next, in elements.
DEVICE int64 row_step(const Rows& rows) { return rows.reverse ? -rows.tensor->token : rows.tensor->token; }

DEVICE char* row_address(const Rows& rows, int position, int channel, int size) {
  return rows.start + size * (position * row_step(rows) + channel * rows.tensor->channel);
}

DEVICE float row_number(const Rows& rows, int position, int channel) {
  int kind = rows.tensor->kind;
  return load_number(row_address(rows, position, channel, size_of(kind)), 0, kind);
}

DEVICE void set_row_number(const Rows& rows, int position, int channel, float value) {
  int kind = rows.tensor->kind;
  store_number(row_address(rows, position, channel, size_of(kind)), 0, kind, value);
}

// Of a tensor that is float32.
DEVICE float row_float(const Rows& rows, int position, int channel) {
  return bits_to_float(global_load<1>(row_address(rows, position, channel, 4)).word[0]);
}

// Of a tensor that is float16.
DEVICE unsigned short row_half(const Rows& rows, int position, int channel) {
  return global_half(row_address(rows, position, channel, 2));
}

DEVICE float state_number(const State& state, int row, int head, int key, int value) {
  return load_number(state.data, row * state.row + head * state.head + key * state.key + value * state.value,
                     state.kind);
}

DEVICE void set_state_number(const State& state, int row, int head, int key, int value, float number) {
  store_number(state.data, row * state.row + head * state.head + key * state.key + value * state.value, state.kind,
               number);
}

// Two channels of it, the first in the low half; `left` are there from the first on.
DEVICE unsigned row_pair(const Rows& rows, int position, int channel, int left) {
  const char* from = row_address(rows, position, channel, 2);
  if (left >= 2 && rows.tensor->channel == 1 && !((unsigned)(int64)from & 3)) return global_load<1>(from).word[0];
  unsigned low = left >= 1 ? global_half(from) : 0;
  return low | (left >= 2 ? (unsigned)global_half(from + 2 * rows.tensor->channel) << 16 : 0);
}

// exp(x) where its operands will be rounded to float16.
DEVICE float quick_exponential(float x) { return exp2_approx(mul_(x, 1.44269504f)); }

// exp(x) to about one unit in the last place, 0 below the normal range, infinity above the largest number.
DEVICE float exponential(float x) {
  float bounded = smaller(larger(x, -105.0f), 105.0f);
  float n = nearest(mul_(bounded, 1.44269504f));
  float r = fma_(n, -0.693145752f, bounded);  // ln 2 in two parts, the first of few bits
  r = fma_(n, -1.42860677e-6f, r);
  float p = 1.98412698e-4f;
  p = fma_(p, r, 1.38888889e-3f);
  p = fma_(p, r, 8.33333333e-3f);
  p = fma_(p, r, 4.16666667e-2f);
  p = fma_(p, r, 1.66666667e-1f);
  p = fma_(p, r, 0.5f);
  p = add_(fma_(mul_(r, r), p, r), 1.0f);
  // 2^n in two steps, so that neither leaves the range before the result does.
  int whole = (int)n, half = whole / 2;
  float y = mul_(p, bits_to_float((unsigned)(half + 127) << 23));
  y = mul_(y, bits_to_float((unsigned)(whole - half + 127) << 23));
  y = y < 1.17549435e-38f ? 0.0f : y;
  return x == x ? y : x;
}

// The largest power of two that is at most x, kept where a few thousands of it, and its inverse, are numbers.
DEVICE float power_below(float x) {
  unsigned bits = float_to_bits(x) & 0x7F800000u;
  bits = bits < 0x1F800000u ? 0x1F800000u : bits;  // 2^-64
  bits = bits > 0x71800000u ? 0x71800000u : bits;  // 2^100
  return bits_to_float(bits);
}

// One over a power of two.
DEVICE float inverse_power(float x) { return bits_to_float(0x7F000000u - float_to_bits(x)); }

// What brings numbers of at most x, decays included, to below 2^14: most of float16's range lies below. Of what is less
// than 2^-`least` no more than of that: a state is multiplied by the lift of what it takes up, and is a number yet.
DEVICE float lift_of(float x, int least = 47) {
  unsigned bits = float_to_bits(x) & 0x7F800000u, bottom = (unsigned)(127 - least) << 23;
  bits = bits < bottom ? bottom : bits;
  bits = bits > 0x71800000u ? 0x71800000u : bits;  // 2^100
  return x == 0.0f ? 1.0f : bits_to_float(0x7F000000u + (13u << 23) - bits);
}

DEVICE float largest_of_warp(float x) {
  UNROLL for (int mask = 16; mask; mask >>= 1) x = larger(x, shuffle_xor(x, mask));
  return x;
}

DEVICE float sum_of_warp(float x) {
  UNROLL for (int mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
  return x;
}
