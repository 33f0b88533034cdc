/* The backward pass. A task is one (sequence, closed group of heads, segment): it walks its intervals from the last to
 * the first; in each it recomputes the states before its chunks from the saved one, then walks these backwards, the
 * gradient of the state in scratch. A closed group shares no tensor's head with another group, so that gradients of
 * shared heads are summed in a fixed order by one task. With more than one segment two passes come before, as in
 * forward.c, for the gradients of the states at the segments' ends. */
#include "gradients.h"
#include "threads.h"

/* A worker's scratch. A state is panels of channels: [K / 32][V][32]. */
typedef struct {
    chunk c;
    gradients d;
    float *dstate;
    float *decayed; /* a state after the gate of a token that is on its own */
    float *states;  /* before every chunk of an interval */
    float *tokens;  /* before every token of a chunk whose decays overflow */
    int64_t floats; /* of a state */
} workspace;

/* One segment's link in the scan. */
typedef struct {
    float *dstate; /* the gradient of its start state from zero, then that of its end state */
    float *decay;  /* [K]: all decays of the segment */
    float *growth; /* [1]: at most so many nats does any channel grow */
} link;

/* Sums of a task that are not per token; a last pass adds them up. */
typedef struct {
    double *gate;  /* [1]: dg of a constant gate */
    float *dbonus; /* [K] */
    float *dstate; /* [K, V]: of an initial state that all sequences share */
} partial;

typedef struct {
    const gla_call *call;
    float *scratch, *links, *partials;
    int64_t scratch_floats, link_floats, partial_floats; /* of one */
} pass;

typedef struct {
    stream at;
    int64_t segment;
    range tokens;
} task;

static bool shares_initial_state(const gla_call *call)
{
    return call->dinitial_state.data && call->dinitial_state.stride[0] == 0;
}

static workspace workspace_at(arena *scratch, const gla_call *call)
{
    workspace w = {.c = chunk_at(scratch, call, call->value_dim)};
    w.d = gradients_at(scratch, &w.c);
    w.floats = panels_floats(call->value_dim, call->key_dim);
    w.dstate = take(scratch, w.floats);
    w.decayed = take(scratch, w.floats);
    w.states = take(scratch, call->interval / GLA_CHUNK * w.floats);
    w.tokens = take(scratch, GLA_CHUNK * w.floats);
    return w;
}

static link link_at(arena *scratch, const gla_call *call)
{
    link found;
    found.dstate = take(scratch, panels_floats(call->value_dim, call->key_dim));
    found.decay = take(scratch, gla_round_up(call->key_dim, GLA_PANEL));
    found.growth = take(scratch, 1);
    return found;
}

static partial partial_at(arena *scratch, const gla_call *call)
{
    partial found;
    found.gate = (double *)take(scratch, 2);
    found.dbonus = take(scratch, call->bonus.data ? call->key_dim : 0);
    found.dstate = take(scratch, shares_initial_state(call) ? call->key_dim * call->value_dim : 0);
    return found;
}

static pass pass_at(const gla_call *call, arena *scratch)
{
    arena worker = {0}, one_link = {0}, one_partial = {0};
    workspace_at(&worker, call);
    link_at(&one_link, call);
    partial_at(&one_partial, call);
    pass p = {.call = call, .scratch_floats = worker.floats, .link_floats = one_link.floats,
              .partial_floats = one_partial.floats};
    int64_t parts = call->sequences * call->heads * call->segments;
    p.scratch = take(scratch, call->threads * p.scratch_floats);
    p.links = take(scratch, call->segments > 1 ? parts * p.link_floats : 0);
    p.partials = take(scratch, parts * p.partial_floats);
    return p;
}

int64_t GLA_NAME(backward_workspace)(const gla_call *call)
{
    arena measured = {0};
    pass_at(call, &measured);
    return measured.floats;
}

