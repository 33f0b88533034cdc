/* One chunk of up to 16 tokens of one head: its rows in scratch, products of its gates, its scores.
 *
 * Nothing is ever divided and no gates are summed: decays are multiplied, e = exp(g), which is exact for every g ≤ 0,
 * −inf among them, and keeps a huge gate from drowning its neighbours. See README.md for the formulae.
 */
#ifndef GLA_CHUNK_H
#define GLA_CHUNK_H

#include "arena.h"
#include "exponential.h"
#include "tokens.h"

enum { BLOCK = 4 };                /* tokens of a sub-block, see chunk_scores */
static const float GROWTH = 20.0f; /* nats by which a channel may grow within a chunk, lest its products overflow */

/* Products of decays pass below the smallest number sooner than what they multiply does; gradients should be right
 * however small. So products begin at LIFT, and DROP undoes it where the result can bear it: see gradients.h. */
static const float LIFT = 0x1p24f, HALF_LIFT = 0x1p12f, DROP = 0x1p-24f;

/* Matrices [16][K] and [16][V] are matrices of tokens (panels.h); rows from `count` on are zero, decays one. */
typedef struct {
    int64_t first; /* token of the sequence */
    int count;
    bool overflows; /* positive gates: products over the chunk may overflow where the recurrence does not */
    float growth;   /* at most this many nats in any channel */
    fetch_queue fetch;
    int64_t ahead;  /* tokens from this chunk to the one that is loaded next */
    int64_t key_dim, value_dim;
    ptrdiff_t keys, values; /* K and V, padded to whole panels */
    float *q;           /* [16][K], times the scale */
    float *k, *e;       /* [16][K] */
    float *q_decayed;   /* [16][K]: q_i times the decays between the chunk's start and its reading of the state */
    float *k_decayed;   /* [16][K]: k_j times the decays after j */
    float *block_decay; /* [4][K], of chunk_scores */
    float *decay;       /* [K]: all decays of the chunk */
    float *detached;    /* [K]: the decay that chunk_detach_gate took off */
    float *bonus;       /* [K], or NULL */
    float *v;           /* [16][V] */
    float *scores;      /* [16][16], lower triangle */
} chunk;

/* Lay a chunk out in scratch. */
static chunk chunk_at(arena *scratch, const gla_call *call, int64_t value_dim)
{
    chunk c = {.ahead = GLA_CHUNK, .key_dim = call->key_dim, .value_dim = value_dim};
    c.keys = gla_round_up(c.key_dim, GLA_PANEL);
    c.values = gla_round_up(value_dim, GLA_PANEL);
    int64_t matrix = GLA_CHUNK * c.keys;
    c.q = take(scratch, matrix);
    c.k = take(scratch, matrix);
    c.e = take(scratch, matrix);
    c.q_decayed = take(scratch, matrix);
    c.k_decayed = take(scratch, matrix);
    c.block_decay = take(scratch, matrix / BLOCK);
    c.decay = take(scratch, c.keys);
    c.detached = take(scratch, c.keys);
    c.bonus = take(scratch, c.keys);
    c.v = take(scratch, GLA_CHUNK * c.values);
    c.scores = take(scratch, GLA_CHUNK * GLA_CHUNK);
    if (!call->bonus.data) c.bonus = NULL;
    return c;
}

/* What does not vary along the sequence. */
static inline void chunk_begin_stream(chunk *c, const stream *at)
{
    const gla_tensor *bonus = &at->call->bonus;
    if (c->bonus) load_row(c->bonus, bonus, at->head * bonus->stride[0], bonus->stride[1], c->key_dim, c->keys);
}

/* Load columns of the chunk's rows, and ask for those of the chunk that comes next. */
static inline void chunk_load_rows(chunk *c, float *out, const stream *at, const gla_tensor *x, int64_t column,
                                   int64_t columns)
{
    int64_t next = c->first + c->ahead;
    load_tokens(out, rows_of(at, x, c->first, c->count, column, columns));
    if (next >= 0 && next + c->count <= at->s.length)
        fetch_tokens(&c->fetch, rows_of(at, x, next, c->count, column, columns));
}

/* Decays of a gate that all channels share: one number per token. */
static inline void load_shared_decays(chunk *c, const stream *at)
{
    float gates[GLA_CHUNK] = {0};
    const gla_tensor *g = &at->call->g;
    c->growth = 0.0f;
    if (at->call->gate != GLA_GATE_NONE) {
        token_rows rows = rows_of(at, g, c->first, c->count, 0, 1);
        for (int i = 0; i < c->count; i++) {
            gates[i] = load_one(element(g, rows.offset + i * rows.token_step), g->dtype);
            if (gates[i] > 0.0f) c->growth += gates[i];
        }
    }
    for (int i = 0; i < GLA_CHUNK; i += LANES) vec_store(gates + i, vec_exp(vec_load(gates + i)));
    for (ptrdiff_t n = 0; n < c->keys; n += LANES)
        for (int i = 0; i < GLA_CHUNK; i++) vec_store(c->e + column_of(n) + i * GLA_PANEL, vec_splat(gates[i]));
}

