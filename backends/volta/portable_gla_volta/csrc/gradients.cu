// The gradients of one chunk of 32 positions, from the state S before it and the gradient R by the state after it.
// With dA_ij = scale do_i . v_j for j < i, F_ij the decay from j to i, u the bonus or 1:
//
//   dq_i = scale P_i S do_i + Σ_j dA_ij F_ij k_j + u k_i dA_ii      dk_j = Q_j R v_j + Σ_i dA_ij F_ij q_i + u q_j dA_jj
//   dv_j = Rᵀ (k_j Q_j) + scale Σ_i A_ij do_i
//
// dg_t sums the paths that cross the gate of t: from the state to readers from t on, from keys before t to the state
// after, from state to state, and from keys before t to readers from t on. Each carries that gate's decay and nothing
// of another path is added and taken away again, so the gradient of a strong gate is right relative to its own size.
//
// Grid: slots x heads x (tiles of K + tiles of V), these fastest: a program makes dq, dk and dg of KT channels, or dv.
// Compiled in: KP (K padded), KT; CHANNEL: gates per channel, else per head, constant or none; FLOAT32.
#include "target.cuh"
#include "arguments.cuh"
#include "common.cuh"
#include "tiles.cuh"
#include "column.cuh"
#include "vectors.cuh"
#include "scores.cuh"

constexpr int THREADS = 2 * KT, WARPS = THREADS / 32, TILES = KP / KT;
constexpr int CHUNKS = KT / PER, SLICE = 32, SLICE_CHUNKS = SLICE / PER;
constexpr int TILE_BYTES = CHUNK * KT * SIZE, SLICE_BYTES = CHUNK * SLICE * SIZE, KEPT_BYTES = SLICE * KT * SIZE;
constexpr int SHARES = THREADS / CHUNKS;  // threads that stage one chunk of a kept state's channels

// Shared memory of a tile of K: slices of v and do, of S and R, where results and operands take their turns.
constexpr int V_AT = 0, D_AT = SLICE_BYTES, S_AT = 2 * SLICE_BYTES, R_AT = S_AT + KEPT_BYTES;
constexpr int RESULTS = S_AT, OPERAND = R_AT + KEPT_BYTES, PATHS = V_AT;
// Of a tile of V: two operands (and partial scores), a slice of R, do.
constexpr int LINK_AT = 2 * TILE_BYTES, DO_AT = LINK_AT + KEPT_BYTES;
// Of both.
constexpr int KEYS_END = OPERAND + TILE_BYTES, VALUES_END = DO_AT + TILE_BYTES;
constexpr int WEIGHTS = KEYS_END > VALUES_END ? KEYS_END : VALUES_END;
constexpr int SELF = WEIGHTS + SCORE_BYTES, TOTALS = SELF + 4 * CHUNK, SUMS = TOTALS + 8 * KT, VECTORS = SUMS + 8 * KT;
constexpr int LARGEST = VECTORS + VECTOR_BYTES, VOTES = LARGEST + 16, ROW_SUMS = VOTES + 64;
static_assert(4 * CHUNK * KT <= 2 * KEPT_BYTES && 4 * SHARES * KT <= 2 * KEPT_BYTES && 4096 <= 2 * SLICE_BYTES);
static_assert(partials_bytes(WARPS) <= 2 * TILE_BYTES && TILE_BYTES <= 2 * KEPT_BYTES);

struct Work {
  Place place;
  int head, position, end;
  int64 row;    // slot and head
};

// A kept state's rows of V are in units of their own: they are brought to the largest of them.
struct Kept {
  const char* data;
  const float* units;
  float unit;
};

DEVICE Kept kept_of(const GradientsArguments& arguments, const void* data, const float* units, int64 row) {
  Kept kept;
  kept.data = (const char*)data + row * ceil_div(arguments.value_dim, 16) * 16 * KP * SIZE;
  kept.units = units + row * arguments.groups * arguments.parts;
  kept.unit = 1.0f;
#ifndef FLOAT32
  float most = 0.0f;
  for (int n = lane(); n < arguments.groups * arguments.parts; n += 32)
    most = larger(most, bits_to_float(global_load<1>(kept.units + n).word[0]));
  kept.unit = largest_of_warp(most);
#endif
  return kept;
}

