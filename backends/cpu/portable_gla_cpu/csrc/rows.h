/* Rows of numbers between the user's tensors, of any float type and stride, and float32 scratch. */
#ifndef GLA_ROWS_H
#define GLA_ROWS_H

#include <stdbool.h>

#include "simd.h"

enum { ITEM_SIZE_TYPES = 4 };
static const int8_t item_size[ITEM_SIZE_TYPES] = {[GLA_FLOAT32] = 4, [GLA_FLOAT16] = 2, [GLA_BFLOAT16] = 2,
                                                  [GLA_FLOAT64] = 8};

GLA_INLINE char *element(const gla_tensor *x, int64_t offset) { return x->data + offset * item_size[x->dtype]; }

/* Whole vectors; the types that have them. */
GLA_INLINE vec load_vector(const char *p, int64_t dtype)
{
    if (dtype == GLA_FLOAT16) return vec_load_half((const void *)p);
    if (dtype == GLA_BFLOAT16) return vec_load_bfloat16((const void *)p);
    return vec_load((const void *)p);
}

GLA_INLINE void store_vector(char *p, int64_t dtype, vec x)
{
    if (dtype == GLA_FLOAT16) vec_store_half((void *)p, x);
    else if (dtype == GLA_BFLOAT16) vec_store_bfloat16((void *)p, x);
    else vec_store((void *)p, x);
}

/* Single numbers go through a vector, so that their rounding is the same. */
GLA_INLINE float load_one(const char *p, int64_t dtype)
{
    if (dtype == GLA_FLOAT32) return *(const float *)p;
    if (dtype == GLA_FLOAT64) return (float)*(const double *)p;
    uint16_t in[LANES] = {*(const uint16_t *)p};
    return dtype == GLA_FLOAT16 ? vec_load_half(in)[0] : vec_load_bfloat16(in)[0];
}

GLA_INLINE void store_one(char *p, int64_t dtype, float x)
{
    if (dtype == GLA_FLOAT32) {
        *(float *)p = x;
    } else if (dtype == GLA_FLOAT64) {
        *(double *)p = x;
    } else {
        uint16_t out[LANES];
        if (dtype == GLA_FLOAT16) vec_store_half(out, vec_splat(x));
        else vec_store_bfloat16(out, vec_splat(x));
        *(uint16_t *)p = out[0];
    }
}

GLA_INLINE void load_typed(float *out, const char *in, int64_t dtype, int64_t stride, int64_t count)
{
    int64_t size = item_size[dtype], i = 0;
    if (stride == 1 && dtype != GLA_FLOAT64)
        for (; i + LANES <= count; i += LANES) vec_store(out + i, load_vector(in + i * size, dtype));
    for (; i < count; i++) out[i] = load_one(in + i * stride * size, dtype);
}

/* Load `count` numbers and zeros up to `padded`. */
static inline void load_row(float *out, const gla_tensor *x, int64_t offset, int64_t stride, int64_t count,
                            int64_t padded)
{
    const char *in = element(x, offset);
    switch (x->dtype) {
    case GLA_FLOAT16: load_typed(out, in, GLA_FLOAT16, stride, count); break;
    case GLA_BFLOAT16: load_typed(out, in, GLA_BFLOAT16, stride, count); break;
    case GLA_FLOAT64: load_typed(out, in, GLA_FLOAT64, stride, count); break;
    default: load_typed(out, in, GLA_FLOAT32, stride, count);
    }
    for (int64_t i = count; i < padded; i++) out[i] = 0.0f;
}

GLA_INLINE void store_typed(char *out, const float *in, int64_t dtype, int64_t stride, int64_t count, bool add)
{
    int64_t size = item_size[dtype], i = 0;
    if (stride == 1 && dtype != GLA_FLOAT64)
        for (; i + LANES <= count; i += LANES) {
            vec x = vec_load(in + i);
            if (add) x += load_vector(out + i * size, dtype);
            store_vector(out + i * size, dtype, x);
        }
    for (; i < count; i++) {
        char *p = out + i * stride * size;
        store_one(p, dtype, add ? load_one(p, dtype) + in[i] : in[i]);
    }
}

/* Store `count` numbers, or add them to what is there. */
static inline void store_row(const gla_tensor *x, int64_t offset, int64_t stride, const float *in, int64_t count,
                             bool add)
{
    char *out = element(x, offset);
    switch (x->dtype) {
    case GLA_FLOAT16: store_typed(out, in, GLA_FLOAT16, stride, count, add); break;
    case GLA_BFLOAT16: store_typed(out, in, GLA_BFLOAT16, stride, count, add); break;
    case GLA_FLOAT64: store_typed(out, in, GLA_FLOAT64, stride, count, add); break;
    default: store_typed(out, in, GLA_FLOAT32, stride, count, add);
    }
}

#endif
