/* The kernels of training: forward and vector-Jacobian products in f32, and the optimizer.
 *
 *   sgemm.h       matrix products of one fixed order
 *   stacked.h     the same of packed matrices, which become floats panel by panel
 *   rounding.h    every call rounds to nearest, without flush to zero, and restores what was
 *   Norm          RMS norm with the residual's sum, and its vjp
 *   Rotary        in place; the vjp is the rotation back
 *   Attention     causal, grouped queries, sliding window: blocks of 64 queries against earlier keys
 *   Gate          silu or gelu of the gate times up, and its vjp in place
 *   Loss          cross-entropy, its gradient in place of the logits
 *   Embedding     gradients of rows, added in the order of tokens
 *   Sums          of micro-batches' gradients, as integers: in any order
 *   AdamW         without fused multiply-add, so that NumPy has the same bits
 *   ABI           struct layouts (abi.h), which training_abi.py checks before the first call
 *
 * One call works on the micro-batch of one thread: threads are whole micro-batches. Every result has
 * the same bits on each level: sums run over 16 lanes whatever the width of a vector is, in one
 * order, with explicit fused multiply-adds (-ffp-contract=off). Widths are multiples of 16,
 * but for the vocabulary.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "abi.h"
#include "rounding.h"
#include "sgemm.h"
#include "stacked.h"

#define API __attribute__((visibility("default")))

/* Sixteen lanes from element `j` on. */
#define EACH_PART(p) for (int p = 0; p < PARTS; p++)
#define AT(p) ((p) * LANES)

/* ---- Products ---------------------------------------------------------------------------------- */

API int64_t pe_sgemm_scratch(void) { return SGEMM_SCRATCH; }

/* C [m, n] = or += A [m, k] B [k, n]; strides in elements. */
API void pe_sgemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_col,
                  const float *b, int64_t b_row, int64_t b_col, float *c, int64_t c_row, int accumulate,
                  float *scratch) {
    const matrix_t left = {a, a_row, a_col}, right = {b, b_row, b_col};
    ROUNDED(sgemm(m, n, k, left, right, c, c_row, accumulate, scratch));
}

/* C [m, n] = A [m, k] times the transpose of a packed matrix [n, k], or with `back` times one [k, n]: the
 * bits of pe_sgemm on its values. */
API void pe_multiply_stacked(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row, int64_t a_col,
                             const weights_t *parts, int32_t count, int32_t by_columns, int32_t back, float *c,
                             int64_t c_row, float *scratch) {
    const matrix_t left = {a, a_row, a_col};
    const stacked_t right = {parts, count, by_columns, back};
    ROUNDED(multiply_panels(m, n, k, left, pack_stacked, &right, c, c_row, 0, scratch));
}

/* ---- Norm -------------------------------------------------------------------------------------- */

static void norm_row(const float *x, const float *gain, float *out, float *scale, int64_t width, float eps) {
    vf part[PARTS];
    EACH_PART(p) part[p] = vf_set1(0);
    for (int64_t j = 0; j < width; j += TILE)
        EACH_PART(p) {
            const vf v = vf_load(x + j + AT(p));
            part[p] = vf_fma(v, v, part[p]);
        }
    *scale = 1.0f / sqrtf(sum16(part) / (float)width + eps);
    const vf by = vf_set1(*scale);
    for (int64_t j = 0; j < width; j += LANES)
        vf_store(out + j, vf_mul(vf_mul(vf_load(x + j), by), vf_load(gain + j)));
}

/* out [n, width] = x / sqrt(mean(x^2) + eps) * gain, row by row; scale [n] is 1 / sqrt(...). */
API void pe_norm(const float *x, const float *gain, float *out, float *scale, int64_t n, int64_t width,
                 float eps) {
    ROUNDED(for (int64_t i = 0; i < n; i++)
                norm_row(x + i * width, gain, out + i * width, scale + i, width, eps));
}

