/* Panels of packed matrices for sgemm.h: blocks become floats as they are put into a panel, so that no
 * matrix is ever in memory as floats. kernels/stacked.py mirrors stacked_t's arguments.
 */
#ifndef PICOEDGE_STACKED_H
#define PICOEDGE_STACKED_H

#include "sgemm.h"
#include "weights.h"

/* One matrix W of several: shards below each other, or (of one part) beside each other. As a right side
 * it is W's transpose, or with `back` W itself. */
typedef struct {
    const weights_t *parts;
    int32_t count, by_columns, back;
} stacked_t;

typedef struct {
    float *out;
    int64_t n, k; /* column and row of its first element */
    int depth, back;
} panel_t;

/* Elements (row + i, col + x) of W, i < rows and x < cols, from at[i * by_row + x * by_col]. */
INLINE void put(const panel_t *p, int64_t row, int rows, int64_t col, int cols, const float *at, int64_t by_row,
                int64_t by_col) {
    const int64_t n = (p->back ? col : row) - p->n, k = (p->back ? row : col) - p->k;
    const int64_t by_n = p->back ? by_col : by_row, by_k = p->back ? by_row : by_col;
    const int width = p->back ? cols : rows, height = p->back ? rows : cols;
    for (int i = 0, run; i < width; i += run) {
        const int lane = (int)((n + i) % TILE_N);
        run = width - i < TILE_N - lane ? width - i : TILE_N - lane;
        float *restrict to = p->out + ((n + i) / TILE_N * p->depth + k) * TILE_N + lane;
        const float *restrict from = at + i * by_n;
        for (int x = 0; x < height; x++) {
            if (by_n == 1 && run % LANES == 0)
                for (int v = 0; v < run; v += LANES) vf_store(to + x * TILE_N + v, vf_load(from + x * by_k + v));
            else
                for (int v = 0; v < run; v++) to[x * TILE_N + v] = from[x * by_k + v * by_n];
        }
    }
}

typedef struct { int64_t from, to; } range_t;

/* The part of `of` that lies within `length` elements from `start` on, counted from there. */
INLINE range_t within(range_t of, int64_t start, int64_t length) {
    const range_t r = {of.from > start ? of.from - start : 0, of.to < start + length ? of.to - start : length};
    return r;
}

/* Rows and columns of a quantized shard, whose first element is (top, left) of W. */
INLINE void pack_tiles(int format, const panel_t *p, const weights_t *w, int shard, int64_t top, int64_t left,
                       range_t rows, range_t cols) {
    float block[BLOCK * TILE];
    for (int64_t row = rows.from / TILE * TILE; row < rows.to; row += TILE) {
        const tile_t tile = tile_at(w, shard, (int)(row / TILE));
        const range_t i = within(rows, row, TILE);
        for (int64_t col = cols.from / BLOCK * BLOCK; col < cols.to; col += BLOCK) {
            const range_t x = within(cols, col, BLOCK);
            dequantize_block(format, &tile, (int)(col / BLOCK), block);
            if (i.to - i.from == TILE && x.to - x.from == BLOCK)
                put(p, top + row, TILE, left + col, BLOCK, block, 1, TILE);
            else
                put(p, top + row + i.from, (int)(i.to - i.from), left + col + x.from, (int)(x.to - x.from),
                    block + x.from * TILE + i.from, 1, TILE);
        }
    }
}

static void pack_shard(const panel_t *p, const weights_t *w, int shard, int64_t top, int64_t left, range_t rows,
                       range_t cols) {
    if (rows.from >= rows.to || cols.from >= cols.to) return;
#define CASE(FORMAT) case FORMAT: pack_tiles(FORMAT, p, w, shard, top, left, rows, cols); return
    switch (w->format) {
        CASE(Q4); CASE(Q4M); CASE(Q4K); CASE(Q5); CASE(Q5M); CASE(Q5K); CASE(Q6); CASE(Q6K); CASE(Q8);
    }
#undef CASE
    const float *at = (const float *)(w->data + shard * w->stride + w->quants); /* f32, row by row */
    put(p, top + rows.from, (int)(rows.to - rows.from), left + cols.from, (int)(cols.to - cols.from),
        at + rows.from * w->cols + cols.from, w->cols, 1);
}

/* See pack_panel. */
static void pack_stacked(const void *b, int64_t j, int64_t cols, int64_t k, int depth, float *restrict out) {
    const stacked_t *s = b;
    const panel_t panel = {out, j, k, depth, s->back};
    const range_t across = {j, j + cols}, along = {k, k + depth};
    const range_t rows = s->back ? along : across, columns = s->back ? across : along;
    const int64_t whole = cols / TILE_N * TILE_N;
    if (whole < cols) memset(out + whole * depth, 0, sizeof(float) * TILE_N * (size_t)depth);
    int64_t top = 0, left = 0;
    for (int part = 0; part < s->count; part++) {
        const weights_t *w = s->parts + part;
        for (int shard = 0; shard < w->count; shard++) {
            pack_shard(&panel, w, shard, top, left, within(rows, top, w->rows), within(columns, left, w->cols));
            if (s->by_columns) left += w->cols;
            else top += w->rows;
        }
    }
}

#endif
