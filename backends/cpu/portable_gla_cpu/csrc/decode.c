/* Decoding: the recurrence itself, token by token, on states that are updated in place. A task is one (sequence, head).
 */
#include "arena.h"
#include "exponential.h"
#include "rows.h"
#include "threads.h"

typedef struct {
    const gla_decode_call *call;
    float *scratch;
    int64_t scratch_floats; /* of one worker */
} pass;

typedef struct {
    float *q, *k, *e, *bonus; /* [K] */
    float *v, *out;           /* [V] */
    float *state;             /* [K][V], where the tensor's own rows cannot be used */
    int64_t keys, values;     /* K and V, padded */
} workspace;

/* Rows of float32 numbers in order are updated where they are, if they end where the padded ones would. */
static bool in_place(const gla_decode_call *call)
{
    return call->state.dtype == GLA_FLOAT32 && call->state.stride[3] == 1 && call->value_dim % 16 == 0;
}

static workspace workspace_at(arena *scratch, const gla_decode_call *call)
{
    workspace w = {.keys = gla_round_up(call->key_dim, 16), .values = gla_round_up(call->value_dim, 16)};
    w.q = take(scratch, w.keys);
    w.k = take(scratch, w.keys);
    w.e = take(scratch, w.keys);
    w.bonus = take(scratch, w.keys);
    w.v = take(scratch, w.values);
    w.out = take(scratch, w.values);
    w.state = take(scratch, call->key_dim * w.values);
    return w;
}

static int64_t workspace_floats(const gla_decode_call *call)
{
    arena measured = {0};
    workspace_at(&measured, call);
    return measured.floats;
}

int64_t GLA_NAME(decode_workspace)(const gla_decode_call *call) { return call->threads * workspace_floats(call); }

static int64_t offset_of(const gla_tensor *x, int64_t row, int64_t token, int64_t head, int64_t heads)
{
    return row * x->stride[0] + token * x->stride[1] + head * x->heads / heads * x->stride[2];
}

static void load_decays(workspace *w, const gla_decode_call *call, int64_t row, int64_t token, int64_t head)
{
    const gla_tensor *g = &call->g;
    if (call->gate == GLA_GATE_CHANNEL) {
        load_row(w->e, g, offset_of(g, row, token, head, call->heads), g->stride[3], call->key_dim, w->keys);
    } else {
        float gate = 0.0f;
        if (call->gate != GLA_GATE_NONE)
            gate = load_one(element(g, offset_of(g, row, token, head, call->heads)), g->dtype);
        for (int64_t i = 0; i < w->keys; i++) w->e[i] = gate;
    }
    for (int64_t i = 0; i < w->keys; i += LANES) vec_store(w->e + i, vec_exp(vec_load(w->e + i)));
}

/* One token on columns [n, n + vectors · LANES) of a state whose rows lie `stride` apart. */
GLA_INLINE void step(const workspace *w, float *state, int64_t stride, int64_t key_dim, int64_t n, int vectors,
                     bool bonus)
{
    vec sum[4], v[4];
    for (int i = 0; i < vectors; i++) {
        sum[i] = vec_zero();
        v[i] = vec_load(w->v + n + i * LANES);
    }
    for (int64_t m = 0; m < key_dim; m++) {
        vec q = vec_splat(w->q[m]), k = vec_splat(w->k[m]), e = vec_splat(w->e[m]), u = k;
        if (bonus) u *= vec_splat(w->bonus[m]);
        for (int i = 0; i < vectors; i++) {
            float *at = state + m * stride + n + i * LANES;
            vec before = vec_load(at), after = vec_fma(k, v[i], e * before);
            vec read = after;
            if (bonus) read = vec_fma(u, v[i], before);
            sum[i] = vec_fma(q, read, sum[i]);
            vec_store(at, after);
        }
    }
    for (int i = 0; i < vectors; i++) vec_store(w->out + n + i * LANES, sum[i]);
}

