// The operands of a walk over chunks: a channel's 32 positions are a row of 64 bytes, 8 positions a 16-byte chunk, so that
// the thread that has a channel stores eight positions at a time. And a chunk's scores, which forward.cu needs.
//
// See scores.cuh for what the scores are and when which form of them is taken. Here they are cut into blocks of 8 x 8
// positions; ten are not above the diagonal, and each is one warp's for all channels, so that no partial results go
// through shared memory: the four quad pairs of a warp take different channels and are added up at the end.
#pragma once

constexpr int OCTET = 8, OCTETS = CHUNK / OCTET;
constexpr int ROW_BYTES = 2 * CHUNK;

DEVICE int operand_at(int tile, int channel, int octet) { return tile + tile_at<OCTETS>(channel, octet); }

// Eight positions of a thread's from `first` on, as readers and as keys; `prefix` and `suffix` go on from one to the next.
template <int ROWS>
DEVICE Words<4> readers_of(const Positions<ROWS>& column, int first, bool exclusive, float& prefix) {
  Words<4> words;
  UNROLL for (int n = 0; n < 4; n++) {
    float pair[2];
    UNROLL for (int m = 0; m < 2; m++) {
      float own = prefix;
      prefix *= column.e[first + 2 * n + m];
      pair[m] = q_of(column, first + 2 * n + m) * (exclusive ? own : prefix);
    }
    words.word[n] = pack_half(pair[0], pair[1]);
  }
  return words;
}

template <int ROWS> DEVICE Words<4> keys_of(const Positions<ROWS>& column, int first, float& suffix) {
  Words<4> words;
  UNROLL for (int n = 3; n >= 0; n--) {
    float pair[2];
    UNROLL for (int m = 1; m >= 0; m--) {
      pair[m] = k_of(column, first + 2 * n + m) * suffix;
      suffix *= column.e[first + 2 * n + m];
    }
    words.word[n] = pack_half(pair[0], pair[1]);
  }
  return words;
}

// Of every run of 2 H of the eight, the second half's readers and the first half's keys.
template <int H, int ROWS> DEVICE Words<4> level_of(const Positions<ROWS>& column, int first, bool exclusive,
                                                           const Outcome& lift) {
  float query = opaque(lift.readers), key = opaque(lift.keys), prefix = query, suffix = key, found[OCTET];
  UNROLL for (int r = 0; r < OCTET; r++)
    if (r & H) {
      if (!(r & (H - 1))) prefix = query;
      float own = prefix;
      prefix *= column.e[first + r];
      found[r] = q_of(column, first + r) * (exclusive ? own : prefix);
    }
  UNROLL for (int r = OCTET - 1; r >= 0; r--)
    if (!(r & H)) {
      if ((r & (H - 1)) == H - 1) suffix = key;
      found[r] = k_of(column, first + r) * suffix;
      suffix *= column.e[first + r];
    }
  Words<4> words;
  UNROLL for (int n = 0; n < 4; n++) words.word[n] = pack_half(found[2 * n], found[2 * n + 1]);
  return words;
}

template <int ROWS> DEVICE void put_prefixed(int tile, const Positions<ROWS>& column, int channel, int place,
                                             bool exclusive, float before) {
  float prefix = opaque(before);  // or its products would be kept from one use to the next
  UNROLL for (int n = 0; n < ROWS / OCTET; n++)
    shared_store<4>(operand_at(tile, channel, ROWS / OCTET * place + n),
                    readers_of(column, OCTET * n, exclusive, prefix));
}

template <int ROWS> DEVICE void put_suffixed(int tile, const Positions<ROWS>& column, int channel, int place,
                                             float after) {
  float suffix = opaque(after);
  UNROLL for (int n = ROWS / OCTET - 1; n >= 0; n--)
    shared_store<4>(operand_at(tile, channel, ROWS / OCTET * place + n), keys_of(column, OCTET * n, suffix));
}

