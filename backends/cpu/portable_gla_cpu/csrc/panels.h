/* Matrix products on panels, held in registers tile by tile.
 *
 * A state is kept as panels of 32 columns, [columns / 32][rows][32], so that every product walks through memory in
 * order. Lanes run along the columns. A tile of TILE_ROWS × TILE_COLUMNS results stays in registers while the product
 * runs along its depth: each step loads one vector per TILE_ROWS multiply-adds and one number per TILE_VECTORS.
 * Every result is one chain of fused multiply-adds in the order of the depth, whatever the tile's shape.
 */
#ifndef GLA_PANELS_H
#define GLA_PANELS_H

#include <stdbool.h>

#include "fetch.h"
#include "simd.h"

enum {
    TILE_ROWS = LANES == 16 ? 8 : 4,
    TILE_VECTORS = LANES == 4 ? 4 : 2,
    TILE_COLUMNS = TILE_VECTORS * LANES, /* 32 or 16: divides a panel */
    FETCH_PER_READ = 2 * LANES,          /* cache lines fetched per tile of state_read */
    FETCH_PER_UPDATE = LANES / 2,        /* and of state_update, which takes an eighth of the time */
    ROWS_MULTIPLE = 8,                   /* state rows are padded to it, on every instruction set alike */
};

#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    vec at[TILE_ROWS][TILE_VECTORS];
} tile;

GLA_INLINE void tile_zero(tile *t, int rows)
{
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_zero();
}

GLA_INLINE void tile_load(tile *t, int rows, const float *in, ptrdiff_t stride)
{
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_load(in + i * stride + n * LANES);
}

GLA_INLINE void tile_store(const tile *t, int rows, float *out, ptrdiff_t stride)
{
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) vec_store(out + i * stride + n * LANES, t->at[i][n]);
}

/* A factor on the left of a product: element (row, depth) is at[row * row_stride + depth * depth_stride]. */
typedef struct {
    const float *at;
    ptrdiff_t row_stride, depth_stride;
} left_factor;

GLA_INLINE left_factor by_row(const float *at, ptrdiff_t stride) { return (left_factor){at, stride, 1}; }
GLA_INLINE left_factor by_depth(const float *at, ptrdiff_t stride) { return (left_factor){at, 1, stride}; }

/* Rows [from, to) of the tile += left × right at one depth. */
GLA_INLINE void tile_step(tile *t, int from, int to, left_factor left, ptrdiff_t depth, const float *right)
{
    vec r[TILE_VECTORS];
    UNROLL for (int n = 0; n < TILE_VECTORS; n++) r[n] = vec_load(right + n * LANES);
    UNROLL for (int i = from; i < to; i++) {
        vec l = vec_splat(left.at[i * left.row_stride + depth * left.depth_stride]);
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_fma(l, r[n], t->at[i][n]);
    }
}

/* The tile += left × right along [from, to). */
GLA_INLINE void tile_multiply(tile *t, int rows, left_factor left, const float *right, ptrdiff_t stride,
                              ptrdiff_t from, ptrdiff_t to)
{
    if (__builtin_constant_p(to - from)) UNROLL for (ptrdiff_t m = from; m < to; m++)
        tile_step(t, 0, rows, left, m, right + m * stride);
    else for (ptrdiff_t m = from; m < to; m++) tile_step(t, 0, rows, left, m, right + m * stride);
}

/* Rows of a tile at row `i` when `rows` are wanted: a few are done one by one. */
GLA_INLINE int tile_rows(ptrdiff_t i, ptrdiff_t rows) { return rows - i > TILE_ROWS / 4 ? TILE_ROWS : 1; }

/* One tile of state_read. Above the diagonal nothing is touched, so that no later token's NaN enters a row. */
GLA_INLINE void state_read_tile(int rows, ptrdiff_t row, float *out, ptrdiff_t out_stride, left_factor left,
                                const float *panel, ptrdiff_t depth, const float *scores, const float *right,
                                ptrdiff_t right_stride)
{
    tile t;
    tile_zero(&t, rows);
    left.at += row * left.row_stride;
    tile_multiply(&t, rows, left, panel, GLA_PANEL, 0, depth);
    if (scores) {
        left_factor lower = by_row(scores + row * GLA_CHUNK, GLA_CHUNK);
        tile_multiply(&t, rows, lower, right, right_stride, 0, row);
        UNROLL for (int j = 0; j < rows; j++) tile_step(&t, j, rows, lower, row + j, right + (row + j) * right_stride);
    }
    tile_store(&t, rows, out + row * out_stride, out_stride);
}

/* out [rows][columns] = left [rows][depth] × panel [depth][32]  (+ lower triangle of scores [16][16] × right [16][·]).
 *
 * Rows are tokens of a chunk; up to 16 are written. `scores` may be NULL.
 */
static inline void state_read(float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t columns, left_factor left,
                       const float *panel, ptrdiff_t depth, const float *scores, const float *right,
                       ptrdiff_t right_stride, fetch_queue *fetch)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS)
        for (ptrdiff_t i = 0, step; i < rows; i += step) {
            step = tile_rows(i, rows);
            fetch_lines(fetch, FETCH_PER_READ);
            if (step == 1)
                state_read_tile(1, i, out + c, out_stride, left, panel + c, depth, scores, right + c, right_stride);
            else
                state_read_tile(TILE_ROWS, i, out + c, out_stride, left, panel + c, depth, scores, right + c,
                                right_stride);
        }
}

