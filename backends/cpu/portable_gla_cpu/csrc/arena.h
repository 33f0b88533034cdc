/* Scratch memory: one block that Python allocates, from which arrays are taken in order. */
#ifndef GLA_ARENA_H
#define GLA_ARENA_H

#include "gla.h"

typedef struct {
    float *base;    /* NULL: only measure */
    int64_t floats; /* taken so far */
} arena;

/* The gap keeps the same rows of two arrays from lying a multiple of 4096 bytes apart, where a processor takes a load
 * for one that must wait for an earlier store. */
GLA_INLINE float *take(arena *scratch, int64_t floats)
{
    enum { LINE = 16, GAP = 9 * LINE };
    float *taken = scratch->base ? scratch->base + scratch->floats : NULL;
    scratch->floats += gla_round_up(floats, LINE) + GAP;
    return taken;
}

#endif
