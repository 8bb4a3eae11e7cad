/* Matrix products in f32 whose bits depend on nothing but their operands.
 *
 * C[i,j] = sum over k of A[i,k] B[k,j], in one order on every level: k ascends in blocks of
 * DEPTH; within a block one chain of fused multiply-adds that starts at zero; then the block's sum
 * is added to C. So an element's bits do not depend on the shape of a tile, on how many rows are
 * multiplied at once, nor on threads. DEPTH belongs to the format of a training run.
 *
 * Loops as in Goto and van de Geijn (2008): panels of B that stay in the last cache, panels of A that
 * stay in the second one, and a tile of C in registers.
 */
#ifndef PICOEDGE_SGEMM_H
#define PICOEDGE_SGEMM_H

#include "vector.h"

enum { DEPTH = 256 };

#if defined(__AVX512F__) /* 28 of 32 registers are sums */
enum { TILE_M = 14, TILE_V = 2 };
#elif defined(__AVX2__) /* 12 of 16 */
enum { TILE_M = 6, TILE_V = 2 };
#elif defined(__ARM_NEON) && defined(__aarch64__) /* 24 of 32 */
enum { TILE_M = 8, TILE_V = 3 };
#else
enum { TILE_M = 4, TILE_V = 1 };
#endif
enum {
    TILE_N = TILE_V * LANES,
    PANEL_M = 240 / TILE_M * TILE_M,  /* rows of A at once: 240 KB */
    PANEL_N = 1920 / TILE_N * TILE_N, /* columns of B at once: 1.9 MB */
    SGEMM_SCRATCH = DEPTH * (PANEL_M + PANEL_N),
};

/* A matrix by its strides, in elements: element (i, j) is at[i * row + j * col]. */
typedef struct {
    const float *at;
    int64_t row, col;
} matrix_t;

typedef float four_t __attribute__((vector_size(16)));
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t pick_t __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (pick_t){i, j, k, l})
#endif

INLINE four_t load_four(const float *at) {
    four_t v;
    memcpy(&v, at, sizeof v);
    return v;
}

/* out[x * tile + r] = from[r * row + x], for r and x below 4. */
INLINE void turn_four(const float *from, int64_t row, float *restrict out, int tile) {
    const four_t a = load_four(from), b = load_four(from + row);
    const four_t c = load_four(from + 2 * row), d = load_four(from + 3 * row);
    const four_t low = SHUFFLE(a, b, 0, 4, 1, 5), low2 = SHUFFLE(c, d, 0, 4, 1, 5);
    const four_t high = SHUFFLE(a, b, 2, 6, 3, 7), high2 = SHUFFLE(c, d, 2, 6, 3, 7);
    const four_t turned[4] = {SHUFFLE(low, low2, 0, 1, 4, 5), SHUFFLE(low, low2, 2, 3, 6, 7),
                              SHUFFLE(high, high2, 0, 1, 4, 5), SHUFFLE(high, high2, 2, 3, 6, 7)};
    for (int x = 0; x < 4; x++) memcpy(out + x * tile, &turned[x], sizeof turned[x]);
}

/* A whole tile of rows whose columns lie side by side. Each line of the cache is read once: rows may
 * be 4096 bytes apart, where only eight of them have a place in the first cache. */
INLINE void pack_contiguous(const float *from, int64_t row, int depth, int tile, float *restrict out) {
    int x = 0;
    for (; x + 4 <= depth; x += 16)
        for (int r = 0; r < tile; r += 4)
            for (int y = x; y < x + 16 && y + 4 <= depth; y += 4) {
                const int at = r < tile - 4 ? r : tile - 4; /* the last four may be some of before */
                turn_four(from + at * row + y, row, out + y * tile + at, tile);
            }
    for (x = depth / 4 * 4; x < depth; x++)
        for (int r = 0; r < tile; r++) out[x * tile + r] = from[r * row + x];
}

/* `tiles` tiles of rows that lie side by side: a few columns of all of them at once. */
INLINE void pack_side_by_side(const float *from, int64_t col, int64_t tiles, int depth, int tile,
                              float *restrict out) {
    for (int x = 0; x < depth; x += 4)
        for (int64_t i = 0; i < tiles; i++)
            for (int y = x; y < x + 4 && y < depth; y++)
                memcpy(out + (i * depth + y) * tile, from + i * tile + y * col, (size_t)tile * 4);
}

/* `rows` rows from `row` on and `depth` columns from `k` on, as [row / TILE][k][row % TILE], with
 * zeros for the rows beyond. */