static void norm_row_vjp(const float *x, const float *gain, float scale, const float *dy, float *dx,
                         float *dgain, int64_t width) {
    const vf by = vf_set1(scale);
    vf part[PARTS];
    EACH_PART(p) part[p] = vf_set1(0);
    for (int64_t j = 0; j < width; j += TILE)
        EACH_PART(p) {
            const int64_t at = j + AT(p);
            const vf unit = vf_mul(vf_load(x + at), by), d = vf_load(dy + at);
            part[p] = vf_fma(vf_mul(d, vf_load(gain + at)), unit, part[p]);
            if (dgain) vf_store(dgain + at, vf_fma(d, unit, vf_load(dgain + at)));
        }
    const vf mean = vf_set1(sum16(part) / (float)width);
    for (int64_t j = 0; j < width; j += LANES) {
        const vf unit = vf_mul(vf_load(x + j), by);
        const vf inner = vf_fnma(unit, mean, vf_mul(vf_load(dy + j), vf_load(gain + j)));
        vf_store(dx + j, vf_fma(inner, by, vf_load(dx + j)));
    }
}

/* dx += the norm's vjp at dy; dgain [width] += (NULL: frozen). */
API void pe_norm_vjp(const float *x, const float *gain, const float *scale, const float *dy, float *dx,
                     float *dgain, int64_t n, int64_t width) {
    ROUNDED(for (int64_t i = 0; i < n; i++)
                norm_row_vjp(x + i * width, gain, scale[i], dy + i * width, dx + i * width, dgain, width));
}

/* ---- Rotary ------------------------------------------------------------------------------------ */

static void rotate(float *x, const float *cos, const float *sin, int64_t n, int64_t length, int64_t heads,
                   int64_t head_dim, int64_t stride, float sign) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < n; i++) {
        const float *c = cos + i % length * half, *s = sin + i % length * half;
        for (int64_t h = 0; h < heads; h++) {
            float *a = x + i * stride + h * head_dim, *b = a + half;
            for (int64_t j = 0; j < half; j++) { /* vectorised by the compiler: no sum, no order */
                const float u = a[j], v = b[j], sj = s[j] * sign;
                a[j] = fmaf(-v, sj, u * c[j]);
                b[j] = fmaf(u, sj, v * c[j]);
            }
        }
    }
}

/* Rotate the halves of `heads` heads of each row of x; sign -1 rotates back. Row i has position
 * i % length; cos, sin [length, head_dim / 2]. */
API void pe_rotate(float *x, const float *cos, const float *sin, int64_t n, int64_t length, int64_t heads,
                   int64_t head_dim, int64_t stride, float sign) {
    ROUNDED(rotate(x, cos, sin, n, length, heads, head_dim, stride, sign));
}

/* ---- Attention --------------------------------------------------------------------------------- */

enum { QUERIES = 64 }; /* rows of scores at once; belongs to the format of a run, like DEPTH */

/* One sequence of `length` tokens. Row i of q, k, v, o and of their gradients is `stride`, or
 * o_stride, floats after row i - 1; query head h reads key-value head h / (q_heads / kv_heads). A
 * query sees its own and earlier keys, `window` of them at most (0: all). tops and scales
 * [q_heads, length] are each row's largest scaled score and 1 / sum of exp, for the vjp.
 * scratch: SGEMM_SCRATCH + 2 * QUERIES * (length + TILE) floats. */
typedef struct {
    const float *q, *k, *v;
    float *o, *tops, *scales;
    const float *d_o;
    float *dq, *dk, *dv, *scratch;
    int64_t length, stride, o_stride;
    int32_t q_heads, kv_heads, head_dim, window;
    float scale;
} attention_t;

/* A block of queries: rows from `row` on, and the keys that any of them sees. */
typedef struct {
    int64_t row, rows, key, keys, width; /* width: floats from one row of scores to the next */
} block_t;

INLINE block_t block_at(const attention_t *op, int64_t row) {
    block_t b;
    b.row = row;
    b.rows = op->length - row < QUERIES ? op->length - row : QUERIES;
    b.key = op->window && row >= op->window ? row - op->window + 1 : 0;
    b.keys = row + b.rows - b.key;
    b.width = (b.keys + TILE - 1) / TILE * TILE;
    return b;
}

