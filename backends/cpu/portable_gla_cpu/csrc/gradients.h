/* The gradients of one chunk, given the state before it and the gradient of the state after it.
 *
 * States are transposed here: panels of 32 channels of K, rows along V, since four of the five products then run along
 * their rows. Every term of dg has the gate's own decay as a factor: nothing is subtracted, so that a strong gate's
 * tiny dg is right in all its digits, and a reset's is zero.
 */
#ifndef GLA_GRADIENTS_H
#define GLA_GRADIENTS_H

#include "scores.h"
#include "states.h"

/* Rows are tokens, as in `chunk`. */
typedef struct {
    float *do_;              /* [16][V] */
    float *dq, *dk, *dg;     /* [16][K]; dg: by channel */
    float *dv;               /* [16][V] */
    float *dbonus;           /* [K], added to */
    float *before, *after;   /* [16][K]: the decays in q_decayed and k_decayed */
    float *q_state;          /* [16][K]: S do_i, of which dq_i takes the decayed part */
    float *k_state;          /* [16][K]: dS v_j */
    float *overlap;          /* [K]: Σ over V of decay ⊙ S ⊙ dS */
    float *dscores;          /* [16][16]: do_i · v_j, lower triangle */
    float *k_tokens;         /* [K][16]: k_decayed, transposed */
    float *dv_tokens;        /* [V][16] */
} gradients;

static gradients gradients_at(float **scratch, const chunk *c)
{
    gradients d;
    int64_t keys = GLA_CHUNK * c->key_stride, values = GLA_CHUNK * c->value_stride;
    d.do_ = take(scratch, values);
    d.dq = take(scratch, keys);
    d.dk = take(scratch, keys);
    d.dg = take(scratch, keys);
    d.dv = take(scratch, values);
    d.dbonus = take(scratch, c->key_stride);
    d.before = take(scratch, keys);
    d.after = take(scratch, keys);
    d.q_state = take(scratch, keys);
    d.k_state = take(scratch, keys);
    d.overlap = take(scratch, c->key_stride);
    d.dscores = take(scratch, GLA_CHUNK * GLA_CHUNK);
    d.k_tokens = take(scratch, keys);
    d.dv_tokens = take(scratch, values);
    return d;
}

/* All that meets the state: q_state, k_state, overlap, the state's part of dv, and dS carried across the chunk. */
static void state_gradients(chunk *c, const gradients *d, const float *state, float *dstate)
{
    ptrdiff_t panel = panel_floats(c->value_dim);
    transpose(d->k_tokens, GLA_CHUNK, c->k_decayed, c->key_stride, GLA_CHUNK, c->key_stride);
    memset(d->dv_tokens, 0, GLA_CHUNK * c->value_stride * sizeof *d->dv_tokens);
    for (ptrdiff_t n = 0; n < c->key_stride; n += GLA_PANEL, state += panel, dstate += panel) {
        state_read(d->q_state + n, c->key_stride, c->count, GLA_PANEL, by_row(d->do_, c->value_stride), state,
                   c->value_dim, NULL, NULL, 0, &c->fetch);
        state_read(d->k_state + n, c->key_stride, c->count, GLA_PANEL, by_row(c->v, c->value_stride), dstate,
                   c->value_dim, NULL, NULL, 0, &c->fetch);
        state_overlap(d->overlap + n, state, dstate, c->decay + n, gla_round_up(c->value_dim, ROWS_MULTIPLE));
        state_read_tokens(d->dv_tokens, gla_round_up(c->value_dim, ROWS_MULTIPLE), dstate,
                          d->k_tokens + n * GLA_CHUNK);
        state_update(dstate, dstate, c->value_dim, GLA_PANEL, c->decay + n, false,
                     by_depth(d->do_, c->value_stride), c->q_decayed + n, c->key_stride, c->count, &c->fetch);
    }
    transpose(d->dv, c->value_stride, d->dv_tokens, GLA_CHUNK, c->value_stride, GLA_CHUNK);
}

/* What the pairs j ≤ i of the chunk give to dq, dk, and to dg of the gates between them.
 *
 * For each j, `decay` runs from j towards later tokens; coming back, `later` is the sum of what the pairs beyond a gate
 * give to dk_j, all of which crosses that gate. With a bonus (`shift` 1) token i reads before its own gate: the pair
 * (j, i) crosses the gates of j+1 … i−1 only, and the pair (i, i) has the bonus in the place of decays.
 */
