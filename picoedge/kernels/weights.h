/* Packed matrices: formats, tiles of shards, and blocks of them as bytes or as floats.
 *
 * kernels/blocks.py defines every format, and mirrors weights_t.
 */
#ifndef PICOEDGE_WEIGHTS_H
#define PICOEDGE_WEIGHTS_H

#include "vector.h"

/* The formats of kernels/blocks.py, by Format.code (checked when the library is loaded). */
enum { Q4, Q4M, Q4K, Q5, Q5M, Q5K, Q6, Q6K, Q8, N_FORMATS, F32 = N_FORMATS };

typedef struct {
    const char *name;
    int32_t bits, offset;    /* of a quant; offset is subtracted from it */
    int32_t has_min, super;  /* a minimum per block; integer scales under an f16 superscale */
    int32_t quant_bytes, high_bytes, scale_bytes; /* of each plane, per block and row */
} format_t;

static const format_t formats[N_FORMATS] = {
    [Q4]  = {"q4",  4, 8,  0, 0, 16, 0, 2},
    [Q4M] = {"q4m", 4, 0,  1, 0, 16, 0, 2},
    [Q4K] = {"q4k", 4, 0,  1, 1, 16, 0, 1},
    [Q5]  = {"q5",  5, 16, 0, 0, 16, 4, 2},
    [Q5M] = {"q5m", 5, 0,  1, 0, 16, 4, 2},
    [Q5K] = {"q5k", 5, 0,  1, 1, 16, 4, 1},
    [Q6]  = {"q6",  6, 32, 0, 0, 16, 8, 2},
    [Q6K] = {"q6k", 6, 32, 0, 1, 16, 8, 2},
    [Q8]  = {"q8",  8, 0,  0, 0, 32, 0, 2},
};

typedef struct {
    const uint8_t *data; /* shard i starts at data + i * stride */
    int64_t stride;
    int64_t quants, highs, scales, mins, superscales, supermins; /* planes, from a shard's start; F32: values */
    const float *bias;                                           /* [count * rows], or NULL */
    int32_t count, rows, cols, format, superblock, out_offset;
} weights_t;

typedef struct { /* one tile of one shard */
    const uint8_t *quants, *highs, *scales, *mins;
    const uint16_t *superscales, *supermins;
    int blocks, superblock; /* superblock in blocks */
} tile_t;

INLINE tile_t tile_at(const weights_t *w, int shard, int tile) {
    const uint8_t *base = w->data + (int64_t)shard * w->stride;
    const int blocks = w->cols / BLOCK;
    const int64_t at = (int64_t)tile * blocks;
    const format_t *f = formats + w->format;
    tile_t t = {
        .quants = base + w->quants + at * TILE * f->quant_bytes,
        .highs = base + w->highs + at * TILE * f->high_bytes,
        .scales = base + w->scales + at * TILE * f->scale_bytes,
        .mins = base + w->mins + at * TILE * f->scale_bytes,
        .blocks = blocks,
    };
    if (w->superblock) {
        const int64_t super = (int64_t)tile * (w->cols / w->superblock) * TILE;
        t.superscales = (const uint16_t *)(base + w->superscales) + super;
        t.supermins = (const uint16_t *)(base + w->supermins) + super;
        t.superblock = w->superblock / BLOCK;
    }
    return t;
}

/* Of a format known at compile time: each folds to a constant. */
INLINE int bits_of(int format) { return formats[format].bits; }
INLINE int offset_of(int format) { return format == Q8 ? Q8_BIAS : formats[format].offset; }
INLINE int has_min(int format) { return formats[format].has_min; }
INLINE int has_super(int format) { return formats[format].super; }
INLINE int halves_of(int format) { return format == Q6K ? 2 : 1; } /* scales per block */

/* NEON shifts bytes, so that a high nibble needs no mask, and puts bits in (where a has none) in one step. */
#if defined(__ARM_NEON) && defined(__aarch64__)
INLINE wv high_nibble(wv a) { return wv_shr(a, 4); }
INLINE wv or_masked(wv a, wv b, int m) { return vbslq_u8(vdupq_n_u8((uint8_t)m), b, a); }
#else
INLINE wv high_nibble(wv a) { return wv_and(wv_shr(a, 4), 15); }
INLINE wv or_masked(wv a, wv b, int m) { return wv_or(a, wv_and(b, m)); }
#endif

