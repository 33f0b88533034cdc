// What PTX instructions do to registers, for translated code: registers are bits, an instruction says what they mean.
#ifndef PORTABLE_GLA_VOLTA_PTX_INSTRUCTIONS
#define PORTABLE_GLA_VOLTA_PTX_INSTRUCTIONS

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "target.cuh"

namespace ptx {

template <int SIZE> struct Bits;
template <> struct Bits<1> { using type = uint8_t; };
template <> struct Bits<2> { using type = uint16_t; };
template <> struct Bits<4> { using type = uint32_t; };
template <> struct Bits<8> { using type = uint64_t; };
template <class T> using bits_of_size = typename Bits<sizeof(T)>::type;

// A register's bits as a value; of a wider register, the lower ones.
template <class T, class R> inline T as(R bits) {
    const auto low = static_cast<bits_of_size<T>>(bits);
    T value;
    memcpy(&value, &low, sizeof value);
    return value;
}

// A value into a register.
template <class R, class T> inline void put(R &to, T value) {
    static_assert(sizeof(T) <= sizeof(R));
    bits_of_size<T> bits;
    memcpy(&bits, &value, sizeof value);
    to = bits;
}
inline void put(bool &to, bool value) { to = value; }

template <class T> inline T wrapped(uint64_t value) { return as<T>(value); }

// The high half of a product.
template <class T> inline T high(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
}

// Shifts clamp: by as many bits as there are, or more, nothing is left but the sign.
template <class T> inline T left(T a, uint32_t n) {
    return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) << n);
}
template <class T> inline T right(T a, uint32_t n) {
    if (n >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T{0};
    return static_cast<T>(a >> n);
}

// Two registers as one of 64 bits, shifted: the upper word of it to the left, the lower to the right.
inline uint32_t funnel_left(uint32_t low, uint32_t up, uint32_t n) {
    return static_cast<uint32_t>((static_cast<uint64_t>(up) << 32 | low) << n >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t up, uint32_t n) {
    return static_cast<uint32_t>((static_cast<uint64_t>(up) << 32 | low) >> n);
}

inline uint32_t field(uint32_t a, uint32_t from, uint32_t size) {
    from &= 0xff, size &= 0xff;
    const uint32_t rest = from >= 32 ? 0 : a >> from;
    return size >= 32 ? rest : rest & ((1u << size) - 1);
}
template <class T> T with_field(T a, T b, uint32_t from, uint32_t size) {
    constexpr uint32_t bits = 8 * sizeof(T);
    from &= 0xff, size &= 0xff;
    if (from >= bits || !size) return b;
    const T ones = (size >= bits ? ~T(0) : (T(1) << size) - 1) << from;
    return (b & ~ones) | (a << from & ones);
}

inline uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t found = 0;
    for (int n = 0; n < 4; ++n) {
        const uint32_t which = selector >> 4 * n & 0xf;
        uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (which & 7)) & 0xff;
        if (which & 8) byte = byte & 0x80 ? 0xff : 0;
        found |= byte << 8 * n;
    }
    return found;
}

inline uint32_t logic(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
    uint32_t found = 0;
    for (int n = 0; n < 8; ++n)
        if (table >> n & 1) found |= (n & 4 ? a : ~a) & (n & 2 ? b : ~b) & (n & 1 ? c : ~c);
    return found;
}

// To an integer, out of range to its ends, NaN to 0.
template <class T> inline T integer(float value) {
    if (value != value) return 0;
    const float least = static_cast<float>(std::numeric_limits<T>::min());
    const float past = 2.0f * static_cast<float>(std::numeric_limits<T>::max() / 2 + 1);
    if (value < least) return std::numeric_limits<T>::min();
    return value >= past ? std::numeric_limits<T>::max() : static_cast<T>(value);
}

// Lanes that are left out on purpose are not known here: all take part.
inline void whole_warp(bool is, const char *file, int line) {
    if (!is) emulator_machine->refused("expected a shuffle or barrier of all 32 lanes", {file, line});
}

inline void within(bool is, const char *file, int line) {
    if (!is) emulator_machine->refused("loads past the kernel's parameter", {file, line});
}

inline bool unordered(float a, float b) { return a != a || b != b; }

}  // namespace ptx

#endif