// One chunk of channels of row `value`.
DEVICE Words<4> kept_chunk(const GradientsArguments& arguments, const Kept& kept, int value, int key) {
  Words<4> words;
  UNROLL for (int n = 0; n < 4; n++) words.word[n] = 0;
  if (value >= ceil_div(arguments.value_dim, 16) * 16) return words;
  words = global_load<4>(kept.data + ((int64)value * KP + key) * SIZE);
#ifndef FLOAT32
  int place = value / 16 * arguments.parts + key / (KP / arguments.parts);
  float factor = bits_to_float(global_load<1>(kept.units + place).word[0]) * inverse_power(kept.unit);
  if (factor != 1.0f)
    UNROLL for (int n = 0; n < 4; n++)
      words.word[n] = pack_half(half_low(words.word[n]) * factor, half_high(words.word[n]) * factor);
#endif
  return words;
}

DEVICE void numbers_of(const Words<4>& words, float (&numbers)[PER]) {
#ifdef FLOAT32
  UNROLL for (int n = 0; n < 4; n++) numbers[n] = bits_to_float(words.word[n]);
#else
  UNROLL for (int n = 0; n < 4; n++) {
    numbers[2 * n] = half_low(words.word[n]);
    numbers[2 * n + 1] = half_high(words.word[n]);
  }
#endif
}

// Where the threads that stage one chunk of channels leave their shares of a sum: four numbers at a time.
DEVICE int share_at(int share, int channel) {
  int chunk = channel / PER, part = channel % PER / 4;
  return 4 * KT * share + 16 * CHUNKS * part + 16 * (chunk ^ part * (CHUNKS / 2)) + channel % 4 * 4;
}

// 32 positions of WIDTH columns.
template <int WIDTH> DEVICE void stage(int tile, const Rows& rows, const Work& work, int first_column, int columns) {
  for (int item = thread(); item < CHUNK * WIDTH; item += THREADS) {
    int row = item / WIDTH, column = item % WIDTH, position = work.position + row;
    bool inside = position < work.end && first_column + column < columns;
#ifdef FLOAT32
    shared_set(tile + element_at<WIDTH / PER>(row, column),
               inside ? row_float(rows, position, first_column + column) : 0.0f);
#else
    shared_set_half(tile + element_at<WIDTH / PER>(row, column),
                    inside ? row_half(rows, position, first_column + column) : (unsigned short)0);
#endif
  }
}

DEVICE float weight_of(const GradientsArguments& arguments, int head, int channel, bool inside) {
  return arguments.bonus && inside
             ? bits_to_float(global_load<1>(arguments.bonus + (int64)head * arguments.key_dim + channel).word[0])
             : 1.0f;
}

// Adds 16 numbers a lane over the lanes of a warp: lane 2n has number n's sum.
DEVICE float sums_of_warp(const float (&numbers)[SUB]) {
  float left[SUB];
  UNROLL for (int n = 0; n < SUB; n++) left[n] = numbers[n];
  UNROLL for (int half = SUB / 2; half; half /= 2) {
    bool high = lane() & 2 * half;
    UNROLL for (int n = 0; n < half; n++) {
      float got = shuffle_xor(high ? left[n] : left[n + half], 2 * half);
      left[n] = (high ? left[n + half] : left[n]) + got;
    }
  }
  return left[0] + shuffle_xor(left[0], 1);
}

// A warp's sums of its 16 rows: what is read by states and what is written to them, the later side's the other way round.
DEVICE int row_sum_at(int warp, int row, int written) {
  return ROW_SUMS + 4 * (32 * warp + 16 * (written ^ (warp >= WARPS / 2 ? 1 : 0)) + row);
}

// Where the path from a key to a reader lies: rows, columns and results of the matrix unit each meet every bank once.
DEVICE int path_at(int row, int key) {
#ifdef PLAIN
  return PATHS + 4 * (32 * row + key);
#else
  return PATHS + 4 * (32 * row + (key ^ ((row & 3) | (row & 12) << 1 | (row & 16) >> 2)));
#endif
}

