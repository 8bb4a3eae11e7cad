/* The vector layer of picoedge's kernels: what differs between instruction sets, and nothing else.
 *
 * Four implementations of one set of functions: AVX-512 VNNI, AVX2 (with or without AVX-VNNI), NEON
 * (with or without dot products and i8mm), and portable loops. `vf` is LANES floats, `vi` LANES ints,
 * `wv` LANES rows of four weights. Every function gives the same bits on every level (`make
 * test-arm64`); code above this file is written once.
 */
#ifndef PICOEDGE_VECTOR_H
#define PICOEDGE_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 16, BLOCK = 32 }; /* rows of a tile, columns of a block: kernels/blocks.py */

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
typedef __m512 vf;
typedef __m512i vi, wv;
INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
/* Four columns from `at` on of LANES rows, `row` floats apart: out[c] has a lane a row. */
INLINE void vf_columns4(const float *at, int64_t row, vf out[4]) {
    vf quad[4]; /* of rows r, r + 4, r + 8, r + 12 */
    for (int r = 0; r < 4; r++, at += row) {
        quad[r] = _mm512_castps128_ps512(_mm_loadu_ps(at));
        quad[r] = _mm512_insertf32x4(quad[r], _mm_loadu_ps(at + 4 * row), 1);
        quad[r] = _mm512_insertf32x4(quad[r], _mm_loadu_ps(at + 8 * row), 2);
        quad[r] = _mm512_insertf32x4(quad[r], _mm_loadu_ps(at + 12 * row), 3);
    }
    const vf a = _mm512_unpacklo_ps(quad[0], quad[1]), b = _mm512_unpackhi_ps(quad[0], quad[1]);
    const vf c = _mm512_unpacklo_ps(quad[2], quad[3]), d = _mm512_unpackhi_ps(quad[2], quad[3]);
    out[0] = _mm512_shuffle_ps(a, c, 0x44);
    out[1] = _mm512_shuffle_ps(a, c, 0xee);
    out[2] = _mm512_shuffle_ps(b, d, 0x44);
    out[3] = _mm512_shuffle_ps(b, d, 0xee);
}
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE float vf_hmax(vf a) { return _mm512_reduce_max_ps(a); }
INLINE vf vf_from_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE void vf_to_f16(uint16_t *p, vf a) { _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(a, 0)); }
INLINE vf vf_set1_f16(uint16_t a) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)a)); }
INLINE vf vf_from_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vf vf_from_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vf vf_from_byte(wv a, int j, int is_signed) { /* byte j of each row */
    return _mm512_cvtepi32_ps(is_signed ? _mm512_srai_epi32(_mm512_slli_epi32(a, (unsigned)(24 - 8 * j)), 24)
                                        : _mm512_and_si512(_mm512_srli_epi32(a, (unsigned)(8 * j)), _mm512_set1_epi32(255)));
}
INLINE vf vf_from_vi(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vi_round(vf a) { return _mm512_cvtps_epi32(a); }
INLINE int32_t vi_sum(vi a) { return _mm512_reduce_add_epi32(a); }
INLINE void vi_store_i8(int8_t *p, vi a) { _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(a)); }
INLINE vf vf_pow2(vi n) { /* 2^n, n in -126..127 */
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
INLINE wv wv_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE wv wv_and(wv a, int m) { return _mm512_and_si512(a, _mm512_set1_epi8((char)m)); }
INLINE wv wv_or(wv a, wv b) { return _mm512_or_si512(a, b); }
INLINE wv wv_shl(wv a, int k) { return _mm512_slli_epi16(a, (unsigned)k); }
INLINE wv wv_shr(wv a, int k) { return _mm512_srli_epi16(a, (unsigned)k); }
INLINE wv wv_bias(wv a) { return _mm512_xor_si512(a, _mm512_set1_epi8((char)0x80)); }
enum { Q8_BIAS = 128 }; /* vpdpbusd takes unsigned weights: q8 is stored signed, moved up by 128 */
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    (void)bits;
    vi sum = _mm512_set1_epi32(start);
    for (int v = 0; v < count; v++) {
        int32_t four;
        memcpy(&four, x + 4 * v, 4);
        sum = _mm512_dpbusd_epi32(sum, w[v], _mm512_set1_epi32(four));
    }
    return sum;
}