/* Lanes `part` of block `b`: w[v] holds, of each row, columns 4v .. 4v+3. */
INLINE void unpack(int format, const tile_t *t, int b, int part, wv w[8]) {
    const int bits = bits_of(format), at = part * 4 * LANES;
    if (bits == 8) {
        for (int v = 0; v < 8; v++) w[v] = wv_bias(wv_load(t->quants + (b * 8 + v) * 64 + at));
        return;
    }
    for (int v = 0; v < 4; v++) {
        wv pair = wv_load(t->quants + (b * 4 + v) * 64 + at);
        w[v] = wv_and(pair, 15);
        w[v + 4] = high_nibble(pair);
    }
    if (bits == 5) {
        wv high = wv_load(t->highs + b * 64 + at);
        for (int v = 0; v < 4; v++) w[v] = or_masked(w[v], wv_shl(high, 4 - v), 16);
        for (int v = 4; v < 8; v++) w[v] = or_masked(w[v], wv_shr(high, v - 4), 16);
    }
    if (bits == 6) {
        for (int p = 0; p < 2; p++) {
            wv high = wv_load(t->highs + (b * 2 + p) * 64 + at);
            w[4 * p] = or_masked(w[4 * p], wv_shl(high, 4), 48);
            w[4 * p + 1] = or_masked(w[4 * p + 1], wv_shl(high, 2), 48);
            w[4 * p + 2] = or_masked(w[4 * p + 2], high, 48);
            w[4 * p + 3] = or_masked(w[4 * p + 3], wv_shr(high, 2), 48);
        }
    }
}

/* Scales of block `b`: one vector, or two (q6k); superscale * scale is exact in f32 (11 + 8 bits). */
INLINE void load_scales(int format, const tile_t *t, int b, int part, vf scale[2], vf *min) {
    const int lane = part * LANES;
    if (!has_super(format)) {
        scale[0] = vf_from_f16((const uint16_t *)t->scales + b * TILE + lane);
        if (has_min(format)) *min = vf_from_f16((const uint16_t *)t->mins + b * TILE + lane);
        return;
    }
    const int s = b / t->superblock * TILE + lane;
    vf super = vf_from_f16(t->superscales + s);
    if (format == Q6K) {
        scale[0] = vf_mul(super, vf_from_i8((const int8_t *)t->scales + 2 * b * TILE + lane));
        scale[1] = vf_mul(super, vf_from_i8((const int8_t *)t->scales + (2 * b + 1) * TILE + lane));
        return;
    }
    scale[0] = vf_mul(super, vf_from_u8(t->scales + b * TILE + lane));
    vf supermin = vf_from_f16(t->supermins + s);
    *min = vf_fnma(supermin, vf_from_u8(t->mins + b * TILE + lane), vf_set1(0.0f));
}

/* Columns of block `b` as out [BLOCK][TILE]: the bits of blocks.dequantize. A quant times its scales is
 * exact in f32, so that only a minimum's sum is rounded, fused or not. */
INLINE void dequantize_block(int format, const tile_t *t, int b, float *restrict out) {
    const vf offset = vf_set1((float)offset_of(format));
    for (int p = 0; p < PARTS; p++) {
        wv w[8];
        vf scale[2], min = vf_set1(0);
        unpack(format, t, b, p, w);
        load_scales(format, t, b, p, scale, &min);
        for (int v = 0; v < 8; v++) {
            const vf by = scale[format == Q6K ? v / 4 : 0];
            for (int j = 0; j < 4; j++) {
                const vf q = vf_sub(vf_from_byte(w[v], j, format == Q8 && !Q8_BIAS), offset);
                vf_store(out + (4 * v + j) * TILE + p * LANES, has_min(format) ? vf_fma(q, by, min) : vf_mul(q, by));
            }
        }
    }
}

#endif
