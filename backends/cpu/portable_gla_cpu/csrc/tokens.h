/* Matrices of tokens: the rows of a chunk's tokens between the user's tensors [B, T, Hx, D] and scratch.
 *
 * In scratch they are panels of 32 columns, [columns / 32][16][32], padded with zeros.
 */
#ifndef GLA_TOKENS_H
#define GLA_TOKENS_H

#include "fetch.h"
#include "panels.h"
#include "rows.h"
#include "sequences.h"

/* The tokens of one sequence as one output head sees them. */
typedef struct {
    const gla_call *call;
    sequence s;
    int64_t head;
} stream;

/* Some columns of a tensor's rows of `count` tokens, in the order in which the recurrence meets them. */
typedef struct {
    const gla_tensor *x;
    int64_t offset;     /* of the first token's first column */
    int64_t token_step; /* elements from one token to the next */
    int64_t column_step;
    int64_t columns;
    int count;
} token_rows;

static inline token_rows rows_of(const stream *at, const gla_tensor *x, int64_t first, int count, int64_t column,
                                 int64_t columns)
{
    int64_t head = at->head * x->heads / at->call->heads;
    int64_t start = at->s.row * x->stride[0] + position(&at->s, first) * x->stride[1] + head * x->stride[2];
    return (token_rows){x, start + column * x->stride[3], at->s.reverse ? -x->stride[1] : x->stride[1], x->stride[3],
                        columns, count};
}

/* Whole panels of rows without gaps, the usual case. */
GLA_INLINE void load_panels(float *out, const token_rows *rows, int64_t dtype)
{
    const int64_t size = item_size[dtype];
    const char *in = element(rows->x, rows->offset);
    for (int i = 0; i < rows->count; i++, in += rows->token_step * size)
        for (int64_t n = 0; n + GLA_PANEL <= rows->columns; n += GLA_PANEL)
            UNROLL for (int64_t lane = 0; lane < GLA_PANEL; lane += LANES)
                vec_store(out + column_of(n) + i * GLA_PANEL + lane, load_vector(in + (n + lane) * size, dtype));
}

/* scratch [16][columns] = rows; zeros beyond the last token and the last column. */
static void load_tokens(float *out, token_rows rows)
{
    int64_t whole = rows.column_step == 1 && rows.x->dtype != GLA_FLOAT64 ? rows.columns / GLA_PANEL * GLA_PANEL : 0;
    if (whole) {
        if (rows.x->dtype == GLA_FLOAT32) load_panels(out, &rows, GLA_FLOAT32);
        else if (rows.x->dtype == GLA_FLOAT16) load_panels(out, &rows, GLA_FLOAT16);
        else load_panels(out, &rows, GLA_BFLOAT16);
    }
    for (int64_t n = whole; n < rows.columns; n += GLA_PANEL)
        for (int i = 0; i < rows.count; i++)
            load_row(out + column_of(n) + i * GLA_PANEL, rows.x,
                     rows.offset + i * rows.token_step + n * rows.column_step, rows.column_step,
                     gla_min(GLA_PANEL, rows.columns - n), GLA_PANEL);
    if (rows.count < GLA_CHUNK)
        for (int64_t n = 0; n < rows.columns; n += GLA_PANEL)
            memset(out + column_of(n) + rows.count * GLA_PANEL, 0,
                   (GLA_CHUNK - rows.count) * GLA_PANEL * sizeof *out);
}

GLA_INLINE void store_panels(const token_rows *rows, const float *in, int64_t dtype)
{
    const int64_t size = item_size[dtype];
    char *out = element(rows->x, rows->offset);
    for (int i = 0; i < rows->count; i++, out += rows->token_step * size)
        for (int64_t n = 0; n + GLA_PANEL <= rows->columns; n += GLA_PANEL)
            UNROLL for (int64_t lane = 0; lane < GLA_PANEL; lane += LANES)
                store_vector(out + (n + lane) * size, dtype, vec_load(in + column_of(n) + i * GLA_PANEL + lane));
}

/* rows = scratch [16][columns], or += with `add`. */
static void store_tokens(token_rows rows, const float *in, bool add)
{
    int64_t whole = 0;
    if (!add && rows.column_step == 1 && rows.x->dtype != GLA_FLOAT64) {
        whole = rows.columns / GLA_PANEL * GLA_PANEL;
        if (rows.x->dtype == GLA_FLOAT32) store_panels(&rows, in, GLA_FLOAT32);
        else if (rows.x->dtype == GLA_FLOAT16) store_panels(&rows, in, GLA_FLOAT16);
        else store_panels(&rows, in, GLA_BFLOAT16);
    }
    for (int64_t n = whole; n < rows.columns; n += GLA_PANEL)
        for (int i = 0; i < rows.count; i++)
            store_row(rows.x, rows.offset + i * rows.token_step + n * rows.column_step, rows.column_step,
                      in + column_of(n) + i * GLA_PANEL, gla_min(GLA_PANEL, rows.columns - n), add);
}

/* Ask for rows, to come while a chunk is computed. */
static void fetch_tokens(fetch_queue *queue, token_rows rows)
{
    int64_t bytes = (rows.column_step == 1 ? rows.columns : 1) * item_size[rows.x->dtype];
    for (int i = 0; i < rows.count; i++)
        fetch_row(queue, element(rows.x, rows.offset + i * rows.token_step), bytes);
}

#endif