#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8 };
typedef __m256 vf;
typedef __m256i vi, wv;
INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE void vf_columns4(const float *at, int64_t row, vf out[4]) {
    vf quad[4]; /* of rows r and r + 4 */
    for (int r = 0; r < 4; r++, at += row)
        quad[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)), _mm_loadu_ps(at + 4 * row), 1);
    const vf a = _mm256_unpacklo_ps(quad[0], quad[1]), b = _mm256_unpackhi_ps(quad[0], quad[1]);
    const vf c = _mm256_unpacklo_ps(quad[2], quad[3]), d = _mm256_unpackhi_ps(quad[2], quad[3]);
    out[0] = _mm256_shuffle_ps(a, c, 0x44);
    out[1] = _mm256_shuffle_ps(a, c, 0xee);
    out[2] = _mm256_shuffle_ps(b, d, 0x44);
    out[3] = _mm256_shuffle_ps(b, d, 0xee);
}
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE float vf_hmax(vf a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE vf vf_from_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
INLINE void vf_to_f16(uint16_t *p, vf a) { _mm_storeu_si128((void *)p, _mm256_cvtps_ph(a, 0)); }
INLINE vf vf_set1_f16(uint16_t a) { return _mm256_cvtph_ps(_mm_set1_epi16((short)a)); }
INLINE vf vf_from_u8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE vf vf_from_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE vf vf_from_byte(wv a, int j, int is_signed) {
    return _mm256_cvtepi32_ps(is_signed ? _mm256_srai_epi32(_mm256_slli_epi32(a, 24 - 8 * j), 24)
                                        : _mm256_and_si256(_mm256_srli_epi32(a, 8 * j), _mm256_set1_epi32(255)));
}
INLINE vf vf_from_vi(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vi_round(vf a) { return _mm256_cvtps_epi32(a); }
INLINE int32_t vi_sum(vi a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
INLINE void vi_store_i8(int8_t *p, vi a) {
    __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((void *)p, _mm_packs_epi16(h, h));
}
INLINE vf vf_pow2(vi n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
INLINE wv wv_load(const uint8_t *p) { return _mm256_loadu_si256((const void *)p); }
INLINE wv wv_and(wv a, int m) { return _mm256_and_si256(a, _mm256_set1_epi8((char)m)); }
INLINE wv wv_or(wv a, wv b) { return _mm256_or_si256(a, b); }
INLINE wv wv_shl(wv a, int k) { return _mm256_slli_epi16(a, k); }
INLINE wv wv_shr(wv a, int k) { return _mm256_srli_epi16(a, k); }
#if defined(__AVXVNNI__)
INLINE wv wv_bias(wv a) { return _mm256_xor_si256(a, _mm256_set1_epi8((char)0x80)); }
enum { Q8_BIAS = 128 };
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    (void)bits;
    vi sum = _mm256_set1_epi32(start);
    for (int v = 0; v < count; v++) {
        int32_t four;
        memcpy(&four, x + 4 * v, 4);
        sum = _mm256_dpbusd_avx_epi32(sum, w[v], _mm256_set1_epi32(four));
    }
    return sum;
}
#else
INLINE wv wv_bias(wv a) { return a; }
enum { Q8_BIAS = 0 };
/* vpmaddubsw adds two products in 16 bits: as many of its results are added there as cannot overflow
 * (bits 4: 8 x 2 x 15 x 127 = 30480). q8 moves the weight's sign onto the activation. */
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    const int together = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    vi sum = _mm256_set1_epi32(start);
    for (int v = 0; v < count; v += together) {
        __m256i half = _mm256_setzero_si256();
        for (int i = v; i < v + together && i < count; i++) {
            int32_t four;
            memcpy(&four, x + 4 * i, 4);
            __m256i xs = _mm256_set1_epi32(four);
            half = _mm256_add_epi16(half, bits == 8
                ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(xs, w[i]))
                : _mm256_maddubs_epi16(w[i], xs));
        }
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(half, _mm256_set1_epi16(1)));
    }
    return sum;
}
#endif