static link link_of(const pass *p, const task *t, int64_t segment)
{
    int64_t index = (t->at.s.index * p->call->heads + t->at.head) * p->call->segments + segment;
    arena at = {p->links + index * p->link_floats, 0};
    return link_at(&at, p->call);
}

static partial partial_of(const pass *p, int64_t n, int64_t head, int64_t segment)
{
    int64_t index = (n * p->call->heads + head) * p->call->segments + segment;
    arena at = {p->partials + index * p->partial_floats, 0};
    return partial_at(&at, p->call);
}

static workspace begin(const pass *p, int64_t worker)
{
    arena scratch = {p->scratch + worker * p->scratch_floats, 0};
    return workspace_at(&scratch, p->call);
}

static matrix state_matrix(const gla_tensor *x, int64_t n, const stream *at)
{
    return state_of(x, n, at->head, at->call->key_dim, at->call->value_dim);
}

static void load_state_or_zero(float *panels, const workspace *w, const gla_tensor *x, const stream *at)
{
    if (x->data) panels_load_transposed(panels, state_matrix(x, at->s.index, at));
    else memset(panels, 0, w->floats * sizeof *panels);
}

/* to = decay ⊙ from + rowsᵀ × columns of the loaded chunk. */
static void update(workspace *w, float *to, const float *from, const float *rows, const float *columns)
{
    chunk *c = &w->c;
    ptrdiff_t panel = panel_floats(c->value_dim);
    for (ptrdiff_t n = 0; n < c->keys; n += GLA_PANEL, to += panel, from += panel)
        state_update(to, from, c->value_dim, GLA_PANEL, c->decay + n, false, rows, columns + column_of(n), c->count,
                     &c->fetch);
    fetch_rest(&c->fetch);
}

/* The state after `count` tokens from that before them. */
static void advance(workspace *w, const stream *at, int64_t first, int count, float *to, const float *from)
{
    chunk *c = &w->c;
    c->ahead = GLA_CHUNK;
    chunk_load_decays(c, at, first, count);
    if (c->overflows && count > 1) {
        for (int i = 0; i < count; i++) advance(w, at, first + i, 1, to, i ? to : from);
        return;
    }
    chunk_load_keys(c, at, 0);
    chunk_decay_keys(c, NULL, NULL);
    update(w, to, from, c->v, c->k_decayed);
}

static void load_output_gradients(workspace *w, const stream *at)
{
    chunk_load_rows(&w->c, w->d.do_, at, &at->call->do_, 0, w->c.value_dim);
}

/* The gradient of the state before `count` tokens from that after them, in w->dstate. */
static void retreat(workspace *w, const stream *at, int64_t first, int count, link *into)
{
    chunk *c = &w->c;
    c->ahead = -GLA_CHUNK;
    chunk_load_decays(c, at, first, count);
    if (c->overflows && count > 1) {
        for (int i = count - 1; i >= 0; i--) retreat(w, at, first + i, 1, into);
        return;
    }
    chunk_load_queries(c, at);
    load_output_gradients(w, at);
    bool detached = chunk_is_detached(c);
    if (detached) chunk_detach_gate(c);
    chunk_decay_queries(c, NULL);
    update(w, w->dstate, w->dstate, w->d.do_, c->q_decayed);
    if (detached) panels_decay(w->dstate, NULL, c->detached, false, c->value_dim, c->key_dim);
    if (into) {
        *into->growth += c->growth;
        for (ptrdiff_t n = 0; n < c->keys; n++) into->decay[n] *= c->decay[n];
    }
}

static void retreat_range(workspace *w, const stream *at, range tokens, link *into)
{
    int64_t chunks = (tokens.last - tokens.first + GLA_CHUNK - 1) / GLA_CHUNK;
    while (chunks-- > 0) {
        int64_t i = tokens.first + chunks * GLA_CHUNK;
        retreat(w, at, i, (int)chunk_count(i, tokens.last), into);
    }
}