/* The keys of the block's row i that it sees: from *first to before the returned one. */
INLINE int64_t seen(const attention_t *op, const block_t *b, int64_t i, int64_t *first) {
    const int64_t query = b->row + i;
    *first = op->window && query >= op->window ? query - op->window + 1 - b->key : 0;
    return query + 1 - b->key;
}

INLINE void mask(float *row, int64_t first, int64_t end, int64_t width, float with) {
    for (int64_t j = 0; j < first; j++) row[j] = with;
    for (int64_t j = end; j < width; j++) row[j] = with;
}

/* exp(scores * scale - top) * by, in place; zero where masked; the sum before `by`. */
INLINE float exp_row(float *row, int64_t first, int64_t end, int64_t width, float scale, float top, float by) {
    vf part[PARTS];
    const vf factor = vf_set1(scale), least = vf_set1(-top), times = vf_set1(by);
    EACH_PART(p) part[p] = vf_set1(0);
    mask(row, first, end, width, -1e30f);
    for (int64_t j = 0; j < width; j += TILE)
        EACH_PART(p) {
            const vf e = vf_exp(vf_fma(vf_load(row + j + AT(p)), factor, least));
            part[p] = vf_add(part[p], e);
            vf_store(row + j + AT(p), vf_mul(e, times));
        }
    mask(row, first, end, width, 0);
    return sum16(part);
}

INLINE void softmax_row(float *row, int64_t first, int64_t end, int64_t width, float scale, float *top, float *by) {
    vf most = vf_set1(-1e30f);
    mask(row, first, end, width, -1e30f);
    for (int64_t j = 0; j < width; j += LANES) most = vf_max(most, vf_load(row + j));
    *top = vf_hmax(most) * scale;
    *by = 1.0f / exp_row(row, first, end, width, scale, *top, 1.0f);
    const vf times = vf_set1(*by);
    for (int64_t j = 0; j < width; j += LANES) vf_store(row + j, vf_mul(vf_load(row + j), times));
}

INLINE matrix_t rows_of(const float *at, int64_t stride) {
    const matrix_t m = {at, stride, 1};
    return m;
}
INLINE matrix_t turned(const float *at, int64_t stride) { /* rows as columns */
    const matrix_t m = {at, 1, stride};
    return m;
}

static void attend_block(const attention_t *op, int32_t head, block_t b) {
    const int64_t dim = op->head_dim, kv = head / (op->q_heads / op->kv_heads) * dim, at = b.key * op->stride + kv;
    float *scores = op->scratch + SGEMM_SCRATCH;
    sgemm(b.rows, b.keys, dim, rows_of(op->q + b.row * op->stride + head * dim, op->stride),
          turned(op->k + at, op->stride), scores, b.width, 0, op->scratch);
    for (int64_t i = 0; i < b.rows; i++) {
        int64_t first, end = seen(op, &b, i, &first), row = head * op->length + b.row + i;
        softmax_row(scores + i * b.width, first, end, b.width, op->scale, op->tops + row, op->scales + row);
    }
    sgemm(b.rows, dim, b.keys, rows_of(scores, b.width), rows_of(op->v + at, op->stride),
          op->o + b.row * op->o_stride + head * dim, op->o_stride, 0, op->scratch);
}

/* o = softmax(q k^T scale) v, per head. */
API void pe_attention(const attention_t *op) {
    ROUNDED(for (int32_t h = 0; h < op->q_heads; h++)
                for (int64_t row = 0; row < op->length; row += QUERIES) attend_block(op, h, block_at(op, row)));
}

/* dS = P (dP - sum of P dP) scale, in place of dP. */
INLINE void softmax_row_vjp(const float *weights, float *d, int64_t width, float scale) {
    vf part[PARTS];
    EACH_PART(p) part[p] = vf_set1(0);
    for (int64_t j = 0; j < width; j += TILE)
        EACH_PART(p) part[p] = vf_fma(vf_load(weights + j + AT(p)), vf_load(d + j + AT(p)), part[p]);
    const vf sum = vf_set1(sum16(part)), by = vf_set1(scale);
    for (int64_t j = 0; j < width; j += LANES)
        vf_store(d + j, vf_mul(vf_mul(vf_load(weights + j), by), vf_sub(vf_load(d + j), sum)));
}

