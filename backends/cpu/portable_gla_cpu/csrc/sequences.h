/* Which tokens a task covers: sequences, their order, their segments, and where their states are saved. */
#ifndef GLA_SEQUENCES_H
#define GLA_SEQUENCES_H

#include <stdbool.h>

#include "gla.h"

typedef struct {
    int64_t index;  /* in [N, H, K, V] */
    int64_t row;    /* of the batch */
    int64_t start;  /* its first token in the row */
    int64_t length; /* may be 0 */
    int64_t slot;   /* of its first saved state */
    bool reverse;
} sequence;

GLA_INLINE int64_t sequence_start(const gla_call *call, int64_t index)
{
    int64_t offset = index * call->cu_seqlens.stride[0];
    if (call->cu_seqlens.dtype == GLA_INT32) return ((const int32_t *)call->cu_seqlens.data)[offset];
    return ((const int64_t *)call->cu_seqlens.data)[offset];
}

/* A state is saved before every interval-th token of a sequence but the first: T / interval slots per row are enough,
 * also for a pack, since floor(start / interval) + floor(length / interval) ≤ floor((start + length) / interval). */
static inline sequence sequence_at(const gla_call *call, int64_t index)
{
    sequence s = {.index = index, .row = index, .length = call->tokens, .reverse = call->reverse};
    s.slot = index * (call->tokens / call->interval);
    if (call->cu_seqlens.data) {
        s.row = 0;
        s.start = sequence_start(call, index);
        s.length = sequence_start(call, index + 1) - s.start;
        s.slot = s.start / call->interval;
    }
    return s;
}

/* The position in the row of the i-th token that the recurrence meets. */
GLA_INLINE int64_t position(const sequence *s, int64_t i)
{
    return s->reverse ? s->start + s->length - 1 - i : s->start + i;
}

/* Tokens [first, last) of a segment. They follow from the sequence's own length and the number of segments alone, so
 * that a sequence's result does not depend on its neighbours. Long segments begin where a state is saved. */
typedef struct {
    int64_t first, last;
} range;

static inline range segment_at(const gla_call *call, const sequence *s, int64_t segment)
{
    int64_t unit = s->length >= call->segments * call->interval ? call->interval : GLA_CHUNK;
    int64_t size = gla_round_up((s->length + call->segments - 1) / call->segments, unit);
    return (range){gla_min(segment * size, s->length), gla_min((segment + 1) * size, s->length)};
}

/* The number of tokens of the chunk at `i` in a range: chunks begin at multiples of 16 of the sequence. */
GLA_INLINE int64_t chunk_count(int64_t i, int64_t last) { return gla_min(GLA_CHUNK, last - i); }

#endif
