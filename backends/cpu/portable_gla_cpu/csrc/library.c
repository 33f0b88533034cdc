/* What Python calls: the choice of an instruction set, checks that keep a call inside its memory, and dispatch. */
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gla.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#define GLA_EXPORT __attribute__((visibility("default")))

#define DECLARE(isa)                                              \
    int64_t gla_forward_workspace_##isa(const gla_call *);        \
    int64_t gla_backward_workspace_##isa(const gla_call *);       \
    int64_t gla_decode_workspace_##isa(const gla_decode_call *);  \
    void gla_forward_##isa(const gla_call *, float *);            \
    void gla_backward_##isa(const gla_call *, float *);           \
    void gla_decode_##isa(const gla_decode_call *, float *);      \
    void gla_exponential_##isa(float *, const float *, int64_t);

#define KERNELS(isa)                                                                                      \
    {#isa, gla_forward_workspace_##isa, gla_backward_workspace_##isa, gla_decode_workspace_##isa,         \
     gla_forward_##isa, gla_backward_##isa, gla_decode_##isa, gla_exponential_##isa}

#if defined(__x86_64__)

DECLARE(avx512)
DECLARE(avx2)
static const gla_kernels kernels[] = {KERNELS(avx512), KERNELS(avx2)}; /* the best first */

static int has(const char *isa)
{
    unsigned a, b, c = 0, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return !strcmp(isa, "avx2")
           || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
               && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
}

#elif defined(__aarch64__)

DECLARE(neon)
static const gla_kernels kernels[] = {KERNELS(neon)};

static int has(const char *isa)
{
    (void)isa;
    return 1; /* part of every aarch64 */
}

#endif

static const gla_kernels *chosen;

/* Use the instruction set of this name, or the best (empty name); return its name, NULL if the machine lacks it. */
GLA_EXPORT const char *gla_choose(const char *isa)
{
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if ((!*isa || !strcmp(isa, kernels[i].name)) && has(kernels[i].name)) {
            chosen = &kernels[i];
            return chosen->name;
        }
    return NULL;
}

GLA_EXPORT void gla_set_openmp(gla_openmp parallel) { gla_use_openmp(parallel); }

/* Ask for huge pages in memory that is about to be written for the first time: a tenth of the page faults, which are a
 * third of a long backward pass otherwise. A hint: nothing happens where it cannot be had. */
GLA_EXPORT void gla_advise_huge_pages(char *data, int64_t bytes)
{
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    enum { HUGE_PAGE = 1 << 21 };
    uintptr_t first = gla_round_up((int64_t)(uintptr_t)data, HUGE_PAGE), end = (uintptr_t)data + bytes;
    if (first + HUGE_PAGE <= end) (void)madvise((void *)first, (end - first) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

/* The sizes of the records, for Python to compare with what it packs. */
GLA_EXPORT int64_t gla_call_size(void) { return sizeof(gla_call); }
GLA_EXPORT int64_t gla_decode_call_size(void) { return sizeof(gla_decode_call); }

static int64_t element_of(const gla_tensor *x, int64_t i)
{
    i *= x->stride[0];
    return x->dtype == GLA_INT32 ? ((const int32_t *)x->data)[i] : ((const int64_t *)x->data)[i];
}

static int check_sequences(const gla_call *call)
{
    if (!call->cu_seqlens.data) return GLA_OK;
    int64_t before = element_of(&call->cu_seqlens, 0);
    if (before != 0) return GLA_BAD_SEQUENCES;
    for (int64_t i = 1; i <= call->sequences; i++) {
        int64_t end = element_of(&call->cu_seqlens, i);
        if (end < before) return GLA_BAD_SEQUENCES;
        before = end;
    }
    return before == call->tokens ? GLA_OK : GLA_BAD_SEQUENCES;
}

static int check_slots(const gla_decode_call *call)
{
    for (int64_t i = 0; call->slots.data && i < call->batch; i++) {
        int64_t slot = element_of(&call->slots, i);
        if (slot < -1 || slot >= call->pool) return GLA_BAD_SLOTS;
    }
    return GLA_OK;
}

/* Floats that gla_forward, gla_backward, gla_decode need as workspace. */
GLA_EXPORT int64_t gla_forward_workspace(const gla_call *call) { return chosen->forward_workspace(call); }
GLA_EXPORT int64_t gla_backward_workspace(const gla_call *call) { return chosen->backward_workspace(call); }
GLA_EXPORT int64_t gla_decode_workspace(const gla_decode_call *call) { return chosen->decode_workspace(call); }

GLA_EXPORT int gla_forward(const gla_call *call, float *workspace)
{
    int code = check_sequences(call);
    if (code == GLA_OK) chosen->forward(call, workspace);
    return code;
}

GLA_EXPORT int gla_backward(const gla_call *call, float *workspace)
{
    int code = check_sequences(call);
    if (code == GLA_OK) chosen->backward(call, workspace);
    return code;
}

GLA_EXPORT int gla_decode(const gla_decode_call *call, float *workspace)
{
    int code = check_slots(call);
    if (code == GLA_OK) chosen->decode(call, workspace);
    return code;
}

/* exp of `count` numbers, a multiple of 16, as the kernels compute it: for tests. */
GLA_EXPORT void gla_exponential(float *out, const float *in, int64_t count) { chosen->exponential(out, in, count); }
