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

// How small a chunk's decays are: 2 over the whole chunk, 1 within its blocks, else 0; and how large q and k are. Every
// thread's vote in `votes`, a word of bits a warp, to be counted behind a barrier. Who has half a block's positions answers
// for half of the range.
constexpr int SIZES = 10;

// n: below 2^(4 n - 24); 0: nothing.
DEVICE int size_class(float x) {
  int above = (int)(float_to_bits(x) >> 23) - 103;  // powers of two above 2^-24
  return x == 0.0f ? 0 : above < 0 ? 1 : above >= 4 * SIZES ? SIZES : above / 4 + 1;
}

// `weight`: the bonus, which q meets too.
template <int ROWS> DEVICE void vote(int votes, const Positions<ROWS>& column, float weight) {
  constexpr float NEAR_CHUNK = ROWS == SUB ? 16.0f : 4.0f, NEAR_BLOCK = ROWS == SUB ? 128.0f : 11.3137f;
  float least = 1.0f, most = 1.0f, inclusive = opaque(1.0f), query = 0.0f, key = 0.0f, gate = 0.0f;
  UNROLL for (int r = 0; r < ROWS; r++) {
    inclusive *= column.e[r];
    gate = larger(gate, column.e[r]);
    least = smaller(least, inclusive);
    most = larger(most, inclusive);
    query = larger(query, magnitude(q_of(column, r)));
    key = larger(key, magnitude(k_of(column, r)));
  }
  int found = 0;  // 1: not over the chunk, 2: not within a block, 4: growth; then a bit for each class up to q's and k's
  if (!(least >= 1.0f / NEAR_CHUNK && most <= NEAR_CHUNK)) found |= 1;
  if (!(least >= 1.0f / NEAR_BLOCK && most <= NEAR_BLOCK)) found |= 2;
  if (!(gate <= 1.0f)) found |= 4;
  found |= ((1 << size_class(query * larger(magnitude(weight), 1.0f))) - 1) << 3;
  found |= ((1 << size_class(key)) - 1) << (3 + SIZES);
  UNROLL for (int mask = 16; mask; mask >>= 1) found |= shuffle_xor(found, mask);
  if (lane() == 0) {
    Words<1> word;
    word.word[0] = (unsigned)found;
    shared_store<1>(votes + 4 * warp(), word);
  }
}

// Powers of two bring operands to where float16 is precise, also of what decays leave of them: readers to below 2^14, keys
// too, or to below 2^8 where they are divided by decays. Growth keeps its room.
struct Outcome {
  int near;
  float readers, keys;  // of the scores
  float read, written;  // of q that reads a state, of k that meets one
};

DEVICE float lift_of_class(int classes, int top, bool growth) {
  int n = (int)(float_to_bits((float)(classes + 1)) >> 23) - 127, power = n ? top + 24 - 4 * n : 0;
  return bits_to_float((unsigned)(127 + (growth && power > 0 ? 0 : power)) << 23);
}

// Without LIFTED the scores' operands stay as they are, for programs of many tiles whose registers are full: what is large,
// or nothing but small, is not near then.
template <int WARPS, bool LIFTED = true> DEVICE Outcome outcome(int votes) {
  Words<WARPS> words = shared_load<WARPS>(votes);
  unsigned all = 0;
  UNROLL for (int w = 0; w < WARPS; w++) all |= words.word[w];
  Outcome found;
  found.near = all & 2 ? 0 : all & 1 ? 1 : 2;
  found.readers = found.keys = found.read = found.written = 1.0f;
#ifdef FLOAT32
  found.near = 0;  // what 16 bits hide would show
#else
  bool growth = all & 4;
  int query = all >> 3 & ((1 << SIZES) - 1), key = all >> (3 + SIZES) & ((1 << SIZES) - 1), top = growth ? 8 : 14;
  found.read = lift_of_class(query, top, growth);
  found.written = lift_of_class(key, top, growth);
  if (LIFTED) {
    found.readers = found.read;
    found.keys = found.near ? lift_of_class(key, 8, growth) : found.written;
  } else {
    constexpr int SMALL = 1 << 4, LARGE = 1 << 8;  // at least 2^-8, 2^8
    if ((query && !(query & SMALL)) || (key && !(key & SMALL)) || key & LARGE) found.near = 0;
    if (found.near == 2) found.read = 1.0f;  // its readers are those of the scores
  }
#endif
  return found;
}

// Brings what was found so far to the units of the next tile's products. `lifted`: by how much it is too large.
template <int WARPS> DEVICE void take_up(Scores<WARPS>& scores, float& lifted, const Outcome& next) {
  float change = next.readers * next.keys * inverse_power(lifted);
  lifted = next.readers * next.keys;
  UNROLL for (int n = 0; n < 8; n++) {
    scores.diagonal[n] *= change;
    scores.between[n] *= change;
  }
}

// q times the chunk's prefix; `before`: of the block before this thread's, which is the `side`-th.
template <int CHUNKS> DEVICE void put_readers(int tile, const Column& column, int channel, int side, bool exclusive,
                                              float before) {
  float prefix = opaque(before);  // or its products would be kept from one use to the next
  UNROLL for (int r = 0; r < SUB; r++) {
    float own = prefix;
    prefix *= column.e[r];
    put<CHUNKS>(tile, SUB * side + r, channel, q_of(column, r) * (exclusive ? own : prefix));
  }
}

