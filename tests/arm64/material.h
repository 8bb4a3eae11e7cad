/* What the self-test of inference works on. */
#include "numbers.h"

static void expect_close(report_t *report, double got, double want, double tolerance, const char *what) {
    char detail[96];
    snprintf(detail, sizeof detail, "%.9g, not %.9g +- %.3g", got, want, tolerance);
    expect(report, fabs(got - want) <= tolerance, what, detail);
}

/* Rows of `width` floats; a block of zeros, one of tiny and one of large numbers in each row. */
static float *draw_rows(int rows, int width, uint32_t seed) {
    float *x = room((size_t)(rows * width) * sizeof *x);
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < width; i++) {
            const int block = (i / BLOCK + r) % 8;
            const float size = block == 1 ? 0.0f : block == 3 ? 1e-12f : block == 6 ? 300.0f : 1.0f;
            x[r * width + i] = draw_float(&seed) * size;
        }
    }
    return x;
}

/* Mostly 2^-11 .. 2^-6 and either sign; one in sixteen is subnormal or zero. */
static uint16_t draw_f16(uint32_t *seed) {
    const uint32_t bits = draw(seed);
    const uint32_t exponent = bits % 16 ? 4 + (bits >> 4) % 6 : 0;
    const uint32_t mantissa = bits % 64 ? bits >> 8 & 0x3ff : 0;
    return (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(exponent << 10 | mantissa);
}

static double *draw_sums(int rows, int width, uint32_t seed) {
    double *sums = room((size_t)(rows * width) * sizeof *sums);
    for (int i = 0; i < rows * width; i++) sums[i] = draw_float(&seed) + draw_float(&seed) * 1e-9;
    return sums;
}

/* ---- Weights: planes as kernels/blocks.py lays them out -------------------------------------------- */

static int64_t plane(int64_t *end, int64_t bytes) {
    const int64_t start = *end;
    *end += (bytes + 63) / 64 * 64;
    return start;
}

/* Places the planes of one shard and its stride; 64 bytes of something else lie before and behind. */
static void place_planes(weights_t *w) {
    const format_t *f = formats + w->format;
    const int64_t tiles = (w->rows + TILE - 1) / TILE, blocks = tiles * (w->cols / BLOCK);
    const int64_t supers = f->super ? tiles * (w->cols / w->superblock) : 0;
    const int64_t scale_bytes = f->super ? (f->bits == 6 ? 2 : 1) : 2;
    int64_t end = 64;
    w->quants = plane(&end, blocks * TILE * (f->bits == 8 ? 32 : 16));
    w->highs = plane(&end, blocks * TILE * (f->bits == 5 ? 4 : f->bits == 6 ? 8 : 0));
    w->scales = plane(&end, blocks * TILE * scale_bytes);
    w->mins = plane(&end, f->has_min ? blocks * TILE * scale_bytes : 0);
    w->superscales = plane(&end, supers * TILE * 2);
    w->supermins = plane(&end, f->has_min ? supers * TILE * 2 : 0);
    w->stride = end + 64;
}

static void fill_f16(uint8_t *from, uint8_t *to, uint32_t *seed) {
    for (; from < to; from += 2) {
        const uint16_t half = draw_f16(seed);
        memcpy(from, &half, 2);
    }
}

static weights_t draw_weights(int format, int rows, int cols, int count, uint32_t seed) {
    const format_t *f = formats + format;
    weights_t w = {.count = count, .rows = rows, .cols = cols, .format = format, .superblock = f->super ? 64 : 0};
    place_planes(&w);
    uint8_t *data = room((size_t)(w.stride * count));
    for (int64_t i = 0; i < w.stride * count; i++) data[i] = (uint8_t)(draw(&seed) >> 9);
    for (int shard = 0; shard < count; shard++) {
        uint8_t *base = data + shard * w.stride;
        fill_f16(base + (f->super ? w.superscales : w.scales), base + w.stride - 64, &seed);
    }
    w.data = data;
    return w;
}
