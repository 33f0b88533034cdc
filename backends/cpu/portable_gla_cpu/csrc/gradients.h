/* The gradients of one chunk, given the state before it and the gradient of the state after it.
 *
 * States are transposed here: panels of 32 channels of K, rows along V, since four of the five products then run along
 * their rows. Every term of dg has the gate's own decay as a factor: nothing is subtracted, so that a strong gate's
 * tiny dg is right in all its digits, and a reset's is zero.
 */
#ifndef GLA_GRADIENTS_H
#define GLA_GRADIENTS_H

#include "pairs.h"
#include "scores.h"
#include "states.h"

static const float TINY = 0x1p-76f;

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

static const float HUGE_NUMBER = 0x1p64f;

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
    token_gradients(c, d, scale);
}

#endif