template <int H, int ROWS> DEVICE void put_level(int tile, const Positions<ROWS>& column, int channel, int place,
                                                 bool exclusive, const Outcome& lift) {
  UNROLL for (int n = 0; n < ROWS / OCTET; n++) {
    int octet = ROWS / OCTET * place + n;
    Words<4> words;
    if constexpr (H < OCTET) {
      words = level_of<H>(column, OCTET * n, exclusive, lift);
    } else {
      float query = opaque(lift.readers), key = opaque(lift.keys);
      words = octet & 1 ? readers_of(column, OCTET * n, exclusive, query) : keys_of(column, OCTET * n, key);
    }
    shared_store<4>(operand_at(tile, channel, octet), words);
  }
}

// q and k as they are.
template <int ROWS> DEVICE void put_queries(int tile, const Positions<ROWS>& column, int channel, int place) {
  UNROLL for (int n = 0; n < ROWS / OCTET; n++) {
    Words<4> words;
    UNROLL for (int m = 0; m < 4; m++)
      words.word[m] = (column.qk[OCTET * n + 2 * m] & 0xFFFFu) | column.qk[OCTET * n + 2 * m + 1] << 16;
    shared_store<4>(operand_at(tile, channel, ROWS / OCTET * place + n), words);
  }
}

template <int ROWS> DEVICE void put_untouched_keys(int tile, const Positions<ROWS>& column, int channel, int place) {
  UNROLL for (int n = 0; n < ROWS / OCTET; n++) {
    Words<4> words;
    UNROLL for (int m = 0; m < 4; m++)
      words.word[m] = column.qk[OCTET * n + 2 * m] >> 16 | (column.qk[OCTET * n + 2 * m + 1] & 0xFFFF0000u);
    shared_store<4>(operand_at(tile, channel, ROWS / OCTET * place + n), words);
  }
}

// Which warp makes which blocks. Owner n has the n-th on the diagonal, that of the next readers by its keys and, of the
// first two owners, that of the readers after next. The last owner's second block is that of its readers by the first
// keys instead: its products have keys in rows and readers in columns.
template <int WARPS> struct Products {
  static constexpr int COUNT = OCTETS / WARPS;
  float block[COUNT][3][8];
};

DEVICE bool turned(int owner) { return owner == OCTETS - 1; }
template <int WARPS> DEVICE int owner_of(int n) { return warp() + n * WARPS; }

template <int WARPS> DEVICE void clear(Products<WARPS>& products) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++)
    UNROLL for (int slot = 0; slot < 3; slot++) clear(products.block[n][slot]);
}

// Lane's place in the operand of a product: channel lane & 15, four of eight positions. Quad pairs 2 and 3 take the halves
// the other way round, or half the banks would be idle.
DEVICE int swapped() { return lane() >> 3 & 1; }
DEVICE int fragment_at(int tile) { return operand_at(tile, lane() & 15, 0) + 8 * (upper() ^ swapped()); }
DEVICE int product_row(int i) { return (lane() & 1) + (i & 2) + 4 * (upper() ^ swapped()); }
DEVICE int product_column(int i) { return (lane() & 2) + (i & 1) + ((i & 4) ^ 4 * swapped()); }

// What a product does to the blocks on the diagonal: nothing, adds to them (what is above it is left out at the end), or
// adds pairs of a reader with an earlier key.
enum First { NONE, ADDED, EARLIER };

// Of a block on the diagonal: pairs of a reader and an earlier key whose numbers differ in a highest bit of `least` to below
// `most`.
DEVICE void add_earlier(float (&acc)[8], const float (&found)[8], int owner, int least, int most) {
  int row = opaque(product_row(0)), column = opaque(product_column(0));
  UNROLL for (int i = 0; i < 8; i++) {
    int r = row + (i & 2), c = (column ^ (i & 4)) + (i & 1), apart = r ^ c;
    bool earlier = turned(owner) ? r < c : c < r;
    acc[i] += earlier && apart >= least && apart < most ? found[i] : 0.0f;
  }
}

