// dq, dk and dg of KT channels: see gradients.cu.
#pragma once

// Where the threads that stage one chunk of channels leave their shares of a sum: four numbers at a time.
DEVICE int share_at(int share, int channel) {
  int chunk = channel / PER, part = channel % PER / 4;
  return 4 * KT * share + 16 * CHUNKS * part + 16 * (chunk ^ part * (CHUNKS / 2)) + channel % 4 * 4;
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

// A power of two that brings a run of one channel's operands to most of float16's range, as decays are of its own.
template <int H> DEVICE float lift_of_run(const float (&numbers)[H]) {
#ifdef FLOAT32
  return 1.0f;
#else
  float most = 0.0f;
  UNROLL for (int n = 0; n < H; n++) most = larger(most, magnitude(numbers[n]));
  return lift_of(most, 113);
#endif
}

// What pairs whose highest differing bit is H add to one channel's gradients (scores.cuh): one product gives second halves of
// runs of 2 H what keys send, and first halves what comes back from readers.
template <int H>
DEVICE void add_level(const Column& column, int own, int side, bool exclusive, float unit, float (&dq)[SUB],
                      float (&dk)[SUB], float (&dg)[SUB]) {
  auto reads = [&](int n) { return H == SUB ? side != 0 : (n & H) != 0; };
  float factor[SUB];  // a reader's prefix, a key's suffix within its run; later times what brings results back
  float inverse[SUB / H];
  UNROLL for (int run = 0; run < SUB; run += H) {
    float numbers[H], running = 1.0f;
    if (reads(run)) {
      UNROLL for (int n = 0; n < H; n++) {
        float before = running;
        running *= column.e[run + n];
        factor[run + n] = exclusive ? before : running;
        numbers[n] = q_of(column, run + n) * factor[run + n];
      }
    } else {
      UNROLL for (int n = H - 1; n >= 0; n--) {
        factor[run + n] = running;
        numbers[n] = k_of(column, run + n) * running;
        running *= column.e[run + n];
      }
    }
    float lift = lift_of_run<H>(numbers);
    inverse[run / H] = inverse_power(lift);
    UNROLL for (int n = 0; n < H; n++) put<CHUNKS>(OPERAND, SUB * side + run + n, own, numbers[n] * lift);
  }
  if (H == SUB) shared_set(TOTALS + 4 * thread(), inverse[0]);
  barrier();
  float found[2][8];
  clear(found[0]);
  clear(found[1]);
  for (int chunk = 0; chunk < SCORE_CHUNKS; chunk++)
    multiply_columns<SCORE_CHUNKS, PAIRS, CHUNKS>(found, WEIGHTS, OPERAND, 16 * warp(), chunk, HALVES, H);
  store_results<KT>(RESULTS, found, 16 * warp());
  barrier();
  UNROLL for (int run = 0; run < SUB; run += H) {
    float back = (H == SUB ? shared_float(TOTALS + 4 * ((1 - side) * KT + own)) : inverse[run / H ^ 1]) * unit, paths = 0.0f;
    UNROLL for (int n = run; n < run + H; n++)
      factor[n] *= back * shared_float(RESULTS + float_at<KT>(SUB * side + n, own));
    if (reads(run)) {
      UNROLL for (int n = run; n < run + H; n++) dq[n] += factor[n];
      UNROLL for (int n = run + H - 1; n >= run; n--) {  // what readers behind a gate get, crosses it
        float got = factor[n] * q_of(column, n);
        dg[n] += exclusive ? paths : paths + got;
        paths += got;
      }
    } else {
      UNROLL for (int n = run; n < run + H; n++) {  // what keys before a gate send, crosses it
        dg[n] += paths;
        dk[n] += factor[n];
        paths += factor[n] * k_of(column, n);
      }
    }
  }
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
    add_level<1>(column, own, side, exclusive, unit, dq, dk, dg);
    add_level<2>(column, own, side, exclusive, unit, dq, dk, dg);
    add_level<4>(column, own, side, exclusive, unit, dq, dk, dg);
    add_level<8>(column, own, side, exclusive, unit, dq, dk, dg);
    add_level<16>(column, own, side, exclusive, unit, dq, dk, dg);
    store_column(rows_of(arguments.dg, sequences, work.place, work.head), first, inside ? work.end : first, channel, dg);
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
  UNROLL for (int n = 0; n < SUB; n++) {
    float self = shared_float(SELF + 4 * (SUB * side + n));
    float q = q_of(column, n), k = k_of(column, n);
    dbonus += q * k * self;
    dq[n] = fma_(k * self, u, dq[n]);
    dk[n] = fma_(q * self, u, dk[n]);
  }
  int end = inside ? work.end : first;
  store_column(rows_of(arguments.dq, sequences, work.place, work.head), first, end, channel, dq);
  store_column(rows_of(arguments.dk, sequences, work.place, work.head), first, end, channel, dk);
  if (exclusive) {
    if (side) shared_set(SUMS + 4 * own, dbonus);
    barrier();
    if (!side && inside)
      store_number(arguments.dbonus, work.row * arguments.key_dim + channel, 0, dbonus + shared_float(SUMS + 4 * own));
  }
}