INLINE void pack_rows(const matrix_t *m, int64_t row, int64_t rows, int64_t k, int depth, int tile,
                      float *restrict out) {
    const int64_t tiles = rows / tile, whole = tiles * tile;
    const float *from = m->at + row * m->row + k * m->col;
    if (m->row == 1)
        pack_side_by_side(from, m->col, tiles, depth, tile, out);
    else
        for (int64_t i = 0; i < tiles; i++) {
            const float *at = from + i * tile * m->row;
            float *into = out + i * depth * tile;
            if (m->col == 1)
                pack_contiguous(at, m->row, depth, tile, into);
            else
                for (int r = 0; r < tile; r++)
                    for (int x = 0; x < depth; x++) into[x * tile + r] = at[r * m->row + x * m->col];
        }
    if (whole == rows) return;
    from += whole * m->row;
    out += whole * depth;
    for (int r = 0; r < tile; r++)
        for (int x = 0; x < depth; x++) out[x * tile + r] = r < rows - whole ? from[r * m->row + x * m->col] : 0;
}

/* C[rows, cols] = or += the product of a packed panel of each: a [depth][TILE_M], b [depth][TILE_N]. */
INLINE void multiply_tile(int depth, const float *restrict a, const float *restrict b, float *restrict c,
                          int64_t c_row, int rows, int cols, int accumulate) {
    vf sum[TILE_M][TILE_V];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_V; v++) sum[i][v] = vf_set1(0);
    for (int k = 0; k < depth; k++, a += TILE_M, b += TILE_N) {
        vf right[TILE_V];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_V; v++) right[v] = vf_load(b + v * LANES);
        __builtin_prefetch(b + 8 * TILE_N);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_M; i++) {
            const vf left = vf_set1(a[i]);
#pragma GCC unroll 4
            for (int v = 0; v < TILE_V; v++) sum[i][v] = vf_fma(left, right[v], sum[i][v]);
        }
    }
    if (rows == TILE_M && cols == TILE_N) {
#pragma GCC unroll 16
        for (int i = 0; i < TILE_M; i++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_V; v++) {
                float *at = c + i * c_row + v * LANES;
                vf_store(at, accumulate ? vf_add(vf_load(at), sum[i][v]) : sum[i][v]);
            }
        return;
    }
    float edge[TILE_M][TILE_N];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_M; i++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE_V; v++) vf_store(edge[i] + v * LANES, sum[i][v]);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            float *at = c + i * c_row + j;
            *at = accumulate ? *at + edge[i][j] : edge[i][j];
        }
}

/* Columns of B from `j` on, and `depth` of its rows from `k` on, as [column / TILE_N][k][column % TILE_N]. */
typedef void pack_panel(const void *b, int64_t j, int64_t cols, int64_t k, int depth, float *restrict out);

static void pack_columns(const void *b, int64_t j, int64_t cols, int64_t k, int depth, float *restrict out) {
    pack_rows(b, j, cols, k, depth, TILE_N, out);
}

/* C [m, n] = or += A [m, k] B [k, n], where `pack` makes panels of B; C's rows are contiguous, c_row
 * elements apart. `scratch`: SGEMM_SCRATCH floats of this thread. */
static void multiply_panels(int64_t m, int64_t n, int64_t k, matrix_t a, pack_panel *pack, const void *b, float *c,
                            int64_t c_row, int accumulate, float *scratch) {
    float *const left = scratch, *const right = scratch + DEPTH * PANEL_M;
    if (k == 0 && !accumulate)
        for (int64_t i = 0; i < m; i++) memset(c + i * c_row, 0, (size_t)n * 4);
    for (int64_t j = 0; j < n; j += PANEL_N) {
        const int64_t cols = n - j < PANEL_N ? n - j : PANEL_N;
        for (int64_t x = 0; x < k; x += DEPTH) {
            const int depth = k - x < DEPTH ? (int)(k - x) : DEPTH;
            pack(b, j, cols, x, depth, right);
            for (int64_t i = 0; i < m; i += PANEL_M) {
                const int64_t rows = m - i < PANEL_M ? m - i : PANEL_M;
                pack_rows(&a, i, rows, x, depth, TILE_M, left);
                for (int64_t v = 0; v < cols; v += TILE_N)
                    for (int64_t u = 0; u < rows; u += TILE_M)
                        multiply_tile(depth, left + u * depth, right + v * depth,
                                      c + (i + u) * c_row + j + v, c_row,
                                      rows - u < TILE_M ? (int)(rows - u) : TILE_M,
                                      cols - v < TILE_N ? (int)(cols - v) : TILE_N, accumulate || x);
            }
        }
    }
}

/* The same of a matrix B in f32. */
static void sgemm(int64_t m, int64_t n, int64_t k, matrix_t a, matrix_t b, float *c, int64_t c_row,
                  int accumulate, float *scratch) {
    const matrix_t columns = {b.at, b.col, b.row}; /* rows of the transposed are columns */
    multiply_panels(m, n, k, a, pack_columns, &columns, c, c_row, accumulate, scratch);
}

#endif