GLA_INLINE void pair_gradients(const chunk *c, const gradients *d, int shift)
{
    ptrdiff_t stride = c->key_stride;
    for (ptrdiff_t n = 0; n < stride; n += LANES) {
        const float *q = c->q + n, *k = c->k + n, *e = c->e + n;
        float *dq = d->dq + n, *dk = d->dk + n, *dg = d->dg + n;
        for (int i = 0; i < c->count; i++) {
            vec_store(dq + i * stride, vec_zero());
            vec_store(dg + i * stride, vec_zero());
        }
        vec dbonus = vec_zero(), bonus = vec_zero();
        if (shift) {
            dbonus = vec_load(d->dbonus + n);
            bonus = vec_load(c->bonus + n);
        }
        for (int j = 0; j < c->count; j++) {
            vec key = vec_load(k + j * stride), decay = vec_splat(1.0f), later = vec_zero(), own = vec_zero();
            vec given[GLA_CHUNK]; /* to dk_j, by i */
            if (shift) {
                vec query = vec_load(q + j * stride), weight = vec_splat(d->dscores[j * GLA_CHUNK + j]);
                own = weight * bonus * query;
                dbonus = vec_fma(weight * query, key, dbonus);
                vec_store(dq + j * stride, vec_fma(weight * bonus, key, vec_load(dq + j * stride)));
            }
            for (int i = j + shift; i < c->count; i++) {
                if (i > j + shift) decay *= vec_load(e + (i - shift) * stride);
                vec weight = decay * vec_splat(d->dscores[i * GLA_CHUNK + j]);
                given[i] = weight * vec_load(q + i * stride);
                vec_store(dq + i * stride, vec_fma(weight, key, vec_load(dq + i * stride)));
            }
            for (int i = c->count - 1; i > j + shift; i--) {
                later += given[i];
                float *gate = dg + (i - shift) * stride;
                vec_store(gate, vec_fma(key, later, vec_load(gate)));
            }
            if (j + shift < c->count) later += given[j + shift];
            vec_store(dk + j * stride, later + own);
        }
        if (shift) vec_store(d->dbonus + n, dbonus);
    }
}

/* Add the state's part to dq, dk and dg: a gate is crossed by what later tokens read of the state before the chunk, by
 * what earlier ones give to the state after it, and by the state itself. */
static void join_gradients(const chunk *c, const gradients *d, float scale)
{
    for (ptrdiff_t n = 0; n < c->key_stride; n += LANES) {
        vec crossing = vec_load(d->overlap + n);
        for (ptrdiff_t t = 0; t < c->count; t++) {
            ptrdiff_t at = t * c->key_stride + n;
            vec given = vec_load(d->after + at) * vec_load(d->k_state + at);
            vec_store(d->dg + at, vec_load(d->dg + at) + crossing);
            vec_store(d->dk + at, vec_load(d->dk + at) + given);
            crossing = vec_fma(vec_load(c->k + at), given, crossing);
        }
        crossing = vec_zero();
        for (ptrdiff_t t = c->count - 1; t >= 0; t--) {
            ptrdiff_t at = t * c->key_stride + n;
            vec given = vec_load(d->before + at) * vec_load(d->q_state + at);
            vec with_own = vec_fma(vec_load(c->q + at), given, crossing);
            if (!c->bonus) crossing = with_own;
            vec_store(d->dg + at, vec_load(d->dg + at) + crossing);
            vec_store(d->dq + at, (vec_load(d->dq + at) + given) * vec_splat(scale));
            crossing = with_own;
        }
    }
}

/* All gradients of a loaded chunk; `dstate`, of the state after the chunk, becomes that of the state before it. */
static void chunk_gradients(chunk *c, const gradients *d, const float *state, float *dstate, float scale)
{
    chunk_scores(c);
    chunk_decay_queries(c, d->before);
    chunk_decay_keys(c, d->after);
    dot_lower(d->dscores, d->do_, c->v, c->value_stride, c->count);
    state_gradients(c, d, state, dstate);
    gather_later(d->dv, c->value_stride, c->value_dim, c->scores, d->do_, c->value_stride, c->count);
    if (c->bonus) pair_gradients(c, d, 1);
    else pair_gradients(c, d, 0);
    join_gradients(c, d, scale);
}

#endif
