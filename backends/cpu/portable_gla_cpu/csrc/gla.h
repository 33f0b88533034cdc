/* What Python hands over, and what the parts of the library share.
 *
 * Every field of the structures is eight bytes wide, so that Python packs a call as one flat record (marshal.py).
 */
#ifndef GLA_H
#define GLA_H

#include <stddef.h>
#include <stdint.h>

enum { GLA_CHUNK = 16 }; /* tokens computed at once; also the number of partial sums of every reduction */
enum { GLA_PANEL = 32 }; /* columns of a state panel, see panels.h */

enum { GLA_FLOAT32, GLA_FLOAT16, GLA_BFLOAT16, GLA_FLOAT64, GLA_INT32, GLA_INT64 };           /* gla_tensor.dtype */
enum { GLA_GATE_NONE, GLA_GATE_CONSTANT, GLA_GATE_HEAD, GLA_GATE_CHANNEL };                   /* gla_call.gate */
enum { GLA_OK, GLA_BAD_SEQUENCES, GLA_BAD_SLOTS };                                            /* returned codes */

typedef struct {
    char *data; /* NULL: absent */
    int64_t dtype;
    int64_t heads;     /* Hx, of which output head h reads h * Hx / H; unused in a state */
    int64_t stride[4]; /* in elements: [B, T, Hx, D], or [N, H, K, V] for a state */
} gla_tensor;

/* One attention call. Shapes as in portable_gla.backend.Call; a gradient has its input's shape. */
typedef struct {
    int64_t batch, tokens, heads, key_dim, value_dim, sequences;
    int64_t gate, reverse;
    int64_t segments;    /* parts of a sequence that run in parallel, at the price of one more pass */
    int64_t value_tiles; /* forward: parts of V that run in parallel */
    int64_t interval;    /* tokens between two saved states, a multiple of GLA_CHUNK */
    int64_t threads;
    double scale;
    gla_tensor cu_seqlens, q, k, v, g, bonus, initial_state;
    gla_tensor residual; /* float32 [slots, H, K, V], contiguous; slots: see sequences.h */
    gla_tensor o, final_state;
    gla_tensor do_, dfinal_state;
    gla_tensor dq, dk, dv, dg, dinitial_state, dbonus; /* dg of a constant gate, dbonus: float32 partial sums */
} gla_call;

typedef struct {
    int64_t batch, tokens, heads, key_dim, value_dim, pool;
    int64_t gate, threads;
    double scale;
    gla_tensor q, k, v, g, bonus, state, slots, out;
} gla_decode_call;

/* The entry points of one instruction set; workspace sizes are in floats. */
typedef struct {
    const char *name;
    int64_t (*forward_workspace)(const gla_call *);
    int64_t (*backward_workspace)(const gla_call *);
    int64_t (*decode_workspace)(const gla_decode_call *);
    void (*forward)(const gla_call *, float *workspace);
    void (*backward)(const gla_call *, float *workspace);
    void (*decode)(const gla_decode_call *, float *workspace);
    void (*exponential)(float *out, const float *in, int64_t count);
} gla_kernels;

/* Names of one instruction set's functions: GLA_NAME(forward) is gla_forward_avx2 where GLA_ISA is avx2. */
#define GLA_JOIN(name, isa) gla_##name##_##isa
#define GLA_EXPAND(name, isa) GLA_JOIN(name, isa)
#define GLA_NAME(name) GLA_EXPAND(name, GLA_ISA)

#define GLA_INLINE static inline __attribute__((always_inline))

GLA_INLINE int64_t gla_round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }
GLA_INLINE int64_t gla_min(int64_t a, int64_t b) { return a < b ? a : b; }
GLA_INLINE int64_t gla_max(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
