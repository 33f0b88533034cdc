/* Matrix products on panels, held in registers tile by tile.
 *
 * Everything is kept as panels of 32 columns: a state as [columns / 32][rows][32], the rows of a chunk's 16 tokens as
 * [columns / 32][16][32]. So every product walks through memory in order, at distances the compiler knows. Lanes run
 * along the columns. A tile of TILE_ROWS × TILE_COLUMNS results stays in registers while the product runs along its
 * depth: each step loads one vector per TILE_ROWS multiply-adds and one number per TILE_VECTORS. Every result is one
 * chain of fused multiply-adds in the order of the depth, whatever the tile's shape.
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
    TOKEN_PANEL = GLA_CHUNK * GLA_PANEL, /* floats of a panel of tokens */
    FETCH_PER_READ = 4,                  /* rows fetched per tile of state_read */
    FETCH_PER_UPDATE = 1,                /* and of state_update, which takes an eighth of the time */
    ROWS_MULTIPLE = 8,                   /* state rows are padded to it, on every instruction set alike */
};

/* Where column n of a matrix of tokens begins; its rows lie GLA_PANEL apart. */
GLA_INLINE ptrdiff_t column_of(ptrdiff_t n) { return n / GLA_PANEL * TOKEN_PANEL + n % GLA_PANEL; }

#define UNROLL _Pragma("GCC unroll 16")

typedef struct {
    vec at[TILE_ROWS][TILE_VECTORS];
} tile;

GLA_INLINE void tile_zero(tile *t, int rows)
{
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_zero();
}

GLA_INLINE void tile_load(tile *t, int rows, const float *in)
{
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_load(in + i * GLA_PANEL + n * LANES);
}

GLA_INLINE void tile_store(const tile *t, int rows, float *out)
{
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) vec_store(out + i * GLA_PANEL + n * LANES, t->at[i][n]);
}

/* Rows [from, to) of the tile += left × right at one depth; row i's factor is left[i * stride]. */
GLA_INLINE void tile_step(tile *t, int from, int to, const float *left, ptrdiff_t stride, const float *right)
{
    vec r[TILE_VECTORS];
    UNROLL for (int n = 0; n < TILE_VECTORS; n++) r[n] = vec_load(right + n * LANES);
    UNROLL for (int i = from; i < to; i++) {
        vec l = vec_splat(left[i * stride]);
        UNROLL for (int n = 0; n < TILE_VECTORS; n++) t->at[i][n] = vec_fma(l, r[n], t->at[i][n]);
    }
}

/* Rows of a tile at row `i` when `rows` are wanted: a few are done one by one. */
GLA_INLINE int tile_rows(ptrdiff_t i, ptrdiff_t rows) { return rows - i > TILE_ROWS / 4 ? TILE_ROWS : 1; }

/* One tile of state_read. Above the diagonal nothing is touched, so that no later token's NaN enters a row. */
GLA_INLINE void state_read_tile(int rows, ptrdiff_t row, float *out, const float *left, const float *panel,
                                ptrdiff_t depth, const float *scores, const float *right)
{
    tile t;
    tile_zero(&t, rows);
    left += row * GLA_PANEL;
    for (; depth > 0; depth -= GLA_PANEL, left += TOKEN_PANEL, panel += GLA_PANEL * GLA_PANEL)
        if (depth >= GLA_PANEL)
            _Pragma("GCC unroll 4") for (ptrdiff_t m = 0; m < GLA_PANEL; m++)
                tile_step(&t, 0, rows, left + m, GLA_PANEL, panel + m * GLA_PANEL);
        else
            for (ptrdiff_t m = 0; m < depth; m++)
                tile_step(&t, 0, rows, left + m, GLA_PANEL, panel + m * GLA_PANEL);
    if (scores) {
        scores += row * GLA_CHUNK;
        for (ptrdiff_t j = 0; j < row; j++)
            tile_step(&t, 0, rows, scores + j, GLA_CHUNK, right + j * GLA_PANEL);
        UNROLL for (int j = 0; j < rows; j++)
            tile_step(&t, j, rows, scores + row + j, GLA_CHUNK, right + (row + j) * GLA_PANEL);
    }
    tile_store(&t, rows, out + row * GLA_PANEL);
}

