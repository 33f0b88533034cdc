/* Tasks on threads: PyTorch's own OpenMP threads where they are found, which are awake already; else POSIX threads. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { MAX_CREATED = 256 };

typedef struct {
    gla_task task;
    const void *data;
    int64_t count, threads;
    atomic_int_fast64_t next_task, next_worker;
} team;

static gla_openmp openmp;

void gla_use_openmp(gla_openmp parallel) { openmp = parallel; }

/* Decaying states become denormal, on which arithmetic is up to a hundred times slower: count them as zero. */
#if defined(__x86_64__)
typedef unsigned float_mode;
static float_mode flush_denormals(void)
{
    float_mode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
}
static void restore(float_mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t float_mode;
static float_mode flush_denormals(void)
{
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    return before;
}
static void restore(float_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

static void work(void *argument)
{
    team *t = argument;
    int64_t worker = atomic_fetch_add(&t->next_worker, 1);
    if (worker >= t->threads) return; /* a runtime may bring more threads than were asked for; scratch is for these */
    float_mode mode = flush_denormals();
    for (int64_t i; (i = atomic_fetch_add(&t->next_task, 1)) < t->count;) t->task(t->data, i, worker);
    restore(mode);
}

static void *work_thread(void *argument)
{
    work(argument);
    return NULL;
}

void gla_run(int64_t count, int64_t threads, gla_task task, const void *data)
{
    team t = {task, data, count, threads < count ? threads : count, 0, 0};
    if (t.threads <= 1) {
        t.threads = 1;
        work(&t);
    } else if (openmp) {
        openmp(work, &t, (unsigned)t.threads, 0);
    } else {
        pthread_t created[MAX_CREATED];
        int64_t n = 0;
        while (n < t.threads - 1 && n < MAX_CREATED && !pthread_create(&created[n], NULL, work_thread, &t)) n++;
        work(&t); /* this thread too; it does everything if none could be created */
        while (n > 0) pthread_join(created[--n], NULL);
    }
}
