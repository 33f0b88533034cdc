// One warp's mma.sync.m8n8k4: four products of 8 x 4 by 4 x 8 at once, one in each quad-pair.
//
// Quad-pair p is lanes 4p to 4p + 3 and 4p + 16 to 4p + 19. With i the lane's number in its quad and h its half of the
// warp, a lane holds of A by rows: row i + 4h, all four k; of A by columns: k = i, rows 4h to 4h + 3; of B by columns
// and by rows the same with columns in place of rows; of C in float32, element e: row (i & 1) + (e & 2) + 4h, column
// (e & 4) + (i & 2) + (e & 1).
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_TENSOR_CORE
#define PORTABLE_GLA_VOLTA_EMULATOR_TENSOR_CORE

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace emulator {

struct Fragments {
    float *c[32];
    const unsigned *a[32];
    const unsigned *b[32];
};

// What V100 makes of four exact products and an accumulator: all five are cut to multiples of the last of 24 bits of
// the largest, added, and the sum is cut to 24 bits again. After Fasi, Higham, Mikaitis and Pranesh, "Numerical
// behavior of NVIDIA tensor cores" (2021), and without their rarer cases.
// Four sums at once; the compiler's vectors have operators.
typedef double Doubles __attribute__((vector_size(32), may_alias));
typedef int64_t Bits __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(16)));

inline Doubles size_of(Doubles x) { return (Doubles)((Bits)x & INT64_MAX); }
inline Doubles larger_of(Doubles x, Doubles y) { return x > y ? x : y; }

inline Doubles truncated_sum(Doubles c, Doubles x, Doubles y, Doubles z, Doubles w) {
    const Doubles largest = larger_of(larger_of(larger_of(size_of(x), size_of(y)), larger_of(size_of(z), size_of(w))),
                                      size_of(c));
    const Bits exponent = (Bits)largest >> 52;
    const Doubles up = (Doubles)((2 * 1023 + 23 - exponent) << 52);  // to units of the last of 24 bits
    const Doubles down = (Doubles)((exponent - 23) << 52);
    const auto cut = [up](Doubles term) { return __builtin_convertvector(term * up, Whole); };
    const Doubles sum = __builtin_convertvector(cut(c) + cut(x) + cut(y) + cut(z) + cut(w), Doubles) * down;
    const Doubles plain = c + x + y + z + w;
    const Bits usable = (largest > 0.0) & (size_of(plain) < HUGE_VAL);  // else zero, infinite or NaN
    return usable ? (Doubles)((Bits)sum & ~((int64_t{1} << 29) - 1)) : plain;
}

template <bool TRUNCATE> void multiply(const Fragments &warp, bool a_row, bool b_column) {
    float a[32][4], b[32][4];  // by lane, as they come
    unsigned halves[2][32][4];
    for (int lane = 0; lane < 32; ++lane)
        for (int k = 0; k < 4; ++k) {
            halves[0][lane][k] = warp.a[lane][k >> 1] >> (16 * (k & 1)) & 0xffffu;
            halves[1][lane][k] = warp.b[lane][k >> 1] >> (16 * (k & 1)) & 0xffffu;
        }
    for (int n = 0; n < 128; ++n) (&a[0][0])[n] = from_half((&halves[0][0][0])[n]);
    for (int n = 0; n < 128; ++n) (&b[0][0])[n] = from_half((&halves[1][0][0])[n]);
    for (int pair = 0; pair < 4; ++pair) {
        double rows[8][4];
        alignas(64) double columns[4][8], sums[8][8];
        for (int member = 0; member < 8; ++member) {
            const int lane = 4 * pair + (member & 3) + (member >> 2) * 16, half = member & 4;
            for (int k = 0; k < 4; ++k) {
                if (a_row) rows[member][k] = a[lane][k];
                else rows[half + k][member & 3] = a[lane][k];
                if (b_column) columns[k][member] = b[lane][k];
                else columns[member & 3][half + k] = b[lane][k];
            }
            for (int e = 0; e < 8; ++e)
                sums[(member & 1) + (e & 2) + half][(e & 4) + (member & 2) + (e & 1)] = warp.c[lane][e];
        }
        for (int row = 0; row < 8; ++row) {
            for (int side = 0; side < 8; side += 4) {
                const auto product = [&](int k) {  // exact: 22 bits
                    return *reinterpret_cast<const Doubles *>(&columns[k][side]) * rows[row][k];
                };
                Doubles &sum = *reinterpret_cast<Doubles *>(&sums[row][side]);
                sum = TRUNCATE ? truncated_sum(sum, product(0), product(1), product(2), product(3))
                               : sum + product(0) + product(1) + product(2) + product(3);
            }
        }
        for (int member = 0; member < 8; ++member) {
            const int lane = 4 * pair + (member & 3) + (member >> 2) * 16, half = member & 4;
            for (int e = 0; e < 8; ++e)
                warp.c[lane][e] = static_cast<float>(
                    sums[(member & 1) + (e & 2) + half][(e & 4) + (member & 2) + (e & 1)]);
        }
    }
}

}  // namespace emulator

#endif
