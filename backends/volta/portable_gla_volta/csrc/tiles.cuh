// Tiles of float16 in shared memory and the matrix unit's products of them.
//
// A row is cut into 16-byte chunks, and chunk c of row r lies at c ^ (r & 7): eight rows read at one chunk, or a row
// read along, meet 32 different banks. Rows shorter than 128 bytes share such a line. Rows of an operand are permuted
// so that a lane's row is (lane & 7) + 8 (lane >> 4). PLAIN lays rows out one after another instead: for comparison.
#pragma once

// How lines of two 64-byte rows are permuted, by what reads and writes them.
enum Pattern { ROWS, VALUES, SCORES };

template <int CHUNKS, Pattern PATTERN = ROWS> DEVICE int tile_at(int row, int chunk) {
#ifdef PLAIN
  return row * (CHUNKS * 16) + chunk * 16;
#else
  if constexpr (CHUNKS >= 8) {
    return row * (CHUNKS * 16) + ((chunk ^ (row & 7)) << 4);
  } else {
    static_assert(CHUNKS == 4);
    int line = row >> 1;
    int turn = PATTERN == ROWS ? line & 3 : PATTERN == VALUES ? 2 * (line & 3) : ((line >> 1) ^ (line & 1)) & 3;
    return line * 128 + ((((row & 1) << 2 | chunk) ^ turn) << 4);
  }
#endif
}

template <int CHUNKS, Pattern PATTERN = ROWS> DEVICE int half_at(int row, int column) {
  return tile_at<CHUNKS, PATTERN>(row, column >> 3) + (column & 7) * 2;
}

// Of lane: its place in a quad pair, and its quad pair's row and column in a square of two by two.
DEVICE int quad_lane() { return lane() & 3; }
DEVICE int quad_row() { return lane() >> 2 & 1; }
DEVICE int quad_column() { return lane() >> 3 & 1; }
DEVICE int upper() { return lane() >> 4; }

// Where c[i] of a 16 x 16 product lies.
DEVICE int result_row(int i) { return (lane() & 1) + (i & 2) + 4 * quad_row() + 8 * upper(); }
DEVICE int result_column(int i) { return (lane() & 2) + (i & 1) + 4 * quad_column() + 8 * (i >> 2); }

DEVICE int row_of_a() { return (lane() & 7) + 8 * upper(); }
DEVICE int row_of_b() { return quad_lane() + 4 * quad_column() + 8 * upper(); }

// acc += A Bᵀ over eight columns of both: rows of A from a_row on, of B from b_row on, 16 each.
template <int CHUNKS> DEVICE void multiply_rows(float (&acc)[8], int a, int a_row, int b, int b_row, int chunk) {
  Words<4> x = shared_load<4>(a + tile_at<CHUNKS>(a_row + row_of_a(), chunk));
  Words<4> y = shared_load<4>(b + tile_at<CHUNKS>(b_row + row_of_b(), chunk));
  UNROLL for (int part = 0; part < 2; part++) {
    unsigned p[2] = {x.word[2 * part], x.word[2 * part + 1]};
    unsigned r[2] = {y.word[2 * part], y.word[2 * part + 1]};
    mma<true, true>(acc, p, r);
  }
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
