// The primitives of csrc/target.cuh for g++: same names, same meanings, run and checked by the emulator.
//
// It takes that file's place beside the copies of the sources that are compiled.
#pragma once

#include "half.h"
#include "machine.h"

typedef long long int64;

#define DEVICE static inline __attribute__((always_inline))
#define ROLL
#ifdef EMULATOR_UNROLL  // for counts each turn gets instructions of its own; what is done with them is not inlined then
#define UNROLL _Pragma("GCC unroll 64")
#define EMULATOR_SHORT static __attribute__((noinline))
#define EMULATOR_INSTRUCTION __builtin_return_address(0)
#else
#define UNROLL
#define EMULATOR_SHORT DEVICE
#define EMULATOR_INSTRUCTION nullptr
#endif
// The emulator's view of an entry point: a function of a pointer to the arguments, and two facts to be checked.
#define KERNEL(entry, threads, blocks, arguments_type) EMULATOR_KERNEL(entry, threads, blocks, arguments_type)
#define EMULATOR_KERNEL(entry, threads, blocks, arguments_type)                                       \
    static void entry##_body(const arguments_type arguments);                                         \
    extern "C" __attribute__((visibility("default"))) void entry(const void *arguments) {             \
        entry##_body(*static_cast<const arguments_type *>(arguments));                                \
    }                                                                                                 \
    extern "C" __attribute__((visibility("default"), used)) const int entry##_threads = threads;      \
    extern "C" __attribute__((visibility("default"), used)) const int entry##_bytes = sizeof(arguments_type); \
    static void entry##_body(const arguments_type arguments)

static emulator::Machine *emulator_machine;
extern "C" __attribute__((visibility("default"))) void emulator_attach(emulator::Machine *machine) {
    emulator_machine = machine;
}

// Where a primitive was called: the default of its last two parameters is the caller's place.
#define EMULATOR_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATOR_HERE emulator::Place{file, line}

template <int N> struct alignas(4 * N) Words {
    unsigned word[N];
};

DEVICE int thread() { return emulator_machine->thread; }
DEVICE int block() { return emulator_machine->block; }
DEVICE int lane() { return emulator_machine->thread & 31; }
DEVICE int warp() { return emulator_machine->thread >> 5; }

DEVICE void barrier(EMULATOR_PLACE) { emulator_machine->barrier(EMULATOR_HERE); }
DEVICE void warp_barrier(EMULATOR_PLACE) { emulator_machine->warp_barrier(EMULATOR_HERE); }