#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
enum { LANES = 4 };
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint8x16_t wv;
INLINE vf vf_set1(float a) { return vdupq_n_f32(a); }
INLINE vf vf_load(const float *p) { return vld1q_f32(p); }
INLINE void vf_store(float *p, vf a) { vst1q_f32(p, a); }
INLINE vf pair64(float32x4_t a, float32x4_t b, int high) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(high ? vzip2q_f64(x, y) : vzip1q_f64(x, y));
}
INLINE void vf_columns4(const float *at, int64_t row, vf out[4]) {
    const vf r0 = vf_load(at), r1 = vf_load(at + row), r2 = vf_load(at + 2 * row), r3 = vf_load(at + 3 * row);
    const vf a = vzip1q_f32(r0, r1), b = vzip2q_f32(r0, r1), c = vzip1q_f32(r2, r3), d = vzip2q_f32(r2, r3);
    out[0] = pair64(a, c, 0);
    out[1] = pair64(a, c, 1);
    out[2] = pair64(b, d, 0);
    out[3] = pair64(b, d, 1);
}
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
INLINE vf vf_abs(vf a) { return vabsq_f32(a); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
INLINE float vf_hmax(vf a) { return vmaxvq_f32(a); }
/* Conversions only: arithmetic in f16 is not in the baseline. */
INLINE vf vf_from_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE void vf_to_f16(uint16_t *p, vf a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
INLINE vf vf_set1_f16(uint16_t a) { return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(a))); }
INLINE uint8x8_t four_bytes(const void *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    return vreinterpret_u8_u32(vdup_n_u32(four));
}
INLINE vf vf_from_u8(const uint8_t *p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))));
}
INLINE vf vf_from_i8(const int8_t *p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(p))))));
}
INLINE vf vf_from_byte(wv a, int j, int is_signed) {
    const int32x4_t top = vreinterpretq_s32_u8(a) << vdupq_n_s32(24 - 8 * j);
    return is_signed ? vcvtq_f32_s32(vshrq_n_s32(top, 24)) : vcvtq_f32_u32(vshrq_n_u32(vreinterpretq_u32_s32(top), 24));
}
INLINE vf vf_from_vi(vi a) { return vcvtq_f32_s32(a); }
INLINE vi vi_round(vf a) { return vcvtnq_s32_f32(a); }
INLINE int32_t vi_sum(vi a) { return vaddvq_s32(a); }
INLINE void vi_store_i8(int8_t *p, vi a) {
    int16x4_t half = vqmovn_s32(a);
    uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(half, half))), 0);
    memcpy(p, &four, 4);
}
INLINE vf vf_pow2(vi n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
INLINE wv wv_load(const uint8_t *p) { return vld1q_u8(p); }
INLINE wv wv_and(wv a, int m) { return vandq_u8(a, vdupq_n_u8((uint8_t)m)); }
INLINE wv wv_or(wv a, wv b) { return vorrq_u8(a, b); }
INLINE wv wv_shl(wv a, int k) { return a << vdupq_n_u8((uint8_t)k); }
INLINE wv wv_shr(wv a, int k) { return a >> vdupq_n_u8((uint8_t)k); }
INLINE wv wv_bias(wv a) { return a; }
enum { Q8_BIAS = 0 };
/* Weights of 4-6 bits are positive as signed bytes too. */
#if defined(__ARM_FEATURE_DOTPROD)
#define DOT(i) sum = vdotq_laneq_s32(sum, vreinterpretq_s8_u8(w[v + i]), xs, i)
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    (void)bits;
    vi sum = vdupq_n_s32(start);
    for (int v = 0; v < count; v += 4) {
        const int8x16_t xs = vld1q_s8(x + 4 * v);
        DOT(0); DOT(1); DOT(2); DOT(3);
    }
    return sum;
}
#undef DOT
#else
/* Products are added in 16 bits as often as cannot overflow (bits 5: 8 x 31 x 127 = 31496; bits 6:
 * 4 x 63 x 127 = 32004; bits 8: 2 x 128 x 127 = 32512), rows 0, 1 in one vector and 2, 3 in another. */
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    const int together = bits <= 5 ? 8 : bits == 6 ? 4 : 2;
    const vi begin = vreinterpretq_s32_u64(vdupq_n_u64((uint32_t)start)); /* rows have two lanes until the end */
    vi low = begin, high = begin;
    for (int v = 0; v < count; v += together) {
        int16x8_t low16 = vdupq_n_s16(0), high16 = low16;
        for (int i = v; i < v + together && i < count; i++) {
            int32_t four;
            memcpy(&four, x + 4 * i, 4);
            const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(four)), ws = vreinterpretq_s8_u8(w[i]);
            low16 = vmlal_s8(low16, vget_low_s8(ws), vget_low_s8(xs));
            high16 = vmlal_high_s8(high16, ws, xs);
        }
        low = vpadalq_s16(low, low16);
        high = vpadalq_s16(high, high16);
    }
    return vpaddq_s32(low, high);
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define TOKEN_PAIRS
/* smmla multiplies two rows by two tokens over eight columns. w[v] and w[v + 1], of four columns each,
 * become those eight columns of rows 0, 1 and of rows 2, 3. */