/* The weights of the block are computed anew: they are a fourth of all activations. */
static void attend_block_vjp(const attention_t *op, int32_t head, block_t b) {
    const int64_t dim = op->head_dim, kv = head / (op->q_heads / op->kv_heads) * dim, at = b.key * op->stride + kv;
    const int64_t own = b.row * op->stride + head * dim, out = b.row * op->o_stride + head * dim;
    float *weights = op->scratch + SGEMM_SCRATCH, *d = weights + QUERIES * b.width;
    sgemm(b.rows, b.keys, dim, rows_of(op->q + own, op->stride), turned(op->k + at, op->stride), weights, b.width,
          0, op->scratch);
    sgemm(b.rows, b.keys, dim, rows_of(op->d_o + out, op->o_stride), turned(op->v + at, op->stride), d, b.width, 0,
          op->scratch);
    for (int64_t i = 0; i < b.rows; i++) {
        int64_t first, end = seen(op, &b, i, &first), row = head * op->length + b.row + i;
        float *w = weights + i * b.width;
        exp_row(w, first, end, b.width, op->scale, op->tops[row], op->scales[row]);
        mask(d + i * b.width, first, end, b.width, 0);
        softmax_row_vjp(w, d + i * b.width, b.width, op->scale);
    }
    sgemm(b.rows, dim, b.keys, rows_of(d, b.width), rows_of(op->k + at, op->stride), op->dq + own, op->stride, 0,
          op->scratch);
    sgemm(b.keys, dim, b.rows, turned(d, b.width), rows_of(op->q + own, op->stride), op->dk + at, op->stride, 1,
          op->scratch);
    sgemm(b.keys, dim, b.rows, turned(weights, b.width), rows_of(op->d_o + out, op->o_stride), op->dv + at,
          op->stride, 1, op->scratch);
}

/* dq, dk, dv = the vjp at d_o: keys' gradients are added in the order of heads, then of queries. */
API void pe_attention_vjp(const attention_t *op) {
    const rounding_t mode = round_nearest();
    const size_t bytes = (size_t)op->kv_heads * (size_t)op->head_dim * sizeof(float);
    for (int64_t i = 0; i < op->length; i++) {
        memset(op->dk + i * op->stride, 0, bytes);
        memset(op->dv + i * op->stride, 0, bytes);
    }
    for (int32_t h = 0; h < op->q_heads; h++)
        for (int64_t row = 0; row < op->length; row += QUERIES) attend_block_vjp(op, h, block_at(op, row));
    round_as_before(mode);
}

/* ---- Gate -------------------------------------------------------------------------------------- */

enum { SILU = 1, GELU_TANH = 2 };

/* sigmoid(z), where silu(x) = x sigmoid(x), and the tanh form of gelu is x sigmoid(z(x)) with
 * z = 2 sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016). */
INLINE vf sigmoid(vf z) {
    const vf one = vf_set1(1);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0), z))));
}
INLINE vf gelu_z(vf x) {
    return vf_mul(vf_mul(x, vf_set1(1.59576912f)), vf_fma(vf_mul(x, x), vf_set1(0.044715f), vf_set1(1)));
}

/* gate_up [n, 2 * width] holds the gate's columns, then up's; out [n, width]. */
static void gated(const float *gate_up, float *out, int64_t n, int64_t width, int kind) {
    for (int64_t i = 0; i < n; i++) {
        const float *gate = gate_up + i * 2 * width, *up = gate + width;
        for (int64_t j = 0; j < width; j += LANES) {
            const vf x = vf_load(gate + j), s = sigmoid(kind == SILU ? x : gelu_z(x));
            vf_store(out + i * width + j, vf_mul(vf_mul(x, s), vf_load(up + j)));
        }
    }
}

