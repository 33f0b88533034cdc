/* exp of float32 vectors, within 1.1 units in the last place. */
#ifndef GLA_EXPONENTIAL_H
#define GLA_EXPONENTIAL_H

#include "simd.h"

/* exp(x) = 2^n · exp(r) with |r| ≤ ln 2 / 2.
 *
 * The coefficients are a minimax fit of (exp(r) − 1 − r) / r², error 3e-9 of exp(r). 2^n goes on in two factors, since
 * n reaches 128; below the smallest normal number the product is zero, above the largest it is infinite, NaN stays.
 */
GLA_INLINE vec vec_exp(vec x)
{
    x = vec_max(vec_splat(-120.0f), vec_min(vec_splat(89.0f), x));
    const vec magic = vec_splat(0x1.8p23f); /* adding it leaves the nearest integer in the low bits */
    vec shifted = vec_fma(x, vec_splat(0x1.715476p+0f), magic);
    vec n = shifted - magic;
    vec r = vec_fma(n, vec_splat(-0x1.63p-1f), x); /* ln 2 in two parts, the first exact times any n */
    r = vec_fma(n, vec_splat(0x1.bd0106p-13f), r);
    vec p = vec_splat(0x1.6a23cep-10f);
    p = vec_fma(p, r, vec_splat(0x1.123a2p-7f));
    p = vec_fma(p, r, vec_splat(0x1.5558f2p-5f));
    p = vec_fma(p, r, vec_splat(0x1.555492p-3f));
    p = vec_fma(p, r, vec_splat(0x1.fffffcp-2f));
    p = vec_fma(p, r * r, r) + vec_splat(1.0f);
    vec_int exponent = (vec_int)shifted - (vec_int)magic;
    vec_int half = exponent >> 1;
    return p * (vec)((half + 127) << 23) * (vec)((exponent - half + 127) << 23);
}

#endif
