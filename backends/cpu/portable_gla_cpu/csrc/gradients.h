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

static const float TINY = 0x1p-76f, HUGE_NUMBER = 0x1p64f;

/* Matrices [16][·] are matrices of tokens, as in `chunk`. */
typedef struct {
    float *do_;              /* [16][V] */
    float *dq, *dk, *dg;     /* [16][K]; dg: by channel */
    float *dv;               /* [16][V] */
    float *dbonus;           /* [K], added to */
    float *before, *after;   /* [16][K]: the decays in q_decayed and k_decayed, lifted */
    float *whole;            /* [K]: all decays of the chunk, lifted */
    float *safe;             /* [K]: the same, lifted only where they are tiny: cannot overflow what they multiply */
    float lift;              /* by which gradients are too large until join_gradients: LIFT, or 1 if they are huge */
    float *q_state;          /* [16][K]: S do_i, of which dq_i takes the decayed part */
    float *k_state;          /* [16][K]: dS v_j */
    float *overlap;          /* [K]: Σ over V of safe ⊙ S ⊙ dS, then lifted like the rest */
    float *dscores;          /* [16][16]: do_i · v_j, lower triangle */
    float *k_tokens;         /* [32][16]: one panel of k_decayed, transposed */
    float *dv_tokens;        /* [V][16] */
} gradients;

static gradients gradients_at(arena *scratch, const chunk *c)
{
    gradients d;
    int64_t keys = GLA_CHUNK * c->keys, values = GLA_CHUNK * c->values;
    d.do_ = take(scratch, values);
    d.dq = take(scratch, keys);
    d.dk = take(scratch, keys);
    d.dg = take(scratch, keys);
    d.dv = take(scratch, values);
    d.dbonus = take(scratch, c->keys);
    d.before = take(scratch, keys);
    d.after = take(scratch, keys);
    d.whole = take(scratch, c->keys);
    d.safe = take(scratch, c->keys);
    d.lift = 1.0f;
    d.q_state = take(scratch, keys);
    d.k_state = take(scratch, keys);
    d.overlap = take(scratch, c->keys);
    d.dscores = take(scratch, GLA_CHUNK * GLA_CHUNK);
    d.k_tokens = take(scratch, TOKEN_PANEL);
    d.dv_tokens = take(scratch, values);
    return d;
}

/* All that meets the state: q_state, k_state, overlap, dv (with the pairs' part), and dS carried across the chunk. */
static void state_gradients(chunk *c, const gradients *d, const float *state, float *dstate)
{
    ptrdiff_t panel = panel_floats(c->value_dim), rows = gla_round_up(c->value_dim, ROWS_MULTIPLE);
    for (ptrdiff_t n = 0; n < c->keys; n++) d->safe[n] = d->whole[n] < TINY ? d->whole[n] : d->whole[n] * DROP;
    memset(d->dv_tokens, 0, GLA_CHUNK * c->values * sizeof *d->dv_tokens);
    for (ptrdiff_t n = 0; n < c->keys; n += GLA_PANEL, state += panel, dstate += panel) {
        ptrdiff_t column = column_of(n);
        state_read(d->q_state + column, c->count, GLA_PANEL, d->do_, state, c->value_dim, NULL, NULL, &c->fetch);
        state_read(d->k_state + column, c->count, GLA_PANEL, c->v, dstate, c->value_dim, NULL, NULL, &c->fetch);
        state_overlap(d->overlap + n, state, dstate, d->safe + n, c->value_dim);
        transpose(d->k_tokens, GLA_CHUNK, c->k_decayed + column, GLA_PANEL, GLA_CHUNK, GLA_PANEL);
        state_read_tokens(d->dv_tokens, rows, dstate, d->k_tokens);
        state_update(dstate, dstate, c->value_dim, GLA_PANEL, c->decay + n, false, d->do_, c->q_decayed + column,
                     c->count, &c->fetch);
    }
    for (ptrdiff_t n = 0; n < c->values; n += GLA_PANEL) {
        transpose(d->dv + column_of(n), GLA_PANEL, d->dv_tokens + n * GLA_CHUNK, GLA_CHUNK, GLA_PANEL, GLA_CHUNK);
        gather_later(d->dv + column_of(n), GLA_PANEL, c->scores, d->do_ + column_of(n), c->count);
    }
}

/* Choose the lift: none where numbers are so large that it might carry them out of range. */
static void choose_lift(const chunk *c, gradients *d)
{
    vec most = vec_zero();
    for (ptrdiff_t n = 0; n < c->keys; n += LANES) {
        most = vec_max(vec_abs(vec_load(d->overlap + n)), most);
        for (ptrdiff_t i = 0; i < c->count; i++) {
            ptrdiff_t at = column_of(n) + i * GLA_PANEL;
            most = vec_max(vec_abs(vec_load(d->q_state + at)), most);
            most = vec_max(vec_abs(vec_load(d->k_state + at)), most);
        }
    }
    for (int n = 0; n < GLA_CHUNK * GLA_CHUNK; n += LANES) most = vec_max(vec_abs(vec_load(d->dscores + n)), most);
    d->lift = LIFT;
    for (int lane = 0; lane < LANES; lane++)
        if (most[lane] > HUGE_NUMBER) d->lift = 1.0f;
    for (ptrdiff_t n = 0; n < c->keys; n++) d->overlap[n] *= d->whole[n] < TINY ? d->lift * DROP : d->lift;
}

