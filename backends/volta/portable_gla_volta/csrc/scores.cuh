// The scores of a chunk of 32 positions: A_ij = Σ_k q_ik k_jk Π e_sk over j < s <= i (s < i with a bonus), per channel.
//
// float16 holds about ten nats, so how they are made depends on the chunk's decays, at run time. Where they stay small
// over the chunk, both sides are referenced to its start: one product. Else the two blocks of 16 positions are taken
// by themselves, and the pairs between them by the readers' prefixes within the second block and the keys' suffixes
// within the first: products of decays between the two and of nothing else. Where a block's decays are small it is one
// product too. Else it goes by levels, exact for every g: the pairs whose highest differing bit is h lie in one run of
// 2h positions, reader in its second half and key in its first. One tile holds a level's rows: q times prefix in
// second halves, k times suffix in first ones.
#pragma once

constexpr int CHUNK = 32;

// A warp's share: one of the diagonal blocks, over some of the columns; and the block of pairs between them.
template <int WARPS> struct Scores {
  float diagonal[8], between[8];
};

enum Mask { SAME, BEFORE, UP_TO, LEVEL };

template <int WARPS, int CHUNKS>
DEVICE void add_diagonal(Scores<WARPS>& scores, int a, int b, Mask mask, int h = 0) {
  float found[8];
  clear(found);
  int first = 16 * (warp() & 1);
  ROLL for (int chunk = warp() >> 1; chunk < CHUNKS; chunk += WARPS / 2)
    multiply_rows<CHUNKS>(found, a, first, b, first, chunk);
  Result at = result();
  UNROLL for (int n = 0; n < 8; n++) {
    int i = row_of(at, n), j = column_of(at, n), apart = i ^ j;
    bool taken = mask == SAME ? i == j : mask == BEFORE ? i > j : mask == UP_TO ? i >= j :
                 i > j && apart >= h && apart < 2 * h;
    scores.diagonal[n] += taken ? found[n] : 0.0f;
  }
}

template <int WARPS, int CHUNKS> DEVICE void add_between(Scores<WARPS>& scores, int a, int b) {
  ROLL for (int chunk = warp(); chunk < CHUNKS; chunk += WARPS)
    multiply_rows<CHUNKS>(scores.between, a, 16, b, 0, chunk);
}

// How small a chunk's decays are: 2 over the whole chunk, 1 within its blocks, else 0; every thread's vote in `votes`,
// two bytes a warp, to be counted behind a barrier. Who has half a block's positions answers for half of the range.
constexpr float NEAR_KEY = 200.0f;

template <int ROWS> DEVICE void vote(int votes, const Positions<ROWS>& column, bool active) {
  constexpr float NEAR_CHUNK = ROWS == SUB ? 16.0f : 4.0f, NEAR_BLOCK = ROWS == SUB ? 128.0f : 11.3137f;
  float least = 1.0f, most = 1.0f, inclusive = opaque(1.0f), key = 0.0f;
  UNROLL for (int r = 0; r < ROWS; r++) {
    inclusive *= column.e[r];
    least = smaller(least, inclusive);
    most = larger(most, inclusive);
    key = larger(key, magnitude(k_of(column, r)));
  }
  int found = 2;
  if (!(least >= 1.0f / NEAR_CHUNK && most <= NEAR_CHUNK)) found = 1;
  if (!(least >= 1.0f / NEAR_BLOCK && most <= NEAR_BLOCK && key <= NEAR_KEY)) found = 0;
  if (!active) found = 2;
  UNROLL for (int mask = 16; mask; mask >>= 1) {
    int other = shuffle_xor(found, mask);
    found = other < found ? other : found;
  }
  if (lane() == 0) shared_set_half(votes + 2 * warp(), (unsigned short)found);
}

template <int WARPS> DEVICE int outcome(int votes) {
  Words<WARPS / 2> words = shared_load<WARPS / 2>(votes);
  int least = 2;
  UNROLL for (int w = 0; w < WARPS; w++) {
    int found = words.word[w / 2] >> 16 * (w % 2) & 0xFFFF;
    least = found < least ? found : least;
  }
  return least;
}

