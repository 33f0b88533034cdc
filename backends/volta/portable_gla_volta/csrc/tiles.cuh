// Tiles in shared memory and products of them: of float16 by the matrix unit, of float32 (FLOAT32) by multiply-adds,
// whose results lie in the same lanes.
//
// A row is cut into 16-byte chunks, and chunk c of row r lies at c ^ (r & 7): eight rows read at one chunk, or a row
// read along, meet 32 different banks. Rows shorter than 128 bytes share such a line. Rows of an operand are permuted
// so that a lane's row is (lane & 7) + 8 (lane >> 4). PLAIN lays rows out one after another instead: for comparison.
#pragma once

#ifdef FLOAT32
constexpr int SIZE = 4;
#else
constexpr int SIZE = 2;
#endif
constexpr int PER = 16 / SIZE;  // elements of a 16-byte chunk

// How lines of two 64-byte rows are permuted, by what reads and writes them.
enum Pattern { ROWS, VALUES, SCORES, PAIRS };

template <int CHUNKS, Pattern PATTERN = ROWS> DEVICE int tile_at(int row, int chunk) {
#ifdef PLAIN
  return row * (CHUNKS * 16) + chunk * 16;
#else
  if constexpr (CHUNKS >= 8) {
    return row * (CHUNKS * 16) + ((chunk ^ (row & 7) ^ (PATTERN == VALUES ? row >> 2 & 4 : 0)) << 4);
  } else {
    static_assert(CHUNKS == 4);
    int line = row >> 1;
    int turn = PATTERN == PAIRS ? ((line ^ line >> 2) & 1) | (line & 2) | (line & 1) << 2 : PATTERN == ROWS ? line & 3 : PATTERN == VALUES ? (2 * (line & 3)) ^ (line >> 1 & 4) : ((line >> 1) ^ (line & 1)) & 3;
    return line * 128 + ((((row & 1) << 2 | chunk) ^ turn) << 4);
  }
#endif
}

template <int CHUNKS, Pattern PATTERN = ROWS> DEVICE int element_at(int row, int column) {
  return tile_at<CHUNKS, PATTERN>(row, column / PER) + column % PER * SIZE;
}

template <int CHUNKS, Pattern PATTERN = ROWS> DEVICE void put(int tile, int row, int column, float value) {
#ifdef FLOAT32
  shared_set(tile + element_at<CHUNKS, PATTERN>(row, column), value);
#else
  shared_set_half(tile + element_at<CHUNKS, PATTERN>(row, column), to_half(value));
#endif
}

// Of lane: its place in a quad pair, and its quad pair's row and column in a square of two by two.
DEVICE int quad_lane() { return lane() & 3; }
DEVICE int quad_row() { return lane() >> 2 & 1; }
DEVICE int quad_column() { return lane() >> 3 & 1; }
DEVICE int upper() { return lane() >> 4; }

// Where c[i] of a 16 x 16 product lies.
DEVICE int result_row(int i) { return (lane() & 1) + (i & 2) + 4 * quad_row() + 8 * upper(); }
DEVICE int result_column(int i) { return (lane() & 2) + (i & 1) + 4 * quad_column() + 8 * (i >> 2); }

// Both of c[0], found anew: in a long loop what follows from them would otherwise fill registers from its start.
struct Result {
  int row, column;
};

DEVICE Result result() { return {opaque(result_row(0)), opaque(result_column(0))}; }
DEVICE int row_of(const Result& at, int i) { return at.row + (i & 2); }
DEVICE int column_of(const Result& at, int i) { return at.column + (i & 1) + 8 * (i >> 2); }

DEVICE int row_of_a() { return (lane() & 7) + 8 * upper(); }
DEVICE int row_of_b() { return quad_lane() + 4 * quad_column() + 8 * upper(); }

// acc += A Bᵀ over one chunk of columns of both: rows of A from a_row on, of B from b_row on, 16 each.
template <int CHUNKS, int B_CHUNKS = CHUNKS>
DEVICE void multiply_rows(float (&acc)[8], int a, int a_row, int b, int b_row, int chunk, int b_chunk = -1) {
  if (b_chunk < 0) b_chunk = chunk;
#ifdef FLOAT32
  float y[4][4];
  UNROLL for (int n = 0; n < 4; n++) {
    Words<4> words = shared_load<4>(b + tile_at<B_CHUNKS>(b_row + result_column((n & 1) + 4 * (n >> 1)), b_chunk));
    UNROLL for (int k = 0; k < 4; k++) y[n][k] = bits_to_float(words.word[k]);
  }
  UNROLL for (int m = 0; m < 2; m++) {
    Words<4> x = shared_load<4>(a + tile_at<CHUNKS>(a_row + result_row(2 * m), chunk));
    UNROLL for (int k = 0; k < 4; k++)
      UNROLL for (int n = 0; n < 4; n++) {
        int i = 2 * m + (n & 1) + 4 * (n >> 1);
        acc[i] = fma_(bits_to_float(x.word[k]), y[n][k], acc[i]);
      }
  }
#else
  Words<4> x = shared_load<4>(a + tile_at<CHUNKS>(a_row + row_of_a(), chunk));
  Words<4> y = shared_load<4>(b + tile_at<B_CHUNKS>(b_row + row_of_b(), b_chunk));
  UNROLL for (int part = 0; part < 2; part++) {
    unsigned p[2] = {x.word[2 * part], x.word[2 * part + 1]};
    unsigned r[2] = {y.word[2 * part], y.word[2 * part + 1]};
    mma<true, true>(acc, p, r);
  }
#endif
}