// Adds products of readers in tile a and keys in tile b, over so many channels; `inner`: between two octets of the same 16
// positions, `between`: of the two halves of the chunk.
template <int WARPS, First FIRST>
DEVICE void multiply(Products<WARPS>& products, int a, int b, int channels, bool inner, bool between) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++) {
    int owner = owner_of<WARPS>(n);
    bool second = owner & 1 ? between : inner, third = between && owner < 2;
    if (FIRST == NONE && !second && !third) continue;
    int x = fragment_at(turned(owner) ? b : a), y = opaque(fragment_at(turned(owner) ? a : b) ^ owner << 4);
    int x0 = opaque(x ^ owner << 4), x1 = opaque(x ^ ((owner + 1) % OCTETS) << 4);
    int x2 = opaque(x ^ ((owner + 2) % OCTETS) << 4);
    float found[8];
    clear(found);
    auto add = [&](float (&acc)[8], int place, const Words<2>& keys) {
      Words<2> readers = shared_load<2>(place);
      mma<false, false>(acc, readers.word, keys.word);
    };
    ROLL for (int channel = 0; channel < channels; channel += 16) {
      int step = channel * ROW_BYTES;
      Words<2> keys = shared_load<2>(y + step);
      if (FIRST == EARLIER) add(found, x0 + step, keys);
      if (FIRST == ADDED) add(products.block[n][0], x0 + step, keys);
      if (second) add(products.block[n][1], x1 + step, keys);
      if (third) add(products.block[n][2], x2 + step, keys);
    }
    if (FIRST == EARLIER) add_earlier(products.block[n][0], found, owner, 1, OCTET);
  }
}

// The same by a level's one tile: pairs in blocks on the diagonal whose highest differing bit is h.
template <int WARPS> DEVICE void multiply_level(Products<WARPS>& products, int tile, int channels, int h) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++) {
    int owner = owner_of<WARPS>(n), place = opaque(fragment_at(tile) ^ owner << 4);
    float found[8];
    clear(found);
    ROLL for (int channel = 0; channel < channels; channel += 16) {
      Words<2> rows = shared_load<2>(place + channel * ROW_BYTES);
      mma<false, false>(found, rows.word, rows.word);
    }
    add_earlier(products.block[n][0], found, owner, h, 2 * h);
  }
}

template <int H, int WARPS, int ROWS>
DEVICE void add_level(Products<WARPS>& products, int tile, const Positions<ROWS>& column, int own,
                      int place, int channels, bool exclusive, const Outcome& lift) {
  put_level<H>(tile, column, own, place, exclusive, lift);
  barrier();
  if constexpr (H < OCTET) multiply_level(products, tile, channels, H);
  else multiply<WARPS, NONE>(products, tile, tile, channels, true, false);
}

// Adds the scores of one tile of channels, of which this thread has the own-th: as channel_scores does in scores.cuh, but
// for those that are made apart. What is found is too large by both lifts.
template <int WARPS, int ROWS>
DEVICE void add_scores(Products<WARPS>& products, int a, int b, const Positions<ROWS>& column, int own,
                       int place, int channels, const Outcome& lift, bool exclusive, float earlier, float before,
                       float after) {
  int near = lift.near;
  if (near) {
    // A key over its prefix is the key times its suffix over the total.
    float start = near == 2 ? earlier * before : before, suffix = 1.0f / (start * product_of(column.e));
    put_prefixed(a, column, own, place, exclusive, start * lift.readers);
    put_suffixed(b, column, own, place, suffix * lift.keys);
    barrier();
    if (exclusive) multiply<WARPS, EARLIER>(products, a, b, channels, true, near == 2);
    else multiply<WARPS, ADDED>(products, a, b, channels, true, near == 2);
    barrier();
    if (near == 2) return;
  } else {
    add_level<2>(products, b, column, own, place, channels, exclusive, lift);
    add_level<4>(products, a, column, own, place, channels, exclusive, lift);
    add_level<8>(products, b, column, own, place, channels, exclusive, lift);  // a is free after it
  }
  // Pairs between the blocks of 16; of one that is near, the second block's readers are there already.
  if (ROWS * place < SUB) put_suffixed(a, column, own, place, after * lift.keys);
  else if (!near) put_prefixed(a, column, own, place, exclusive, before * lift.readers);
  barrier();
  multiply<WARPS, NONE>(products, a, a, channels, false, true);
  barrier();
}

// Scores that are made apart, by products and sums: of positions with themselves (q k times the bonus), and of an odd one
// with the one before it. Sums over a warp's channels; each lane is left with those of one of a thread's positions.
struct Apart {
  float own, next;
};