INLINE void pair_rows(wv w[8]) {
    for (int v = 0; v < 8; v += 2) {
        const uint32x4_t left = vreinterpretq_u32_u8(w[v]), right = vreinterpretq_u32_u8(w[v + 1]);
        w[v] = vreinterpretq_u8_u32(vzip1q_u32(left, right));
        w[v + 1] = vreinterpretq_u8_u32(vzip2q_u32(left, right));
    }
}
/* x becomes the first 16 columns of both tokens, y the last 16: eight of one, eight of the other. */
INLINE void pair_columns(int8_t x[BLOCK], int8_t y[BLOCK]) {
    const int64x2_t x0 = vreinterpretq_s64_s8(vld1q_s8(x)), x1 = vreinterpretq_s64_s8(vld1q_s8(x + 16));
    const int64x2_t y0 = vreinterpretq_s64_s8(vld1q_s8(y)), y1 = vreinterpretq_s64_s8(vld1q_s8(y + 16));
    vst1q_s8(x, vreinterpretq_s8_s64(vzip1q_s64(x0, y0)));
    vst1q_s8(x + 16, vreinterpretq_s8_s64(vzip2q_s64(x0, y0)));
    vst1q_s8(y, vreinterpretq_s8_s64(vzip1q_s64(x1, y1)));
    vst1q_s8(y + 16, vreinterpretq_s8_s64(vzip2q_s64(x1, y1)));
}
/* sum[0] is of rows 0, 1 and sum[1] of rows 2, 3: the one token's and the other's side by side. */
INLINE void pair_start(int32_t x, int32_t y, vi sum[2]) {
    sum[0] = sum[1] = vreinterpretq_s32_u64(vdupq_n_u64((uint64_t)(uint32_t)y << 32 | (uint32_t)x));
}
INLINE void pair_dot(const wv w[4], const int8_t q[BLOCK], vi sum[2]) {
    for (int v = 0; v < 4; v++) sum[v % 2] = vmmlaq_s32(sum[v % 2], vreinterpretq_s8_u8(w[v]), vld1q_s8(q + v / 2 * 16));
}
INLINE void pair_split(const vi sum[2], vi *x, vi *y) {
    *x = vuzp1q_s32(sum[0], sum[1]);
    *y = vuzp2q_s32(sum[0], sum[1]);
}
#endif

