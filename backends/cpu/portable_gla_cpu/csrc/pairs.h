/* dq, dk and dg of one chunk, channels side by side: the pairs of its tokens, joined with the state's part.
 *
 * Every term of dg has the gate's own decay as a factor: nothing is subtracted, so that a strong gate's tiny dg is right
 * in all its digits, and a reset's is zero.
 */
#ifndef GLA_PAIRS_H
#define GLA_PAIRS_H

#include "chunk.h"

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

/* A vector of channels of a chunk, by token. Between blocks of four tokens pairs are plain products, as in scores.h:
 * `query` has the decays from its block's start on, `key` those up to the start of the block that is being read. */
typedef struct {
    vec query[GLA_CHUNK], key[GLA_CHUNK];
    vec before[GLA_CHUNK], after[GLA_CHUNK]; /* those decays alone; before × after is lifted */
    vec dq[GLA_CHUNK], dk[GLA_CHUNK], dg[GLA_CHUNK];
} channels;

/* Decays within the blocks; returns nothing yet in dq, dk, dg. */
GLA_INLINE void begin_channels(channels *x, const chunk *c, ptrdiff_t start, float half_lift, bool bonus)
{
    for (int block = 0; block < GLA_CHUNK; block += BLOCK) {
        vec product = vec_splat(half_lift);
        UNROLL for (int i = block; i < block + BLOCK; i++) {
            vec with_own = product * vec_load(c->e + start + i * GLA_PANEL);
            if (!bonus) product = with_own;
            x->before[i] = product;
            x->query[i] = vec_load(c->q + start + i * GLA_PANEL) * product;
            x->dq[i] = x->dk[i] = x->dg[i] = vec_zero();
            product = with_own;
        }
        product = vec_splat(half_lift);
        UNROLL for (int j = block + BLOCK - 1; j >= block; j--) {
            x->after[j] = product;
            x->key[j] = vec_load(c->k + start + j * GLA_PANEL) * product;
            product *= vec_load(c->e + start + j * GLA_PANEL);
        }
    }
}

/* The pairs of tokens of `block` with earlier blocks' tokens, and the gates between them. */
GLA_INLINE void pairs_across(channels *x, const float *dscores, int block, bool bonus)
{
    vec given[BLOCK], passing = vec_zero(); /* given: to dq; passing: what crosses all gates up to the block */
    dscores += block * GLA_CHUNK;
    UNROLL for (int i = 0; i < BLOCK; i++) given[i] = vec_zero();
    for (int j = 0; j < block; j++) {
        vec taken = vec_zero();
        UNROLL for (int i = 0; i < BLOCK; i++) {
            vec weight = vec_splat(dscores[i * GLA_CHUNK + j]);
            given[i] = vec_fma(weight, x->key[j], given[i]);
            taken = vec_fma(weight, x->query[block + i], taken);
        }
        x->dk[j] = vec_fma(taken, x->after[j], x->dk[j]);
        x->dg[j] += passing;
        passing = vec_fma(taken, x->key[j], passing);
    }
    passing = vec_zero();
    UNROLL for (int i = BLOCK - 1; i >= 0; i--) {
        vec with_own = vec_fma(given[i], x->query[block + i], passing);
        if (!bonus) passing = with_own;
        x->dq[block + i] = vec_fma(given[i], x->before[block + i], x->dq[block + i]);
        x->dg[block + i] += passing;
        passing = with_own;
    }
}

/* Carry the decays of the earlier keys across `block`. */
GLA_INLINE void pass_block(channels *x, const chunk *c, ptrdiff_t start, int block)
{
    vec product = vec_splat(1.0f);
    UNROLL for (int i = block; i < block + BLOCK; i++) product *= vec_load(c->e + start + i * GLA_PANEL);
    for (int j = 0; j < block; j++) {
        x->key[j] *= product;
        x->after[j] *= product;
    }
}

/* The pairs j ≤ i within `block`, one by one. For each j, `decay` runs from j towards later tokens; coming back,
 * `later` is the sum of what the pairs beyond a gate give to dk_j, all of which crosses that gate. With a bonus token i
 * reads before its own gate: the pair (j, i) crosses the gates of j+1 … i−1, and the pair (i, i) has the bonus in the
 * place of decays. */