template <int MASK, int COUNT> DEVICE float sum_over_lanes(const float (&found)[COUNT]) {
  if constexpr (COUNT > 1) {
    bool second = lane() & MASK;
    float kept[COUNT / 2];
    UNROLL for (int r = 0; r < COUNT / 2; r++) {
      float got = shuffle_xor(second ? found[r] : found[COUNT / 2 + r], MASK);
      kept[r] = (second ? found[COUNT / 2 + r] : found[r]) + got;
    }
    return sum_over_lanes<MASK / 2>(kept);
  } else if constexpr (MASK > 0) {
    float sum[1] = {found[0] + shuffle_xor(found[0], MASK)};
    return sum_over_lanes<MASK / 2>(sum);
  } else {
    return found[0];
  }
}

template <int ROWS> DEVICE void add_own(Apart& apart, const Positions<ROWS>& column, float bonus) {
  float found[ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) found[r] = q_of(column, r) * k_of(column, r) * bonus;
  apart.own += sum_over_lanes<16>(found);
}

template <int ROWS> DEVICE void add_next(Apart& apart, const Positions<ROWS>& column, bool exclusive) {
  float found[ROWS / 2];
  UNROLL for (int r = 0; r < ROWS / 2; r++)
    found[r] = q_of(column, 2 * r + 1) * k_of(column, 2 * r) * (exclusive ? 1.0f : column.e[2 * r + 1]);
  apart.next += sum_over_lanes<16>(found);
}

template <int WARPS, int ROWS> DEVICE void store_apart(int offset, const Apart& apart) {
  constexpr int LANES = 32 / ROWS;  // that have the same
  if (lane() % LANES == 0) shared_set(offset + 4 * (ROWS * warp() + lane() / LANES), apart.own);
  if (lane() % (2 * LANES) == 0)
    shared_set(offset + 4 * (ROWS * WARPS + ROWS / 2 * warp() + lane() / (2 * LANES)), apart.next);
}

// What the quad pairs of a warp found, added up: two neighbours of a row a lane.
template <int WARPS> struct Pairs {
  float value[Products<WARPS>::COUNT][3][2];
};

DEVICE int pair_row() { return (lane() & 1) + 2 * quad_row() + 4 * (upper() ^ swapped()); }
DEVICE int pair_column() { return (lane() & 2) + 4 * swapped(); }

DEVICE void sum_of_quads(const float (&acc)[8], float (&found)[2]) {
  float kept[4];
  UNROLL for (int i = 0; i < 4; i++) kept[i] = acc[i] + shuffle_xor(acc[i + 4], 24);
  bool second = quad_row();
  UNROLL for (int m = 0; m < 2; m++) {
    float got = shuffle_xor(second ? kept[m] : kept[m + 2], 4);
    found[m] = (second ? kept[m + 2] : kept[m]) + got;
  }
}

template <int WARPS> DEVICE void finish(Pairs<WARPS>& pairs, const Products<WARPS>& products, float factor) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++) {
    int row = opaque(pair_row()), column = opaque(pair_column());
    UNROLL for (int slot = 0; slot < 3; slot++) {
      if (slot < 2 || owner_of<WARPS>(n) < 2) sum_of_quads(products.block[n][slot], pairs.value[n][slot]);
      else pairs.value[n][slot][0] = pairs.value[n][slot][1] = 0.0f;
    }
    UNROLL for (int slot = 0; slot < 3; slot++)
      UNROLL for (int m = 0; m < 2; m++) pairs.value[n][slot][m] *= factor;
    UNROLL for (int m = 0; m < 2; m++)
      if (turned(owner_of<WARPS>(n)) ? column + m < row : column + m > row) pairs.value[n][0][m] = 0.0f;
  }
}