template <class T> DEVICE T shuffle_xor(T value, int mask, EMULATOR_PLACE) {
    static_assert(sizeof(T) == 4);
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    bits = emulator_machine->shuffle_xor(bits, mask, EMULATOR_HERE);
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
template <class T> DEVICE T shuffle(T value, int source, EMULATOR_PLACE) {
    static_assert(sizeof(T) == 4);
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    bits = emulator_machine->shuffle(bits, source, EMULATOR_HERE);
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

template <int BYTES, bool STORE>
EMULATOR_SHORT unsigned char *emulator_shared(int offset, emulator::Place place) {
    emulator::Machine *const m = emulator_machine;
    if (__builtin_expect((unsigned)offset + (unsigned long long)BYTES > (unsigned)m->shared_bytes || offset % BYTES, 0))
        m->shared_fault(offset, BYTES, STORE, place);
    if (STORE) {
        __builtin_memset(m->written + offset, 0xff, BYTES);
    } else {
        unsigned long long known[2] = {~0ull, ~0ull};
        __builtin_memcpy(known, m->written + offset, BYTES);
        if (__builtin_expect((known[0] & known[1]) != ~0ull, 0)) m->uninitialised(offset, BYTES, place);
    }
    if (__builtin_expect(m->watched, 0)) m->shared_access(offset, BYTES, STORE, place, EMULATOR_INSTRUCTION);
    return m->shared + offset;
}

template <int N> DEVICE Words<N> shared_load(int offset, EMULATOR_PLACE) {
    Words<N> words;
    __builtin_memcpy(&words, emulator_shared<4 * N, false>(offset, EMULATOR_HERE), 4 * N);
    return words;
}
template <int N> DEVICE void shared_store(int offset, Words<N> words, EMULATOR_PLACE) {
    __builtin_memcpy(emulator_shared<4 * N, true>(offset, EMULATOR_HERE), &words, 4 * N);
}
DEVICE float shared_float(int offset, EMULATOR_PLACE) {
    float value;
    __builtin_memcpy(&value, emulator_shared<4, false>(offset, EMULATOR_HERE), 4);
    return value;
}
DEVICE void shared_set(int offset, float value, EMULATOR_PLACE) {
    __builtin_memcpy(emulator_shared<4, true>(offset, EMULATOR_HERE), &value, 4);
}
DEVICE unsigned short shared_half(int offset, EMULATOR_PLACE) {
    unsigned short value;
    __builtin_memcpy(&value, emulator_shared<2, false>(offset, EMULATOR_HERE), 2);
    return value;
}
DEVICE void shared_set_half(int offset, unsigned short value, EMULATOR_PLACE) {
    __builtin_memcpy(emulator_shared<2, true>(offset, EMULATOR_HERE), &value, 2);
}

template <int BYTES, bool STORE>
EMULATOR_SHORT void emulator_global(const void *address, emulator::Place place) {
    emulator::Machine *const m = emulator_machine;
    const unsigned long long at = reinterpret_cast<unsigned long long>(address);
    if (__builtin_expect(at < m->begin || at + BYTES > m->end || at % BYTES, 0))
        m->global_lookup(address, BYTES, STORE, place);
    if (__builtin_expect(m->watched, 0)) m->global_access(address, BYTES, STORE, place, EMULATOR_INSTRUCTION);
}

template <int N> DEVICE Words<N> global_load(const void *address, EMULATOR_PLACE) {
    emulator_global<4 * N, false>(address, EMULATOR_HERE);
    Words<N> words;
    __builtin_memcpy(&words, address, 4 * N);
    return words;
}
template <int N> DEVICE void global_store(void *address, Words<N> words, EMULATOR_PLACE) {
    emulator_global<4 * N, true>(address, EMULATOR_HERE);
    __builtin_memcpy(address, &words, 4 * N);
}
DEVICE unsigned short global_half(const void *address, EMULATOR_PLACE) {
    emulator_global<2, false>(address, EMULATOR_HERE);
    unsigned short value;
    __builtin_memcpy(&value, address, 2);
    return value;
}
DEVICE void global_set_half(void *address, unsigned short value, EMULATOR_PLACE) {
    emulator_global<2, true>(address, EMULATOR_HERE);
    __builtin_memcpy(address, &value, 2);
}

DEVICE int64 place_to_bits(const void *place) { return (int64)place; }
DEVICE char *bits_to_place(int64 bits) { return (char *)bits; }
DEVICE int opaque(int x) { return x; }
DEVICE float opaque(float x) { return x; }
DEVICE float bits_to_float(unsigned bits) { return emulator::float_of(bits); }
DEVICE unsigned float_to_bits(float value) { return emulator::bits_of(value); }
EMULATOR_SHORT unsigned short to_half(float value) { return (unsigned short)emulator::to_half(value); }
EMULATOR_SHORT float from_half(unsigned short half) { return emulator::from_half(half); }
EMULATOR_SHORT unsigned pack_half(float low, float high) { return emulator::to_half(low) | emulator::to_half(high) << 16; }
EMULATOR_SHORT float half_low(unsigned pair) { return emulator::from_half(pair & 0xffffu); }
EMULATOR_SHORT float half_high(unsigned pair) { return emulator::from_half(pair >> 16); }

EMULATOR_SHORT float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float mul_(float a, float b) { return a * b; }  // nothing is ever fused here
DEVICE float add_(float a, float b) { return a + b; }
DEVICE float larger(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return __builtin_fminf(a, b); }
DEVICE float magnitude(float x) { return __builtin_fabsf(x); }
EMULATOR_SHORT float nearest(float x) { return __builtin_rintf(x); }
EMULATOR_SHORT float exp2_approx(float x) {  // flushes what is below the smallest normal number, as ex2.approx.ftz does
    const float y = __builtin_exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

template <bool A_ROW, bool B_COL>
DEVICE void mma(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2], EMULATOR_PLACE) {
    emulator_machine->mma(c, a, b, A_ROW, B_COL, EMULATOR_HERE);
}
