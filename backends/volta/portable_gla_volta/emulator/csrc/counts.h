// What warps do to memory: bank wavefronts of shared memory, sectors of global memory.
//
// A warp executes an instruction for its 32 lanes at once; here lanes run one after another. So accesses are kept until
// the warp's lanes meet (at a shuffle, mma or barrier), and then put together: the n-th access that each lane made by one
// instruction of the compiled kernel since they met last is one of the warp's. Kernels that are counted are compiled with
// their loops unrolled where the source asks for it, as they are for the device. So this is exact wherever lanes take
// the same path, and where lanes are left out of an instruction; one that lanes carried out different numbers of times, in
// a loop, is counted the same way and marked as `ragged`: there it is right if all began with the same turn.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_COUNTS
#define PORTABLE_GLA_VOLTA_EMULATOR_COUNTS

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace emulator {

enum Space { SHARED, GLOBAL };

struct Site {  // mirrored in machine.py
    const char *file;
    int line, space, store, bytes;  // bytes that a lane accesses
    int64_t lanes;                  // accesses of single lanes
    int64_t instructions;           // of warps
    int64_t wavefronts;             // shared: cycles of the banks
    int64_t least;                  // shared: what they would be without a conflict
    int64_t words;                  // shared: different words of 4 bytes, summed over instructions
    int64_t sectors;                // global: different 32 bytes, summed over instructions
    int64_t ragged;                 // instructions put together by guess
};

class Counts {
  public:
    void clear(int warps) {
        sites_.clear();
        numbers_.clear();
        lanes_.assign(static_cast<size_t>(warps) * 32, {});
        barriers = multiplications = shuffles = 0;
    }
    const std::vector<Site> &sites() const { return sites_; }

    uint32_t site(Place place, Space space, int store, int bytes) {
        const Key key{reinterpret_cast<uintptr_t>(place.file), place.line, space * 64 + store * 32 + bytes};
        const auto found = numbers_.find(key);
        if (found != numbers_.end()) return found->second;
        const auto number = static_cast<uint32_t>(sites_.size());
        sites_.push_back({place.file, place.line, space, store, bytes, 0, 0, 0, 0, 0, 0, 0});
        numbers_.emplace(key, number);
        return number;
    }

    void note(int thread, uint32_t site, const void *instruction, uint64_t at) {
        lanes_[static_cast<size_t>(thread)].push_back({instruction, at, site});
    }

    // The lanes of a warp have met.
    void meet(int warp) {
        std::vector<Access> *lanes = &lanes_[static_cast<size_t>(warp) * 32];
        const std::vector<Access> *model = nullptr;
        bool same = true;
        for (int lane = 0; lane < 32 && same; ++lane) {
            if (lanes[lane].empty()) continue;
            if (!model) model = &lanes[lane];
            same = lanes[lane].size() == model->size() &&
                   std::equal(model->begin(), model->end(), lanes[lane].begin(),
                              [](const Access &x, const Access &y) { return x.instruction == y.instruction; });
        }
        if (!model) return;
        if (same) {
            for (size_t n = 0; n < model->size(); ++n) {
                Instruction one{(*model)[n].site, 0, {}};
                for (int lane = 0; lane < 32; ++lane)
                    if (!lanes[lane].empty()) one.add(lane, lanes[lane][n].at);
                count(one, false);
            }
        } else {
            meet_raggedly(lanes);
        }
        for (int lane = 0; lane < 32; ++lane) lanes[lane].clear();
    }

    int64_t barriers = 0, multiplications = 0, shuffles = 0;  // of blocks, of warps, of warps

  private:
    struct Key {
        uintptr_t file;
        int line, rest;
        bool operator==(const Key &o) const { return file == o.file && line == o.line && rest == o.rest; }
    };
    struct Hash {
        size_t operator()(const Key &k) const {
            return (k.file * 31 + static_cast<size_t>(k.line)) * 257 + static_cast<size_t>(k.rest);
        }
    };
    struct Access {
        const void *instruction;
        uint64_t at;
        uint32_t site;
    };
    struct Instruction {
        uint32_t site;
        uint32_t active;
        uint64_t at[32];
        void add(int lane, uint64_t where) {
            at[lane] = where;
            active |= 1u << lane;
        }
    };

    void meet_raggedly(std::vector<Access> *lanes) {
        struct Turns {
            std::vector<Instruction> instructions;
            uint32_t fewest = ~0u, most = 0;
        };
        std::unordered_map<const void *, Turns> turns;
        for (int lane = 0; lane < 32; ++lane) {
            std::unordered_map<const void *, uint32_t> made;
            for (const Access &access : lanes[lane]) {
                std::vector<Instruction> &list = turns[access.instruction].instructions;
                const uint32_t turn = made[access.instruction]++;
                if (turn == list.size()) list.push_back({access.site, 0, {}});
                list[turn].add(lane, access.at);
            }
            for (const auto &[instruction, number] : made) {
                Turns &turn = turns[instruction];
                turn.fewest = std::min(turn.fewest, number);
                turn.most = std::max(turn.most, number);
            }
        }
        for (const auto &[instruction, turn] : turns)
            for (const Instruction &one : turn.instructions) count(one, turn.fewest != turn.most);
    }

    void count(const Instruction &one, bool ragged) {
        Site &site = sites_[one.site];
        ++site.instructions;
        site.lanes += __builtin_popcount(one.active);
        site.ragged += ragged;
        if (site.space == GLOBAL) {
            site.sectors += different(one, 32, site.bytes);
            return;
        }
        site.words += different(one, 4, site.bytes);
        // Of 8 bytes a lane, half a warp at a time; of 16, a quarter.
        const int together = site.bytes == 16 ? 8 : site.bytes == 8 ? 16 : 32;
        for (int first = 0; first < 32; first += together) {
            uint64_t words[32][32];
            int known[32] = {}, all = 0, deepest = 0;
            for (int lane = first; lane < first + together; ++lane) {
                if (!(one.active >> lane & 1)) continue;
                for (uint64_t word = one.at[lane] / 4; word * 4 < one.at[lane] + static_cast<uint64_t>(site.bytes);
                     ++word) {
                    const int bank = static_cast<int>(word & 31);
                    int n = 0;
                    while (n < known[bank] && words[bank][n] != word) ++n;
                    if (n < known[bank]) continue;  // the same word goes to all that ask for it
                    words[bank][known[bank]++] = word;
                    deepest = std::max(deepest, known[bank]);
                    ++all;
                }
            }
            site.wavefronts += deepest;
            site.least += (all + 31) / 32;
        }
    }

    static int different(const Instruction &one, uint64_t unit, int bytes) {
        uint64_t seen[32 * 4];
        int number = 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (!(one.active >> lane & 1)) continue;
            const uint64_t last = (one.at[lane] + static_cast<uint64_t>(bytes) - 1) / unit;
            for (uint64_t piece = one.at[lane] / unit; piece <= last; ++piece) seen[number++] = piece;
        }
        std::sort(seen, seen + number);
        return static_cast<int>(std::unique(seen, seen + number) - seen);
    }

    std::vector<Site> sites_;
    std::unordered_map<Key, uint32_t, Hash> numbers_;
    std::vector<std::vector<Access>> lanes_;
};

}  // namespace emulator

#endif