// q times the chunk's prefix; `before`: of the positions before this thread's, which are the `place`-th.
template <int CHUNKS, int ROWS> DEVICE void put_readers(int tile, const Positions<ROWS>& column, int channel, int place,
                                                        bool exclusive, float before) {
  float prefix = opaque(before);  // or its products would be kept from one use to the next
  UNROLL for (int r = 0; r < ROWS; r++) {
    float own = prefix;
    prefix *= column.e[r];
    put<CHUNKS>(tile, ROWS * place + r, channel, q_of(column, r) * (exclusive ? own : prefix));
  }
}

// k times the chunk's suffix; `after`: of the positions after this thread's.
template <int CHUNKS, int ROWS> DEVICE void put_keys(int tile, const Positions<ROWS>& column, int channel, int place,
                                                     float after) {
  float suffix = opaque(after);
  UNROLL for (int r = ROWS - 1; r >= 0; r--) {
    put<CHUNKS>(tile, ROWS * place + r, channel, k_of(column, r) * suffix);
    suffix *= column.e[r];
  }
}

// Adds the scores of one tile of channels. Thread (channel, place) holds its positions; `earlier` is the decay of the
// first block where this thread's is the second, else 1; `before` and `after`, of the positions in its block that are
// another thread's.
template <int WARPS, int CHUNKS, int ROWS>
DEVICE void channel_scores(Scores<WARPS>& scores, int a, int b, const Positions<ROWS>& column, bool active, int channel,
                           int place, int near, bool exclusive, float bonus, float earlier, float before = 1.0f,
                           float after = 1.0f) {
  int first = ROWS * place;
#ifdef FLOAT32
  near = 0;  // what 16 bits hide would show
#endif
  bool alone = exclusive || near == 0;  // positions with themselves apart
  if (alone) {
    if (active) {
      UNROLL for (int r = 0; r < ROWS; r++) {
        put<CHUNKS>(a, first + r, channel, q_of(column, r) * bonus);
        put<CHUNKS>(b, first + r, channel, k_of(column, r));
      }
    }
    barrier();
    add_diagonal<WARPS, CHUNKS>(scores, a, b, SAME);
    barrier();
  }
  if (near) {
    if (active) {
      // A key over its prefix is the key times its suffix over the total.
      float start = near == 2 ? earlier * before : before, suffix = 1.0f / (start * product_of(column.e));
      put_readers<CHUNKS>(a, column, channel, place, exclusive, start);
      put_keys<CHUNKS>(b, column, channel, place, suffix);
    }
    barrier();
    add_diagonal<WARPS, CHUNKS>(scores, a, b, exclusive ? BEFORE : UP_TO);
    if (near == 2) {
      add_between<WARPS, CHUNKS>(scores, a, b);
      barrier();
      return;
    }
    barrier();
  } else {
    int tile = a;
    for (int h = 1; h < SUB; h *= 2) {
      if (active) {
        float one = opaque(1.0f), prefix = one, suffix = one;
        UNROLL for (int r = 0; r < ROWS; r++) {
          if ((first + r) & h) {
            if ((r & (h - 1)) == 0) prefix = one;
            float own = prefix;
            prefix *= column.e[r];
            put<CHUNKS>(tile, first + r, channel, q_of(column, r) * (exclusive ? own : prefix));
          }
        }
        UNROLL for (int r = ROWS - 1; r >= 0; r--) {
          if (!((first + r) & h)) {
            if ((r & (h - 1)) == h - 1) suffix = one;
            put<CHUNKS>(tile, first + r, channel, k_of(column, r) * suffix);
            suffix *= column.e[r];
          }
        }
      }
      barrier();
      add_diagonal<WARPS, CHUNKS>(scores, tile, tile, LEVEL, h);
      tile = tile == a ? b : a;
    }
    // The last level read tile b; a is free.
  }
  if (active) {  // pairs between the blocks; of one that is near, the second block's rows are there already
    if (first < SUB) put_keys<CHUNKS>(a, column, channel, place, after);
    else if (!near) put_readers<CHUNKS>(a, column, channel, place, exclusive, before);
  }
  barrier();
  add_between<WARPS, CHUNKS>(scores, a, a);
  barrier();
}

