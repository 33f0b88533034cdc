/* The scores of a chunk, and any other 16 × 16 products of its rows. */
#ifndef GLA_SCORES_H
#define GLA_SCORES_H

#include "chunk.h"

/* out[i][j] = a_i · b_j for i, j < 4, along `length`, a multiple of 16, in 16 partial sums. */
static inline void dot_block(float *out, const float *a, const float *b, ptrdiff_t stride, ptrdiff_t length)
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
                    vec x[ROWS];
                    UNROLL for (int r = 0; r < ROWS; r++) x[r] = vec_load(a + (i + r) * stride + n + p * LANES);
                    UNROLL for (int c = 0; c < ROWS; c++) {
                        vec y = vec_load(b + (j + c) * stride + n + p * LANES);
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
static inline void dot_lower(float *out, const float *a, const float *b, ptrdiff_t stride, int count)
{
    for (int i = 0; i < count; i += BLOCK)
        for (int j = 0; j <= i; j += BLOCK)
            dot_block(out + i * GLA_CHUNK + j, a + i * stride, b + j * stride, stride, stride);
}

/* scores[i][j] for j ≤ i within one block of four tokens, by running products of the decays between j and i. */
GLA_INLINE void score_diagonal(const chunk *c, ptrdiff_t block, bool bonus)
{
    ptrdiff_t stride = c->key_stride, at = block * stride;
    vec sum[BLOCK][BLOCK][PARTS];
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j <= i; j++)
            for (int p = 0; p < PARTS; p++) sum[i][j][p] = vec_zero();
    for (ptrdiff_t n = 0; n < stride; n += GLA_CHUNK)
        UNROLL for (int p = 0; p < PARTS; p++, at += LANES)
            UNROLL for (int j = 0; j < BLOCK; j++) {
                vec k = vec_load(c->k + at + j * stride), own = k;
                if (bonus) own *= vec_load(c->bonus + n + p * LANES);
                sum[j][j][p] = vec_fma(vec_load(c->q + at + j * stride), own, sum[j][j][p]);
                UNROLL for (int i = j + 1; i < BLOCK; i++) {
                    if (!bonus) k *= vec_load(c->e + at + i * stride);
                    else if (i > j + 1) k *= vec_load(c->e + at + (i - 1) * stride);
                    sum[i][j][p] = vec_fma(vec_load(c->q + at + i * stride), k, sum[i][j][p]);
                }
            }
    for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j <= i; j++) c->scores[(block + i) * GLA_CHUNK + block + j] = fold_one(sum[i][j]);
}

GLA_INLINE void multiply_row(float *row, const float *factor, ptrdiff_t length)
{
    for (ptrdiff_t n = 0; n < length; n += LANES) vec_store(row + n, vec_load(row + n) * vec_load(factor + n));
}

/* scores[i][j] = Σ over channels of q_i k_j times the decays after j that i's reading of the state includes, j ≤ i.
 *
 * Pairs of one block of four tokens go by running products. Between blocks the decays part at the start of i's block:
 * q takes those from there on, k those up to there, and the pair is a plain product. `q_decayed` and `k_decayed` serve
 * as scratch.
 */
static void chunk_scores(chunk *c)
{
    ptrdiff_t stride = c->key_stride;
    ptrdiff_t padded = gla_round_up(c->count, BLOCK);
    memset(c->scores, 0, GLA_CHUNK * GLA_CHUNK * sizeof *c->scores);
    for (ptrdiff_t n = 0; n < stride; n += LANES)
        for (ptrdiff_t block = 0; block < padded; block += BLOCK) {
            vec product = vec_splat(1.0f);
            UNROLL for (int i = 0; i < BLOCK; i++) {
                ptrdiff_t at = (block + i) * stride + n;
                vec with_own = product * vec_load(c->e + at);
                vec_store(c->q_decayed + at, vec_load(c->q + at) * (c->bonus ? product : with_own));
                product = with_own;
            }
            vec_store(c->block_decay + block / BLOCK * stride + n, product);
            product = vec_splat(1.0f);
            UNROLL for (int j = BLOCK - 1; j >= 0; j--) {
                ptrdiff_t at = (block + j) * stride + n;
                vec_store(c->k_decayed + at, vec_load(c->k + at) * product);
                product *= vec_load(c->e + at);
            }
        }
    for (ptrdiff_t i = 0; i < padded; i += BLOCK) {
        for (ptrdiff_t j = 0; j < i; j += BLOCK)
            dot_block(c->scores + i * GLA_CHUNK + j, c->q_decayed + i * stride, c->k_decayed + j * stride, stride,
                      stride);
        if (c->bonus) score_diagonal(c, i, true);
        else score_diagonal(c, i, false);
        for (ptrdiff_t j = 0; j < i; j++)
            multiply_row(c->k_decayed + j * stride, c->block_decay + i / BLOCK * stride, stride);
    }
}

#endif
