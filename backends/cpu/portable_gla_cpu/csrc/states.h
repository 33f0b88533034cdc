/* States as panels of 32 columns: their size, and their way from and to tensors [.., K, V]. */
#ifndef GLA_STATES_H
#define GLA_STATES_H

#include "panels.h"
#include "rows.h"

GLA_INLINE int64_t panel_floats(int64_t rows) { return gla_round_up(rows, ROWS_MULTIPLE) * GLA_PANEL; }

GLA_INLINE int64_t panels_floats(int64_t rows, int64_t columns)
{
    return (columns + GLA_PANEL - 1) / GLA_PANEL * panel_floats(rows);
}

/* A matrix in memory: rows × columns numbers at an offset of a tensor. */
typedef struct {
    const gla_tensor *x;
    int64_t offset, row_stride, column_stride;
    int64_t rows, columns;
} matrix;

/* The state [K, V] of sequence n and head h. */
static inline matrix state_of(const gla_tensor *x, int64_t n, int64_t head, int64_t key_dim, int64_t value_dim)
{
    return (matrix){x, n * x->stride[0] + head * x->stride[1], x->stride[2], x->stride[3], key_dim, value_dim};
}

static inline matrix columns_of(matrix m, int64_t first, int64_t columns)
{
    m.offset += first * m.column_stride;
    m.columns = columns;
    return m;
}

static inline void panels_load(float *panels, matrix m)
{
    for (int64_t c = 0; c < m.columns; c += GLA_PANEL, panels += panel_floats(m.rows)) {
        for (int64_t r = 0; r < m.rows; r++)
            load_row(panels + r * GLA_PANEL, m.x, m.offset + r * m.row_stride + c * m.column_stride, m.column_stride,
                     gla_min(GLA_PANEL, m.columns - c), GLA_PANEL);
        memset(panels + m.rows * GLA_PANEL, 0, (panel_floats(m.rows) - m.rows * GLA_PANEL) * sizeof *panels);
    }
}

static inline void panels_store(matrix m, const float *panels)
{
    for (int64_t c = 0; c < m.columns; c += GLA_PANEL, panels += panel_floats(m.rows))
        for (int64_t r = 0; r < m.rows; r++)
            store_row(m.x, m.offset + r * m.row_stride + c * m.column_stride, m.column_stride, panels + r * GLA_PANEL,
                      gla_min(GLA_PANEL, m.columns - c), false);
}

/* The same for panels of the transposed matrix: rows of the panels are columns of m. */
static inline void panels_load_transposed(float *panels, matrix m)
{
    float block[4 * 4];
    memset(panels, 0, panels_floats(m.columns, m.rows) * sizeof *panels);
    for (int64_t r = 0; r < m.rows; r += 4)
        for (int64_t c = 0; c < m.columns; c += 4) {
            for (int64_t i = 0; i < 4; i++)
                if (r + i < m.rows)
                    load_row(block + 4 * i, m.x, m.offset + (r + i) * m.row_stride + c * m.column_stride,
                             m.column_stride, gla_min(4, m.columns - c), 4);
                else
                    memset(block + 4 * i, 0, 4 * sizeof *block);
            float *panel = panels + r / GLA_PANEL * panel_floats(m.columns) + r % GLA_PANEL;
            transpose_four(panel + c * GLA_PANEL, GLA_PANEL, block, 4);
        }
}

static inline void panels_store_transposed(matrix m, const float *panels)
{
    float block[4 * 4];
    for (int64_t r = 0; r < m.rows; r += 4)
        for (int64_t c = 0; c < m.columns; c += 4) {
            const float *panel = panels + r / GLA_PANEL * panel_floats(m.columns) + r % GLA_PANEL;
            transpose_four(block, 4, panel + c * GLA_PANEL, GLA_PANEL);
            for (int64_t i = 0; i < gla_min(4, m.rows - r); i++)
                store_row(m.x, m.offset + (r + i) * m.row_stride + c * m.column_stride, m.column_stride, block + 4 * i,
                          gla_min(4, m.columns - c), false);
        }
}

/* panels = decay ⊙ panels (+ added), with a decay per row or per column. */
static inline void panels_decay(float *panels, const float *added, const float *decay, bool decay_by_row, int64_t rows,
                                int64_t columns)
{
    for (int64_t c = 0; c < columns; c += GLA_PANEL)
        for (int64_t r = 0; r < gla_round_up(rows, ROWS_MULTIPLE); r++)
            for (int64_t n = 0; n < GLA_PANEL; n += LANES, panels += LANES) {
                vec factor = vec_splat(decay[decay_by_row ? r : 0]);
                if (!decay_by_row) factor = vec_load(decay + c + n);
                vec x = vec_load(panels) * factor;
                if (added) x += vec_load(added + (c / GLA_PANEL * panel_floats(rows) + r * GLA_PANEL + n));
                vec_store(panels, x);
            }
}

#endif
