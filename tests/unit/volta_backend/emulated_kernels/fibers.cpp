// Three fibers take turns, each with numbers of its own in registers that a switch has to keep; prints what they sum.
#include <cstdio>

#include "fibers.h"

using namespace emulator;

namespace {
Context turns[4];  // the last is main's
int now;
double sums[3];
Stacks stacks;

void go_to(int next) {
    const int from = now;
    now = next;
    change(turns[from], turns[next]);
}

void begin() {
    const int me = now;
    alignas(32) volatile double aligned[4] = {1, 1, 1, 1};
    if (reinterpret_cast<uintptr_t>(&aligned) % 32) sums[me] = -1e9;
    double a = me + 1, b = 2 * a, c = 3 * a, d = 4 * a;
    long i = me, j = me + 1, k = me + 2, l = me + 3, m = me + 4;
    for (int turn = 0; turn < 1000; ++turn) {
        a += aligned[0], b += a, c += 1, d += c;
        i += 1, j += 2, k += i, l += 3, m += l;
        go_to((me + 1) % 3);
    }
    sums[me] += a + b + c + d + static_cast<double>(i + j + k + l + m);
    go_to(me == 2 ? 3 : me + 1);
}
}  // namespace

int main() {
    for (int n = 0; n < 3; ++n)
        prepare(turns[n], stacks[static_cast<size_t>(n)], Stacks::size(static_cast<size_t>(n)), begin);
    now = 3;
    go_to(0);
    printf("%.0f %.0f %.0f\n", sums[0], sums[1], sums[2]);
}