/* out [rows][columns] = left [rows][depth] × panel [depth][columns]  (+ lower triangle of scores [16][16] × right).
 *
 * Rows are tokens: `left` is a matrix of tokens, `out` and `right` are one panel of such. `scores` may be NULL.
 */
static inline void state_read(float *out, ptrdiff_t rows, ptrdiff_t columns, const float *left, const float *panel,
                              ptrdiff_t depth, const float *scores, const float *right, fetch_queue *fetch)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS)
        for (ptrdiff_t i = 0, step; i < rows; i += step) {
            step = tile_rows(i, rows);
            fetch_rows(fetch, FETCH_PER_READ);
            if (step == 1) state_read_tile(1, i, out + c, left, panel + c, depth, scores, right + c);
            else state_read_tile(TILE_ROWS, i, out + c, left, panel + c, depth, scores, right + c);
        }
}

/* out [16][columns] += upper triangle of scoresᵀ × right: row j gathers tokens i ≥ j, scores[i][j] right[i]. Both are
 * one panel of a matrix of tokens. */
static inline void gather_later(float *out, ptrdiff_t columns, const float *scores, const float *right,
                                ptrdiff_t tokens)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS)
        for (ptrdiff_t j = 0; j < tokens; j += TILE_ROWS) {
            tile t;
            tile_load(&t, TILE_ROWS, out + j * GLA_PANEL + c);
            UNROLL for (int i = 0; i < TILE_ROWS; i++)
                tile_step(&t, 0, i + 1, scores + (j + i) * GLA_CHUNK + j, 1, right + (j + i) * GLA_PANEL + c);
            for (ptrdiff_t i = j + TILE_ROWS; i < GLA_CHUNK; i++)
                tile_step(&t, 0, TILE_ROWS, scores + i * GLA_CHUNK + j, 1, right + i * GLA_PANEL + c);
            tile_store(&t, TILE_ROWS, out + j * GLA_PANEL + c);
        }
}

/* panel [rows][columns] = gate ⊙ source [rows][columns] + leftᵀ [rows][depth] × right [depth][columns].
 *
 * The depth is the chunk's tokens: `left` is a matrix of tokens, `right` one panel of such. Rows are rounded up to
 * ROWS_MULTIPLE. The gate has one factor per row (`gate_by_row`) or one per column. `panel` and `source` may be the
 * same.
 */
static inline void state_update(float *panel, const float *source, ptrdiff_t rows, ptrdiff_t columns,
                                const float *gate, bool gate_by_row, const float *left, const float *right, int depth,
                                fetch_queue *fetch)
{
    for (ptrdiff_t c = 0; c < columns; c += TILE_COLUMNS) {
        vec by_column[TILE_VECTORS];
        UNROLL for (int n = 0; n < TILE_VECTORS; n++)
            by_column[n] = gate_by_row ? vec_zero() : vec_load(gate + c + n * LANES);
        for (ptrdiff_t m = 0; m < rows; m += TILE_ROWS) {
            tile t;
            const float *here = left + column_of(m);
            fetch_rows(fetch, FETCH_PER_UPDATE);
            tile_load(&t, TILE_ROWS, source + m * GLA_PANEL + c);
            UNROLL for (int i = 0; i < TILE_ROWS; i++) {
                vec factor = gate_by_row ? vec_splat(gate[m + i]) : vec_zero();
                UNROLL for (int n = 0; n < TILE_VECTORS; n++) t.at[i][n] *= gate_by_row ? factor : by_column[n];
            }
            if (depth == GLA_CHUNK) /* unrolled: the end of so short a loop is often mispredicted */
                UNROLL for (int j = 0; j < GLA_CHUNK; j++)
                    tile_step(&t, 0, TILE_ROWS, here + j * GLA_PANEL, 1, right + j * GLA_PANEL + c);
            else
                for (int j = 0; j < depth; j++)
                    tile_step(&t, 0, TILE_ROWS, here + j * GLA_PANEL, 1, right + j * GLA_PANEL + c);
            tile_store(&t, TILE_ROWS, panel + m * GLA_PANEL + c);
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
                if (m + i >= rows) break; /* what pads a state was never written */
                ptrdiff_t at = (m + i) * GLA_PANEL + c;
                sum[i] = vec_fma(factor * vec_load(a + at), vec_load(b + at), sum[i]);
            }
        vec_store(out + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
}

#endif
