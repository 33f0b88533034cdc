// What kernels are given: each takes one of these by value. portable_gla_volta/arguments.py mirrors them.
// A missing tensor has no data. Strides count elements. Kinds of numbers: 0 float32, 1 float16, 2 bfloat16.
#pragma once

// q, k, v, g, o and their gradients: [B, T, H / group, D]; output head h reads head h / group.
struct Tokens {
  void* data;
  int64 batch, token, head, channel;
  int group, kind;
};

// States: [rows, H, K, V].
struct State {
  void* data;
  int64 row, head, key, value;
  int kind, unused;
};

// Sequences of a call: packed where cu_seqlens is given; `unit` tokens are a piece, `heads` is H.
struct Sequences {
  const int* cu_seqlens;
  int tokens, sequences, heads, unit;
  int reverse, unused;
};

// A walk over the tokens of a segment that carries a state: S <- e S + x yᵀ, in either direction of time.
struct SweepArguments {
  Sequences sequences;
  Tokens q;            // of the forward pass alone, with o
  Tokens x, y;         // k and v forward; q and do backward
  Tokens g;            // [B, T, H], [H] by a token stride of 0, or missing: per head; else per channel
  Tokens o;
  const float* bonus;  // [H, K]
  State first, last;   // enters the first segment; leaves the last one
  State links;         // between segments: written by a summary, else read
  float* decays;       // of a summary: [links, H, K], per head [links, H, 1]
  void* kept;          // the state before (forward) every chunk, or after (backward): [slots, H, V padded, K padded]
  float* kept_units;   // of float16: [slots, H, groups of V, parts of K]: powers of two
  float scale;         // of o, or of what is added to the state
  int key_dim, value_dim;
  int forward;         // direction
  int exclusive;       // with a bonus outputs read the state before their own decay
  int summary;
};

struct ScanArguments {
  Sequences sequences;
  State links, edge;
  const float* decays;
  int key_dim, value_dim, forward, per_channel;
};

struct GradientsArguments {
  Sequences sequences;  // unit: a chunk
  Tokens q, k, v, d, g;  // d: the gradient by o
  Tokens dq, dk, dv, dg;
  int64 dg_part;        // between the tiles of K, per head
  const float* bonus;
  float* dbonus;        // [slots, H, K]
  const void* kept_s;
  const void* kept_r;
  const float* units_s;
  const float* units_r;
  float scale;
  int key_dim, value_dim;
  int constant;         // gates: dg is [parts, slots, H]
  int groups, parts;    // of kept units
};

struct FoldJob {
  const float* source;
  void* target;
  int64 outputs, inner, outer_stride, inner_stride;      // output n starts at n / inner, n % inner
  int64 terms, count, outer_step, inner_step;            // and sums terms m at m / count, m % count
  int first, programs;
  int kind, unused;
};

struct FoldArguments {
  FoldJob jobs[8];
};

struct DecodeArguments {
  Tokens q, k, v, g, o;
  State state;
  const float* bonus;
  const void* slots;     // int32 or int64
  int64 slot_stride;
  int slots_wide;
  int tokens, heads, key_dim, value_dim;
  int per_channel;
  float scale;
  int unused;
};