/* What the pairs j ≤ i of the chunk give to dq, dk, and to dg of the gates between them; all lifted.
 *
 * For each j, `decay` runs from j towards later tokens; coming back, `later` is the sum of what the pairs beyond a gate
 * give to dk_j, all of which crosses that gate. With a bonus (`shift` 1) token i reads before its own gate: the pair
 * (j, i) crosses the gates of j+1 … i−1 only, and the pair (i, i) has the bonus in the place of decays.
 */
GLA_INLINE void pair_gradients(const chunk *c, const gradients *d, int shift)
{
    enum { WIDE = 2 }; /* vectors at a time: the products and sums along i are chains, two of them overlap */
    memset(d->dq, 0, GLA_CHUNK * c->keys * sizeof *d->dq);
    memset(d->dg, 0, GLA_CHUNK * c->keys * sizeof *d->dg);
    for (ptrdiff_t n = 0; n < c->keys; n += WIDE * LANES) {
        const ptrdiff_t first = column_of(n);
        for (int j = 0; j < c->count; j++) {
            vec key[WIDE], decay[WIDE], later[WIDE], given[GLA_CHUNK][WIDE]; /* given: to dk_j, by i */
            UNROLL for (int w = 0; w < WIDE; w++) {
                ptrdiff_t at = first + j * GLA_PANEL + w * LANES;
                key[w] = vec_load(c->k + at);
                decay[w] = vec_splat(d->lift);
                later[w] = vec_zero();
                if (shift) {
                    vec query = vec_load(c->q + at), bonus = vec_load(c->bonus + n + w * LANES);
                    vec weight = vec_splat(d->lift * d->dscores[j * GLA_CHUNK + j]);
                    float *dbonus = d->dbonus + n + w * LANES;
                    vec_store(dbonus, vec_fma(weight * query * vec_splat(1.0f / d->lift), key[w], vec_load(dbonus)));
                    vec_store(d->dq + at, vec_fma(weight * bonus, key[w], vec_load(d->dq + at)));
                    vec_store(d->dk + at, weight * bonus * query);
                }
            }
            for (int i = j + shift; i < c->count; i++) {
                vec score = vec_splat(d->dscores[i * GLA_CHUNK + j]);
                UNROLL for (int w = 0; w < WIDE; w++) {
                    ptrdiff_t at = first + i * GLA_PANEL + w * LANES;
                    if (i > j + shift) decay[w] *= vec_load(c->e + at - shift * GLA_PANEL);
                    vec weight = decay[w] * score;
                    given[i][w] = weight * vec_load(c->q + at);
                    vec_store(d->dq + at, vec_fma(weight, key[w], vec_load(d->dq + at)));
                }
            }
            for (int i = c->count - 1; i > j + shift; i--)
                UNROLL for (int w = 0; w < WIDE; w++) {
                    float *gate = d->dg + first + (i - shift) * GLA_PANEL + w * LANES;
                    later[w] += given[i][w];
                    vec_store(gate, vec_fma(key[w], later[w], vec_load(gate)));
                }
            UNROLL for (int w = 0; w < WIDE; w++) {
                float *dk = d->dk + first + j * GLA_PANEL + w * LANES;
                if (j + shift < c->count) later[w] += given[j + shift][w];
                if (shift) later[w] += vec_load(dk);
                vec_store(dk, later[w]);
            }
        }
    }
}

/* Add the state's part to dq, dk and dg, and drop the lift. A gate is crossed by what later tokens read of the state
 * before the chunk, by what earlier ones give to the state after it, and by the state itself. */
static void join_gradients(const chunk *c, const gradients *d, float scale)
{
    const vec lift = vec_splat(d->lift * DROP), drop = vec_splat(1.0f / d->lift);
    for (ptrdiff_t n = 0; n < c->keys; n += LANES) {
        vec crossing = vec_load(d->overlap + n);
        for (ptrdiff_t t = 0; t < c->count; t++) {
            ptrdiff_t at = column_of(n) + t * GLA_PANEL;
            vec given = vec_load(d->after + at) * lift * vec_load(d->k_state + at);
            vec_store(d->dg + at, vec_load(d->dg + at) + crossing);
            vec_store(d->dk + at, (vec_load(d->dk + at) + given) * drop);
            crossing = vec_fma(vec_load(c->k + at), given, crossing);
        }
        crossing = vec_zero();
        for (ptrdiff_t t = c->count - 1; t >= 0; t--) {
            ptrdiff_t at = column_of(n) + t * GLA_PANEL;
            vec given = vec_load(d->before + at) * lift * vec_load(d->q_state + at);
            vec with_own = vec_fma(vec_load(c->q + at), given, crossing);
            if (!c->bonus) crossing = with_own;
            vec_store(d->dg + at, (vec_load(d->dg + at) + crossing) * drop);
            vec_store(d->dq + at, (vec_load(d->dq + at) + given) * drop * vec_splat(scale));
            crossing = with_own;
        }
    }
}

/* All gradients of a loaded chunk; `dstate`, of the state after the chunk, becomes that of the state before it. */
static void chunk_gradients(chunk *c, gradients *d, const float *state, float *dstate, float scale)
{
    chunk_scores(c);
    chunk_decay_queries(c, d->before);
    chunk_decay_keys(c, d->after, d->whole);
    memset(d->dscores, 0, GLA_CHUNK * GLA_CHUNK * sizeof *d->dscores);
    dot_lower(d->dscores, d->do_, c->v, c->values, c->count);
    state_gradients(c, d, state, dstate);
    choose_lift(c, d);
    if (c->bonus) pair_gradients(c, d, 1);
    else pair_gradients(c, d, 0);
    join_gradients(c, d, scale);
}

#endif