// Per head: dg of 32 positions from what crosses each gate. Warp 0 alone; `through` is a lane's own share.
DEVICE void store_head_gates(const GradientsArguments& arguments, const Work& work, const Rows& dg, int part,
                             float through, bool exclusive) {
  int t = lane(), side = t >> 4;
  float reads = 0.0f, writes = 0.0f;
  UNROLL for (int n = 0; n < WARPS / 2; n++) {
    reads += shared_float(row_sum_at(side * (WARPS / 2) + n, t & 15, 0));
    writes += shared_float(row_sum_at(side * (WARPS / 2) + n, t & 15, 1));
  }
  float found = through * shared_float(VECTORS + VECTOR_TOTAL);
  for (int other = 0; other < CHUNK; other++) {
    float read = shuffle(reads, other), write = shuffle(writes, other);
    if (exclusive ? other > t : other >= t) found += read;
    if (other < t) found += write;
  }
  float sum = 0.0f;  // of row t's paths from keys before a gate, gate by gate
  for (int gate = 1; gate < CHUNK; gate++) {
    int place = path_at(t, gate - 1);
    if (gate - 1 < t) {
      sum += shared_float(place);
      shared_set(place, sum);
    }
  }
  warp_barrier();
  if (t)
    for (int reader = CHUNK - 1; reader >= (exclusive ? t + 1 : t); reader--) found += shared_float(path_at(reader, t - 1));
  bool valid = work.position + t < work.end;
  if (arguments.constant) {
    found = sum_of_warp(valid ? found : 0.0f);
    if (t == 0) store_number(arguments.dg.data, part * arguments.dg_part + work.row, 0, found);
  } else if (valid) {
    store_number(row_address(dg, work.position + t, 0, 4), part * arguments.dg_part, 0, found);
  }
}

// Of one channel's operands at level h: a run of h of them is brought to most of float16's range by a power of two of
// its own, as decays are of its own. `back` takes that of the run which a row's sums are of, back; of level SUB its own.
DEVICE void lift_runs(float (&numbers)[SUB], float (&back)[SUB], int h) {
#ifdef FLOAT32
  UNROLL for (int n = 0; n < SUB; n++) back[n] = 1.0f;
#else
  UNROLL for (int n = 0; n < SUB; n++) back[n] = magnitude(numbers[n]);
  UNROLL for (int step = 1; step < SUB; step *= 2)
    if (step < h)
      UNROLL for (int n = 0; n < SUB; n++)
        if (!(n & step)) back[n] = back[n ^ step] = larger(back[n], back[n ^ step]);
  UNROLL for (int n = 0; n < SUB; n++) {
    float lift = lift_of(back[n], 113);
    numbers[n] *= lift;
    back[n] = inverse_power(lift);
  }
  UNROLL for (int step = 1; step < SUB; step *= 2)
    UNROLL for (int n = 0; n < SUB; n++)
      if (!(n & step)) {
        float low = back[n], high = back[n ^ step];
        back[n] = step == h ? high : low;
        back[n ^ step] = step == h ? low : high;
      }
#endif
}