/* One token on all columns; `columns`, a multiple of the lanes, ends before what is not the state's. */
static void token(const workspace *w, const gla_decode_call *call, float *state, int64_t stride, int64_t columns)
{
    int64_t n = 0;
    bool bonus = call->bonus.data;
    for (; n + 4 * LANES <= columns; n += 4 * LANES)
        if (bonus) step(w, state, stride, call->key_dim, n, 4, true);
        else step(w, state, stride, call->key_dim, n, 4, false);
    for (; n < columns; n += LANES) step(w, state, stride, call->key_dim, n, 1, bonus);
}

static void decode_sequence(const void *data, int64_t index, int64_t worker)
{
    const pass *p = data;
    const gla_decode_call *call = p->call;
    arena scratch = {p->scratch + worker * p->scratch_floats, 0};
    workspace w = workspace_at(&scratch, call);
    int64_t head = index % call->heads, row = index / call->heads, slot = row;
    const gla_tensor *s = &call->slots, *o = &call->out;
    if (s->data)
        slot = s->dtype == GLA_INT32 ? ((const int32_t *)s->data)[row * s->stride[0]]
                                     : ((const int64_t *)s->data)[row * s->stride[0]];
    if (slot < 0) {
        memset(w.out, 0, w.values * sizeof *w.out);
        for (int64_t t = 0; t < call->tokens; t++)
            store_row(o, offset_of(o, row, t, head, call->heads), o->stride[3], w.out, call->value_dim, false);
        return;
    }
    const gla_tensor *x = &call->state;
    int64_t at = slot * x->stride[0] + head * x->stride[1], stride = w.values, columns = w.values;
    float *state = w.state;
    if (in_place(call)) {
        state = (float *)element(x, at);
        stride = x->stride[2];
        columns = call->value_dim;
    } else {
        for (int64_t m = 0; m < call->key_dim; m++)
            load_row(state + m * stride, x, at + m * x->stride[2], x->stride[3], call->value_dim, w.values);
    }
    if (call->bonus.data)
        load_row(w.bonus, &call->bonus, head * call->bonus.stride[0], call->bonus.stride[1], call->key_dim, w.keys);
    vec scale = vec_splat((float)call->scale);
    for (int64_t t = 0; t < call->tokens; t++) {
        load_row(w.q, &call->q, offset_of(&call->q, row, t, head, call->heads), call->q.stride[3], call->key_dim,
                 w.keys);
        load_row(w.k, &call->k, offset_of(&call->k, row, t, head, call->heads), call->k.stride[3], call->key_dim,
                 w.keys);
        load_row(w.v, &call->v, offset_of(&call->v, row, t, head, call->heads), call->v.stride[3], call->value_dim,
                 w.values);
        load_decays(&w, call, row, t, head);
        for (int64_t i = 0; i < w.keys; i += LANES) vec_store(w.q + i, vec_load(w.q + i) * scale);
        token(&w, call, state, stride, columns);
        store_row(o, offset_of(o, row, t, head, call->heads), o->stride[3], w.out, call->value_dim, false);
    }
    if (!in_place(call))
        for (int64_t m = 0; m < call->key_dim; m++)
            store_row(x, at + m * x->stride[2], x->stride[3], state + m * stride, call->value_dim, false);
}

void GLA_NAME(decode)(const gla_decode_call *call, float *scratch)
{
    pass p = {call, scratch, workspace_floats(call)};
    gla_run(call->batch * call->heads, call->threads, decode_sequence, &p);
}

typedef struct {
    float *out;
    const float *in;
    int64_t count;
} exponential_call;

static void exponentials(const void *data, int64_t task, int64_t worker)
{
    const exponential_call *call = data;
    (void)task;
    (void)worker;
    for (int64_t i = 0; i < call->count; i += LANES) vec_store(call->out + i, vec_exp(vec_load(call->in + i)));
}

void GLA_NAME(exponential)(float *out, const float *in, int64_t count)
{
    exponential_call call = {out, in, count};
    gla_run(1, 1, exponentials, &call); /* as a task, for its floating-point mode */
}