GLA_INLINE void pairs_within(channels *x, const chunk *c, const gradients *d, ptrdiff_t start, ptrdiff_t channel,
                             int block, bool bonus)
{
    const int shift = bonus, end = block + BLOCK;
    UNROLL for (int j = block; j < end; j++) {
        vec key = vec_load(c->k + start + j * GLA_PANEL), decay = vec_splat(d->lift), later = vec_zero(), given[BLOCK];
        if (bonus) {
            vec query = vec_load(c->q + start + j * GLA_PANEL), u = vec_load(c->bonus + channel);
            vec weight = vec_splat(d->lift * d->dscores[j * GLA_CHUNK + j]);
            vec dbonus = vec_fma(weight * query * vec_splat(1.0f / d->lift), key, vec_load(d->dbonus + channel));
            vec_store(d->dbonus + channel, dbonus);
            x->dq[j] = vec_fma(weight * u, key, x->dq[j]);
            x->dk[j] = vec_fma(weight * u, query, x->dk[j]);
        }
        UNROLL for (int i = j + shift; i < end; i++) {
            if (i > j + shift) decay *= vec_load(c->e + start + (i - shift) * GLA_PANEL);
            vec weight = decay * vec_splat(d->dscores[i * GLA_CHUNK + j]);
            given[i - block] = weight * vec_load(c->q + start + i * GLA_PANEL);
            x->dq[i] = vec_fma(weight, key, x->dq[i]);
        }
        UNROLL for (int i = end - 1; i > j + shift; i--) {
            later += given[i - block];
            x->dg[i - shift] = vec_fma(key, later, x->dg[i - shift]);
        }
        if (j + shift < end) later += given[j + shift - block];
        x->dk[j] += later;
    }
}

/* Add the state's part and drop the lift. A gate is crossed by what later tokens read of the state before the chunk, by
 * what earlier ones give to the state after it, and by the state itself. */
GLA_INLINE void join_channels(channels *x, const chunk *c, const gradients *d, ptrdiff_t start, ptrdiff_t channel,
                              float scale, bool bonus)
{
    const vec lift = vec_splat(d->lift * DROP), drop = vec_splat(1.0f / d->lift);
    vec passing = vec_load(d->overlap + channel);
    for (int t = 0; t < c->count; t++) {
        ptrdiff_t at = start + t * GLA_PANEL;
        vec given = vec_load(d->after + at) * lift * vec_load(d->k_state + at);
        x->dg[t] += passing;
        passing = vec_fma(vec_load(c->k + at), given, passing);
        vec_store(d->dk + at, (x->dk[t] + given) * drop);
    }
    passing = vec_zero();
    for (int t = c->count - 1; t >= 0; t--) {
        ptrdiff_t at = start + t * GLA_PANEL;
        vec given = vec_load(d->before + at) * lift * vec_load(d->q_state + at);
        vec with_own = vec_fma(vec_load(c->q + at), given, passing);
        if (!bonus) passing = with_own;
        vec_store(d->dg + at, (x->dg[t] + passing) * drop);
        vec_store(d->dq + at, (x->dq[t] + given) * drop * vec_splat(scale));
        passing = with_own;
    }
}

GLA_INLINE void token_gradients_with(const chunk *c, const gradients *d, float scale, bool bonus)
{
    const float half_lift = d->lift == LIFT ? HALF_LIFT : 1.0f;
    for (ptrdiff_t channel = 0; channel < c->keys; channel += LANES) {
        channels x;
        ptrdiff_t start = column_of(channel);
        begin_channels(&x, c, start, half_lift, bonus);
        for (int block = 0; block < c->count; block += BLOCK) {
            pairs_within(&x, c, d, start, channel, block, bonus);
            if (block == 0) continue;
            pairs_across(&x, d->dscores, block, bonus);
            pass_block(&x, c, start, block);
        }
        join_channels(&x, c, d, start, channel, scale, bonus);
    }
}

/* dq, dk and dg of a chunk, from its dscores and what state_gradients left. */
static void token_gradients(const chunk *c, const gradients *d, float scale)
{
    if (c->bonus) token_gradients_with(c, d, scale, true);
    else token_gradients_with(c, d, scale, false);
}

#endif