static task task_at(const gla_call *call, int64_t index, int64_t segments)
{
    task t = {.segment = index % segments};
    index /= segments;
    t.at = (stream){call, sequence_at(call, index / call->heads), index % call->heads};
    return t;
}

/* First pass: the gradient of a segment's start state from zero. Nobody needs the first segment's. */
static void summarize_segment(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    task t = task_at(call, index, call->segments - 1);
    t.segment++;
    workspace w = begin(p, worker);
    link own = link_of(p, &t, t.segment);
    chunk_begin_stream(&w.c, &t.at);
    *own.growth = 0.0f;
    for (ptrdiff_t n = 0; n < w.c.keys; n++) own.decay[n] = 1.0f;
    memset(w.dstate, 0, w.floats * sizeof *w.dstate);
    retreat_range(&w, &t.at, segment_at(call, &t.at.s, t.segment), &own);
    memcpy(own.dstate, w.dstate, w.floats * sizeof *w.dstate);
}

/* Second pass: gradients of end states, from the last segment on. */
static void scan_segments(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    task t = task_at(call, index, 1);
    workspace w = begin(p, worker);
    chunk_begin_stream(&w.c, &t.at);
    load_state_or_zero(w.dstate, &w, &call->dfinal_state, &t.at);
    for (int64_t segment = call->segments - 1; segment >= 0; segment--) {
        link own = link_of(p, &t, segment);
        if (segment) memcpy(w.decayed, own.dstate, w.floats * sizeof *w.dstate);
        memcpy(own.dstate, w.dstate, w.floats * sizeof *w.dstate);
        if (!segment) break;
        if (*own.growth > GROWTH) {
            retreat_range(&w, &t.at, segment_at(call, &t.at.s, segment), NULL);
            continue;
        }
        panels_decay(w.dstate, w.decayed, own.decay, false, w.c.value_dim, w.c.key_dim);
    }
}

/* The sum over the channels of one token's dg. */
static float sum_channels(const chunk *c, const float *row)
{
    vec sum[PARTS];
    for (int p = 0; p < PARTS; p++) sum[p] = vec_zero();
    for (ptrdiff_t n = 0; n < c->keys; n += GLA_CHUNK)
        for (int p = 0; p < PARTS; p++) sum[p] += vec_load(row + column_of(n) + p * LANES);
    return fold_one(sum);
}

/* Store a gradient's rows, or add them to what an output head that shares them has stored before. */
static void store_gradient(const chunk *c, const stream *at, const gla_tensor *x, const float *rows, int64_t columns)
{
    bool shared = at->head % (at->call->heads / x->heads) != 0;
    store_tokens(rows_of(at, x, c->first, c->count, 0, columns), rows, shared);
}

static void store_gradients(const workspace *w, const stream *at, partial *sums)
{
    const gla_call *call = at->call;
    const chunk *c = &w->c;
    const gradients *d = &w->d;
    store_gradient(c, at, &call->dq, d->dq, c->key_dim);
    store_gradient(c, at, &call->dk, d->dk, c->key_dim);
    store_gradient(c, at, &call->dv, d->dv, c->value_dim);
    if (call->gate == GLA_GATE_CHANNEL) {
        store_gradient(c, at, &call->dg, d->dg, c->key_dim);
    } else if (call->gate != GLA_GATE_NONE) {
        for (int i = c->count - 1; i >= 0; i--) { /* into the first channel */
            float sum = sum_channels(c, d->dg + i * GLA_PANEL);
            d->dg[i * GLA_PANEL] = sum;
            *sums->gate += sum;
        }
        if (call->gate == GLA_GATE_HEAD) store_gradient(c, at, &call->dg, d->dg, 1);
    }
}

static void fetch_gradients(chunk *c, const stream *at)
{
    const gla_tensor *all[] = {&at->call->dq, &at->call->dk, &at->call->dv, &at->call->dg};
    for (int i = 0; i < (at->call->gate == GLA_GATE_CHANNEL ? 4 : 3); i++)
        fetch_tokens(&c->fetch, rows_of(at, all[i], c->first, c->count, 0, i == 2 ? c->value_dim : c->key_dim));
}