// Per head: times the decay from key to reader.
template <int WARPS> DEVICE void decay_scores(Pairs<WARPS>& pairs, int vectors, bool exclusive) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++) {
    int owner = owner_of<WARPS>(n), row = opaque(pair_row()), column = opaque(pair_column());
    auto reader = [&](int m) { return turned(owner) ? column + m : row; };
    auto key = [&](int m) { return turned(owner) ? row : column + m; };
    UNROLL for (int part = 1; part >= 0; part--) {
      Words<4> words = shared_load<4>(vectors + VECTOR_E + 4 * OCTET * owner + 16 * part);
      UNROLL for (int s = 3; s >= 0; s--)
        UNROLL for (int m = 0; m < 2; m++) {
          bool crossed = key(m) < 4 * part + s && (exclusive ? 4 * part + s < reader(m) : 4 * part + s <= reader(m));
          pairs.value[n][0][m] *= crossed ? bits_to_float(words.word[s]) : 1.0f;
        }
    }
    UNROLL for (int slot = 1; slot < 3; slot++) {
      if (slot == 2 && owner >= 2) continue;
      int first = turned(owner) ? 0 : owner, last = turned(owner) ? owner : owner + slot;
      float among = 1.0f;
      for (int octet = first + 1; octet < last; octet++) among *= shared_float(vectors + OCTET_TOTAL + 4 * octet);
      UNROLL for (int m = 0; m < 2; m++)
        pairs.value[n][slot][m] *= shared_float(vectors + OCTET_SUFFIX + 4 * (OCTET * first + key(m))) * among *
                                   shared_float(vectors + OCTET_PREFIX + 4 * (OCTET * last + reader(m)));
    }
  }
}

// Adds what was made apart: `parts` warps, one after another, have the same positions.
template <int WARPS, int ROWS> DEVICE void add_apart(Pairs<WARPS>& pairs, int offset, int parts) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++) {
    int owner = owner_of<WARPS>(n), row = opaque(pair_row()), column = opaque(pair_column());
    int position = OCTET * owner + row, within = position % ROWS, first = position / ROWS * parts;
    Apart sum = {0.0f, 0.0f};
    UNROLL for (int part = 0; part < parts; part++) {
      sum.own += shared_float(offset + 4 * (ROWS * (first + part) + within));
      sum.next += shared_float(offset + 4 * (ROWS * WARPS + ROWS / 2 * (first + part) + within / 2));
    }
    UNROLL for (int m = 0; m < 2; m++) {
      int reader = turned(owner) ? column + m : row, key = turned(owner) ? row : column + m;
      pairs.value[n][0][m] += reader == key ? sum.own : reader == key + 1 && (reader & 1) ? sum.next : 0.0f;
    }
  }
}

template <int WARPS> DEVICE void store_largest(const Pairs<WARPS>& pairs, int offset) {
  float most = 0.0f;
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++)
    UNROLL for (int slot = 0; slot < 3; slot++)
      UNROLL for (int m = 0; m < 2; m++) most = larger(most, magnitude(pairs.value[n][slot][m]));
  most = largest_of_warp(most);
  if (lane() == 0) shared_set(offset + 4 * warp(), most);
}

template <int WARPS> DEVICE float unit_of_pairs(int offset) {
  float most = 0.0f;
  UNROLL for (int w = 0; w < WARPS; w++) most = larger(most, shared_float(offset + 4 * w));
  return power_below(most) * (1.0f / TOP);
}

// Into a tile [reader, key], which has zeros above the diagonal.
template <int WARPS> DEVICE void put_pairs(const Pairs<WARPS>& pairs, int tile, float factor) {
  UNROLL for (int n = 0; n < Products<WARPS>::COUNT; n++)
    UNROLL for (int slot = 0; slot < 3; slot++) {
      int owner = owner_of<WARPS>(n);
      if (slot == 2 && owner >= 2) continue;
      int row = (owner + slot) % OCTETS * OCTET + opaque(pair_row()), column = OCTET * owner + opaque(pair_column());
      Words<1> pair;
      pair.word[0] = pack_half(pairs.value[n][slot][0] * factor, pairs.value[n][slot][1] * factor);
      if (turned(owner)) {
        shared_set_half(tile + element_at<OCTETS>(column, row), (unsigned short)pair.word[0]);
        shared_set_half(tile + element_at<OCTETS>(column + 1, row), (unsigned short)(pair.word[0] >> 16));
      } else {
        shared_store<1>(tile + element_at<OCTETS>(row, column), pair);
      }
    }
}
