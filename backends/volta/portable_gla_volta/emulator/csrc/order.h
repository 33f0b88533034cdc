// Who touched what, and whether a barrier stands between.
//
// Accesses of two threads are ordered by a barrier of the block between them, or, in one warp, by a barrier of the warp.
// Shuffles and mma order nothing. A cell keeps of each two bytes the last write and the reads since that can still be in
// conflict; that is enough to find a conflict with every later access, since what is forgotten was ordered before what
// is kept, or is in conflict with the same threads.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_ORDER
#define PORTABLE_GLA_VOLTA_EMULATOR_ORDER

#include <cstdint>

namespace emulator {

constexpr int GRAIN = 2;  // bytes: the least that is accessed at once
constexpr int SEVERAL = -2;

struct Moment {  // epochs are counted from 1 over a launch, so that zero is "never"
    int block;
    short thread, warp;
    uint32_t epoch;       // barriers of the block so far
    uint32_t warp_epoch;  // barriers of the warp so far
    uint32_t site;
};

struct Cell {
    Moment write, read;  // read.thread and read.warp may be SEVERAL, read.block too
};

enum Conflict { NONE, THREADS, OTHER_BLOCK };

inline bool unordered(const Moment &before, const Moment &now) {
    if (before.epoch != now.epoch) return false;
    if (before.warp == now.warp) return before.thread != now.thread && before.warp_epoch == now.warp_epoch;
    return true;  // SEVERAL warps, of which one is another than this
}

// Notes the access; says whether it is in conflict, and with what.
inline Conflict touch(Cell &cell, const Moment &now, bool store, Moment &other) {
    Conflict found = NONE;
    if (cell.write.epoch) {
        other = cell.write;
        if (cell.write.block != now.block) found = OTHER_BLOCK;
        else if (unordered(cell.write, now)) found = THREADS;
    }
    if (store) {
        if (!found && cell.read.epoch) {
            other = cell.read;
            if (cell.read.block != now.block) found = OTHER_BLOCK;
            else if (unordered(cell.read, now)) found = THREADS;
        }
        cell.write = now;
    } else if (!cell.read.epoch) {
        cell.read = now;
    } else if (cell.read.block != now.block) {
        cell.read.block = SEVERAL;
    } else if (cell.read.epoch != now.epoch) {
        cell.read = now;
    } else if (cell.read.warp != now.warp) {
        cell.read.warp = cell.read.thread = SEVERAL;
    } else if (cell.read.warp_epoch != now.warp_epoch) {
        cell.read = now;
    } else if (cell.read.thread != now.thread) {
        cell.read.thread = SEVERAL;
    }
    return found;
}

}  // namespace emulator

#endif