/* chunk_gradients for a token whose gate is detached. */
static void detached_gradients(workspace *w, const float *state, float scale)
{
    chunk *c = &w->c;
    ptrdiff_t panel = panel_floats(c->value_dim);
    chunk_detach_gate(c);
    memcpy(w->decayed, state, w->floats * sizeof *state);
    panels_decay(w->decayed, NULL, c->detached, false, c->value_dim, c->key_dim);
    chunk_gradients(c, &w->d, w->decayed, w->dstate, scale);
    for (ptrdiff_t n = 0, at = 0; n < c->keys; n += GLA_PANEL, at += panel) /* e is one everywhere by now */
        state_overlap(w->d.dg + column_of(n), w->decayed + at, w->dstate + at, c->e + column_of(n), c->value_dim);
    panels_decay(w->dstate, NULL, c->detached, false, c->value_dim, c->key_dim);
}

/* All gradients of `count` tokens, from the state before them and w->dstate, which moves to their start. */
static void backward_tokens(workspace *w, const stream *at, int64_t first, int count, const float *state,
                            partial *sums)
{
    chunk *c = &w->c;
    c->ahead = -GLA_CHUNK;
    chunk_load_decays(c, at, first, count);
    if (c->overflows && count > 1) {
        memcpy(w->tokens, state, w->floats * sizeof *state);
        for (int i = 1; i < count; i++)
            advance(w, at, first + i - 1, 1, w->tokens + i * w->floats, w->tokens + (i - 1) * w->floats);
        for (int i = count - 1; i >= 0; i--) backward_tokens(w, at, first + i, 1, w->tokens + i * w->floats, sums);
        return;
    }
    chunk_load_keys(c, at, 0);
    chunk_load_queries(c, at);
    load_output_gradients(w, at);
    fetch_gradients(c, at);
    if (chunk_is_detached(c)) detached_gradients(w, state, (float)at->call->scale);
    else chunk_gradients(c, &w->d, state, w->dstate, (float)at->call->scale);
    fetch_rest(&c->fetch);
    store_gradients(w, at, sums);
}

/* Walk back from the end of `tokens` to `tokens.first`, both within one interval of saved states. */
static void backward_interval(workspace *w, const stream *at, range tokens, partial *sums)
{
    const gla_call *call = at->call;
    int64_t saved = tokens.first / call->interval * call->interval, count = 0;
    float *state = w->states;
    if (saved == 0) load_state_or_zero(state, w, &call->initial_state, at);
    else panels_load_transposed(state, state_matrix(&call->residual, at->s.slot + saved / call->interval - 1, at));
    for (int64_t i = saved; i < tokens.first; i += GLA_CHUNK) advance(w, at, i, GLA_CHUNK, state, state);
    for (int64_t i = tokens.first; i + GLA_CHUNK < tokens.last; i += GLA_CHUNK, count++)
        advance(w, at, i, GLA_CHUNK, state + (count + 1) * w->floats, state + count * w->floats);
    for (; count >= 0; count--) {
        int64_t i = tokens.first + count * GLA_CHUNK;
        backward_tokens(w, at, i, (int)chunk_count(i, tokens.last), state + count * w->floats, sums);
    }
}

static void store_initial_state_gradient(const workspace *w, const stream *at, const partial *sums)
{
    const gla_call *call = at->call;
    gla_tensor own = {(char *)sums->dstate, GLA_FLOAT32, 0, {0, 0, call->value_dim, 1}};
    if (shares_initial_state(call))
        panels_store_transposed(state_of(&own, 0, 0, call->key_dim, call->value_dim), w->dstate);
    else
        panels_store_transposed(state_matrix(&call->dinitial_state, at->s.index, at), w->dstate);
}

