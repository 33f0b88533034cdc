/* Runs forward, backward and decode on made-up inputs and prints a hash of every result's bits.
 *
 * Built for x86-64 and for 64-bit ARM, and run natively and under emulation, it must print the same: see run.sh. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gla.h"

const char *gla_choose(const char *isa);
int64_t gla_forward_workspace(const gla_call *), gla_backward_workspace(const gla_call *);
int64_t gla_decode_workspace(const gla_decode_call *);
int gla_forward(const gla_call *, float *), gla_backward(const gla_call *, float *);
int gla_decode(const gla_decode_call *, float *);

static uint32_t seed = 1;

static float uniform(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / (1 << 23) - 1.0f;
}

static void *room(int64_t bytes) { return aligned_alloc(64, (size_t)gla_round_up(bytes + 64, 64)); }

/* A tensor [b, t, h, d] of numbers from low to high, in a 16-bit dtype or float32. */
static gla_tensor tensor(int64_t b, int64_t t, int64_t h, int64_t d, int64_t dtype, float low, float high)
{
    int64_t size = dtype == GLA_FLOAT32 ? 4 : 2, count = b * t * h * d;
    gla_tensor x = {room(size * count), dtype, h, {t * h * d, h * d, d, 1}};
    for (int64_t i = 0; i < count; i++) {
        float value = low + (high - low) * 0.5f * (uniform() + 1.0f);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        uint16_t brain = (uint16_t)(bits >> 16), half = (uint16_t)((bits >> 16 & 0x8000) | 0x3000 | (bits >> 13 & 0x3ff));
        if (dtype == GLA_FLOAT32) memcpy(x.data + 4 * i, &value, 4);
        else memcpy(x.data + 2 * i, dtype == GLA_BFLOAT16 ? &brain : &half, 2);
    }
    return x;
}

static void print(const char *name, gla_tensor x, int64_t count)
{
    int64_t bytes = count * (x.dtype == GLA_FLOAT32 ? 4 : x.dtype == GLA_FLOAT64 ? 8 : 2);
    uint64_t hash = 1469598103934665603u;
    for (int64_t i = 0; i < bytes; i++) hash = (hash ^ (unsigned char)x.data[i]) * 1099511628211u;
    printf(" %s=%016llx", name, (unsigned long long)hash);
}

static void run(int64_t b, int64_t t, int64_t h, int64_t hk, int64_t k, int64_t v, int64_t dtype, int gate, int bonus,
                int64_t segments, float strong)
{
    gla_call c = {.batch = b, .tokens = t, .heads = h, .key_dim = k, .value_dim = v, .sequences = b, .gate = gate,
                  .segments = segments, .value_tiles = 1, .interval = 256, .threads = 1, .scale = 0.25};
    c.q = tensor(b, t, h, k, dtype, -1, 1), c.k = tensor(b, t, hk, k, dtype, -1, 1);
    c.v = tensor(b, t, h, v, dtype, -1, 1), c.do_ = tensor(b, t, h, v, dtype, -1, 1);
    c.g = tensor(b, t, h, gate == GLA_GATE_CHANNEL ? k : 1, GLA_FLOAT32, -strong, 0);
    if (gate == GLA_GATE_HEAD) c.g.stride[3] = 0;
    for (int64_t i = 0; i < b * t * h; i += 7) ((float *)c.g.data)[i] = i % 2 ? -1e5f : -INFINITY;
    if (bonus) c.bonus = tensor(1, 1, h, k, GLA_FLOAT32, -1, 1), c.bonus.stride[0] = k, c.bonus.stride[1] = 1;
    c.initial_state = tensor(b, h, k, v, GLA_FLOAT32, -1, 1), c.dfinal_state = tensor(b, h, k, v, GLA_FLOAT32, -1, 1);
    c.residual = tensor(b * (t / 256), h, k, v, GLA_FLOAT32, 0, 0);
    c.o = tensor(b, t, h, v, dtype, 0, 0), c.final_state = tensor(b, h, k, v, GLA_FLOAT32, 0, 0);
    c.dq = tensor(b, t, h, k, dtype, 0, 0), c.dk = tensor(b, t, hk, k, hk == h ? dtype : GLA_FLOAT32, 0, 0);
    c.dv = tensor(b, t, h, v, dtype, 0, 0), c.dg = tensor(b, t, h, gate == GLA_GATE_CHANNEL ? k : 1, GLA_FLOAT32, 0, 0);
    if (gate == GLA_GATE_HEAD) c.dg.stride[3] = 0;
    c.dinitial_state = tensor(b, h, k, v, GLA_FLOAT32, 0, 0);
    if (bonus) c.dbonus = tensor(1, 1, h, k, GLA_FLOAT32, 0, 0), c.dbonus.stride[0] = k, c.dbonus.stride[1] = 1;
    if (gla_forward(&c, room(4 * gla_forward_workspace(&c))) || gla_backward(&c, room(4 * gla_backward_workspace(&c))))
        exit(1);
    printf("B%d T%d H%d/%d K%d V%d dtype%d gate%d bonus%d segments%d:", (int)b, (int)t, (int)h, (int)hk, (int)k, (int)v,
           (int)dtype, gate, bonus, (int)segments);
    print("o", c.o, b * t * h * v), print("final", c.final_state, b * h * k * v);
    print("dq", c.dq, b * t * h * k), print("dk", c.dk, b * t * hk * k), print("dv", c.dv, b * t * h * v);
    print("dg", c.dg, b * t * h * (gate == GLA_GATE_CHANNEL ? k : 1)), print("ds", c.dinitial_state, b * h * k * v);
    if (bonus) print("du", c.dbonus, h * k);
    gla_decode_call d = {.batch = b, .tokens = 2, .heads = h, .key_dim = k, .value_dim = v, .pool = b, .gate = gate,
                         .threads = 1, .scale = 0.25, .q = c.q, .k = c.k, .v = c.v, .g = c.g, .bonus = c.bonus,
                         .state = c.initial_state, .out = tensor(b, 2, h, v, dtype, 0, 0)};
    if (gla_decode(&d, room(4 * gla_decode_workspace(&d)))) exit(1);
    print("decoded", d.out, b * 2 * h * v), print("state", d.state, b * h * k * v);
    printf("\n");
}

int main(int count, char **arguments)
{
    const char *isa = gla_choose(count > 1 ? arguments[1] : "");
    if (!isa) return 2;
    fprintf(stderr, "%s\n", isa);
    run(1, 40, 2, 1, 128, 128, GLA_FLOAT32, GLA_GATE_CHANNEL, 0, 1, 1.0f);
    run(2, 300, 2, 2, 17, 33, GLA_FLOAT32, GLA_GATE_CHANNEL, 1, 2, 20.0f);
    run(1, 70, 3, 3, 64, 100, GLA_BFLOAT16, GLA_GATE_HEAD, 0, 1, 0.1f);
    run(1, 530, 1, 1, 1, 1, GLA_FLOAT16, GLA_GATE_CHANNEL, 1, 3, 5.0f);
    run(1, 20, 2, 2, 8, 24, GLA_FLOAT32, GLA_GATE_CHANNEL, 0, 1, 1.0f);
    run(1, 50, 4, 2, 100, 5, GLA_FLOAT16, GLA_GATE_HEAD, 1, 1, 1.0f);
    return 0;
}