DEVICE void key_gradients(const GradientsArguments& arguments, const Work& work, int tile) {
  const Sequences& sequences = arguments.sequences;
  int own = thread() % KT, side = thread() / KT, channel = tile * KT + own, first = work.position + SUB * side;
  bool inside = channel < arguments.key_dim, exclusive = arguments.bonus;
  Rows v = rows_of(arguments.v, sequences, work.place, work.head), d = rows_of(arguments.d, sequences, work.place, work.head);
  Rows g = rows_of(arguments.g, sequences, work.place, work.head);
  if (!CHANNEL && warp() == 0) head_vectors(VECTORS, g, work.position, work.end, exclusive);
  Kept s = kept_of(arguments, arguments.kept_s, arguments.units_s, work.row);
  Kept r = kept_of(arguments, arguments.kept_r, arguments.units_r, work.row);
  float from_state[2][8], to_state[2][8], through[PER];
  Blocks<WARPS> pairs;  // dA
  UNROLL for (int n = 0; n < 2; n++) {
    clear(from_state[n]);
    clear(to_state[n]);
  }
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) clear(pairs.value[n]);
  UNROLL for (int n = 0; n < PER; n++) through[n] = 0.0f;
  int shared_chunk = thread() % CHUNKS;
  for (int value = 0; value < arguments.value_dim; value += SLICE) {
    stage<SLICE>(V_AT, v, work, value, arguments.value_dim);
    stage<SLICE>(D_AT, d, work, value, arguments.value_dim);
    for (int row = thread() / CHUNKS; row < SLICE; row += SHARES) {
      Words<4> x = kept_chunk(arguments, s, value + row, tile * KT + PER * shared_chunk);
      Words<4> y = kept_chunk(arguments, r, value + row, tile * KT + PER * shared_chunk);
      shared_store<4>(S_AT + tile_at<CHUNKS>(row, shared_chunk), x);
      shared_store<4>(R_AT + tile_at<CHUNKS>(row, shared_chunk), y);
      float a[PER], b[PER];
      numbers_of(x, a);
      numbers_of(y, b);
      UNROLL for (int n = 0; n < PER; n++) through[n] = fma_(a[n], b[n], through[n]);
    }
    barrier();
    for (int chunk = 0; chunk < SLICE_CHUNKS; chunk++) {
      multiply_columns<SLICE_CHUNKS, ROWS, CHUNKS>(from_state, D_AT, S_AT, 16 * warp(), chunk);
      multiply_columns<SLICE_CHUNKS, ROWS, CHUNKS>(to_state, V_AT, R_AT, 16 * warp(), chunk);
      UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
        int mine = warp() + n * WARPS;
        if (mine < BLOCKS)
          multiply_rows<SLICE_CHUNKS>(pairs.value[n], D_AT, block_row(mine), V_AT, block_column(mine), chunk);
      }
    }
    barrier();
  }

  UNROLL for (int part = 0; part < PER / 4; part++) {
    Words<4> words;
    UNROLL for (int n = 0; n < 4; n++) words.word[n] = float_to_bits(through[4 * part + n]);
    shared_store<4>(RESULTS + share_at(thread() / CHUNKS, PER * shared_chunk + 4 * part), words);
  }
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    UNROLL for (int i = 0; i < 8; i++) pairs.value[n][i] *= arguments.scale;
    if (!CHANNEL && mine < BLOCKS)
      decay_pairs(pairs.value[n], VECTORS, block_row(mine), block_column(mine), exclusive);
  }
  store_largest<WARPS>(pairs, LARGEST);
  Column column;
  load_pairs(column, rows_of(arguments.q, sequences, work.place, work.head),
             rows_of(arguments.k, sequences, work.place, work.head), first, work.end, channel, inside);
  if (CHANNEL) {
    load_decays(column.e, g, first, work.end, channel, inside);
    shared_set(TOTALS + 4 * thread(), product_of(column.e));
  }
  barrier();
  float passed = 0.0f, before = 1.0f, after = 1.0f, total = 1.0f;
  UNROLL for (int n = 0; n < SHARES; n++) passed += shared_float(RESULTS + share_at(n, own));
  passed = passed * s.unit * r.unit;
  if (CHANNEL) {
    float mine = shared_float(TOTALS + 4 * thread()), other = shared_float(TOTALS + 4 * ((1 - side) * KT + own));
    before = side ? other : 1.0f;
    after = side ? 1.0f : other;
    total = mine * other;
  }
#ifdef FLOAT32
  float unit = 1.0f;
#else
  float unit = unit_of_scores<WARPS>(LARGEST);