#else /* portable: the same arithmetic in loops a compiler can unroll */
enum { LANES = 16 };
typedef struct { float a[LANES]; } vf;
typedef struct { int32_t a[LANES]; } vi;
typedef struct { uint8_t a[4 * LANES]; } wv;
#define EACH(type, expr) do { type r; for (int i = 0; i < LANES; i++) r.a[i] = (expr); return r; } while (0)
#define EACH_BYTE(expr) do { wv r; for (int i = 0; i < 4 * LANES; i++) r.a[i] = (uint8_t)(expr); return r; } while (0)
INLINE float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float f;
    if (rest >= 0x7c00) bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest < 0x400) { f = (float)rest * 0x1p-24f; memcpy(&bits, &f, 4); bits |= sign; }
    else bits = sign | ((rest << 13) + 0x38000000);
    memcpy(&f, &bits, 4);
    return f;
}
INLINE uint16_t f32_to_f16(float f) { /* round half to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* subnormal: let the float adder round */
        float magic = 0.5f, a;
        memcpy(&a, &rest, 4);
        a += magic;
        memcpy(&bits, &a, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}
INLINE vf vf_set1(float x) { EACH(vf, x); }
INLINE vf vf_load(const float *p) { EACH(vf, p[i]); }
INLINE void vf_store(float *p, vf x) { memcpy(p, x.a, sizeof x.a); }
INLINE void vf_columns4(const float *at, int64_t row, vf out[4]) {
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < LANES; i++) out[c].a[i] = at[i * row + c];
}
INLINE vf vf_add(vf x, vf y) { EACH(vf, x.a[i] + y.a[i]); }
INLINE vf vf_sub(vf x, vf y) { EACH(vf, x.a[i] - y.a[i]); }
INLINE vf vf_mul(vf x, vf y) { EACH(vf, x.a[i] * y.a[i]); }
INLINE vf vf_sqrt(vf x) { EACH(vf, sqrtf(x.a[i])); }
INLINE vf vf_div(vf x, vf y) { EACH(vf, x.a[i] / y.a[i]); }
INLINE vf vf_max(vf x, vf y) { EACH(vf, x.a[i] > y.a[i] ? x.a[i] : y.a[i]); }
INLINE vf vf_min(vf x, vf y) { EACH(vf, x.a[i] < y.a[i] ? x.a[i] : y.a[i]); }
INLINE vf vf_abs(vf x) { EACH(vf, fabsf(x.a[i])); }
INLINE vf vf_fma(vf x, vf y, vf z) { EACH(vf, fmaf(x.a[i], y.a[i], z.a[i])); }
INLINE vf vf_fnma(vf x, vf y, vf z) { EACH(vf, fmaf(-x.a[i], y.a[i], z.a[i])); }
INLINE float vf_hmax(vf x) { float m = x.a[0]; for (int i = 1; i < LANES; i++) m = x.a[i] > m ? x.a[i] : m; return m; }
INLINE vf vf_from_f16(const uint16_t *p) { EACH(vf, f16_to_f32(p[i])); }
INLINE void vf_to_f16(uint16_t *p, vf x) { for (int i = 0; i < LANES; i++) p[i] = f32_to_f16(x.a[i]); }
INLINE vf vf_set1_f16(uint16_t x) { return vf_set1(f16_to_f32(x)); }
INLINE vf vf_from_u8(const uint8_t *p) { EACH(vf, (float)p[i]); }
INLINE vf vf_from_i8(const int8_t *p) { EACH(vf, (float)p[i]); }
INLINE vf vf_from_byte(wv x, int j, int is_signed) {
    EACH(vf, is_signed ? (float)(int8_t)x.a[4 * i + j] : (float)x.a[4 * i + j]);
}
INLINE vf vf_from_vi(vi x) { EACH(vf, (float)x.a[i]); }
INLINE vi vi_round(vf x) { EACH(vi, (int32_t)rintf(x.a[i])); }
INLINE int32_t vi_sum(vi x) { int32_t s = 0; for (int i = 0; i < LANES; i++) s += x.a[i]; return s; }
INLINE void vi_store_i8(int8_t *p, vi x) { for (int i = 0; i < LANES; i++) p[i] = (int8_t)x.a[i]; }
INLINE vf vf_pow2(vi n) { EACH(vf, ldexpf(1.0f, n.a[i])); }
INLINE wv wv_load(const uint8_t *p) { wv r; memcpy(r.a, p, sizeof r.a); return r; }
INLINE wv wv_and(wv x, int m) { EACH_BYTE(x.a[i] & m); }
INLINE wv wv_or(wv x, wv y) { EACH_BYTE(x.a[i] | y.a[i]); }
INLINE wv wv_shl(wv x, int k) { EACH_BYTE(x.a[i] << k); }
INLINE wv wv_shr(wv x, int k) { EACH_BYTE(x.a[i] >> k); }
INLINE wv wv_bias(wv x) { return x; }
enum { Q8_BIAS = 0 };
INLINE vi block_dot(int bits, int count, const wv *w, const int8_t *x, int32_t start) {
    vi sum;
    for (int r = 0; r < LANES; r++) {
        sum.a[r] = start;
        for (int k = 0; k < 4 * count; k++) {
            uint8_t byte = w[k / 4].a[4 * r + k % 4];
            sum.a[r] += (bits == 8 ? (int8_t)byte : byte) * x[k];
        }
    }
    return sum;
}
#endif

enum { PARTS = TILE / LANES }; /* vectors that make up the 16 rows of a tile */

INLINE float sum16(const vf part[PARTS]) { /* 16 partial sums in one order, whatever LANES is */
    float lane[TILE];
    for (int p = 0; p < PARTS; p++) vf_store(lane + p * LANES, part[p]);
    double sum = 0;
    for (int i = 0; i < TILE; i++) sum += lane[i];
    return (float)sum;
}

/* exp(x) for x in [-87, 88] (clamped): 2^n * p(r), r in +-ln2/2, degree 6, error under 2 ulp. */
INLINE vf vf_exp(vf x) {
    x = vf_min(vf_max(x, vf_set1(-87.0f)), vf_set1(88.0f));
    vi n = vi_round(vf_mul(x, vf_set1(1.44269504f)));
    vf k = vf_from_vi(n);
    vf r = vf_fnma(k, vf_set1(0.693145752f), x);
    r = vf_fnma(k, vf_set1(1.42860677e-6f), r);
    vf p = vf_set1(1.0f / 720);
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_mul(p, vf_pow2(n));
}

#endif
