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

inline uint64_t double_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}

inline double double_of(uint64_t bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// What V100 makes of four exact products and an accumulator: all five are cut to multiples of the last of 24 bits of
// the largest, added, and the sum is cut to 24 bits again. After Fasi, Higham, Mikaitis and Pranesh, "Numerical
// behavior of NVIDIA tensor cores" (2021), and without their rarer cases.
inline float truncated_sum(const double *products, double c) {
    double largest = std::fabs(c);
    for (int k = 0; k < 4; ++k) {
        const double size = std::fabs(products[k]);
        largest = size > largest ? size : largest;
    }
    const double plain = c + products[0] + products[1] + products[2] + products[3];
    if (!(largest > 0) || !std::isfinite(plain)) return static_cast<float>(plain);
    const uint64_t exponent = double_bits(largest) >> 52;
    const double up = double_of((uint64_t{2 * 1023 + 23} - exponent) << 52);  // to units of the last of 24 bits
    const double down = double_of((exponent - 23) << 52);
    double sum = std::trunc(c * up);
    for (int k = 0; k < 4; ++k) sum += std::trunc(products[k] * up);
    sum *= down;
    return static_cast<float>(double_of(double_bits(sum) & ~((uint64_t{1} << 29) - 1)));
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
        double rows[8][4], columns[4][8], sums[8][8];
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
        for (int row = 0; row < 8; ++row)
            for (int column = 0; column < 8; ++column) {
                double products[4];  // exact: 22 bits
                for (int k = 0; k < 4; ++k) products[k] = rows[row][k] * columns[k][column];
                double &sum = sums[row][column];
                sum = TRUNCATE ? static_cast<double>(truncated_sum(products, sum))
                               : sum + products[0] + products[1] + products[2] + products[3];
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
