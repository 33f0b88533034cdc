/* Fetching rows ahead of their use, a few at a time between tiles of arithmetic.
 *
 * Rows of one head lie far apart in [B, T, H, D], where no processor looks by itself, and a core has only some dozen
 * outstanding misses: asking for a whole chunk at once would stall it. So the rows of the next chunk wait in a queue,
 * from which every tile of a product takes some.
 */
#ifndef GLA_FETCH_H
#define GLA_FETCH_H

#include "gla.h"

enum { FETCH_LINE = 64, FETCH_ROWS = 10 * GLA_CHUNK };

typedef struct {
    struct {
        const char *at, *end;
    } rows[FETCH_ROWS];
    int first, count;
} fetch_queue;

GLA_INLINE void fetch_row(fetch_queue *queue, const char *at, int64_t bytes)
{
    if (queue->count == FETCH_ROWS) return; /* only ever a hint */
    queue->rows[queue->count].at = at;
    queue->rows[queue->count++].end = at + bytes;
}

GLA_INLINE void fetch_rows(fetch_queue *queue, int rows)
{
    for (; rows > 0 && queue->first < queue->count; rows--, queue->first++)
        for (const char *at = queue->rows[queue->first].at; at < queue->rows[queue->first].end; at += FETCH_LINE)
            __builtin_prefetch(at, 0, 2);
}

/* At the end of a chunk: what is left, then an empty queue. */
GLA_INLINE void fetch_rest(fetch_queue *queue)
{
    fetch_rows(queue, FETCH_ROWS);
    queue->first = queue->count = 0;
}

#endif
