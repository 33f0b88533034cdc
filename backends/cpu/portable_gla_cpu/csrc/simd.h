/* Vectors of float32 for one instruction set.
 *
 * The operators + - * work on `vec` (a GNU vector type); what needs an instruction of its own is wrapped here.
 * Results are the same on every instruction set: a lane never meets another but in `fold`, whose order is fixed.
 */
#ifndef GLA_SIMD_H
#define GLA_SIMD_H

#include <stdint.h>
#include <string.h>

#include "gla.h"

#if defined(__AVX512F__)

#include <immintrin.h>
enum { LANES = 16 };
typedef __m512 vec;
GLA_INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
GLA_INLINE void vec_store(float *p, vec x) { _mm512_storeu_ps(p, x); }
GLA_INLINE vec vec_splat(float x) { return _mm512_set1_ps(x); }
GLA_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
GLA_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
GLA_INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); } /* b where either is NaN */
GLA_INLINE vec vec_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
GLA_INLINE void vec_store_half(uint16_t *p, vec x)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__AVX2__)

#include <immintrin.h>
enum { LANES = 8 };
typedef __m256 vec;
GLA_INLINE vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
GLA_INLINE void vec_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
GLA_INLINE vec vec_splat(float x) { return _mm256_set1_ps(x); }
GLA_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
GLA_INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); } /* b where either is NaN */
GLA_INLINE vec vec_min(vec a, vec b) { return _mm256_min_ps(a, b); } /* b where either is NaN */
GLA_INLINE vec vec_load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
GLA_INLINE void vec_store_half(uint16_t *p, vec x)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(__aarch64__)

#include <arm_neon.h>
enum { LANES = 4 };
typedef float32x4_t vec;
GLA_INLINE vec vec_load(const float *p) { return vld1q_f32(p); }
GLA_INLINE void vec_store(float *p, vec x) { vst1q_f32(p, x); }
GLA_INLINE vec vec_splat(float x) { return vdupq_n_f32(x); }
GLA_INLINE vec vec_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
GLA_INLINE vec vec_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); } /* b where either is NaN */
GLA_INLINE vec vec_min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); } /* b where either is NaN */
GLA_INLINE vec vec_load_half(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
GLA_INLINE void vec_store_half(uint16_t *p, vec x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }

#else
#error "no vectors for this instruction set"
#endif

enum { PARTS = GLA_CHUNK / LANES }; /* vectors that hold 16 floats: a token each, or a partial sum each */

typedef int32_t vec_int __attribute__((vector_size(4 * LANES)));
typedef uint32_t vec_bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t vec_short __attribute__((vector_size(2 * LANES)));
typedef float quad __attribute__((vector_size(16)));

GLA_INLINE vec vec_zero(void) { return vec_splat(0.0f); }

GLA_INLINE vec vec_abs(vec x) { return (vec)((vec_bits)x & 0x7fffffff); }

GLA_INLINE vec vec_load_bfloat16(const uint16_t *p)
{
    vec_short x;
    memcpy(&x, p, sizeof x);
    return (vec)(__builtin_convertvector(x, vec_bits) << 16);
}

/* Round to nearest, ties to even; NaN stays NaN. */
GLA_INLINE void vec_store_bfloat16(uint16_t *p, vec x)
{
    vec_bits bits = (vec_bits)x, nan = (vec_bits)(x != x);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vec_short out = __builtin_convertvector((bits & ~nan) | (nan & 0x7fc0), vec_short);
    memcpy(p, &out, sizeof out);
}

/* The 16 partial sums of one number, l + (l + 8) first, then + 4: four are left. */
GLA_INLINE quad fold(const vec x[PARTS])
{
#if defined(__AVX512F__)
    __m256 half = _mm512_castps512_ps256(x[0]) + _mm512_extractf32x8_ps(x[0], 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#elif defined(__AVX2__)
    __m256 half = x[0] + x[1];
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t quad_int __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (quad_int){i, j, k, l})
#endif

/* Finish four folded sums: lane n is the sum of the n-th. */
GLA_INLINE quad fold_four(quad a, quad b, quad c, quad d)
{
    quad ab = SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
    quad cd = SHUFFLE(c, d, 0, 1, 4, 5) + SHUFFLE(c, d, 2, 3, 6, 7);
    return SHUFFLE(ab, cd, 0, 2, 4, 6) + SHUFFLE(ab, cd, 1, 3, 5, 7);
}

GLA_INLINE float fold_one(const vec x[PARTS])
{
    quad a = fold(x);
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* out[c][r] = in[r][c] for a block of 4 by 4. */
GLA_INLINE void transpose_four(float *out, ptrdiff_t out_stride, const float *in, ptrdiff_t in_stride)
{
    quad r[4];
    for (int i = 0; i < 4; i++) memcpy(&r[i], in + i * in_stride, sizeof r[i]);
    quad a = SHUFFLE(r[0], r[1], 0, 4, 1, 5), b = SHUFFLE(r[2], r[3], 0, 4, 1, 5);
    quad c = SHUFFLE(r[0], r[1], 2, 6, 3, 7), d = SHUFFLE(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE(a, b, 0, 1, 4, 5);
    r[1] = SHUFFLE(a, b, 2, 3, 6, 7);
    r[2] = SHUFFLE(c, d, 0, 1, 4, 5);
    r[3] = SHUFFLE(c, d, 2, 3, 6, 7);
    for (int i = 0; i < 4; i++) memcpy(out + i * out_stride, &r[i], sizeof r[i]);
}

/* out[c][r] = in[r][c]; rows and columns are multiples of 4. */
GLA_INLINE void transpose(float *out, ptrdiff_t out_stride, const float *in, ptrdiff_t in_stride, ptrdiff_t rows,
                          ptrdiff_t columns)
{
    for (ptrdiff_t c = 0; c < columns; c += 4)
        for (ptrdiff_t r = 0; r < rows; r += 4)
            transpose_four(out + c * out_stride + r, out_stride, in + r * in_stride + c, in_stride);
}

#endif