#endif
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    if (mine >= BLOCKS) continue;
    UNROLL for (int i = 0; i < 8; i++) {
      int row = block_row(mine) + result_row(i), key = block_column(mine) + result_column(i);
      float weight = pairs.value[n][i] * inverse_power(unit);
      if (row == key) shared_set(SELF + 4 * row, pairs.value[n][i]);
      if (row >= key) put<SCORE_CHUNKS, PAIRS>(WEIGHTS, row, key, row == key ? 0.0f : weight);
      if (row > key) put<SCORE_CHUNKS, PAIRS>(WEIGHTS, key, row, weight);
    }
  }
  barrier();

  // What passes through the states.
  float dq[SUB], dk[SUB], dg[SUB];
  store_results<KT>(RESULTS, from_state, 16 * warp());
  barrier();
  float prefix = before;
  UNROLL for (int n = 0; n < SUB; n++) {
    float decay = 1.0f;
    if (CHANNEL) {
      decay = prefix;
      prefix *= column.e[n];
      if (!exclusive) decay = prefix;
    } else {
      decay = shared_float(VECTORS + VECTOR_PREFIX + 4 * (SUB * side + n));
    }
    dq[n] = shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * (decay * (s.unit * arguments.scale));
  }
  barrier();
  store_results<KT>(RESULTS, to_state, 16 * warp());
  barrier();
  float suffix = after;
  UNROLL for (int n = SUB - 1; n >= 0; n--) {
    float decay = suffix;
    if (CHANNEL) suffix *= column.e[n];
    else decay = shared_float(VECTORS + VECTOR_SUFFIX + 4 * (SUB * side + n));
    dk[n] = shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * (decay * r.unit);
  }
  float reads = 0.0f, writes = 0.0f;  // of this thread's rows
  UNROLL for (int n = 0; n < SUB; n++) {
    reads += q_of(column, n) * dq[n];
    writes += k_of(column, n) * dk[n];
  }
  if (CHANNEL) {
    if (side) shared_set(SUMS + 4 * own, reads);
    else shared_set(SUMS + 4 * (KT + own), writes);
  } else {
    float each[SUB];
    UNROLL for (int n = 0; n < SUB; n++) each[n] = q_of(column, n) * dq[n];
    reads = sums_of_warp(each);
    UNROLL for (int n = 0; n < SUB; n++) each[n] = k_of(column, n) * dk[n];
    writes = sums_of_warp(each);
    if (!(lane() & 1)) {
      shared_set(row_sum_at(warp(), lane() >> 1, 0), reads);
      shared_set(row_sum_at(warp(), lane() >> 1, 1), writes);
    }
    float all = sum_of_warp(side ? 0.0f : passed);
    if (lane() == 0) shared_set(SUMS + 4 * warp(), all);
  }
  barrier();

  if (CHANNEL) {
    float later = side ? 0.0f : shared_float(SUMS + 4 * own), earlier = side ? shared_float(SUMS + 4 * (KT + own)) : 0.0f;
    UNROLL for (int n = SUB - 1; n >= 0; n--) {
      float read = q_of(column, n) * dq[n];
      dg[n] = total * passed + (exclusive ? later : later + read);
      later += read;
    }
    UNROLL for (int n = 0; n < SUB; n++) {
      dg[n] += earlier;
      earlier += k_of(column, n) * dk[n];
    }
    // Pairs, level by level: see scores.cuh. One product gives second halves what keys send, and first halves what
    // comes back from readers.
    for (int h = 1; h <= SUB; h *= 2) {
      float running = 1.0f, numbers[SUB], back[SUB];
      bool far = h == SUB;
      UNROLL for (int n = 0; n < SUB; n++)
        if (far ? side : n & h) {
          if (far ? n == 0 : (n & (h - 1)) == 0) running = 1.0f;
          float decay = running;
          running *= column.e[n];
          numbers[n] = q_of(column, n) * (exclusive ? decay : running);
        }
      UNROLL for (int n = SUB - 1; n >= 0; n--)
        if (!(far ? side : n & h)) {
          if (far ? n == SUB - 1 : (n & (h - 1)) == h - 1) running = 1.0f;
          numbers[n] = k_of(column, n) * running;
          running *= column.e[n];
        }
      lift_runs(numbers, back, h);
      UNROLL for (int n = 0; n < SUB; n++) put<CHUNKS>(OPERAND, SUB * side + n, own, numbers[n]);
      if (far) shared_set(TOTALS + 4 * thread(), back[0]);
      barrier();
      float found[2][8];
      clear(found[0]);
      clear(found[1]);
      for (int chunk = 0; chunk < SCORE_CHUNKS; chunk++)
        multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(found, WEIGHTS, OPERAND, 16 * warp(), chunk, HALVES, h);
      store_results<KT>(RESULTS, found, 16 * warp());
      barrier();
      float paths = 0.0f, other = far ? shared_float(TOTALS + 4 * ((1 - side) * KT + own)) : 1.0f;
      UNROLL for (int n = 0; n < SUB; n++) back[n] = (far ? other : back[n]) * unit;
      UNROLL for (int n = 0; n < SUB; n++)  // readers: their prefixes; below, what crosses their gates
        if (far ? side : n & h) {
          if (far ? n == 0 : (n & (h - 1)) == 0) running = 1.0f;
          float decay = running;
          running *= column.e[n];
          dq[n] += shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) *
                   ((exclusive ? decay : running) * back[n]);
        } else {  // keys: what those before a gate send, crosses it
          if (far ? n == 0 : (n & (h - 1)) == 0) paths = 0.0f;
          dg[n] += paths;
          float factor = 1.0f;
          UNROLL for (int later = SUB - 1; later > 0; later--)
            if (later > n && (far || (later & ~(h - 1)) == (n & ~(h - 1)))) factor *= column.e[later];
          float sent = shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * (factor * back[n]);
          dk[n] += sent;
          paths += sent * k_of(column, n);
        }
      UNROLL for (int n = SUB - 1; n >= 0; n--)
        if (far ? side : n & h) {
          if (far ? n == SUB - 1 : (n & (h - 1)) == h - 1) paths = 0.0f;
          float factor = 1.0f;
          UNROLL for (int earlier = 0; earlier < SUB; earlier++)
            if ((exclusive ? earlier < n : earlier <= n) && (far || (earlier & ~(h - 1)) == (n & ~(h - 1))))
              factor *= column.e[earlier];
          float got = shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * (factor * back[n]) * q_of(column, n);
          dg[n] += exclusive ? paths : paths + got;
          paths += got;
        }
    }
    if (inside) {
      Rows dg_rows = rows_of(arguments.dg, sequences, work.place, work.head);
      UNROLL for (int n = 0; n < SUB; n++)
        if (first + n < work.end) set_row_number(dg_rows, first + n, channel, dg[n]);
    }
  } else {
    // The weights hold the decays; two products give both sides, a third the paths between them.
    int queries = RESULTS;
    UNROLL for (int n = 0; n < SUB; n++) {
      put<CHUNKS>(OPERAND, SUB * side + n, own, k_of(column, n));
      put<CHUNKS>(queries, SUB * side + n, own, q_of(column, n));
    }
    barrier();
    float sent[2][8], got[2][8];
    UNROLL for (int n = 0; n < 2; n++) {
      clear(got[n]);
      clear(sent[n]);
    }
    for (int chunk = 0; chunk < SCORE_CHUNKS; chunk++) {
      multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(got, WEIGHTS, OPERAND, 16 * warp(), chunk, LOWER);
      multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(sent, WEIGHTS, queries, 16 * warp(), chunk, UPPER);
    }
    if (arguments.g.data)
      UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
        int mine = warp() + n * WARPS;
        if (mine >= BLOCKS) continue;
        float scores[8];
        clear(scores);
        for (int chunk = 0; chunk < CHUNKS; chunk++)
          multiply_rows<CHUNKS>(scores, queries, block_row(mine), OPERAND, block_column(mine), chunk);
        UNROLL for (int i = 0; i < 8; i++) {
          int row = block_row(mine) + result_row(i), key = block_column(mine) + result_column(i);
          if (row > key) shared_set(path_at(row, key), scores[i] * pairs.value[n][i]);
        }
      }
    barrier();
    store_results<KT>(RESULTS, got, 16 * warp());
    barrier();
    UNROLL for (int n = 0; n < SUB; n++) dq[n] += shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * unit;
    if (warp() == 0 && arguments.g.data) {
      float all = 0.0f;
      if (lane() == 0)
        UNROLL for (int n = 0; n < WARPS; n++) all += shared_float(SUMS + 4 * n);
      store_head_gates(arguments, work, rows_of(arguments.dg, sequences, work.place, work.head), tile, shuffle(all, 0),
                       exclusive);
    }
    barrier();
    store_results<KT>(RESULTS, sent, 16 * warp());
    barrier();
    UNROLL for (int n = 0; n < SUB; n++) dk[n] += shared_float(RESULTS + float_at<KT>(SUB * side + n, own)) * unit;
  }

  // Each position with itself: no decay.
  float u = weight_of(arguments, work.head, channel, inside), dbonus = 0.0f;
  Rows dq_rows = rows_of(arguments.dq, sequences, work.place, work.head);
  Rows dk_rows = rows_of(arguments.dk, sequences, work.place, work.head);
  UNROLL for (int n = 0; n < SUB; n++) {
    float self = shared_float(SELF + 4 * (SUB * side + n));
    float q = q_of(column, n), k = k_of(column, n);
    dbonus += q * k * self;
    if (inside && first + n < work.end) {
      set_row_number(dq_rows, first + n, channel, fma_(k * self, u, dq[n]));
      set_row_number(dk_rows, first + n, channel, fma_(q * self, u, dk[n]));
    }
  }
  if (exclusive) {
    if (side) shared_set(SUMS + 4 * own, dbonus);
    barrier();
    if (!side && inside)
      store_number(arguments.dbonus, work.row * arguments.key_dim + channel, 0, dbonus + shared_float(SUMS + 4 * own));
  }
}

