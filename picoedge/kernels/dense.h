/* f32 matrices in inference: row-major, multiplied in the one order of sgemm.h.
 *
 * A product of one token reads the matrix once, in tiles of 16 rows, and keeps nothing; one of several
 * tokens is an sgemm. Both have the same bits.
 */
#ifndef PICOEDGE_DENSE_H
#define PICOEDGE_DENSE_H

#include "sgemm.h"

enum {
    DENSE_ROWS = 256, DENSE_TOKENS = PANEL_M, /* of a product that is added to sums */
    DENSE_SCRATCH = SGEMM_SCRATCH + DENSE_ROWS * DENSE_TOKENS, /* floats of a thread */
};

/* out[16] = 16 rows, `cols` floats each and apart, times x; cols is a multiple of 4. */
static void dense_tile(const float *w, int64_t cols, const float *x, float *out) {
    vf total[PARTS] = {0};
    for (int64_t from = 0; from < cols; from += DEPTH) {
        const int64_t to = cols - from < DEPTH ? cols : from + DEPTH;
        vf sum[PARTS];
        for (int p = 0; p < PARTS; p++) sum[p] = vf_set1(0);
        for (int64_t k = from; k < to; k += 4)
            for (int p = 0; p < PARTS; p++) {
                vf four[4];
                vf_columns4(w + p * LANES * cols + k, cols, four);
                for (int c = 0; c < 4; c++) sum[p] = vf_fma(vf_set1(x[k + c]), four[c], sum[p]);
            }
        for (int p = 0; p < PARTS; p++) total[p] = from ? vf_add(total[p], sum[p]) : sum[p];
    }
    for (int p = 0; p < PARTS; p++) vf_store(out + p * LANES, total[p]);
}

/* out[token][row] = `rows` rows of w [., cols] times each of n tokens; x and out have rows x_row and
 * out_row floats apart. scratch: SGEMM_SCRATCH floats. */
static void dense_product(const float *w, int64_t rows, int64_t cols, const float *x, int64_t n, int64_t x_row,
                          float *out, int64_t out_row, float *scratch) {
    int64_t row = 0;
    if (n == 1)
        for (; row + TILE <= rows; row += TILE) dense_tile(w + row * cols, cols, x, out + row);
    if (row == rows) return;
    const matrix_t left = {x, x_row, 1}, right = {w + row * cols, 1, cols};
    sgemm(n, rows - row, cols, left, right, out + row, out_row, 0, scratch);
}

#endif