static void backward_head(workspace *w, const pass *p, const task *t)
{
    const gla_call *call = p->call;
    partial sums = partial_of(p, t->at.s.index, t->at.head, t->segment);
    float *dbonus = w->d.dbonus;
    chunk_begin_stream(&w->c, &t->at);
    *sums.gate = 0.0;
    memset(dbonus, 0, w->c.keys * sizeof *dbonus);
    if (call->segments > 1) memcpy(w->dstate, link_of(p, t, t->segment).dstate, w->floats * sizeof *w->dstate);
    else load_state_or_zero(w->dstate, w, &call->dfinal_state, &t->at);
    for (int64_t last = t->tokens.last, first; last > t->tokens.first; last = first) {
        first = gla_max((last - 1) / call->interval * call->interval, t->tokens.first);
        backward_interval(w, &t->at, (range){first, last}, &sums);
    }
    if (call->bonus.data) memcpy(sums.dbonus, dbonus, call->key_dim * sizeof *dbonus);
    if (t->segment == 0 && call->dinitial_state.data) store_initial_state_gradient(w, &t->at, &sums);
}

/* The number of groups of output heads such that no tensor's head is read from two of them. */
static int64_t closed_groups(const gla_call *call)
{
    int64_t groups = call->heads;
    const gla_tensor *per_token[] = {&call->q, &call->k, &call->v, &call->g};
    for (int i = 0; i < 4; i++) {
        if (i == 3 && call->gate != GLA_GATE_HEAD && call->gate != GLA_GATE_CHANNEL) continue;
        for (int64_t other = per_token[i]->heads, rest; other; groups = other, other = rest) rest = groups % other;
    }
    return groups;
}

static void backward_group(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    workspace w = begin(p, worker);
    int64_t groups = closed_groups(call), heads = call->heads / groups;
    task t = {.segment = index % call->segments};
    index /= call->segments;
    t.at = (stream){call, sequence_at(call, index / groups), 0};
    t.tokens = segment_at(call, &t.at.s, t.segment);
    for (int64_t i = 0; i < heads; i++) {
        t.at.head = index % groups * heads + i;
        backward_head(&w, p, &t);
    }
}

/* Last pass, one output head: add up what its tasks left, in a fixed order. */
static void add_partials(const void *data, int64_t head, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    int64_t values = call->value_dim;
    (void)worker;
    double gate = 0.0;
    for (int64_t n = 0; n < call->sequences; n++)
        for (int64_t segment = 0; segment < call->segments; segment++) {
            partial sums = partial_of(p, n, head, segment);
            gate += *sums.gate;
            if (call->bonus.data)
                store_row(&call->dbonus, head * call->dbonus.stride[0], call->dbonus.stride[1], sums.dbonus,
                          call->key_dim, true);
            if (shares_initial_state(call) && segment == 0)
                for (int64_t k = 0; k < call->key_dim; k++)
                    store_row(&call->dinitial_state,
                              head * call->dinitial_state.stride[1] + k * call->dinitial_state.stride[2],
                              call->dinitial_state.stride[3], sums.dstate + k * values, values, true);
        }
    if (call->gate == GLA_GATE_CONSTANT) ((double *)call->dg.data)[head] = gate;
}

void GLA_NAME(backward)(const gla_call *call, float *scratch)
{
    arena whole = {scratch, 0};
    pass p = pass_at(call, &whole);
    int64_t heads = call->sequences * call->heads;
    if (call->segments > 1) {
        gla_run(heads * (call->segments - 1), call->threads, summarize_segment, &p);
        gla_run(heads, call->threads, scan_segments, &p);
    }
    gla_run(call->sequences * closed_groups(call) * call->segments, call->threads, backward_group, &p);
    if (call->gate == GLA_GATE_CONSTANT || call->bonus.data || shares_initial_state(call))
        gla_run(call->heads, call->threads, add_partials, &p);
}