/* out [16][columns] += upper triangle of scoresᵀ × right: row j gathers tokens i ≥ j, scores[i][j] right[i]. */
static inline void gather_later(float *out, ptrdiff_t out_stride, ptrdiff_t columns, const float *scores, const float *right,
                         ptrdiff_t right_stride, ptrdiff_t tokens)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS)
        for (ptrdiff_t j = 0; j < tokens; j += TILE_ROWS) {
            tile t;
            left_factor upper = by_depth(scores + j, GLA_CHUNK);
            tile_load(&t, TILE_ROWS, out + j * out_stride + c, out_stride);
            UNROLL for (int i = 0; i < TILE_ROWS; i++)
                tile_step(&t, 0, i + 1, upper, j + i, right + (j + i) * right_stride + c);
            tile_multiply(&t, TILE_ROWS, upper, right + c, right_stride, j + TILE_ROWS, GLA_CHUNK);
            tile_store(&t, TILE_ROWS, out + j * out_stride + c, out_stride);
        }
}

/* panel [rows][columns] = gate ⊙ source [rows][columns] + left [rows][depth] × right [depth][columns].
 *
 * Rows are rounded up to ROWS_MULTIPLE. The gate has one factor per row (`gate_by_row`) or one per column. `panel` and
 * `source` may be the same.
 */
static inline void state_update(float *panel, const float *source, ptrdiff_t rows, ptrdiff_t columns,
                                const float *gate, bool gate_by_row, left_factor left, const float *right,
                                ptrdiff_t right_stride, ptrdiff_t depth, fetch_queue *fetch)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS) {
        vec by_column[TILE_VECTORS];
        UNROLL for (int n = 0; n < TILE_VECTORS; n++)
            by_column[n] = gate_by_row ? vec_zero() : vec_load(gate + c + n * LANES);
        for (ptrdiff_t m = 0; m < gla_round_up(rows, ROWS_MULTIPLE); m += TILE_ROWS) {
            tile t;
            fetch_lines(fetch, FETCH_PER_UPDATE);
            tile_load(&t, TILE_ROWS, source + m * GLA_PANEL + c, GLA_PANEL);
            UNROLL for (int i = 0; i < TILE_ROWS; i++) {
                vec factor = gate_by_row ? vec_splat(gate[m + i]) : vec_zero();
                UNROLL for (int n = 0; n < TILE_VECTORS; n++) t.at[i][n] *= gate_by_row ? factor : by_column[n];
            }
            left_factor rows_here = {left.at + m * left.row_stride, left.row_stride, left.depth_stride};
            if (depth == GLA_CHUNK) tile_multiply(&t, TILE_ROWS, rows_here, right + c, right_stride, 0, GLA_CHUNK);
            else tile_multiply(&t, TILE_ROWS, rows_here, right + c, right_stride, 0, depth);
            tile_store(&t, TILE_ROWS, panel + m * GLA_PANEL + c, GLA_PANEL);
        }
    }
}

/* out [rows][16] += panel [rows][32] × tokens [32][16]: lanes are the tokens of the chunk.
 *
 * For the one product that contracts over a panel's columns, which would otherwise need the panel transposed.
 */
static inline void state_read_tokens(float *out, ptrdiff_t rows, const float *panel, const float *tokens)
{
    enum { ROWS = LANES == 16 ? 8 : 4 };
    for (ptrdiff_t r = 0; r < rows; r += ROWS) {
        vec sum[ROWS][PARTS];
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int n = 0; n < PARTS; n++) sum[i][n] = vec_load(out + (r + i) * GLA_CHUNK + n * LANES);
        for (ptrdiff_t m = 0; m < GLA_PANEL; m++) {
            vec x[PARTS];
            UNROLL for (int n = 0; n < PARTS; n++) x[n] = vec_load(tokens + m * GLA_CHUNK + n * LANES);
            UNROLL for (int i = 0; i < ROWS; i++) {
                vec l = vec_splat(panel[(r + i) * GLA_PANEL + m]);
                UNROLL for (int n = 0; n < PARTS; n++) sum[i][n] = vec_fma(l, x[n], sum[i][n]);
            }
        }
        UNROLL for (int i = 0; i < ROWS; i++)
            UNROLL for (int n = 0; n < PARTS; n++) vec_store(out + (r + i) * GLA_CHUNK + n * LANES, sum[i][n]);
    }
}

/* out [32] = Σ over rows of (gate ⊙ a) ⊙ b for two panels, in four partial sums. */
static inline void state_overlap(float *out, const float *a, const float *b, const float *gate, ptrdiff_t rows)
{
    for (ptrdiff_t c = 0; c < GLA_PANEL; c += LANES) {
        vec sum[4], factor = vec_load(gate + c);
        UNROLL for (int i = 0; i < 4; i++) sum[i] = vec_zero();
        for (ptrdiff_t m = 0; m < rows; m += 4)
            UNROLL for (int i = 0; i < 4; i++) {
                ptrdiff_t at = (m + i) * GLA_PANEL + c;
                sum[i] = vec_fma(factor * vec_load(a + at), vec_load(b + at), sum[i]);
            }
        vec_store(out + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

#endif