static void gated_vjp(float *gate_up, const float *d, int64_t n, int64_t width, int kind) {
    const vf one = vf_set1(1);
    for (int64_t i = 0; i < n; i++) {
        float *gate = gate_up + i * 2 * width, *up = gate + width;
        for (int64_t j = 0; j < width; j += LANES) {
            const vf x = vf_load(gate + j), u = vf_load(up + j), dy = vf_load(d + i * width + j);
            const vf s = sigmoid(kind == SILU ? x : gelu_z(x));
            vf slope = one; /* dz/dx */
            if (kind == GELU_TANH)
                slope = vf_mul(vf_set1(1.59576912f), vf_fma(vf_mul(x, x), vf_set1(3 * 0.044715f), one));
            const vf inner = vf_mul(vf_mul(x, slope), vf_sub(one, s));
            const vf dx = vf_mul(s, vf_add(one, inner)); /* s + x s (1 - s) dz/dx */
            vf_store(gate + j, vf_mul(vf_mul(dy, u), dx));
            vf_store(up + j, vf_mul(dy, vf_mul(x, s)));
        }
    }
}

API void pe_gated(const float *gate_up, float *out, int64_t n, int64_t width, int32_t kind) {
    ROUNDED(gated(gate_up, out, n, width, kind));
}

/* The vjp at d [n, width], in place of gate_up. */
API void pe_gated_vjp(float *gate_up, const float *d, int64_t n, int64_t width, int32_t kind) {
    ROUNDED(gated_vjp(gate_up, d, n, width, kind));
}

/* ---- Loss -------------------------------------------------------------------------------------- */

/* The natural logarithm of a sum of exponentials, 1 or more, to 1e-16: x = 2^e (1 + s) / (1 - s), where
 * log((1 + s) / (1 - s)) is a series in s. That of a C library has other bits elsewhere. */
static double natural_log(double x) {
    if (!(x < INFINITY)) return x; /* no number stays none */
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) m *= 0.5, exponent++;
    const double s = (m - 1) / (m + 1), square = s * s;
    double series = 0;
    for (int n = 23; n >= 3; n -= 2) series = (series + 1.0 / n) * square;
    const double high = exponent * 6.93147180369123816490e-01, low = exponent * 1.90821492927058770002e-10;
    return high + (2 * s * (1 + series) + low);
}

static double entropy_row(float *logits, int64_t vocabulary, int32_t target, float weight) {
    vf most = vf_set1(-INFINITY), part[PARTS];
    float last[TILE]; /* logits beyond the last whole tile, and some that add nothing */
    const int64_t whole = vocabulary / TILE * TILE;
    for (int i = 0; i < TILE; i++) last[i] = whole + i < vocabulary ? logits[whole + i] : -INFINITY;
#define TILE_OF(j) ((j) < whole ? logits + (j) : last)
    EACH_PART(p) part[p] = vf_set1(0);
    for (int64_t j = 0; j < vocabulary; j += TILE)
        EACH_PART(p) most = vf_max(most, vf_load(TILE_OF(j) + AT(p)));
    const float top = vf_hmax(most), wanted = logits[target];
    const vf least = vf_set1(top);
    for (int64_t j = 0; j < vocabulary; j += TILE)
        EACH_PART(p) {
            float *at = TILE_OF(j) + AT(p);
            const vf e = vf_exp(vf_sub(vf_load(at), least));
            part[p] = vf_add(part[p], e);
            vf_store(at, e);
        }
    const float sum = sum16(part);
    const vf by = vf_set1(weight / sum);
    for (int64_t j = 0; j < vocabulary; j += TILE)
        EACH_PART(p) {
            float *at = TILE_OF(j) + AT(p);
            vf_store(at, vf_mul(vf_load(at), by));
        }
#undef TILE_OF
    for (int64_t j = whole; j < vocabulary; j++) logits[j] = last[j - whole];
    logits[target] -= weight;
    return (natural_log((double)sum) + (double)top) - (double)wanted;
}

/* losses [n] = -log softmax(logits)[target], and in place of logits [n, vocabulary] the gradient of
 * sum over rows of weight * loss. A target below 0 has no loss: its row becomes zero. */
API void pe_cross_entropy(float *logits, const int32_t *targets, double *losses, int64_t n, int64_t vocabulary,
                          float weight) {
    const rounding_t mode = round_nearest();
    for (int64_t i = 0; i < n; i++) {
        float *row = logits + i * vocabulary;
        if (targets[i] < 0) {
            memset(row, 0, (size_t)vocabulary * sizeof(float));
            losses[i] = 0;
        } else
            losses[i] = entropy_row(row, vocabulary, targets[i], weight);
    }
    round_as_before(mode);
}

