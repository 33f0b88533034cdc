#ifndef GLA_THREADS_H
#define GLA_THREADS_H

#include <stdint.h>

typedef void (*gla_task)(const void *data, int64_t task, int64_t worker);

/* Run task(data, i, worker) for every i < count on at most `threads` workers, numbered from 0.
 *
 * Workers take tasks from a counter, so that who runs a task is left to chance: a task's result must not depend on it.
 * Denormal numbers count as zero meanwhile.
 */
void gla_run(int64_t count, int64_t threads, gla_task task, const void *data);

/* The signature of GOMP_parallel, the one function needed of an OpenMP runtime. */
typedef void (*gla_openmp)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* Borrow the threads of a runtime that the process has loaded; NULL: create threads for every call. */
void gla_use_openmp(gla_openmp parallel);

#endif
