// float16 in integer arithmetic: every compiler has it, and loops over it are vectorised.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_HALF
#define PORTABLE_GLA_VOLTA_EMULATOR_HALF

namespace emulator {

inline float float_of(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

inline unsigned bits_of(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

inline float from_half(unsigned half) {
    const unsigned rest = (half & 0x7fffu) << 13, exponent = rest & 0x0f800000u;
    const unsigned usual = rest + (112u << 23);
    // A subnormal: what stands behind the first bit of 2^-14, less that bit.
    const unsigned small = bits_of(float_of(rest + (113u << 23)) - float_of(113u << 23));
    const unsigned large = usual + (112u << 23);  // infinity and NaN
    const unsigned chosen = exponent == 0 ? small : exponent == 0x0f800000u ? large : usual;
    return float_of(chosen | (half & 0x8000u) << 16);
}

inline unsigned to_half(float value) {  // to the nearest, ties to even
    const unsigned bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;  // NaN, as the device gives it
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
    if (magnitude < 0x38800000u)  // below 2^-14: adding 0.5 leaves the multiple of 2^-24 in the last bits
        return sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u);
    return sign | (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
}

}  // namespace emulator

#endif