// k times the chunk's suffix; `after`: of the block after this thread's.
template <int CHUNKS> DEVICE void put_keys(int tile, const Column& column, int channel, int side, float after) {
  float suffix = opaque(after);
  UNROLL for (int r = SUB - 1; r >= 0; r--) {
    put<CHUNKS>(tile, SUB * side + r, channel, k_of(column, r) * suffix);
    suffix *= column.e[r];
  }
}

// Pairs whose highest differing bit is H: of every run of 2 H, the second half's readers and the first half's keys.
template <int H, int WARPS, int CHUNKS>
DEVICE void add_level_scores(Scores<WARPS>& scores, int tile, const Column& column, int channel, int first,
                             const Outcome& lift, bool exclusive) {
  float query = opaque(lift.readers), key = opaque(lift.keys);
  UNROLL for (int run = 0; run < SUB; run += 2 * H) {
    float prefix = query, suffix = key;
    UNROLL for (int r = run + H; r < run + 2 * H; r++) {
      float own = prefix;
      prefix *= column.e[r];
      put<CHUNKS>(tile, first + r, channel, q_of(column, r) * (exclusive ? own : prefix));
    }
    UNROLL for (int r = run + H - 1; r >= run; r--) {
      put<CHUNKS>(tile, first + r, channel, k_of(column, r) * suffix);
      suffix *= column.e[r];
    }
  }
  barrier();
  add_diagonal<WARPS, CHUNKS>(scores, tile, tile, LEVEL, H);
}

// Adds the scores of one tile of channels. Thread (channel, side) holds a block's positions; `earlier` is the decay of the
// first block where this thread's is the second, else 1. What is found is too large by both lifts.
template <int WARPS, int CHUNKS>
DEVICE void channel_scores(Scores<WARPS>& scores, int a, int b, const Column& column, int channel, int side,
                           const Outcome& lift, bool exclusive, float bonus, float earlier) {
  int first = SUB * side, near = lift.near;
  if (exclusive || near == 0) {  // positions with themselves apart
    UNROLL for (int r = 0; r < SUB; r++) {
      put<CHUNKS>(a, first + r, channel, q_of(column, r) * (bonus * lift.readers));
      put<CHUNKS>(b, first + r, channel, k_of(column, r) * lift.keys);
    }
    barrier();
    add_diagonal<WARPS, CHUNKS>(scores, a, b, SAME);
    barrier();
  }
  if (near) {
    // A key over its prefix is the key times its suffix over the total.
    float start = near == 2 ? earlier : 1.0f, suffix = 1.0f / (start * product_of(column.e));
    put_readers<CHUNKS>(a, column, channel, side, exclusive, start * lift.readers);
    put_keys<CHUNKS>(b, column, channel, side, suffix * lift.keys);
    barrier();
    add_diagonal<WARPS, CHUNKS>(scores, a, b, exclusive ? BEFORE : UP_TO);
    if (near == 2) {
      add_between<WARPS, CHUNKS>(scores, a, b);
      barrier();
      return;
    }
    barrier();
  } else {
    add_level_scores<1, WARPS, CHUNKS>(scores, a, column, channel, first, lift, exclusive);
    add_level_scores<2, WARPS, CHUNKS>(scores, b, column, channel, first, lift, exclusive);
    add_level_scores<4, WARPS, CHUNKS>(scores, a, column, channel, first, lift, exclusive);
    add_level_scores<8, WARPS, CHUNKS>(scores, b, column, channel, first, lift, exclusive);  // a is free after it
  }
  // Pairs between the blocks; of one that is near, the second block's rows are there already.
  if (!side) put_keys<CHUNKS>(a, column, channel, side, lift.keys);
  else if (!near) put_readers<CHUNKS>(a, column, channel, side, exclusive, lift.readers);
  barrier();
  add_between<WARPS, CHUNKS>(scores, a, a);
}

// Per head: products of q and k as they are, the decays come after. Leaves both in their tiles.
template <int WARPS, int CHUNKS>
DEVICE void head_scores(Scores<WARPS>& scores, int a, int b, const Column& column, int channel, int side, bool exclusive,
                        float bonus) {
  int first = SUB * side;
  if (exclusive) {
    UNROLL for (int r = 0; r < SUB; r++) {
      float query = q_of(column, r), key = k_of(column, r);
      bool larger_one = magnitude(query) > magnitude(key);  // takes the bonus, and is rounded
      put<CHUNKS>(a, first + r, channel, larger_one ? query * bonus : query);
      put<CHUNKS>(b, first + r, channel, larger_one ? key : key * bonus);
    }
    barrier();
    add_diagonal<WARPS, CHUNKS>(scores, a, b, SAME);
    barrier();
  }
  UNROLL for (int r = 0; r < SUB; r++) {
    put<CHUNKS>(a, first + r, channel, q_of(column, r));
    put<CHUNKS>(b, first + r, channel, k_of(column, r));
  }
  barrier();
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
