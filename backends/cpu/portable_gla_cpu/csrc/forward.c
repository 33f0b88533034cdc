/* The forward pass. A task is one (sequence, head, segment, tile of V): it walks its chunks, its part of the state in
 * scratch. With more than one segment two passes come before: every segment's end state from zero, then a scan that
 * turns these into start states. */
#include "scores.h"
#include "states.h"
#include "threads.h"

/* A worker's scratch. */
typedef struct {
    chunk c;
    float *state;   /* panels of the tile of V: [tile / 32][K][32] */
    float *another; /* as `state`, for the scan */
    float *out;     /* [16][tile] */
} workspace;

/* One segment's link in the scan. */
typedef struct {
    float *state;  /* panels of all of V: the end state from zero, then the start state */
    float *decay;  /* [K]: all decays of the segment */
    float *growth; /* [1]: at most so many nats does any channel grow */
} link;

typedef struct {
    const gla_call *call;
    float *scratch;
    int64_t scratch_floats; /* of one worker */
    float *links;           /* [N, H, segments] */
} pass;

typedef struct {
    stream at;
    int64_t segment;
    range tokens;
    int64_t value, value_dim; /* the tile's first column and its width */
} task;

static int64_t tile_width(const gla_call *call)
{
    int64_t panels = (call->value_dim + GLA_PANEL - 1) / GLA_PANEL;
    return (panels + call->value_tiles - 1) / call->value_tiles * GLA_PANEL;
}

static workspace workspace_at(arena *scratch, const gla_call *call)
{
    int64_t width = gla_min(tile_width(call), call->value_dim);
    workspace w = {.c = chunk_at(scratch, call, width)};
    w.state = take(scratch, panels_floats(call->key_dim, width));
    if (call->segments > 1) w.another = take(scratch, panels_floats(call->key_dim, width));
    w.out = take(scratch, GLA_CHUNK * w.c.values);
    return w;
}

static link link_at(arena *scratch, const gla_call *call)
{
    link found;
    found.state = take(scratch, panels_floats(call->key_dim, call->value_dim));
    found.decay = take(scratch, gla_round_up(call->key_dim, GLA_PANEL));
    found.growth = take(scratch, 1);
    return found;
}

static int64_t workspace_floats(const gla_call *call)
{
    arena measured = {0};
    workspace_at(&measured, call);
    return measured.floats;
}

static int64_t link_floats(const gla_call *call)
{
    arena measured = {0};
    link_at(&measured, call);
    return measured.floats;
}

int64_t GLA_NAME(forward_workspace)(const gla_call *call)
{
    int64_t links = call->segments > 1 ? call->sequences * call->heads * call->segments : 0;
    return call->threads * workspace_floats(call) + links * link_floats(call);
}

/* Tiles of V vary fastest, then segments, heads, sequences. */
static task task_at(const gla_call *call, int64_t index, int64_t segments)
{
    task t;
    t.value = index % call->value_tiles * tile_width(call);
    t.value_dim = gla_min(tile_width(call), call->value_dim - t.value); /* not positive: an idle tile */
    index /= call->value_tiles;
    t.segment = index % segments;
    index /= segments;
    t.at = (stream){call, sequence_at(call, index / call->heads), index % call->heads};
    t.tokens = segment_at(call, &t.at.s, t.segment);
    return t;
}

static workspace begin(const pass *p, const task *t, int64_t worker)
{
    arena scratch = {p->scratch + worker * p->scratch_floats, 0};
    workspace w = workspace_at(&scratch, p->call);
    w.c.value_dim = t->value_dim;
    chunk_begin_stream(&w.c, &t->at);
    return w;
}

static link link_of(const pass *p, const task *t, int64_t segment)
{
    int64_t index = (t->at.s.index * p->call->heads + t->at.head) * p->call->segments + segment;
    arena at = {p->links + index * link_floats(p->call), 0};
    link found = link_at(&at, p->call);
    found.state += t->value / GLA_PANEL * panel_floats(p->call->key_dim);
    return found;
}

static int64_t state_floats(const workspace *w) { return panels_floats(w->c.key_dim, w->c.value_dim); }

/* The task's columns of state n of a tensor. */
static matrix part_of(const gla_tensor *x, int64_t n, const task *t)
{
    const gla_call *call = t->at.call;
    return columns_of(state_of(x, n, t->at.head, call->key_dim, call->value_dim), t->value, t->value_dim);
}

static void load_initial_state(workspace *w, const task *t)
{
    const gla_tensor *initial = &t->at.call->initial_state;
    if (initial->data) panels_load(w->state, part_of(initial, t->at.s.index, t));
    else memset(w->state, 0, state_floats(w) * sizeof *w->state);
}

/* Advance one panel over the loaded chunk. */
static void advance_panel(float *panel, chunk *c, ptrdiff_t column)
{
    state_update(panel, panel, c->key_dim, gla_min(GLA_PANEL, c->value_dim - column), c->decay, true, c->k_decayed,
                 c->v + column_of(column), c->count, &c->fetch);
}