DEVICE void value_gradients(const GradientsArguments& arguments, const Work& work, int tile) {
  const Sequences& sequences = arguments.sequences;
  int own = thread() % KT, side = thread() / KT, first = work.position + SUB * side, first_value = tile * KT;
  bool exclusive = arguments.bonus;
  Rows q = rows_of(arguments.q, sequences, work.place, work.head), k = rows_of(arguments.k, sequences, work.place, work.head);
  Rows d = rows_of(arguments.d, sequences, work.place, work.head), g = rows_of(arguments.g, sequences, work.place, work.head);
  if (!CHANNEL && warp() == 0) head_vectors(VECTORS, g, work.position, work.end, exclusive);
  Kept r = kept_of(arguments, arguments.kept_r, arguments.units_r, work.row);
  stage<KT>(DO_AT, d, work, first_value, arguments.value_dim);
  Scores<WARPS> scores;
  clear(scores.diagonal);
  clear(scores.between);
  float found[2][8], inner[2][8];
  UNROLL for (int n = 0; n < 2; n++) {
    clear(found[n]);
    clear(inner[n]);
  }
  int readers = 0, keys = TILE_BYTES;
  float lift = 1.0f, scores_lifted = 1.0f;  // lift: of a tile's keys
  for (int block_k = 0; block_k < TILES; block_k++) {
    int channel = block_k * KT + own;
    bool inside = channel < arguments.key_dim;
    Column column;
    load_pairs(column, q, k, first, work.end, channel, inside);
    float bonus = weight_of(arguments, work.head, channel, inside);
    if (CHANNEL) {
      load_decays(column.e, g, first, work.end, channel, inside);
      shared_set(TOTALS + 4 * thread(), product_of(column.e));
      vote(VOTES, column, true, bonus);
      barrier();
      Outcome voted = outcome<WARPS>(VOTES);
      float other = shared_float(TOTALS + 4 * ((1 - side) * KT + own)), change = voted.written * inverse_power(lift);
      lift = voted.written;
      take_up(scores, scores_lifted, voted);
      UNROLL for (int block = 0; block < 2; block++)
        UNROLL for (int i = 0; i < 8; i++) found[block][i] *= change;
      channel_scores<WARPS, CHUNKS>(scores, readers, keys, column, true, own, side, voted, exclusive, bonus,
                                    side ? other : 1.0f);
      put_keys<CHUNKS>(keys, column, own, side, side ? lift : other * lift);
    } else {
      head_scores<WARPS, CHUNKS>(scores, readers, keys, column, true, own, side, exclusive, bonus);
    }
    for (int slice = 0; slice < KT / SLICE; slice++) {
      for (int item = thread(); item < KT * SLICE_CHUNKS; item += THREADS) {
        int row = item / SLICE_CHUNKS, chunk = item % SLICE_CHUNKS;
        shared_store<4>(LINK_AT + tile_at<SLICE_CHUNKS>(row, chunk),
                        kept_chunk(arguments, r, first_value + row, block_k * KT + slice * SLICE + PER * chunk));
      }
      barrier();
      for (int chunk = 0; chunk < SLICE_CHUNKS; chunk++)
        UNROLL for (int block = 0; block < 2; block++)
          multiply_rows<CHUNKS, SLICE_CHUNKS>(found[block], keys, 16 * block, LINK_AT, 16 * warp(),
                                              slice * SLICE_CHUNKS + chunk, chunk);
      barrier();
    }
  }
  store_partials<WARPS>(scores, 0);
  barrier();
  Blocks<WARPS> blocks;
  sum_partials<WARPS>(blocks, 0);
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    if (CHANNEL) UNROLL for (int i = 0; i < 8; i++) blocks.value[n][i] *= inverse_power(scores_lifted);
    else if (mine < BLOCKS) decay_pairs(blocks.value[n], VECTORS, block_row(mine), block_column(mine), exclusive);
  }
  store_largest<WARPS>(blocks, LARGEST);
  barrier();
