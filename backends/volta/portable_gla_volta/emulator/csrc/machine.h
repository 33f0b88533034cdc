// What a kernel compiled for the emulator and the machine that runs it have in common.
//
// A kernel is a shared object of its own: it finds the machine through one pointer that is set before its first launch,
// so that the machine is compiled once, and a kernel without a standard header in a second or two.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_MACHINE
#define PORTABLE_GLA_VOLTA_EMULATOR_MACHINE

namespace emulator {

struct Place {
    const char *file;
    int line;
};

struct Machine {
    unsigned char *shared;        // the running block's
    unsigned char *written;       // for each of its bytes 0xff once it was stored to
    int shared_bytes;
    int thread, block;            // which runs now
    int watched;                  // nonzero: every access is also handed to shared_access or global_access
    unsigned long long begin, end;  // the stretch of legal global memory that was used last

    // What cannot go on; these do not return.
    void (*shared_fault)(int offset, int bytes, int store, Place place);
    // Finds the stretch that holds the bytes, or does not return.
    void (*global_lookup)(const void *address, int bytes, int store, Place place);
    void (*uninitialised)(int offset, int bytes, Place place);
    // `instruction` tells apart the compiled kernel's instructions; where it is null, the call's own address does.
    void (*shared_access)(int offset, int bytes, int store, Place place, const void *instruction);
    void (*global_access)(const void *address, int bytes, int store, Place place, const void *instruction);
    void (*barrier)(Place place);
    void (*warp_barrier)(Place place);
    unsigned (*shuffle)(unsigned value, int source, Place place);
    unsigned (*shuffle_xor)(unsigned value, int mask, Place place);
    void (*mma)(float *c, const unsigned *a, const unsigned *b, int a_row, int b_column, Place place);
    void (*refused)(const char *what, Place place);
};

}  // namespace emulator

#endif