// Which columns j of a row i of A take part in a product.
// HALVES: h is the highest bit in which i and j differ, or i = j and h = 1: A's diagonal is to be 0.
enum Part { ALL, LOWER, UPPER, FROM, HALVES };  // LOWER: j < i; UPPER: j > i; FROM: j >= i

DEVICE bool in_halves(int i, int j, int h) { return (unsigned)(((i ^ j) | 1) - h) < (unsigned)h; }

DEVICE bool takes_part(Part part, int i, int j, int h) {
  return part == LOWER ? j < i : part == UPPER ? j > i : part == FROM ? j >= i : part == HALVES ? in_halves(i, j, h) : true;
}

// acc += A B for two times 16 rows of A (32 in all) and 16 columns of B, over one chunk of A's columns.
template <int A_CHUNKS, Pattern A_PATTERN, int B_CHUNKS>
DEVICE void multiply_columns(float (&acc)[2][8], int a, int b, int first_column, int chunk, Part part = ALL,
                             int h = 0) {
  int half = chunk * PER / 16;  // which 16 columns
  auto skipped = [&](int block) {
    return (part == LOWER && half > block) || ((part == UPPER || part == FROM) && half < block) ||
           (part == HALVES && (half == block) != (h < 16));
  };
#ifdef FLOAT32
  float y[4][4];
  UNROLL for (int k = 0; k < 4; k++)
    UNROLL for (int n = 0; n < 2; n++) {
      int column = first_column + result_column(4 * n);
      Words<2> words = shared_load<2>(b + element_at<B_CHUNKS>(4 * chunk + k, column));
      y[k][2 * n] = bits_to_float(words.word[0]);
      y[k][2 * n + 1] = bits_to_float(words.word[1]);
    }
  UNROLL for (int block = 0; block < 2; block++) {
    if (skipped(block)) continue;
    UNROLL for (int m = 0; m < 2; m++) {
      int row = 16 * block + result_row(2 * m);
      Words<4> x = shared_load<4>(a + tile_at<A_CHUNKS, A_PATTERN>(row, chunk));
      UNROLL for (int k = 0; k < 4; k++) {
        float number = takes_part(part, row, 4 * chunk + k, h) ? bits_to_float(x.word[k]) : 0.0f;
        UNROLL for (int n = 0; n < 4; n++) {
          int i = 2 * m + (n & 1) + 4 * (n >> 1);
          acc[block][i] = fma_(number, y[k][n], acc[block][i]);
        }
      }
    }
  }
#else
  unsigned y[2][2];
  UNROLL for (int step = 0; step < 2; step++) {
    Words<2> words = shared_load<2>(
        b + tile_at<B_CHUNKS>(8 * chunk + 4 * step + quad_lane(), first_column / 8 + upper()) + 8 * quad_column());
    y[step][0] = words.word[0];
    y[step][1] = words.word[1];
  }
  UNROLL for (int block = 0; block < 2; block++) {
    if (skipped(block)) continue;
    int row = 16 * block + row_of_a();
    Words<4> x = shared_load<4>(a + tile_at<A_CHUNKS, A_PATTERN>(row, chunk));
    UNROLL for (int step = 0; step < 2; step++) {
      unsigned p[2];
      UNROLL for (int n = 0; n < 2; n++) {
        int column = 8 * chunk + 4 * step + 2 * n;
        unsigned keep = takes_part(part, row, column, h) ? 0xFFFFu : 0u;
        if (part == HALVES) keep |= keep << 16;  // both columns, or neither
        else keep |= takes_part(part, row, column + 1, h) ? 0xFFFF0000u : 0u;
        p[n] = x.word[2 * step + n] & keep;
      }
      mma<true, false>(acc[block], p, y[step]);
    }
  }
#endif
}

DEVICE void clear(float (&acc)[8]) { UNROLL for (int i = 0; i < 8; i++) acc[i] = 0.0f; }

// A warp's 16 x 16 result, each lane's numbers side by side.
DEVICE void store_result(int offset, const float (&acc)[8]) {
  UNROLL for (int part = 0; part < 2; part++) {
    Words<4> words;
    UNROLL for (int i = 0; i < 4; i++) words.word[i] = float_to_bits(acc[4 * part + i]);
    shared_store<4>(offset + 512 * part + 16 * lane(), words);
  }
}

DEVICE void add_result(int offset, float (&acc)[8]) {
  UNROLL for (int part = 0; part < 2; part++) {
    Words<4> words = shared_load<4>(offset + 512 * part + 16 * lane());
    UNROLL for (int i = 0; i < 4; i++) acc[4 * part + i] += bits_to_float(words.word[i]);
  }
}

// A 32 x WIDTH tile of float32 that leaves the matrix unit's lanes for threads of one channel each.
template <int WIDTH> DEVICE int float_at(int row, int column) {
#ifdef PLAIN
  return (row * WIDTH + column) * 4;
#else
  int turn = (row & 1) << 1 | (row & 4);
  return row * WIDTH * 4 + (((column >> 2) ^ turn) << 4) + (column & 3) * 4;
#endif
}

template <int WIDTH> DEVICE void store_results(int tile, const float (&acc)[2][8], int first_column) {
  // Two rows, or sixteen, on nothing but the row changes.
  int row = result_row(0);
  int place[2] = {tile + float_at<WIDTH>(row, first_column + result_column(0)),
                  tile + float_at<WIDTH>(row, first_column + result_column(4))};
  UNROLL for (int block = 0; block < 2; block++)
    UNROLL for (int i = 0; i < 8; i += 2) {
      Words<2> words;
      words.word[0] = float_to_bits(acc[block][i]);
      words.word[1] = float_to_bits(acc[block][i + 1]);
      shared_store<2>(place[i >> 2] + 4 * WIDTH * (16 * block + (i & 2)), words);
    }
}