#ifdef FLOAT32
  float unit = 1.0f;
#else
  float unit = unit_of_scores<WARPS>(LARGEST);
#endif
  put_scores<WARPS>(blocks, WEIGHTS, inverse_power(unit), true);
  barrier();
  for (int chunk = 0; chunk < SCORE_CHUNKS; chunk++)
    multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(inner, WEIGHTS, DO_AT, 16 * warp(), chunk, FROM);
  UNROLL for (int block = 0; block < 2; block++)
    UNROLL for (int i = 0; i < 8; i++) {
      float factor = r.unit * inverse_power(lift);
      if (!CHANNEL) factor *= shared_float(VECTORS + VECTOR_SUFFIX + 4 * (16 * block + result_row(i)));
      found[block][i] = fma_(inner[block][i], unit * arguments.scale, found[block][i] * factor);
    }
  store_results<KT>(0, found, 16 * warp());
  barrier();
  Rows dv = rows_of(arguments.dv, sequences, work.place, work.head);
  UNROLL for (int n = 0; n < SUB; n++)
    if (first + n < work.end && first_value + own < arguments.value_dim)
      set_row_number(dv, first + n, first_value + own, shared_float(float_at<KT>(SUB * side + n, own)));
}

KERNEL(gradients, THREADS, 2, GradientsArguments) {
  const Sequences& sequences = arguments.sequences;
  int tiles = ceil_div(arguments.key_dim, KT), roles = tiles + ceil_div(arguments.value_dim, KT);
  int role = block() % roles, slot = block() / roles / sequences.heads;
  Work work;
  work.head = block() / roles % sequences.heads;
  work.row = (int64)slot * sequences.heads + work.head;
  work.place = locate(sequences, slot);
  work.position = work.place.piece * CHUNK;
  work.end = work.place.length;
  if (work.position >= work.place.length) {  // of a slot without tokens nothing is summed
    int channel = role * KT + thread();
    if (role < tiles && arguments.constant && thread() == 0)
      store_number(arguments.dg.data, role * arguments.dg_part + work.row, 0, 0.0f);
    if (role < tiles && arguments.bonus && thread() < KT && channel < arguments.key_dim)
      store_number(arguments.dbonus, work.row * arguments.key_dim + channel, 0, 0.0f);
    return;
  }
  if (role < tiles) key_gradients(arguments, work, role);
  else value_gradients(arguments, work, role - tiles);
}