// Per head: products of q and k as they are, the decays come after. Leaves both in their tiles.
template <int WARPS, int CHUNKS, int ROWS>
DEVICE void head_scores(Scores<WARPS>& scores, int a, int b, const Positions<ROWS>& column, bool active, int channel,
                        int place, bool exclusive, float bonus) {
  if (active)
    UNROLL for (int r = 0; r < ROWS; r++) {
      put<CHUNKS>(a, ROWS * place + r, channel, q_of(column, r) * bonus);
      put<CHUNKS>(b, ROWS * place + r, channel, k_of(column, r));
    }
  barrier();
  if (exclusive) {
    add_diagonal<WARPS, CHUNKS>(scores, a, b, SAME);
    barrier();
    if (active) UNROLL for (int r = 0; r < ROWS; r++) put<CHUNKS>(a, ROWS * place + r, channel, q_of(column, r));
    barrier();
  }
  add_diagonal<WARPS, CHUNKS>(scores, a, b, exclusive ? BEFORE : UP_TO);
  add_between<WARPS, CHUNKS>(scores, a, b);
}

constexpr int BLOCKS = 3;  // of pairs: the first 16 positions, the last 16, and between them
DEVICE int block_row(int block) { return block ? 16 : 0; }
DEVICE int block_column(int block) { return block == 1 ? 16 : 0; }
DEVICE constexpr int partials_bytes(int warps) { return 2 * warps * 1024; }

template <int WARPS> DEVICE void store_partials(const Scores<WARPS>& scores, int offset) {
  store_result(offset + 1024 * ((warp() & 1) * (WARPS / 2) + (warp() >> 1)), scores.diagonal);
  store_result(offset + 1024 * (WARPS + warp()), scores.between);
}

// A warp's blocks: the sums of all partial results.
template <int WARPS> struct Blocks {
  static constexpr int COUNT = WARPS < BLOCKS ? (BLOCKS + WARPS - 1) / WARPS : 1;
  float value[COUNT][8];
};

template <int WARPS> DEVICE void sum_partials(Blocks<WARPS>& blocks, int offset) {
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    clear(blocks.value[n]);
    if (mine >= BLOCKS) continue;
    int count = mine == 2 ? WARPS : WARPS / 2;
    for (int part = 0; part < count; part++)
      add_result(offset + 1024 * (mine * (WARPS / 2) + part), blocks.value[n]);
  }
}

template <int WARPS> DEVICE void store_largest(const Blocks<WARPS>& blocks, int offset) {
  float most = 0.0f;
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++)
    UNROLL for (int i = 0; i < 8; i++) most = larger(most, magnitude(blocks.value[n][i]));
  most = largest_of_warp(most);
  if (lane() == 0 && warp() < BLOCKS) shared_set(offset + 4 * warp(), most);
}

// The power of two by which scores are divided so that float16 holds them, most of its range below the largest.
constexpr float TOP = 8192.0f;

template <int WARPS> DEVICE float unit_of_scores(int offset) {
  float most = 0.0f;
  UNROLL for (int w = 0; w < (WARPS < BLOCKS ? WARPS : BLOCKS); w++) most = larger(most, shared_float(offset + 4 * w));
  return power_below(most) * (1.0f / TOP);
}

constexpr int SCORE_CHUNKS = CHUNK / PER, SCORE_BYTES = CHUNK * CHUNK * SIZE;

// Into a tile [i, j], or as an operand's rows [j, i].
template <int WARPS> DEVICE void put_scores(const Blocks<WARPS>& blocks, int tile, float factor, bool transposed) {
  UNROLL for (int n = 0; n < Blocks<WARPS>::COUNT; n++) {
    int mine = warp() + n * WARPS;
    if (mine >= BLOCKS) continue;
    Result at = result();
    UNROLL for (int i = 0; i < 8; i += 2) {
      int row = block_row(mine) + row_of(at, i), column = block_column(mine) + column_of(at, i);
      float first = blocks.value[n][i] * factor, second = blocks.value[n][i + 1] * factor;
      if (transposed) {
        put<SCORE_CHUNKS, PAIRS>(tile, column, row, first);
        put<SCORE_CHUNKS, PAIRS>(tile, column + 1, row, second);
        continue;
      }
#ifdef FLOAT32
      put<SCORE_CHUNKS, SCORES>(tile, row, column, first);
      put<SCORE_CHUNKS, SCORES>(tile, row, column + 1, second);
#else
      Words<1> pair;
      pair.word[0] = pack_half(first, second);
      shared_store<1>(tile + element_at<SCORE_CHUNKS, SCORES>(row, column), pair);
#endif
    }
  }
}