/* o of the loaded chunk, and the state after it. */
static void forward_chunk(workspace *w)
{
    chunk *c = &w->c;
    if (chunk_is_detached(c)) {
        chunk_detach_gate(c);
        panels_decay(w->state, NULL, c->detached, true, c->key_dim, c->value_dim);
    }
    chunk_scores(c);
    chunk_decay_queries(c, NULL);
    chunk_decay_keys(c, NULL, NULL);
    for (ptrdiff_t column = 0; column < c->value_dim; column += GLA_PANEL) {
        float *panel = w->state + column / GLA_PANEL * panel_floats(c->key_dim);
        state_read(w->out + column_of(column), c->count, gla_min(GLA_PANEL, c->value_dim - column), c->q_decayed,
                   panel, c->key_dim, c->scores, c->v + column_of(column), &c->fetch);
        advance_panel(panel, c, column);
    }
}

static void forward_tokens(workspace *w, const task *t, int64_t first, int count)
{
    chunk *c = &w->c;
    chunk_load_decays(c, &t->at, first, count);
    if (c->overflows && count > 1) {
        for (int i = 0; i < count; i++) forward_tokens(w, t, first + i, 1);
        return;
    }
    token_rows out = rows_of(&t->at, &t->at.call->o, first, count, t->value, t->value_dim);
    chunk_load_keys(c, &t->at, t->value);
    chunk_load_queries(c, &t->at);
    fetch_tokens(&c->fetch, out);
    forward_chunk(w);
    fetch_rest(&c->fetch);
    store_tokens(out, w->out, false);
}

/* Only the state of `tokens`; where `into` is given, multiply its decay and add up its growth. */
static void advance_tokens(workspace *w, const task *t, int64_t first, int count, link *into)
{
    chunk *c = &w->c;
    chunk_load_decays(c, &t->at, first, count);
    if (c->overflows && count > 1) {
        for (int i = 0; i < count; i++) advance_tokens(w, t, first + i, 1, into);
        return;
    }
    chunk_load_keys(c, &t->at, t->value);
    chunk_decay_keys(c, NULL, NULL);
    for (ptrdiff_t column = 0; column < c->value_dim; column += GLA_PANEL)
        advance_panel(w->state + column / GLA_PANEL * panel_floats(c->key_dim), c, column);
    fetch_rest(&c->fetch);
    if (into) {
        *into->growth += c->growth;
        for (ptrdiff_t n = 0; n < c->keys; n++) into->decay[n] *= c->decay[n];
    }
}

static void advance_range(workspace *w, const task *t, range tokens, link *into)
{
    for (int64_t i = tokens.first; i < tokens.last; i += GLA_CHUNK)
        advance_tokens(w, t, i, (int)chunk_count(i, tokens.last), into);
}

/* First pass: a segment's end state from zero. Nobody needs the last segment's. */
static void summarize_segment(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    task t = task_at(call, index, call->segments - 1);
    if (t.value_dim <= 0) return;
    workspace w = begin(p, &t, worker);
    link own = link_of(p, &t, t.segment), *into = t.value ? NULL : &own; /* one tile of V keeps what all share */
    if (into) {
        *own.growth = 0.0f;
        for (ptrdiff_t n = 0; n < w.c.keys; n++) own.decay[n] = 1.0f;
    }
    memset(w.state, 0, state_floats(&w) * sizeof *w.state);
    advance_range(&w, &t, t.tokens, into);
    memcpy(own.state, w.state, state_floats(&w) * sizeof *w.state);
}

/* Second pass: start states, from the first segment on. Where a segment's decays may overflow, run through it. */
static void scan_segments(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    task t = task_at(call, index, 1);
    if (t.value_dim <= 0) return;
    workspace w = begin(p, &t, worker);
    int64_t floats = state_floats(&w);
    load_initial_state(&w, &t);
    for (int64_t segment = 0; segment < call->segments; segment++) {
        link own = link_of(p, &t, segment);
        bool last = segment == call->segments - 1;
        if (!last) memcpy(w.another, own.state, floats * sizeof *w.state);
        memcpy(own.state, w.state, floats * sizeof *w.state);
        if (last) break;
        if (*own.growth > GROWTH) {
            advance_range(&w, &t, segment_at(call, &t.at.s, segment), NULL);
            continue;
        }
        panels_decay(w.state, w.another, own.decay, true, w.c.key_dim, w.c.value_dim);
    }
}

static void forward_segment(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_call *call = p->call;
    task t = task_at(call, index, call->segments);
    if (t.value_dim <= 0) return;
    workspace w = begin(p, &t, worker);
    if (call->segments > 1) memcpy(w.state, link_of(p, &t, t.segment).state, state_floats(&w) * sizeof *w.state);
    else load_initial_state(&w, &t);
    for (int64_t i = t.tokens.first; i < t.tokens.last; i += GLA_CHUNK) {
        if (call->residual.data && i > 0 && i % call->interval == 0)
            panels_store(part_of(&call->residual, t.at.s.slot + i / call->interval - 1, &t), w.state);
        forward_tokens(&w, &t, i, (int)chunk_count(i, t.tokens.last));
    }
    if (call->final_state.data && t.segment == call->segments - 1)
        panels_store(part_of(&call->final_state, t.at.s.index, &t), w.state);
}

void GLA_NAME(forward)(const gla_call *call, float *scratch)
{
    pass p = {call, scratch, workspace_floats(call), NULL};
    p.links = scratch + call->threads * p.scratch_floats;
    int64_t tiles = call->sequences * call->heads * call->value_tiles;
    if (call->segments > 1) {
        gla_run(tiles * (call->segments - 1), call->threads, summarize_segment, &p);
        gla_run(tiles, call->threads, scan_segments, &p);
    }
    gla_run(tiles * call->segments, call->threads, forward_segment, &p);
}
