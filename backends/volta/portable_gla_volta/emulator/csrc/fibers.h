// Fibers: stacks of their own and a switch between them.
//
// The switch keeps what the calling convention says a function keeps. Elsewhere than on x86-64 and aarch64, ucontext
// does the same at the price of two system calls.
#ifndef PORTABLE_GLA_VOLTA_EMULATOR_FIBERS
#define PORTABLE_GLA_VOLTA_EMULATOR_FIBERS

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#if !defined(EMULATOR_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATOR_UCONTEXT 1
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

constexpr size_t STACK = 4 << 20;  // translated PTX of wide kernels takes more than 256 KiB; pages that are never touched cost nothing

#ifdef EMULATOR_UCONTEXT

struct Context {
    ucontext_t saved;
};

inline void change(Context &from, Context &to) { swapcontext(&from.saved, &to.saved); }

inline void prepare(Context &context, char *stack, size_t size, void (*begin)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack;
    context.saved.uc_stack.ss_size = size;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, begin, 0);
}

#else

struct Context {
    void *pointer = nullptr;
};

extern "C" void portable_gla_volta_change(void **from, void *to) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
asm(R"(
    .text
    .hidden portable_gla_volta_change
    .globl portable_gla_volta_change
    .type portable_gla_volta_change, @function
portable_gla_volta_change:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .size portable_gla_volta_change, .-portable_gla_volta_change
)");
constexpr int KEPT = 6, RETURN = 6;  // how many words the switch pops, and which word it returns to
#else
asm(R"(
    .text
    .hidden portable_gla_volta_change
    .globl portable_gla_volta_change
    .type portable_gla_volta_change, %function
portable_gla_volta_change:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret
    .size portable_gla_volta_change, .-portable_gla_volta_change
)");
constexpr int KEPT = 20, RETURN = 1;
#endif

inline void change(Context &from, Context &to) { portable_gla_volta_change(&from.pointer, to.pointer); }

inline void prepare(Context &context, char *stack, size_t size, void (*begin)()) {
    // As if `begin` had been called and had called the switch: the stack is a multiple of 16 at a call.
    uintptr_t *top = reinterpret_cast<uintptr_t *>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t{15}) - 2;
    uintptr_t *frame = top - KEPT;
    for (uintptr_t *word = frame; word < top + 2; ++word) *word = 0;
    frame[RETURN] = reinterpret_cast<uintptr_t>(begin);
    context.pointer = frame;
}

#endif

// A stack for each thread of a block, with a page between them that faults.
class Stacks {
  public:
    ~Stacks() {
        for (char *stack : stacks_) munmap(stack - page(), STACK + page());
    }
    char *operator[](size_t number) {
        while (stacks_.size() <= number) {
            void *room = mmap(nullptr, STACK + page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (room == MAP_FAILED || mprotect(static_cast<char *>(room) + page(), STACK, PROT_READ | PROT_WRITE))
                abort();
            stacks_.push_back(static_cast<char *>(room) + page());
        }
        return stacks_[number];
    }
    // Stacks that begin at the same place of a page would fight for the same lines of the cache.
    static size_t size(size_t number) { return STACK - number % 61 * 1088; }

  private:
    static size_t page() {
        static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        return bytes;
    }
    std::vector<char *> stacks_;
};

}  // namespace emulator

#endif