static inline void load_channel_decays(chunk *c, const stream *at)
{
    chunk_load_rows(c, c->e, at, &at->call->g, 0, c->key_dim);
    vec most = vec_zero();
    for (ptrdiff_t n = 0; n < c->keys; n += LANES) {
        vec sum = vec_zero();
        for (int i = 0; i < GLA_CHUNK; i++) {
            float *e = c->e + column_of(n) + i * GLA_PANEL;
            vec g = vec_load(e);
            sum += vec_max(g, vec_zero());
            vec_store(e, vec_exp(g));
        }
        most = vec_max(most, sum);
    }
    c->growth = 0.0f;
    for (int lane = 0; lane < LANES; lane++)
        if (most[lane] > c->growth) c->growth = most[lane];
}

/* Begin a chunk of `count` tokens from `first` on, with its decays. */
static inline void chunk_load_decays(chunk *c, const stream *at, int64_t first, int count)
{
    c->first = first;
    c->count = count;
    if (at->call->gate == GLA_GATE_CHANNEL) load_channel_decays(c, at);
    else load_shared_decays(c, at);
    c->overflows = c->growth > GROWTH;
}

/* Load k, and v's columns from `value` on: what the state takes in. */
static inline void chunk_load_keys(chunk *c, const stream *at, int64_t value)
{
    chunk_load_rows(c, c->k, at, &at->call->k, 0, c->key_dim);
    chunk_load_rows(c, c->v, at, &at->call->v, value, c->value_dim);
}

/* Load q, times the scale: what reads the state. */
static inline void chunk_load_queries(chunk *c, const stream *at)
{
    chunk_load_rows(c, c->q, at, &at->call->q, 0, c->key_dim);
    vec scale = vec_splat((float)at->call->scale);
    for (ptrdiff_t n = 0; n < GLA_CHUNK * c->keys; n += LANES) vec_store(c->q + n, vec_load(c->q + n) * scale);
}

/* Whether the chunk is a token on its own because its gate grows so much that q times the decay may overflow. Then the
 * state itself is decayed, in the recurrence's order, and the token goes on without its gate. (With a bonus q does not
 * meet its own gate.) */
GLA_INLINE bool chunk_is_detached(const chunk *c) { return c->overflows && c->count == 1 && !c->bonus; }

static inline void chunk_detach_gate(chunk *c)
{
    for (ptrdiff_t n = 0; n < c->keys; n++) {
        c->detached[n] = c->e[column_of(n)];
        c->e[column_of(n)] = 1.0f;
    }
}

/* k_decayed and the decay of the whole chunk; with `after`, the products themselves, lifted, the chunk's in `whole`. */
static inline void chunk_decay_keys(chunk *c, float *after, float *whole)
{
    for (ptrdiff_t n = 0; n < c->keys; n += LANES) {
        vec product = vec_splat(LIFT);
        for (ptrdiff_t i = GLA_CHUNK - 1; i >= 0; i--) {
            ptrdiff_t at = column_of(n) + i * GLA_PANEL;
            vec_store(c->k_decayed + at, vec_load(c->k + at) * (product * vec_splat(DROP)));
            if (after) vec_store(after + at, product);
            product *= vec_load(c->e + at);
        }
        if (whole) vec_store(whole + n, product);
        vec_store(c->decay + n, product * vec_splat(DROP));
    }
}

/* q_decayed and the decay of the whole chunk; with `before`, the products themselves, lifted. With a bonus a token
 * reads the state before its own gate. */
static inline void chunk_decay_queries(chunk *c, float *before)
{
    for (ptrdiff_t n = 0; n < c->keys; n += LANES) {
        vec product = vec_splat(LIFT);
        for (ptrdiff_t i = 0; i < GLA_CHUNK; i++) {
            ptrdiff_t at = column_of(n) + i * GLA_PANEL;
            vec with_own = product * vec_load(c->e + at);
            if (!c->bonus) product = with_own;
            vec_store(c->q_decayed + at, vec_load(c->q + at) * (product * vec_splat(DROP)));
            if (before) vec_store(before + at, product);
            product = with_own;
        }
        vec_store(c->decay + n, product * vec_splat(DROP));
    }
}

#endif
