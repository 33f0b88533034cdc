// One or a few tokens per sequence by the recurrence, the state read and written once; any of the three kinds of
// numbers. A thread holds HELD rows of one column of the state.
//
// Grid: batch x heads x tiles of 32 columns of V. Compiled in: KP (K padded to 32, 64, 128, 256).
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"

constexpr int GROUPS = 8, THREADS = 32 * GROUPS, HELD = KP / GROUPS;
constexpr int OUT = 0;

KERNEL(decode, THREADS, 2, DecodeArguments) {
  int key_dim = arguments.key_dim, value_dim = arguments.value_dim;
  int tiles = ceil_div(value_dim, 32);
  int value = block() % tiles * 32 + lane(), head = block() / tiles % arguments.heads;
  int batch = block() / tiles / arguments.heads;
  int64 row = batch;
  if (arguments.slots) {
    const char* slot = (const char*)arguments.slots + batch * arguments.slot_stride * (arguments.slots_wide ? 8 : 4);
    if (arguments.slots_wide) {
      Words<2> words = global_load<2>(slot);
      row = (int64)((unsigned long long)words.word[1] << 32 | words.word[0]);
    } else {
      row = (int)global_load<1>(slot).word[0];
    }
  }
  Sequences sequences;
  sequences.reverse = 0;
  Place place;
  place.batch = batch;
  place.start = 0;
  place.length = arguments.tokens;
  Rows o = rows_of(arguments.o, sequences, place, head);
  if (row < 0) {  // skipped
    if (warp() == 0 && value < value_dim)
      for (int token = 0; token < arguments.tokens; token++) set_row_number(o, token, value, 0.0f);
    return;
  }
  Rows q = rows_of(arguments.q, sequences, place, head), k = rows_of(arguments.k, sequences, place, head);
  Rows v = rows_of(arguments.v, sequences, place, head), g = rows_of(arguments.g, sequences, place, head);
  int first_key = warp() * HELD;
  int64 base = row * arguments.state.row + head * arguments.state.head + value * arguments.state.value;
  float s[HELD];
  UNROLL for (int n = 0; n < HELD; n++)
    s[n] = first_key + n < key_dim && value < value_dim
               ? load_number(arguments.state.data, base + (first_key + n) * arguments.state.key, arguments.state.kind)
               : 0.0f;
  for (int token = 0; token < arguments.tokens; token++) {
    float y = value < value_dim ? row_number(v, token, value) : 0.0f, out = 0.0f, itself = 0.0f;
    float e = arguments.g.data && !arguments.per_channel ? exponential(row_number(g, token, 0)) : 1.0f;
    UNROLL for (int n = 0; n < HELD; n++) {
      int key = first_key + n;
      if (key >= key_dim) continue;
      float query = row_number(q, token, key), x = row_number(k, token, key);
      if (arguments.per_channel) e = exponential(row_number(g, token, key));
      if (arguments.bonus) {
        float u = bits_to_float(global_load<1>(arguments.bonus + (int64)head * key_dim + key).word[0]);
        out = fma_(query, s[n], out);
        itself = fma_(query * u, x, itself);
      }
      s[n] = fma_(x, y, s[n] * e);
      if (!arguments.bonus) out = fma_(query, s[n], out);
    }
    barrier();
    shared_set(OUT + 4 * thread(), fma_(itself, y, out));
    barrier();
    if (warp() == 0) {
      out = 0.0f;
      UNROLL for (int n = 0; n < GROUPS; n++) out += shared_float(OUT + 4 * (32 * n + lane()));
      if (value < value_dim) set_row_number(o, token, value, out * arguments.scale);
    }
  }
  UNROLL for (int n = 0; n < HELD; n++)
    if (first_key + n < key_dim && value < value_dim)
      store_number(arguments.state.data, base + (first_key + n) * arguments.state.key, arguments.state.kind, s[n]);
}