/* ---- Embedding --------------------------------------------------------------------------------- */

static void add_rows(const float *dx, const int32_t *tokens, float *table, int64_t n, int64_t width) {
    for (int64_t i = 0; i < n; i++) {
        float *row = table + tokens[i] * width;
        for (int64_t j = 0; j < width; j++) row[j] += dx[i * width + j];
    }
}

/* table [., width]: row tokens[i] += row i of dx [n, width], in the order of i. */
API void pe_add_rows(const float *dx, const int32_t *tokens, float *table, int64_t n, int64_t width) {
    ROUNDED(add_rows(dx, tokens, table, n, width));
}

/* ---- Sums -------------------------------------------------------------------------------------- */

/* A gradient of one micro-batch is rounded to integers of one unit, 2^-exponent, to nearest even; all
 * after it is integer addition, which has no order: the sum's bits do not depend on which thread or
 * board had which micro-batch, nor in what order they come. Values lie in blocks of 256. A block whose
 * integers are below 2^narrow goes into an int32 plane, where narrow leaves room for all micro-batches
 * of a step; another into a row of int64, opened when it is first needed. */
enum { SUM_BLOCK = 256, WIDEST = 56 };

typedef struct {
    int32_t *plane;       /* [n] */
    int32_t *rows;        /* [n / SUM_BLOCK]: the block's row of `wide`, or -1 */
    int64_t *wide;        /* [capacity, SUM_BLOCK] */
    int64_t count, capacity; /* rows that are open, and at most */
    int32_t exponent, narrow;
} sums_t;

INLINE float two_to(int exponent) { return ldexpf(1.0f, exponent); }

