// What went wrong, each thing once per place.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_REPORTS
#define PORTABLE_GLA_VOLTA_EMULATOR_REPORTS

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "machine.h"

namespace emulator {

enum Kind { SHARED_BOUNDS, GLOBAL_BOUNDS, ALIGNMENT, UNINITIALISED, RACE, BARRIER, WARP, BLOCKS, REFUSED };

struct Report {  // mirrored in machine.py
    int kind, block, thread, line;
    const char *file;
    int64_t count;
    uint64_t address;  // of global memory, or 0
    char text[512];
};

class Reports {
  public:
    void clear() { found_.clear(); }
    const std::vector<Report> &found() const { return found_; }

    __attribute__((format(printf, 7, 8))) void add(Kind kind, int block, int thread, Place place, uint64_t address,
                                                   const char *format, ...) {
        for (Report &old : found_)
            if (old.kind == kind && old.line == place.line && !strcmp(old.file, place.file)) {
                ++old.count;
                return;
            }
        if (found_.size() == MOST) return;
        Report report{kind, block, thread, place.line, place.file, 1, address, {}};
        va_list rest;
        va_start(rest, format);
        vsnprintf(report.text, sizeof report.text, format, rest);
        va_end(rest);
        found_.push_back(report);
    }

  private:
    static constexpr size_t MOST = 50;
    std::vector<Report> found_;
};

}  // namespace emulator

#endif
