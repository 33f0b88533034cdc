/* The scores of a chunk, and other products between rows of its tokens. */
#ifndef GLA_SCORES_H
#define GLA_SCORES_H

#include "chunk.h"

/* out[i][j] = a_i · b_j for i, j < 4, rows of matrices of tokens with `length` columns, in 16 partial sums. */
static inline void dot_block(float *out, const float *a, const float *b, ptrdiff_t length)
{
    enum { ROWS = LANES == 16 ? BLOCK : 2 }; /* what the registers hold */
    for (int i = 0; i < BLOCK; i += ROWS) {
        quad folded[ROWS][BLOCK];
        for (int j = 0; j < BLOCK; j += ROWS) {
            vec sum[ROWS][ROWS][PARTS];
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int c = 0; c < ROWS; c++) UNROLL for (int p = 0; p < PARTS; p++) sum[r][c][p] = vec_zero();
            for (ptrdiff_t n = 0; n < length; n += GLA_CHUNK)
                UNROLL for (int p = 0; p < PARTS; p++) {
                    ptrdiff_t at = column_of(n) + p * LANES;
                    vec x[ROWS];
                    UNROLL for (int r = 0; r < ROWS; r++) x[r] = vec_load(a + at + (i + r) * GLA_PANEL);
                    UNROLL for (int c = 0; c < ROWS; c++) {
                        vec y = vec_load(b + at + (j + c) * GLA_PANEL);
                        UNROLL for (int r = 0; r < ROWS; r++) sum[r][c][p] = vec_fma(x[r], y, sum[r][c][p]);
                    }
                }
            UNROLL for (int r = 0; r < ROWS; r++)
                UNROLL for (int c = 0; c < ROWS; c++) folded[r][j + c] = fold(sum[r][c]);
        }
        for (int r = 0; r < ROWS; r++) {
            quad row = fold_four(folded[r][0], folded[r][1], folded[r][2], folded[r][3]);
            memcpy(out + (i + r) * GLA_CHUNK, &row, sizeof row);
        }
    }
}

/* out[i][j] = a_i · b_j for j ≤ i (and some more); rows up to `count`. */
static inline void dot_lower(float *out, const float *a, const float *b, ptrdiff_t length, int count)
{
    for (int i = 0; i < count; i += BLOCK)
        for (int j = 0; j <= i; j += BLOCK)
            dot_block(out + i * GLA_CHUNK + j, a + i * GLA_PANEL, b + j * GLA_PANEL, length);
}

/* scores[i][j] for j ≤ i within one block of four tokens, by running products of the decays between j and i. */
GLA_INLINE void score_diagonal(const chunk *c, ptrdiff_t block, bool bonus)
{
    vec sum[BLOCK][BLOCK][PARTS];
    UNROLL for (int i = 0; i < BLOCK; i++)
        UNROLL for (int j = 0; j <= i; j++) UNROLL for (int p = 0; p < PARTS; p++) sum[i][j][p] = vec_zero();
    for (ptrdiff_t n = 0; n < c->keys; n += GLA_CHUNK)
        UNROLL for (int p = 0; p < PARTS; p++) {
            ptrdiff_t at = column_of(n) + block * GLA_PANEL + p * LANES;
            UNROLL for (int j = 0; j < BLOCK; j++) {
                vec k = vec_load(c->k + at + j * GLA_PANEL), own = k;
                if (bonus) own *= vec_load(c->bonus + n + p * LANES);
                sum[j][j][p] = vec_fma(vec_load(c->q + at + j * GLA_PANEL), own, sum[j][j][p]);
                UNROLL for (int i = j + 1; i < BLOCK; i++) {
                    if (!bonus) k *= vec_load(c->e + at + i * GLA_PANEL);
                    else if (i > j + 1) k *= vec_load(c->e + at + (i - 1) * GLA_PANEL);
                    sum[i][j][p] = vec_fma(vec_load(c->q + at + i * GLA_PANEL), k, sum[i][j][p]);
                }
            }
        }
    UNROLL for (int i = 0; i < BLOCK; i++)
        UNROLL for (int j = 0; j <= i; j++) c->scores[(block + i) * GLA_CHUNK + block + j] = fold_one(sum[i][j]);
}

/* For every block of four tokens: q_i times the decays from the block's start to i's reading of the state, k_j times
 * those after j to the block's end, and the decay of the whole block. */
static inline void decay_within_blocks(chunk *c, ptrdiff_t padded)
{
    for (ptrdiff_t n = 0; n < c->keys; n += LANES)
        for (ptrdiff_t block = 0; block < padded; block += BLOCK) {
            ptrdiff_t start = column_of(n) + block * GLA_PANEL;
            vec product = vec_splat(1.0f);
            UNROLL for (int i = 0; i < BLOCK; i++) {
                ptrdiff_t at = start + i * GLA_PANEL;
                vec with_own = product * vec_load(c->e + at);
                if (!c->bonus) product = with_own;
                vec_store(c->q_decayed + at, vec_load(c->q + at) * product);
                product = with_own;
            }
            vec_store(c->block_decay + block / BLOCK * c->keys + n, product);
            product = vec_splat(1.0f);
            UNROLL for (int j = BLOCK - 1; j >= 0; j--) {
                ptrdiff_t at = start + j * GLA_PANEL;
                vec_store(c->k_decayed + at, vec_load(c->k + at) * product);
                product *= vec_load(c->e + at);
            }
        }
}

/* scores[i][j] = Σ over channels of q_i k_j times the decays after j that i's reading of the state includes, j ≤ i.
 *
 * Pairs of one block of four tokens go by running products. Between blocks the decays part at the start of i's block:
 * q takes those from there on, k those up to there, and the pair is a plain product. `q_decayed` and `k_decayed` serve
 * as scratch.
 */
static inline void chunk_scores(chunk *c)
{
    ptrdiff_t padded = gla_round_up(c->count, BLOCK);
    memset(c->scores, 0, GLA_CHUNK * GLA_CHUNK * sizeof *c->scores);
    decay_within_blocks(c, padded);
    for (ptrdiff_t i = 0; i < padded; i += BLOCK) {
        for (ptrdiff_t j = 0; j < i; j += BLOCK)
            dot_block(c->scores + i * GLA_CHUNK + j, c->q_decayed + i * GLA_PANEL, c->k_decayed + j * GLA_PANEL,
                      c->keys);
        if (c->bonus) score_diagonal(c, i, true);
        else score_diagonal(c, i, false);
        for (ptrdiff_t n = 0; n < c->keys; n += LANES) { /* the earlier keys, up to the next block's start */
            vec decay = vec_load(c->block_decay + i / BLOCK * c->keys + n);
            for (ptrdiff_t j = 0; j < i; j++) {
                float *k = c->k_decayed + column_of(n) + j * GLA_PANEL;
                vec_store(k, vec_load(k) * decay);
            }
        }
    }
}

#endif