/* The exponent field of the largest magnitude: 255 is infinity or NaN. */
INLINE int largest_field(const float *x) {
    uint32_t most = 0;
    for (int i = 0; i < SUM_BLOCK; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return (int)(most >> 23);
}

/* Add blocks of x from block `from` on. Returns the block where it stopped: n / SUM_BLOCK at the end;
 * before it where `wide` is full, or at a block with a value that is no number or too large, which
 * `*bad` then says. */
static int64_t sums_add(sums_t *to, const float *x, int64_t n, int64_t from, int32_t *bad) {
    const float scale = two_to(to->exponent);
    *bad = 0;
    for (int64_t b = from; b < n / SUM_BLOCK; b++) {
        const float *values = x + b * SUM_BLOCK;
        const int field = largest_field(values), magnitude = field - (127 - to->exponent);
        if (magnitude < to->narrow) {
            int32_t *plane = to->plane + b * SUM_BLOCK;
            for (int i = 0; i < SUM_BLOCK; i++) plane[i] += (int32_t)rintf(values[i] * scale);
            continue;
        }
        if (field == 255 || magnitude >= WIDEST) {
            *bad = 1;
            return b;
        }
        if (to->rows[b] < 0) {
            if (to->count == to->capacity) return b;
            to->rows[b] = (int32_t)to->count++;
            memset(to->wide + to->rows[b] * SUM_BLOCK, 0, sizeof(int64_t) * SUM_BLOCK);
        }
        int64_t *row = to->wide + to->rows[b] * SUM_BLOCK;
        for (int i = 0; i < SUM_BLOCK; i++) row[i] += (int64_t)rint((double)values[i] * (double)scale);
    }
    return n / SUM_BLOCK;
}

API int64_t pe_sums_add(sums_t *to, const float *x, int64_t n, int64_t from, int32_t *bad) {
    const rounding_t mode = round_nearest();
    const int64_t at = sums_add(to, x, n, from, bad);
    round_as_before(mode);
    return at;
}

static void sums_take(const sums_t *from, float *out, int64_t n) {
    const float unit = two_to(-from->exponent);
    for (int64_t b = 0; b < n / SUM_BLOCK; b++) {
        const int32_t *plane = from->plane + b * SUM_BLOCK;
        float *values = out + b * SUM_BLOCK;
        if (from->rows[b] < 0)
            for (int i = 0; i < SUM_BLOCK; i++) values[i] = (float)plane[i] * unit;
        else {
            const int64_t *row = from->wide + from->rows[b] * SUM_BLOCK;
            for (int i = 0; i < SUM_BLOCK; i++) values[i] = (float)(plane[i] + row[i]) * unit;
        }
    }
}

/* out [n] = the sums, each rounded once. */
API void pe_sums_take(const sums_t *from, float *out, int64_t n) { ROUNDED(sums_take(from, out, n)); }

/* ---- AdamW ------------------------------------------------------------------------------------- */

/* Loshchilov and Hutter (2019), algorithm 2. Numbers of one step, made by the caller in f64. */
typedef struct {
    float gradient_scale;       /* of clipping */
    float beta1, rest1;         /* b1, 1 - b1 */
    float beta2, rest2;
    float decay;                /* 1 - lr * weight decay */
    float rate;                 /* lr / (1 - b1^t) */
    float correction;           /* 1 / sqrt(1 - b2^t) */
    float epsilon;
} adamw_t;

static void adamw(const adamw_t *step, float *w, float *m, float *v, const float *g, int64_t n) {
    for (int64_t i = 0; i < n; i++) { /* elementwise: the compiler's vectors have the same bits */
        const float gradient = g[i] * step->gradient_scale;
        m[i] = m[i] * step->beta1 + gradient * step->rest1;
        v[i] = v[i] * step->beta2 + (gradient * gradient) * step->rest2;
        w[i] = w[i] * step->decay - step->rate * (m[i] / (sqrtf(v[i]) * step->correction + step->epsilon));
    }
}

API void pe_adamw(const adamw_t *step, float *w, float *m, float *v, const float *g, int64_t n) {
    ROUNDED(adamw(step, w, m, v, g, n));
}

/* sums[s] = sum of g^2 over segment s of `segment` values, each in f64 from its first to its last
 * sixteen lanes, then lane by lane. */
API void pe_squares(const float *g, double *sums, int64_t n, int64_t segment) {
    const rounding_t mode = round_nearest();
    for (int64_t s = 0; s * segment < n; s++) {
        double part[TILE] = {0};
        const int64_t end = (s + 1) * segment < n ? (s + 1) * segment : n;
        int64_t i = s * segment;
        for (; i + TILE <= end; i += TILE)
            for (int l = 0; l < TILE; l++) part[l] += (double)g[i + l] * (double)g[i + l];
        for (int l = 0; i < end; i++, l++) part[l] += (double)g[i] * (double)g[i];
        double sum = 0;
        for (int l = 0; l < TILE; l++) sum += part[l];
        sums[s] = sum;
    }
    round_as_before(mode);
}

/* ---- ABI: what training_abi.py checks ---------------------------------------------------------- */

/* Raise it when the meaning of a field or function changes, but no layout does. */
enum { ABI = 1 };

static const field_t layout[] = {
    SIZE("training_abi", ABI), SIZE("tile", TILE), SIZE("queries", QUERIES), SIZE("sum_block", SUM_BLOCK),
#define F(NAME) FIELD(attention_t, NAME)
    STRUCT(attention_t), F(q), F(k), F(v), F(o), F(tops), F(scales), F(d_o), F(dq), F(dk), F(dv), F(scratch),
    F(length), F(stride), F(o_stride), F(q_heads), F(kv_heads), F(head_dim), F(window), F(scale),
#undef F
#define F(NAME) FIELD(adamw_t, NAME)
    STRUCT(adamw_t), F(gradient_scale), F(beta1), F(rest1), F(beta2), F(rest2), F(decay), F(rate),
    F(correction), F(epsilon),
#undef F
#define F(NAME) FIELD(sums_t, NAME)
    STRUCT(sums_t), F(plane), F(rows), F(wide), F(count), F(capacity), F(exponent), F(narrow),
#undef F
};

/* One of the sizes and offsets that training_abi.py relies on, NULL past the last. */
API const field_t *pe_training_field(int i) { return FIELD_AT(layout, i); }
