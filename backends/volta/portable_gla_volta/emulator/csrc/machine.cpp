// Runs the blocks of a launch one after another, each thread of a block as a fiber.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "counts.h"
#include "fibers.h"
#include "machine.h"
#include "order.h"
#include "reports.h"
#include "tensor_core.h"

namespace emulator {
namespace {

struct Launch {  // mirrored in machine.py
    void (*entry)(const void *);
    const void *arguments;
    int grid, threads, shared;
    int everything;  // also find races, and blocks that touch what others write
    int counting;
    int truncating;
    uint64_t order;  // 0: threads run in the order of their numbers
    int stretches;   // of legal global memory, in ascending order
    const uint64_t *begins, *ends;
};

struct Totals {  // mirrored in machine.py
    int64_t barriers, multiplications, shuffles, loaded, stored, loaded_once, stored_once;
};

enum State { READY, AT_BARRIER, AT_MEETING, LEFT };

struct Fiber {
    Context context;
    State state;
    Place place;
    const char *what;
};

struct Warp {
    uint32_t ready;  // a bit for each place in the order of the lanes
    int order[32], place_of[32];
    int turn;     // where in that order the search for the next lane begins
    int arrived;  // at the meeting that is under way
    int first;    // the thread that came first
    int kind, detail;
    uint32_t epoch;
    Fragments fragments;
    unsigned given[32], taken[32];
    int sources[32];
};

struct Stretch {
    uint64_t begin, end;
    std::vector<Cell> cells;
    std::vector<unsigned char> touched;  // bit 0: loaded, bit 1: stored
};

Machine machine;
Launch launch;
Context scheduler;
Stacks stacks;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<unsigned char> shared, written;
std::vector<Cell> shared_cells;
std::vector<Stretch> stretches;
size_t last_stretch;
Reports reports;
Counts counts;
Totals totals;
uint64_t random_state;
uint32_t epoch;
int left;
bool stopped;

uint64_t draw() {  // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int draw_below(int bound) { return static_cast<int>((draw() >> 32) * static_cast<uint64_t>(bound) >> 32); }

void shuffle_order(int *order, int number) {
    for (int i = 0; i < number; ++i) order[i] = i;
    if (launch.order)
        for (int i = number - 1; i > 0; --i) std::swap(order[i], order[draw_below(i + 1)]);
}

// --- from one fiber to the next

Fiber &current() { return fibers[static_cast<size_t>(machine.thread)]; }
Warp &current_warp() { return warps[static_cast<size_t>(machine.thread >> 5)]; }

int next_lane(Warp &warp) {
    const uint32_t turned = warp.turn ? warp.ready >> warp.turn | warp.ready << (32 - warp.turn) : warp.ready;
    return warp.order[(__builtin_ctz(turned) + warp.turn) & 31];
}

void to_scheduler() { change(current().context, scheduler); }

void pause() {  // the current fiber waits, or has ended
    Fiber &from = current();
    Warp &warp = current_warp();
    warp.ready &= ~(1u << warp.place_of[machine.thread & 31]);
    if (!warp.ready) {
        change(from.context, scheduler);
        return;
    }
    machine.thread = (machine.thread & ~31) | next_lane(warp);
    change(from.context, current().context);
}

[[noreturn]] void stop() {
    stopped = true;
    to_scheduler();
    __builtin_unreachable();
}

void begin() {
    launch.entry(launch.arguments);
    Fiber &fiber = current();
    fiber.state = LEFT;
    fiber.what = "have left the kernel";
    ++left;
    pause();
    __builtin_unreachable();
}

// --- where everyone is, for reports

std::string span(const std::vector<int> &threads) {
    std::string text;
    for (size_t i = 0, j; i < threads.size(); i = j) {
        for (j = i + 1; j < threads.size() && threads[j] == threads[j - 1] + 1; ++j) {}
        if (text.size() > 60) return text + ", ...";
        text += (i ? ", " : "") + std::to_string(threads[i]) + (j - i > 1 ? "-" + std::to_string(threads[j - 1]) : "");
    }
    return text;
}

const char *base(const char *file) {
    const char *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

std::string whereabouts(int begin, int end) {
    std::string text;
    std::vector<bool> said(static_cast<size_t>(end));
    for (int i = begin; i < end; ++i) {
        if (said[static_cast<size_t>(i)]) continue;
        const Fiber &model = fibers[static_cast<size_t>(i)];
        std::vector<int> same;
        for (int j = i; j < end; ++j) {
            const Fiber &other = fibers[static_cast<size_t>(j)];
            if (other.state != model.state || other.place.line != model.place.line || other.what != model.what) continue;
            same.push_back(j);
            said[static_cast<size_t>(j)] = true;
        }
        text += (text.empty() ? "threads " : "; threads ") + span(same) + " ";
        if (model.state == LEFT) text += "have left the kernel";
        else if (model.state == READY) text += "go on";
        else text += std::string("wait at ") + model.what + " " + base(model.place.file) + ":" +
                     std::to_string(model.place.line);
    }
    return text;
}

// --- what a kernel calls

const char *verb(int store) { return store ? "stores" : "loads"; }

void shared_fault(int offset, int bytes, int store, Place place) {
    if (offset < 0 || offset + static_cast<int64_t>(bytes) > launch.shared)
        reports.add(SHARED_BOUNDS, machine.block, machine.thread, place, 0,
                    "%s %d bytes at offset %d of %d bytes of shared memory", verb(store), bytes, offset, launch.shared);
    else
        reports.add(ALIGNMENT, machine.block, machine.thread, place, 0, "%s %d bytes at offset %d of shared memory",
                    verb(store), bytes, offset);
    stop();
}

Stretch *find(uint64_t address, int bytes) {
    if (last_stretch < stretches.size()) {
        Stretch &last = stretches[last_stretch];
        if (address >= last.begin && address + static_cast<uint64_t>(bytes) <= last.end) return &last;
    }
    for (Stretch &stretch : stretches)
        if (address >= stretch.begin && address + static_cast<uint64_t>(bytes) <= stretch.end) {
            last_stretch = static_cast<size_t>(&stretch - stretches.data());
            return &stretch;
        }
    return nullptr;
}

void global_lookup(const void *pointer, int bytes, int store, Place place) {
    const uint64_t address = reinterpret_cast<uint64_t>(pointer);
    const Stretch *stretch = find(address, bytes);
    if (!stretch)
        reports.add(GLOBAL_BOUNDS, machine.block, machine.thread, place, address, "%s %d bytes of global memory",
                    verb(store), bytes);
    else if (address % static_cast<uint64_t>(bytes))
        reports.add(ALIGNMENT, machine.block, machine.thread, place, address, "%s %d bytes of global memory",
                    verb(store), bytes);
    else {
        machine.begin = stretch->begin;
        machine.end = stretch->end;
        return;
    }
    stop();
}

void uninitialised(int offset, int bytes, Place place) {
    reports.add(UNINITIALISED, machine.block, machine.thread, place, 0,
                "loads %d bytes at offset %d of shared memory that were not all stored to before", bytes, offset);
}

void say_conflict(Conflict conflict, const Moment &now, const Moment &other, bool store, Place place, uint64_t address,
                  long long offset) {
    const Site &before = counts.sites()[other.site];
    char who[64], where[64];
    if (conflict == OTHER_BLOCK)
        snprintf(who, sizeof who, other.block == SEVERAL ? "several blocks" : "block %d", other.block);
    else
        snprintf(who, sizeof who, other.thread == SEVERAL ? "several threads" : "thread %d", other.thread);
    if (address) snprintf(where, sizeof where, "global memory");
    else snprintf(where, sizeof where, "shared memory at offset %lld", offset);
    reports.add(conflict == OTHER_BLOCK ? BLOCKS : RACE, machine.block, now.thread, place, address,
                "%s %s that %s %s at %s:%d%s", verb(store), where, who, before.store ? "stored to" : "loaded",
                base(before.file), before.line,
                conflict == OTHER_BLOCK ? " in the same launch" : ", with no barrier between");
}

Moment moment(int block, uint32_t site) {
    return {block, static_cast<short>(machine.thread), static_cast<short>(machine.thread >> 5), epoch,
            current_warp().epoch, site};
}

void shared_access(int offset, int bytes, int store, Place place, const void *instruction) {
    if (!instruction) instruction = __builtin_return_address(0);
    const uint32_t site = counts.site(place, SHARED, store, bytes);
    if (launch.counting) counts.note(machine.thread, site, instruction, static_cast<uint64_t>(offset));
    if (!launch.everything) return;
    const Moment now = moment(0, site);
    for (int n = offset / GRAIN; n < (offset + bytes) / GRAIN; ++n) {
        Moment other;
        const Conflict conflict = touch(shared_cells[static_cast<size_t>(n)], now, store, other);
        if (conflict) say_conflict(conflict, now, other, store, place, 0, n * GRAIN);
    }
}

void global_access(const void *pointer, int bytes, int store, Place place, const void *instruction) {
    if (!instruction) instruction = __builtin_return_address(0);
    const uint64_t address = reinterpret_cast<uint64_t>(pointer);
    const uint32_t site = counts.site(place, GLOBAL, store, bytes);
    Stretch &stretch = *find(address, bytes);
    const uint64_t first = (address - stretch.begin) / GRAIN, count = static_cast<uint64_t>(bytes / GRAIN);
    if (launch.counting) {
        counts.note(machine.thread, site, instruction, address);
        (store ? totals.stored : totals.loaded) += bytes;
        for (uint64_t n = first; n < first + count; ++n) {
            unsigned char &touched = stretch.touched[n];
            if (!(touched >> store & 1)) (store ? totals.stored_once : totals.loaded_once) += GRAIN;
            touched = static_cast<unsigned char>(touched | 1 << store);
        }
    }
    if (!launch.everything) return;
    const Moment now = moment(machine.block, site);
    for (uint64_t n = first; n < first + count; ++n) {
        Moment other;
        const Conflict conflict = touch(stretch.cells[n], now, store, other);
        if (conflict) say_conflict(conflict, now, other, store, place, stretch.begin + n * GRAIN, 0);
    }
}

void barrier(Place place) {
    Fiber &fiber = current();
    fiber.state = AT_BARRIER;
    fiber.place = place;
    fiber.what = "the barrier";
    pause();
}

// The lanes of a warp meet: true for the last to come, which has the work to do.
bool meet(int kind, int detail, const char *what, Place place) {
    Warp &warp = current_warp();
    Fiber &fiber = current();
    fiber.place = place;
    fiber.what = what;
    if (!warp.arrived++) {
        warp.kind = kind;
        warp.detail = detail;
        warp.first = machine.thread;
    } else {
        const Fiber &first = fibers[static_cast<size_t>(warp.first)];
        if (first.place.line != place.line || warp.kind != kind || first.place.file != place.file)
            reports.add(WARP, machine.block, machine.thread, place, 0,
                        "comes to %s while thread %d of its warp waits at %s %s:%d", what, warp.first, first.what,
                        base(first.place.file), first.place.line);
        else if (warp.detail != detail)
            reports.add(WARP, machine.block, machine.thread, place, 0, "comes to %s with mask %d, thread %d with mask %d",
                        what, detail, warp.first, warp.detail);
        else if (warp.arrived == 32) {
            if (launch.counting) counts.meet(machine.thread >> 5);
            return true;
        } else {
            fiber.state = AT_MEETING;
            pause();
            return false;
        }
        stop();
    }
    fiber.state = AT_MEETING;
    pause();
    return false;
}

void met() {
    Warp &warp = current_warp();
    const int first = machine.thread & ~31;
    for (int i = first; i < first + 32; ++i) fibers[static_cast<size_t>(i)].state = READY;
    warp.ready = ~0u;
    warp.arrived = 0;
    if (!launch.order) return;
    const uint64_t drawn = draw();
    warp.turn = static_cast<int>(drawn & 31);
    if (!(drawn >> 5 & 15)) to_scheduler();  // now and then let other warps go first
}

void warp_barrier(Place place) {
    if (!meet(1, 0, "the barrier of the warp", place)) return;
    ++current_warp().epoch;
    met();
}

unsigned shuffle(unsigned value, int source, Place place) {
    Warp &warp = current_warp();
    const int lane = machine.thread & 31;
    warp.given[lane] = value;
    warp.sources[lane] = source & 31;
    if (meet(2, 0, "shuffle", place)) {
        for (int i = 0; i < 32; ++i) warp.taken[i] = warp.given[warp.sources[i]];
        ++counts.shuffles;
        met();
    }
    return warp.taken[lane];
}

unsigned shuffle_xor(unsigned value, int mask, Place place) {
    Warp &warp = current_warp();
    const int lane = machine.thread & 31;
    warp.given[lane] = value;
    if (meet(3, mask, "shuffle_xor", place)) {
        for (int i = 0; i < 32; ++i) warp.taken[i] = warp.given[(i ^ mask) & 31];
        ++counts.shuffles;
        met();
    }
    return warp.taken[lane];
}

void mma(float *c, const unsigned *a, const unsigned *b, int a_row, int b_column, Place place) {
    Warp &warp = current_warp();
    const int lane = machine.thread & 31;
    warp.fragments.a[lane] = a;
    warp.fragments.b[lane] = b;
    warp.fragments.c[lane] = c;
    if (meet(4 + 2 * a_row + b_column, 0, "mma", place)) {
        if (launch.truncating) multiply<true>(warp.fragments, a_row, b_column);
        else multiply<false>(warp.fragments, a_row, b_column);
        ++counts.multiplications;
        met();
    }
}

void refused(const char *what, Place place) {
    reports.add(REFUSED, machine.block, machine.thread, place, 0, "%s", what);
    stop();
}

// --- a block

// Nobody can go on: let the block pass its barrier, or say why it cannot.
void release() {
    const int threads = launch.threads;
    const Fiber *waiting = nullptr;
    bool together = true;
    for (int i = 0; i < threads; ++i) {
        const Fiber &fiber = fibers[static_cast<size_t>(i)];
        if (fiber.state == AT_MEETING) {
            const int warp = i & ~31;
            reports.add(WARP, machine.block, i, fiber.place, 0, "%s is reached by only part of a warp: %s", fiber.what,
                        whereabouts(warp, warp + 32).c_str());
            stopped = true;
            return;
        }
        if (fiber.state == LEFT) together = false;
        else if (!waiting) waiting = &fiber;
        else if (waiting->place.line != fiber.place.line || waiting->place.file != fiber.place.file) together = false;
    }
    if (!together) {
        reports.add(BARRIER, machine.block, static_cast<int>(waiting - fibers.data()), waiting->place, 0,
                    "the barrier is reached by only part of the block: %s", whereabouts(0, threads).c_str());
        stopped = true;
        return;
    }
    ++epoch;
    ++counts.barriers;
    for (int i = 0; i < threads; ++i) fibers[static_cast<size_t>(i)].state = READY;
    for (size_t w = 0; w < warps.size(); ++w) {
        warps[w].ready = ~0u;
        if (launch.counting) counts.meet(static_cast<int>(w));
    }
}

void run_block() {
    const int threads = launch.threads, number = threads / 32;
    memset(shared.data(), 0xff, shared.size());  // NaN in every format
    memset(written.data(), 0, written.size());
    ++epoch;
    left = 0;
    for (int w = 0; w < number; ++w) {
        Warp &warp = warps[static_cast<size_t>(w)];
        warp.ready = ~0u;
        warp.arrived = 0;
        warp.turn = 0;
        warp.epoch = 1;
        shuffle_order(warp.order, 32);
        for (int place = 0; place < 32; ++place) warp.place_of[warp.order[place]] = place;
    }
    for (int i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[static_cast<size_t>(i)];
        fiber.state = READY;
        fiber.place = {"", 0};
        fiber.what = "";
        const auto n = static_cast<size_t>(i);
        prepare(fiber.context, stacks[n], Stacks::size(n), begin);
    }
    std::vector<int> order(static_cast<size_t>(number));
    while (!stopped && left < threads) {
        bool ran = false;
        shuffle_order(order.data(), number);
        for (const int w : order) {
            Warp &warp = warps[static_cast<size_t>(w)];
            if (!warp.ready) continue;
            ran = true;
            machine.thread = 32 * w + next_lane(warp);
            change(scheduler, current().context);
            if (stopped) return;
        }
        if (!ran) release();
    }
    for (int w = 0; w < number && launch.counting; ++w) counts.meet(w);
}

}  // namespace
}  // namespace emulator

using namespace emulator;

#pragma GCC visibility push(default)
extern "C" {

Machine *emulator_machine_of_process() {
    machine.shared_fault = shared_fault;
    machine.global_lookup = global_lookup;
    machine.uninitialised = uninitialised;
    machine.shared_access = shared_access;
    machine.global_access = global_access;
    machine.barrier = barrier;
    machine.warp_barrier = warp_barrier;
    machine.shuffle = shuffle;
    machine.shuffle_xor = shuffle_xor;
    machine.mma = mma;
    machine.refused = refused;
    return &machine;
}

// Runs a launch; returns the number of different things that went wrong.
int emulator_run(const Launch *wanted) {
    launch = *wanted;
    const auto threads = static_cast<size_t>(launch.threads), bytes = static_cast<size_t>(launch.shared);
    reports.clear();
    counts.clear(launch.threads / 32);
    totals = {};
    fibers.resize(threads);
    warps.resize(threads / 32);
    shared.resize(bytes + 16);
    written.resize(bytes + 16);
    shared_cells.clear();
    stretches.clear();
    last_stretch = 0;
    for (int n = 0; n < launch.stretches; ++n) {
        stretches.push_back({launch.begins[n], launch.ends[n], {}, {}});
        const size_t grains = (launch.ends[n] - launch.begins[n] + GRAIN - 1) / GRAIN;
        if (launch.everything) stretches.back().cells.resize(grains);
        if (launch.counting) stretches.back().touched.resize(grains);
    }
    if (launch.everything) shared_cells.resize((bytes + GRAIN - 1) / GRAIN);
    machine.shared = shared.data();
    machine.written = written.data();
    machine.shared_bytes = launch.shared;
    machine.begin = machine.end = 0;
    machine.watched = launch.everything || launch.counting;
    epoch = 0;
    stopped = false;
    random_state = launch.order;
    std::vector<int> order(static_cast<size_t>(launch.grid));
    shuffle_order(order.data(), launch.grid);
    for (const int block : order) {
        machine.block = block;
        run_block();
        if (stopped) break;
    }
    totals.barriers = counts.barriers;
    totals.multiplications = counts.multiplications;
    totals.shuffles = counts.shuffles;
    return static_cast<int>(reports.found().size());
}

const Report *emulator_reports() { return reports.found().data(); }

const Site *emulator_sites(int *number) {
    *number = static_cast<int>(counts.sites().size());
    return counts.sites().data();
}

const Totals *emulator_totals() { return &totals; }

}  // extern "C"
#pragma GCC visibility pop
