/* The kernels of picoedge: plain C11, no Python.h, loaded with ctypes (kernels/native.py).
 *
 * One file, compiled once per instruction-set level (setup.py); the loader picks the best level the
 * processor has. kernels/blocks.py defines the weight formats, kernels/api.py the operations.
 *
 *   vector.h      vectors of LANES floats, block dot products, exp: one implementation per level
 *   weights.h     formats, tiles, unpacking
 *   dense.h       f32 matrices, in the order of sgemm.h
 *   rounding.h    every task rounds to nearest, without flush to zero
 *   Threads       a pool that runs one task at a time
 *   Activations   rows of f32 quantized to int8 blocks of 32
 *   Tile product  one tile of 16 rows times 1, 2, 4 or 8 tokens
 *   project       residual, RMS norm, quantize, rows of each matrix (q, k, v; gate, up; head)
 *   project_sum   activation, quantize, columns shard by shard, added in f64 (o; down)
 *   low_rank      what an adapter adds to a project or a project_sum, in f32
 *   attend        rotary embedding, key-value cache in f16 or int8, causal attention
 *   f48           f64 values without their low 16 bits: sums on their way between boards
 *   ABI           struct layouts (abi.h) and formats, which native.py checks before the first call
 *
 * Everything above the vector layer is written once, over vectors of LANES floats. A lane is always
 * one output row (products) or one key (scores) or one dimension (values), and each lane's sums run
 * in one fixed order with explicit fused multiply-adds (-ffp-contract=off), so a result depends
 * neither on the level, nor on the number of threads, nor on how many tokens are computed together.
 * head_dim is a multiple of 16, widths are multiples of 32 (f32: of 16): native.py sees to that.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "abi.h"
#include "dense.h"
#include "rounding.h"
#include "weights.h"

#ifndef PICOEDGE_LEVEL
#define PICOEDGE_LEVEL "portable"
#endif
#define API __attribute__((visibility("default")))

/* ---- Threads ----------------------------------------------------------------------------------- */

/* A task is `total` items, which free threads take in short spans: a core that is slower, or that the
 * system has given to another process, takes fewer, and the task does not wait for a thread that has
 * taken none when the last item is taken. No item's result depends on the thread. */
typedef void task_fn(void *arg, int64_t from, int64_t to, int thread);

typedef struct {
    int threads;
    task_fn *task;
    void *arg;
    int64_t total, span; /* items of the task, and how many a thread takes at once */
    atomic_llong next;
    atomic_uint round;  /* goes up by one for each task */
    atomic_int inside;  /* workers in the task; CLOSED (negative) is added while none may start on it */
    atomic_int asleep, stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *handles;
    float *scores; /* attention scratch, see attend */
    int64_t scores_size;
} pool_t;
typedef struct { pool_t *pool; int thread; } worker_t;

/* Between two kernels of one token lie a few microseconds of Python: poll that long, then sleep. */
enum { POLL_NS = 60000, CLOSED = -(1 << 20), SPANS_PER_THREAD = 4 };

INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void take_items(pool_t *pool, int thread) {
    for (;;) {
        const int64_t from = atomic_fetch_add_explicit(&pool->next, pool->span, memory_order_relaxed);
        if (from >= pool->total) return;
        const int64_t to = from + pool->span;
        pool->task(pool->arg, from, to < pool->total ? to : pool->total, thread);
    }
}

static unsigned await_round(pool_t *pool, unsigned seen) {
    const int64_t until = now_ns() + POLL_NS;
    do {
        for (int i = 0; i < 64; i++) { /* a pause is 1 to 50 ns, so the clock says when to stop */
            if (atomic_load_explicit(&pool->round, memory_order_acquire) != seen) return atomic_load(&pool->round);
            relax();
        }
    } while (now_ns() < until);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->asleep, 1);
    while (atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub(&pool->asleep, 1);
    pthread_mutex_unlock(&pool->lock);
    return atomic_load(&pool->round);
}

static void *worker_main(void *arg) {
    const worker_t me = *(worker_t *)arg;
    free(arg);
    round_nearest(); /* for good: the thread is ours */
    for (unsigned seen = 0;;) {
        seen = await_round(me.pool, seen);
        if (atomic_load(&me.pool->stop)) return NULL;
        if (atomic_fetch_add(&me.pool->inside, 1) >= 0) take_items(me.pool, me.thread);
        atomic_fetch_sub(&me.pool->inside, 1);
    }
}

static void start_round(pool_t *pool) {
    atomic_fetch_add(&pool->round, 1);
    if (atomic_load(&pool->asleep)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void pool_run_all(pool_t *pool, task_fn *task, void *arg, int64_t total) {
    pool->task = task;
    pool->arg = arg;
    pool->total = total;
    pool->span = total / (pool->threads * SPANS_PER_THREAD);
    if (!pool->span) pool->span = 1;
    atomic_store(&pool->next, 0);
    atomic_fetch_sub(&pool->inside, CLOSED);
    start_round(pool);
    take_items(pool, 0);
    atomic_fetch_add(&pool->inside, CLOSED);
    for (int i = 0; atomic_load_explicit(&pool->inside, memory_order_acquire) != CLOSED; i++) {
        if (i < 1000) relax();
        else sched_yield(); /* the other thread has lost its core: do not burn ours */
    }
}

static void pool_run(pool_t *pool, task_fn *task, void *arg, int64_t total) {
    const rounding_t mode = round_nearest();
    if (pool->threads > 1 && total > 1) pool_run_all(pool, task, arg, total);
    else if (total > 0) task(arg, 0, total, 0);
    round_as_before(mode);
}

API void pe_pool_close(pool_t *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    start_round(pool);
    for (int i = 0; i < pool->threads - 1; i++) pthread_join(pool->handles[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    free(pool->handles);
    free(pool->scores);
    free(pool);
}

/* NULL when memory or threads run out. */
API pool_t *pe_pool_open(int threads) {
    pool_t *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    atomic_store(&pool->inside, CLOSED);
    pool->threads = 1;
    pool->handles = calloc((size_t)threads, sizeof(pthread_t));
    for (int i = 1; pool->handles && i < threads; i++) {
        worker_t *worker = malloc(sizeof *worker);
        if (worker) *worker = (worker_t){pool, i};
        if (!worker || pthread_create(&pool->handles[i - 1], NULL, worker_main, worker)) {
            free(worker);
            pe_pool_close(pool);
            return NULL;
        }
        pool->threads++;
    }
    if (pool->handles) return pool;
    pe_pool_close(pool);
    return NULL;
}

API const char *pe_level(void) { return PICOEDGE_LEVEL; }

/* Floats of a thread that products with f32 matrices need. */
API int64_t pe_dense_scratch(void) { return DENSE_SCRATCH; }

/* ---- Activations: int8 blocks of 32 ------------------------------------------------------------- */

typedef struct {
    int8_t q[BLOCK];
    float scale;    /* amax / 127 */
    float sum;      /* scale * (sum of q): what a minimum is multiplied by */
    int32_t half[2]; /* sums of q over columns 0-15 and 16-31: what an offset is multiplied by */
} xblock;

static void quantize(const float *x, int blocks, xblock *out) {
    for (int b = 0; b < blocks; b++, x += BLOCK, out++) {
        vf peak = vf_abs(vf_load(x));
        for (int i = LANES; i < BLOCK; i += LANES) peak = vf_max(peak, vf_abs(vf_load(x + i)));
        float amax = vf_hmax(peak);
        float inverse = amax > 1e-30f ? 127.0f / amax : 0.0f; /* smaller would make it infinite */
        for (int h = 0; h < 2; h++) {
            int32_t sum = 0;
            for (int i = 0; i < BLOCK / 2; i += LANES) {
                vi q = vi_round(vf_mul(vf_load(x + 16 * h + i), vf_set1(inverse)));
                vi_store_i8(out->q + 16 * h + i, q);
                sum += vi_sum(q);
            }
            out->half[h] = sum;
        }
        out->scale = amax / 127.0f;
        out->sum = out->scale * (float)(out->half[0] + out->half[1]);
    }
}

/* -offset * sum of q, over half `h` (0, 1) of the block or all of it: what the offset of the quants
 * contributes to the sum of products, which starts from it. */
INLINE int32_t offset_correction(int format, const xblock *x, int h) {
    if (!offset_of(format)) return 0;
    return -offset_of(format) * (format == Q6K ? x->half[h] : x->half[0] + x->half[1]);
}

/* The sums of products of a block: of all 32 columns, or (q6k) of each half, which has its own scale. */
INLINE void block_sums(int format, const wv w[8], const xblock *x, vi sums[2]) {
    const int halves = halves_of(format), count = 8 / halves;
    for (int h = 0; h < halves; h++)
        sums[h] = block_dot(bits_of(format), count, w + h * count, x->q + h * 16, offset_correction(format, x, h));
}

#if defined(TOKEN_PAIRS)
/* `block_sums` for two tokens at once; their columns and the tile's rows have been paired. */
INLINE void pair_sums(int format, const wv w[8], const xblock *x, const xblock *y, vi xsums[2], vi ysums[2]) {
    const int halves = halves_of(format);
    vi sum[2];
    for (int h = 0; h < 2; h++) {
        if (h < halves) pair_start(offset_correction(format, x, h), offset_correction(format, y, h), sum);
        pair_dot(w + 4 * h, h ? y->q : x->q, sum);
        pair_split(sum, xsums + h % halves, ysums + h % halves);
    }
}
#endif

INLINE vf add_block(int format, const vi sums[2], const vf scale[2], vf min, const xblock *x, vf acc) {
    for (int h = 0; h < halves_of(format); h++)
        acc = vf_fma(scale[h], vf_mul(vf_from_vi(sums[h]), vf_set1(x->scale)), acc);
    return has_min(format) ? vf_fma(min, vf_set1(x->sum), acc) : acc;
}

/* An address, not a pointer: it may lie beyond the object. A prefetch never faults. */
INLINE void prefetch(const void *plane, int64_t at) {
    __builtin_prefetch((const void *)((uintptr_t)plane + (uintptr_t)at));
}

/* A shard's planes are a few tens of KB each, so the processor's own prefetchers start anew all the
 * time; asking 4 KB ahead gave 15 % on one core. The long planes of 8-bit matrices are better left
 * alone. */
INLINE void read_ahead(int format, const tile_t *t, int b) {
    enum { AHEAD = 4096 };
    const int bits = bits_of(format);
    if (bits == 8) return;
    for (int i = 0; i < 256; i += 64) prefetch(t->quants, b * 256 + AHEAD + i);
    if (bits == 5) prefetch(t->highs, b * 64 + AHEAD / 4);
    prefetch(t->scales, b * 32 + AHEAD / 8);
    if (has_min(format)) prefetch(t->mins, b * 32 + AHEAD / 8);
}

/* ---- Tile product: one tile times NT tokens ---------------------------------------------------- */

/* out[token][row of the tile] = the tile times each of NT tokens, whose blocks lie `xstride` apart. */
INLINE void tile_product(int format, int nt, const tile_t *t, const xblock *x, int64_t xstride, float *out) {
    /* One token: all parts of a tile at once, a straight read. Several: a part at a time, so that
     * eight unpacked vectors and the accumulators stay in registers. */
    const int together = nt == 1 ? PARTS : 1;
    for (int first = 0; first < PARTS; first += together) {
        vf acc[8];
        for (int i = 0; i < nt * together; i++) acc[i] = vf_set1(0.0f);
        for (int b = 0; b < t->blocks; b++) {
            if (nt == 1) read_ahead(format, t, b);
            for (int p = 0; p < together; p++) {
                wv w[8];
                vf scale[2], min = vf_set1(0.0f);
                unpack(format, t, b, first + p, w);
                load_scales(format, t, b, first + p, scale, &min);
#if defined(TOKEN_PAIRS)
                if (nt > 1) {
                    pair_rows(w);
                    for (int i = 0; i < nt; i += 2) {
                        const xblock *x0 = x + i * xstride + b, *x1 = x0 + xstride;
                        vi sums[2][2];
                        pair_sums(format, w, x0, x1, sums[0], sums[1]);
                        acc[i] = add_block(format, sums[0], scale, min, x0, acc[i]);
                        acc[i + 1] = add_block(format, sums[1], scale, min, x1, acc[i + 1]);
                    }
                    continue;
                }
#endif
                for (int i = 0; i < nt; i++) {
                    const xblock *xi = x + i * xstride + b;
                    vi sums[2];
                    block_sums(format, w, xi, sums);
                    acc[i * together + p] = add_block(format, sums, scale, min, xi, acc[i * together + p]);
                }
            }
        }
        for (int i = 0; i < nt; i++)
            for (int p = 0; p < together; p++)
                vf_store(out + i * TILE + (first + p) * LANES, acc[i * together + p]);
    }
}

typedef void product_fn(const tile_t *, const xblock *, int64_t, float *);
#define PRODUCT(F, NT) \
    static void product_##F##_##NT(const tile_t *t, const xblock *x, int64_t xstride, float *out) { \
        tile_product(F, NT, t, x, xstride, out); \
    }
#define PRODUCTS(F) PRODUCT(F, 1) PRODUCT(F, 2) PRODUCT(F, 4) PRODUCT(F, 8)
PRODUCTS(Q4) PRODUCTS(Q4M) PRODUCTS(Q4K) PRODUCTS(Q5) PRODUCTS(Q5M) PRODUCTS(Q5K) PRODUCTS(Q6) PRODUCTS(Q6K) PRODUCTS(Q8)
#define ROW(F) {product_##F##_1, product_##F##_2, product_##F##_4, product_##F##_8}
static product_fn *const products[N_FORMATS][4] = {
    ROW(Q4), ROW(Q4M), ROW(Q4K), ROW(Q5), ROW(Q5M), ROW(Q5K), ROW(Q6), ROW(Q6K), ROW(Q8),
};

/* The largest group of tokens, of 8, 4, 2, 1, that `left` still fills. */
INLINE int group_of(int left) { return left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0; }

/* Every group of tokens begins at an even distance from the first: tokens 2i and 2i + 1 are always
 * computed together, and only a last one is alone. */
#if defined(TOKEN_PAIRS)
typedef struct { xblock *tokens; int64_t blocks; } pairs_call;

static void pair_task(void *arg, int64_t from, int64_t to, int thread) {
    const pairs_call *call = arg;
    (void)thread;
    for (int64_t i = from; i < to; i++) {
        xblock *x = call->tokens + 2 * i * call->blocks;
        for (int64_t b = 0; b < call->blocks; b++) pair_columns(x[b].q, x[b + call->blocks].q);
    }
}
#endif

static void pair_tokens(pool_t *pool, xblock *tokens, int64_t n, int blocks) {
#if defined(TOKEN_PAIRS)
    pool_run(pool, pair_task, &(pairs_call){tokens, blocks}, n / 2);
#else
    (void)pool, (void)tokens, (void)n, (void)blocks;
#endif
}

/* ---- project: residual, norm, quantize, rows of each matrix ---------------------------------------- */

typedef struct {
    float *x;              /* [N, width] the residual stream */
    const double *sums;    /* [N, width] to be added to it, or NULL */
    const float *post_norm; /* [width] norm of the sums first, or NULL */
    const float *norm;     /* [width] */
    xblock *blocks;        /* [N, width / 32] scratch; NULL: no matrix is quantized */
    float *plain;          /* [N, width] scratch; NULL: no matrix is F32 */
    float *scratch;        /* [threads, width] */
    float *products;       /* [threads, DENSE_SCRATCH]; NULL: no matrix is F32 */
    float *out;            /* [N, out_stride] */
    const weights_t *weights;
    int64_t out_stride;
    int32_t n_weights, width;
    int32_t reuse_input; /* `blocks` and `plain` as the project before left them; x and sums are not read */
    float eps;
} project_t;

typedef struct { const project_t *op; int32_t first, n; } project_call;

/* width is a multiple of 16 */
static void rms_norm(const float *x, const float *weight, int width, float eps, float *out) {
    vf squares[PARTS];
    for (int p = 0; p < PARTS; p++) squares[p] = vf_set1(0.0f);
    for (int i = 0; i < width; i += TILE) {
        for (int p = 0; p < PARTS; p++) {
            const vf a = vf_load(x + i + p * LANES);
            squares[p] = vf_fma(a, a, squares[p]);
        }
    }
    const vf scale = vf_set1(1.0f / sqrtf(sum16(squares) / (float)width + eps));
    for (int i = 0; i < width; i += LANES)
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(weight + i)));
}

static void norm_quantize_tokens(const project_t *op, int64_t from, int64_t to, float *scratch) {
    const int width = op->width;
    for (int64_t t = from; t < to; t++) {
        float *x = op->x + t * width;
        if (op->sums) {
            const double *sums = op->sums + t * width;
            for (int i = 0; i < width; i++) scratch[i] = (float)sums[i];
            if (op->post_norm) rms_norm(scratch, op->post_norm, width, op->eps, scratch);
            for (int i = 0; i < width; i++) x[i] += scratch[i];
        }
        float *normed = op->plain ? op->plain + t * width : scratch;
        rms_norm(x, op->norm, width, op->eps, normed);
        if (op->blocks) quantize(normed, width / BLOCK, op->blocks + t * (width / BLOCK));
    }
}

static void norm_quantize_task(void *arg, int64_t from, int64_t to, int thread) {
    const project_call *call = arg;
    norm_quantize_tokens(call->op, call->first + from, call->first + to, call->op->scratch + (int64_t)thread * call->op->width);
}

INLINE void store_rows(const weights_t *w, int shard, int tile, const float *from, float *out) {
    const int row = tile * TILE;
    const int rows = w->rows - row < TILE ? w->rows - row : TILE;
    out += w->out_offset + (int64_t)shard * w->rows + row;
    if (w->bias) {
        const float *bias = w->bias + (int64_t)shard * w->rows + row;
        for (int r = 0; r < rows; r++) out[r] = from[r] + bias[r];
    } else {
        memcpy(out, from, (size_t)rows * sizeof *out);
    }
}

static void project_tiles(const project_call *call, const weights_t *w, int64_t from, int64_t to) {
    const project_t *op = call->op;
    const int tiles = (w->rows + TILE - 1) / TILE, blocks = op->width / BLOCK;
    float result[8 * TILE];
    for (int64_t i = from; i < to; i++) {
        const int shard = (int)(i / tiles), tile = (int)(i % tiles);
        const tile_t t = tile_at(w, shard, tile);
        for (int token = call->first; token < call->n;) {
            const int group = group_of(call->n - token);
            products[w->format][group](&t, op->blocks + (int64_t)token * blocks, blocks, result);
            for (int j = 0; j < 1 << group; j++, token++)
                store_rows(w, shard, tile, result + j * TILE, op->out + (int64_t)(token - call->first) * op->out_stride);
        }
    }
}

INLINE const float *dense_rows(const weights_t *w, int64_t shard, int64_t row) {
    return (const float *)(w->data + shard * w->stride + w->quants) + row * w->cols;
}

static void project_dense(const project_call *call, const weights_t *w, int64_t from, int64_t to, int thread) {
    const project_t *op = call->op;
    const int64_t tiles = (w->rows + TILE - 1) / TILE, n = call->n - call->first;
    while (from < to) {
        const int64_t shard = from / tiles, row = from % tiles * TILE; /* then the rest of the shard at once */
        const int64_t end = (shard + 1) * tiles < to ? (shard + 1) * tiles : to;
        const int64_t last = (end - shard * tiles) * TILE, rows = (last < w->rows ? last : w->rows) - row;
        float *out = op->out + w->out_offset + shard * w->rows + row;
        dense_product(dense_rows(w, shard, row), rows, w->cols, op->plain + (int64_t)call->first * op->width, n,
                      op->width, out, op->out_stride, op->products + (int64_t)thread * DENSE_SCRATCH);
        const float *bias = w->bias ? w->bias + shard * w->rows + row : NULL;
        for (int64_t t = 0; t < n && bias; t++)
            for (int64_t r = 0; r < rows; r++) out[t * op->out_stride + r] += bias[r];
        from = end;
    }
}

INLINE int64_t tiles_of(const weights_t *w) { return (int64_t)w->count * ((w->rows + TILE - 1) / TILE); }

static void project_task(void *arg, int64_t from, int64_t to, int thread) {
    const project_call *call = arg;
    for (int i = 0; i < call->op->n_weights && to > 0; i++) {
        const weights_t *w = call->op->weights + i;
        const int64_t tiles = tiles_of(w), end = to < tiles ? to : tiles;
        if (from < tiles && w->format == F32) project_dense(call, w, from, end, thread);
        else if (from < tiles) project_tiles(call, w, from, end);
        from = from > tiles ? from - tiles : 0;
        to -= tiles;
    }
}

API void pe_project(pool_t *pool, const project_t *op, int32_t n, int32_t first) {
    project_call call = {op, first, n};
    int64_t tiles = 0;
    for (int i = 0; i < op->n_weights; i++) tiles += tiles_of(op->weights + i);
    const int blocks = op->width / BLOCK;
    if (!op->reuse_input) {
        pool_run(pool, norm_quantize_task, &call, n - first);
        if (op->blocks) pair_tokens(pool, op->blocks + (int64_t)first * blocks, n - first, blocks);
    }
    pool_run(pool, project_task, &call, tiles);
}

/* ---- project_sum: activation, quantize, columns shard by shard, added in f64 ------------------------ */

enum { NO_ACTIVATION, SILU, GELU_TANH };

typedef struct {
    const float *x;   /* [N, width] or, with an activation, [N, 2 * width] */
    xblock *blocks;   /* [N, width / 32] scratch; NULL: the matrix is F32 */
    float *plain;     /* [N, width] scratch; NULL: it is quantized */
    float *scratch;   /* [threads, width] */
    float *products;  /* [threads, DENSE_SCRATCH]; NULL: it is quantized */
    double *sums;     /* [N, rows] */
    const weights_t *weights;
    int32_t activation, width, rows;
    int32_t accumulate; /* add to what `sums` holds instead of to zero */
} project_sum_t;

typedef struct { const project_sum_t *op; int32_t first, n; } sum_call; /* n tokens; sums from row `first` on */

static void activate(int activation, const float *gate, const float *up, int width, float *out) {
    const vf one = vf_set1(1.0f), zero = vf_set1(0.0f);
    for (int i = 0; i < width; i += LANES) {
        const vf x = vf_load(gate + i);
        vf z = x; /* x * sigmoid(z): silu with z = x, tanh-gelu with z = 2 sqrt(2/pi) (x + 0.044715 x^3) */
        if (activation == GELU_TANH)
            z = vf_mul(vf_mul(x, vf_set1(1.59576912f)), vf_fma(vf_mul(x, x), vf_set1(0.044715f), one));
        const vf gated = vf_div(x, vf_add(one, vf_exp(vf_fnma(z, one, zero))));
        vf_store(out + i, vf_mul(gated, vf_load(up + i)));
    }
}

static void activate_quantize_task(void *arg, int64_t from, int64_t to, int thread) {
    const sum_call *call = arg;
    const project_sum_t *op = call->op;
    const int width = op->width, blocks = width / BLOCK;
    for (int64_t t = from; t < to; t++) {
        const float *x = op->x + t * width;
        if (op->activation) {
            float *activated = op->plain ? op->plain + t * width : op->scratch + (int64_t)thread * width;
            x = op->x + 2 * t * width;
            activate(op->activation, x, x + width, width, activated);
            x = activated;
        }
        if (op->blocks) quantize(x, blocks, op->blocks + t * blocks);
    }
}

INLINE void add_rows(const float *from, int rows, double *out) {
    for (int r = 0; r < rows; r++) out[r] += (double)from[r];
}

static void sum_task(void *arg, int64_t from, int64_t to, int thread) {
    const sum_call *call = arg;
    (void)thread;
    const project_sum_t *op = call->op;
    const weights_t *w = op->weights;
    const int blocks = op->width / BLOCK, shard_blocks = w->cols / BLOCK;
    float result[8 * TILE];
    const int64_t row = from * TILE, end = to * TILE < op->rows ? to * TILE : op->rows;
    double *sums = op->sums + (int64_t)call->first * op->rows;
    for (int t = 0; t < call->n && !op->accumulate; t++)
        memset(sums + (int64_t)t * op->rows + row, 0, (size_t)(end - row) * sizeof(double));
    for (int shard = 0; shard < w->count; shard++) {
        for (int64_t tile = from; tile < to; tile++) {
            const tile_t t = tile_at(w, shard, (int)tile);
            const int rows = (int)(end - tile * TILE < TILE ? end - tile * TILE : TILE);
            for (int token = 0; token < call->n;) {
                const int group = group_of(call->n - token);
                products[w->format][group](&t, op->blocks + (int64_t)token * blocks + shard * shard_blocks, blocks, result);
                for (int j = 0; j < 1 << group; j++, token++)
                    add_rows(result + j * TILE, rows, sums + (int64_t)token * op->rows + tile * TILE);
            }
        }
    }
}

/* Rows from `row` on, DENSE_ROWS at most, of n tokens from `token` on, DENSE_TOKENS at most. */
static void sum_dense(const sum_call *call, int64_t row, int64_t rows, int64_t token, int64_t n, float *scratch) {
    const project_sum_t *op = call->op;
    const weights_t *w = op->weights;
    const float *x = (op->activation ? op->plain : op->x) + token * op->width;
    float *partial = scratch + SGEMM_SCRATCH;
    double *sums = op->sums + (call->first + token) * op->rows + row;
    for (int64_t shard = 0; shard < w->count; shard++) {
        dense_product(dense_rows(w, shard, row), rows, w->cols, x + shard * w->cols, n, op->width, partial,
                      DENSE_ROWS, scratch);
        for (int64_t t = 0; t < n; t++) {
            if (!shard && !op->accumulate) memset(sums + t * op->rows, 0, (size_t)rows * sizeof(double));
            add_rows(partial + t * DENSE_ROWS, (int)rows, sums + t * op->rows);
        }
    }
}

static void sum_dense_task(void *arg, int64_t from, int64_t to, int thread) {
    const sum_call *call = arg;
    const project_sum_t *op = call->op;
    const int64_t end = to * TILE < op->rows ? to * TILE : op->rows;
    float *scratch = op->products + (int64_t)thread * DENSE_SCRATCH;
    for (int64_t token = 0; token < call->n; token += DENSE_TOKENS) {
        const int64_t n = call->n - token < DENSE_TOKENS ? call->n - token : DENSE_TOKENS;
        for (int64_t row = from * TILE; row < end; row += DENSE_ROWS)
            sum_dense(call, row, end - row < DENSE_ROWS ? end - row : DENSE_ROWS, token, n, scratch);
    }
}

API void pe_project_sum(pool_t *pool, const project_sum_t *op, int32_t n, int32_t first) {
    sum_call call = {op, first, n - first};
    if (op->activation || op->blocks) pool_run(pool, activate_quantize_task, &call, n - first);
    if (op->weights->format == F32) {
        pool_run(pool, sum_dense_task, &call, (op->rows + TILE - 1) / TILE);
        return;
    }
    pair_tokens(pool, op->blocks, n - first, op->width / BLOCK);
    pool_run(pool, sum_task, &call, (op->rows + TILE - 1) / TILE);
}

/* ---- low_rank: what an adapter adds to a product -------------------------------------------------- */

enum { LR_TOKENS = 16, LR_TILE = 64, LR_CHAINS = 4, LR_ALONE = 1 << 16 };
/* tokens at once; outputs of an item; sums of a product, by column % LR_CHAINS; multiplications
 * below which other threads are not woken */

typedef struct {
    const float *a; /* [width, padded]: columns `column` and on of the input times these */
    const float *b; /* [rank, b_stride]: rows of the output, from `out_offset` on */
    int64_t b_stride;
    int32_t column, width, rank, padded, rows, out_offset; /* padded: rank in 16s */
} low_rank_part_t;

typedef struct {
    const float *x;    /* [N, width] or, with an activation, [N, 2 * width] */
    const float *norm; /* [width] of the residual stream's input, or NULL */
    float *scratch;    /* [LR_TOKENS, width + sum of padded] */
    float *out;        /* [N, out_stride] to be added to, or NULL: then */
    double *sums;      /* [N, out_stride] */
    const low_rank_part_t *parts;
    int64_t out_stride;
    int32_t n_parts, width, activation, padded, columns; /* padded: of all parts; columns of the output */
    float eps;
} low_rank_t;

/* Tokens first .. first + n - 1; `from`: the first one of the call, whose row of x or out is row 0 */
typedef struct { const low_rank_t *op; int32_t first, n, from; } low_rank_call;

static void low_rank_input_task(void *arg, int64_t from, int64_t to, int thread) {
    const low_rank_call *call = arg;
    const low_rank_t *op = call->op;
    const int width = op->width;
    (void)thread;
    for (int64_t i = from; i < to; i++) {
        const int64_t token = call->first + i, row = token - call->from;
        float *in = op->scratch + i * width;
        if (op->norm) rms_norm(op->x + token * width, op->norm, width, op->eps, in);
        else if (op->activation) activate(op->activation, op->x + 2 * row * width, op->x + (2 * row + 1) * width, width, in);
        else memcpy(in, op->x + row * width, (size_t)width * sizeof *in);
    }
}

/* 16 values of A x: LR_CHAINS sums of columns, added in pairs. */
INLINE void shrink(const low_rank_part_t *p, const float *x, int at, float *out) {
    const float *a = p->a + at;
    vf sum[LR_CHAINS][PARTS];
    for (int c = 0; c < LR_CHAINS; c++)
        for (int v = 0; v < PARTS; v++) sum[c][v] = vf_set1(0.0f);
    for (int k = 0; k < p->width; k += LR_CHAINS) {
#pragma GCC unroll 4
        for (int c = 0; c < LR_CHAINS; c++) {
            if (k + c >= p->width) break;
            const vf left = vf_set1(x[k + c]);
            for (int v = 0; v < PARTS; v++)
                sum[c][v] = vf_fma(left, vf_load(a + (int64_t)(k + c) * p->padded + v * LANES), sum[c][v]);
        }
    }
    for (int v = 0; v < PARTS; v++)
        vf_store(out + v * LANES, vf_add(vf_add(sum[0][v], sum[1][v]), vf_add(sum[2][v], sum[3][v])));
}

/* Item: a part of a token. */
static void low_rank_shrink_task(void *arg, int64_t from, int64_t to, int thread) {
    const low_rank_call *call = arg;
    const low_rank_t *op = call->op;
    (void)thread;
    for (int64_t i = from; i < to; i++) {
        const int64_t token = i / op->n_parts;
        const int part = (int)(i % op->n_parts);
        float *out = op->scratch + (int64_t)LR_TOKENS * op->width + token * op->padded;
        for (int before = 0; before < part; before++) out += op->parts[before].padded;
        const low_rank_part_t *p = op->parts + part;
        const float *x = op->scratch + token * op->width + p->column;
        for (int at = 0; at < p->padded; at += TILE) shrink(p, x, at, out + at);
    }
}

/* Rows `row` .. `row + count` - 1 of B times the A x of one token: out, room for LR_TILE. */
INLINE void grow(const low_rank_part_t *p, const float *shrunk, int row, int count, float *out) {
    const float *b = p->b + row;
    int i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        vf sum[4];
        for (int v = 0; v < 4; v++) sum[v] = vf_set1(0.0f);
        for (int r = 0; r < p->rank; r++) {
            const vf left = vf_set1(shrunk[r]);
            for (int v = 0; v < 4; v++) sum[v] = vf_fma(left, vf_load(b + r * p->b_stride + i + v * LANES), sum[v]);
        }
        for (int v = 0; v < 4; v++) vf_store(out + i + v * LANES, sum[v]);
    }
    for (; i + LANES <= count; i += LANES) {
        vf sum = vf_set1(0.0f);
        for (int r = 0; r < p->rank; r++) sum = vf_fma(vf_set1(shrunk[r]), vf_load(b + r * p->b_stride + i), sum);
        vf_store(out + i, sum);
    }
    for (; i < count; i++) {
        float sum = 0.0f;
        for (int r = 0; r < p->rank; r++) sum = fmaf(shrunk[r], b[r * p->b_stride + i], sum);
        out[i] = sum;
    }
}

/* A multiple of 2^-30: sums of such values, and of f32 partials, stay exact in f64 in any order. */
INLINE double on_grid(float value) { return rint((double)value * 0x1p30) * 0x1p-30; }

/* Item: LR_TILE columns of the output of a token, of all parts that have some there. */
static void low_rank_grow_task(void *arg, int64_t from, int64_t to, int thread) {
    const low_rank_call *call = arg;
    const low_rank_t *op = call->op;
    const int tiles = (op->columns + LR_TILE - 1) / LR_TILE;
    float added[LR_TILE];
    (void)thread;
    for (int64_t i = from; i < to; i++) {
        const int64_t token = i / tiles;
        const int begin = (int)(i % tiles) * LR_TILE;
        const int end = begin + LR_TILE < op->columns ? begin + LR_TILE : op->columns;
        const float *shrunk = op->scratch + (int64_t)LR_TOKENS * op->width + token * op->padded;
        for (int j = 0; j < op->n_parts; shrunk += op->parts[j].padded, j++) {
            const low_rank_part_t *p = op->parts + j;
            const int lo = begin > p->out_offset ? begin : p->out_offset;
            const int hi = end < p->out_offset + p->rows ? end : p->out_offset + p->rows;
            if (lo >= hi) continue;
            grow(p, shrunk, lo - p->out_offset, hi - lo, added);
            if (op->out) {
                float *out = op->out + (call->first + token - call->from) * op->out_stride + lo;
                for (int c = 0; c < hi - lo; c++) out[c] += added[c];
            } else {
                double *out = op->sums + (call->first + token) * op->out_stride + lo;
                for (int c = 0; c < hi - lo; c++) out[c] += on_grid(added[c]);
            }
        }
    }
}

API void pe_low_rank(pool_t *pool, const low_rank_t *op, int32_t n, int32_t first) {
    int64_t work = 0;
    for (int i = 0; i < op->n_parts; i++)
        work += (int64_t)op->parts[i].padded * op->parts[i].width + (int64_t)op->parts[i].rank * op->parts[i].rows;
    const int tiles = (op->columns + LR_TILE - 1) / LR_TILE;
    const rounding_t mode = round_nearest(); /* of what is done without a task */
    for (int32_t at = first; at < n; at += LR_TOKENS) {
        low_rank_call call = {op, at, n - at < LR_TOKENS ? n - at : LR_TOKENS, first};
        const int64_t inputs = call.n, shrunk = (int64_t)call.n * op->n_parts, grown = (int64_t)call.n * tiles;
        if (work * call.n < LR_ALONE) {
            low_rank_input_task(&call, 0, inputs, 0);
            low_rank_shrink_task(&call, 0, shrunk, 0);
            low_rank_grow_task(&call, 0, grown, 0);
            continue;
        }
        pool_run(pool, low_rank_input_task, &call, inputs);
        pool_run(pool, low_rank_shrink_task, &call, shrunk);
        pool_run(pool, low_rank_grow_task, &call, grown);
    }
    round_as_before(mode);
}

/* ---- attend ---------------------------------------------------------------------------------------- */

typedef struct {
    float *qkv;             /* [N, (q_heads + 2 kv_heads) * head_dim]; q is rotated in place */
    const float *cos, *sin; /* [n_ctx, head_dim / 2] */
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    void *keys;             /* f32, f16 or int8 [kv_heads, n_ctx / 16, head_dim, 16]: 16 keys side by side */
    void *values;           /* f32, f16 or int8 [kv_heads, n_ctx, head_dim] */
    uint16_t *key_scales;   /* of int8, B = ceil(head_dim / 32): f16 [kv_heads, n_ctx / 16, B, 16], or NULL */
    uint16_t *value_scales; /* f16 [kv_heads, n_ctx, B], or NULL */
    float *out;             /* [N, q_heads * head_dim] */
    int32_t q_heads, kv_heads, head_dim, n_ctx, window;
    float scale, eps;
    int32_t bits;           /* of the cache: 32, 16 or 8 */
} attend_t;

typedef struct { const attend_t *op; int32_t n, position; float *scores; int64_t scores_stride; } attend_call;

enum { KEYS = 16 }; /* keys in a tile of the cache */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define QUERIES 4 /* (token, head) pairs done together: what 16 vector registers hold */
#else
#define QUERIES 8
#endif

/* RMS norm (optional), then rotate the halves; times `scale`. */
static void rotate(const attend_t *op, const float *norm, int position, float scale, float *x) {
    const int half = op->head_dim / 2;
    const float *c = op->cos + (int64_t)position * half, *s = op->sin + (int64_t)position * half;
    if (norm) rms_norm(x, norm, op->head_dim, op->eps, x);
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = (a * c[i] - b * s[i]) * scale;
        x[i + half] = (b * c[i] + a * s[i]) * scale;
    }
}

/* Blocks of 32 dimensions that have a scale each in an 8-bit cache; the last may be of 16. */
INLINE int scales_of(const attend_t *op) { return op->key_scales ? (op->head_dim + BLOCK - 1) / BLOCK : 0; }
INLINE int64_t scales_before(const attend_t *op, int head) { return (int64_t)head * op->n_ctx * scales_of(op); }

/* Clamped to the range of f16: a masked key is multiplied by 0, and 0 times infinity is not a number. */
INLINE void to_f16(const float *x, uint16_t *out) {
    vf_to_f16(out, vf_min(vf_max(vf_load(x), vf_set1(-65504.0f)), vf_set1(65504.0f)));
}

/* Quantize a block of 16 or 32 values to int8; returns its scale, amax / 127 as f16. Values are divided
 * by the scale after its rounding to f16; where that rounding made it much smaller (f16 ends at 65504
 * and at 2^-24) they are clamped to 127 steps. */
static uint16_t quantize_block_i8(const float *x, int width, int8_t *out) {
    const float top = 127.0f;
    float amax[LANES], scale[LANES];
    uint16_t half[LANES];
    vf peak = vf_set1(0.0f);
    for (int i = 0; i < width; i += LANES) peak = vf_max(peak, vf_abs(vf_load(x + i)));
    vf_store(amax, vf_set1(vf_hmax(peak) / top));
    to_f16(amax, half);
    vf_store(scale, vf_from_f16(half));
    const vf inverse = vf_set1(scale[0] > 0 ? 1.0f / scale[0] : 0.0f);
    for (int i = 0; i < width; i += LANES) {
        const vf steps = vf_mul(vf_load(x + i), inverse);
        vi_store_i8(out + i, vi_round(vf_min(vf_max(steps, vf_set1(-top)), vf_set1(top))));
    }
    return half[0];
}

static void append_f16(const attend_t *op, int head, int position, const float *k, const float *v) {
    const int d = op->head_dim;
    uint16_t *key = (uint16_t *)op->keys + ((int64_t)head * op->n_ctx + position / KEYS * KEYS) * d + position % KEYS;
    uint16_t *value = (uint16_t *)op->values + ((int64_t)head * op->n_ctx + position) * d;
    uint16_t lane[LANES];
    for (int i = 0; i < d; i += LANES) {
        to_f16(k + i, lane);
        for (int j = 0; j < LANES; j++) key[(i + j) * KEYS] = lane[j];
        to_f16(v + i, value + i);
    }
}

static void append_f32(const attend_t *op, int head, int position, const float *k, const float *v) {
    const int d = op->head_dim;
    const vf most = vf_set1(3.4e38f), least = vf_set1(-3.4e38f); /* no infinity: see to_f16 */
    float *key = (float *)op->keys + ((int64_t)head * op->n_ctx + position / KEYS * KEYS) * d + position % KEYS;
    float *value = (float *)op->values + ((int64_t)head * op->n_ctx + position) * d, lane[LANES];
    for (int i = 0; i < d; i += LANES) {
        vf_store(lane, vf_min(vf_max(vf_load(k + i), least), most));
        for (int j = 0; j < LANES; j++) key[(i + j) * KEYS] = lane[j];
        vf_store(value + i, vf_min(vf_max(vf_load(v + i), least), most));
    }
}

static void append_i8(const attend_t *op, int head, int position, const float *k, const float *v) {
    const int d = op->head_dim, blocks = scales_of(op), tile = position / KEYS * KEYS;
    int8_t *key = (int8_t *)op->keys + ((int64_t)head * op->n_ctx + tile) * d + position % KEYS;
    int8_t *value = (int8_t *)op->values + ((int64_t)head * op->n_ctx + position) * d;
    uint16_t *key_scale = op->key_scales + scales_before(op, head) + tile * blocks + position % KEYS;
    uint16_t *value_scale = op->value_scales + scales_before(op, head) + position * blocks;
    int8_t column[BLOCK];
    for (int b = 0, i = 0; b < blocks; b++, i += BLOCK) {
        const int width = d - i < BLOCK ? d - i : BLOCK;
        key_scale[b * KEYS] = quantize_block_i8(k + i, width, column);
        for (int j = 0; j < width; j++) key[(i + j) * KEYS] = column[j];
        value_scale[b] = quantize_block_i8(v + i, width, value + i);
    }
}

static void append_task(void *arg, int64_t from, int64_t to, int thread) {
    const attend_call *call = arg;
    const attend_t *op = call->op;
    const int d = op->head_dim;
    void (*append)(const attend_t *, int, int, const float *, const float *) =
        op->bits == 32 ? append_f32 : op->bits == 8 ? append_i8 : append_f16;
    (void)thread;
    for (int64_t t = from; t < to; t++) {
        const int position = call->position + (int)t;
        float *q = op->qkv + t * (op->q_heads + 2 * op->kv_heads) * d;
        float *k = q + op->q_heads * d, *v = k + op->kv_heads * d;
        for (int h = 0; h < op->q_heads; h++) rotate(op, op->q_norm, position, op->scale, q + h * d);
        for (int h = 0; h < op->kv_heads; h++) {
            rotate(op, op->k_norm, position, 1.0f, k + h * d);
            append(op, h, position, k + h * d, v + h * d);
        }
    }
}

/* Keys or values of one head, with their scales if they have 8 bits. */
typedef struct { const void *at; const uint16_t *scales; int blocks; } stored_t;

/* LANES elements from `i` on, as f32; 8-bit ones not yet multiplied by their scale. */
INLINE vf stored_at(int bits, const stored_t *stored, int64_t i) {
    if (bits == 32) return vf_load((const float *)stored->at + i);
    return bits == 16 ? vf_from_f16((const uint16_t *)stored->at + i) : vf_from_i8((const int8_t *)stored->at + i);
}

/* sum += acc * scale, for one block of dimensions. */
INLINE void add_scaled(int nq, int parts, const stored_t *keys, int t, int block, const vf *acc, vf *sum) {
    const uint16_t *scales = keys->scales + ((int64_t)(t / KEYS) * keys->blocks + block) * KEYS + t % KEYS;
    for (int p = 0; p < parts; p++) {
        const vf scale = vf_from_f16(scales + p * LANES);
        for (int i = p; i < nq * parts; i += parts) sum[i] = vf_fma(scale, acc[i], sum[i]);
    }
}

/* scores[j][t] for NQ queries against the tiles of keys from..to (positions, multiples of 16). */
INLINE void score_keys(int bits, int nq, const float *const *q, const stored_t *keys, int d, int from, int to, float *scores, int64_t stride) {
    /* few queries: all parts of a tile of keys at once, or each sum would wait for the one before */
    const int parts = nq * PARTS <= QUERIES ? PARTS : 1, block = bits == 8 ? BLOCK : d;
    for (int t = from; t < to; t += parts * LANES) {
        const int64_t key = (int64_t)(t / KEYS) * KEYS * d + t % KEYS;
        vf sum[QUERIES];
        for (int j = 0; j < nq * parts; j++) sum[j] = vf_set1(0.0f);
        for (int first = 0; first < d; first += block) {
            const int end = first + block < d ? first + block : d;
            vf acc[QUERIES];
            for (int j = 0; j < nq * parts; j++) acc[j] = vf_set1(0.0f);
            for (int i = first; i < end; i++) {
                for (int p = 0; p < parts; p++) {
                    const vf k = stored_at(bits, keys, key + i * KEYS + p * LANES);
                    for (int j = 0; j < nq; j++) acc[j * parts + p] = vf_fma(k, vf_set1(q[j][i]), acc[j * parts + p]);
                }
            }
            if (bits == 8) add_scaled(nq, parts, keys, t, first / BLOCK, acc, sum);
            else for (int j = 0; j < nq * parts; j++) sum[j] = acc[j];
        }
        for (int j = 0; j < nq; j++)
            for (int p = 0; p < parts; p++) vf_store(scores + j * stride + t + p * LANES, sum[j * parts + p]);
    }
}

/* scores of lo..hi become exp(score - max), all others of the tiles 0; returns 1 / their sum. */
static float softmax_exp(float *scores, int from, int lo, int hi, int to) {
    for (int t = from; t < lo; t++) scores[t] = -INFINITY;
    for (int t = hi + 1; t < to; t++) scores[t] = -INFINITY;
    vf peak = vf_load(scores + from), sum[PARTS];
    for (int t = from; t < to; t += LANES) peak = vf_max(peak, vf_load(scores + t));
    const vf max = vf_set1(-vf_hmax(peak));
    for (int p = 0; p < PARTS; p++) sum[p] = vf_set1(0.0f);
    for (int t = from; t < to; t += LANES) vf_store(scores + t, vf_exp(vf_add(vf_load(scores + t), max)));
    for (int t = from; t < lo; t++) scores[t] = 0.0f;
    for (int t = hi + 1; t < to; t++) scores[t] = 0.0f;
    for (int t = from; t < to; t += KEYS)
        for (int p = 0; p < PARTS; p++) sum[p] = vf_add(sum[p], vf_load(scores + t + p * LANES));
    return 1.0f / sum16(sum);
}

/* out[j] = weight[j] * sum over t of scores[j][t] * values[t], for LANES * 2 dimensions from `i`. */
INLINE void weighted_values(int bits, int nq, const float *scores, int64_t stride, const stored_t *values, int d, int i, int width,
                       int lo, int hi, const float *weight, float *const *out) {
    vf acc[QUERIES][2];
    for (int j = 0; j < nq; j++) acc[j][0] = acc[j][1] = vf_set1(0.0f);
    for (int t = lo; t <= hi; t++) {
        const int64_t value = (int64_t)t * d + i;
        vf a = stored_at(bits, values, value), b = width == 2 ? stored_at(bits, values, value + LANES) : a;
        if (bits == 8) { /* exact in f32: 7 bits times 11 bits */
            const vf scale = vf_set1_f16(values->scales[(int64_t)t * values->blocks + i / BLOCK]);
            a = vf_mul(scale, a);
            b = vf_mul(scale, b);
        }
        for (int j = 0; j < nq; j++) {
            const vf p = vf_set1(scores[j * stride + t]);
            acc[j][0] = vf_fma(p, a, acc[j][0]);
            if (width == 2) acc[j][1] = vf_fma(p, b, acc[j][1]);
        }
    }
    for (int j = 0; j < nq; j++)
        for (int k = 0; k < width; k++)
            vf_store(out[j] + i + k * LANES, vf_mul(acc[j][k], vf_set1(weight[j])));
}

INLINE stored_t stored_of(int bits, const attend_t *op, const void *all, const uint16_t *scales, int kv) {
    const char *at = (const char *)all + (int64_t)kv * op->n_ctx * op->head_dim * (bits / 8);
    return (stored_t){at, bits == 8 ? scales + scales_before(op, kv) : NULL, scales_of(op)};
}

/* NQ (token, head) pairs that read the same key-value head. */
INLINE void attend_pairs(int bits, int nq, const attend_call *call, int kv, int first, float *scores) {
    const attend_t *op = call->op;
    const int d = op->head_dim, group = op->q_heads / op->kv_heads;
    const int64_t row = (int64_t)(op->q_heads + 2 * op->kv_heads) * d, stride = call->scores_stride;
    const stored_t keys = stored_of(bits, op, op->keys, op->key_scales, kv);
    const stored_t values = stored_of(bits, op, op->values, op->value_scales, kv);
    const float *q[QUERIES];
    float *out[QUERIES], weight[QUERIES];
    int lo[QUERIES], hi[QUERIES];
    for (int j = 0; j < nq; j++) {
        const int token = (first + j) / group, head = kv * group + (first + j) % group;
        q[j] = op->qkv + token * row + head * d;
        out[j] = op->out + ((int64_t)token * op->q_heads + head) * d;
        hi[j] = call->position + token;
        lo[j] = op->window && hi[j] >= op->window ? hi[j] - op->window + 1 : 0;
    }
    const int from = lo[0] / KEYS * KEYS, to = (hi[nq - 1] / KEYS + 1) * KEYS;
    score_keys(bits, nq, q, &keys, d, from, to, scores, stride);
    for (int j = 0; j < nq; j++) weight[j] = softmax_exp(scores + j * stride, from, lo[j], hi[j], to);
    int i = 0;
    for (; i + 2 * LANES <= d; i += 2 * LANES)
        weighted_values(bits, nq, scores, stride, &values, d, i, 2, lo[0], hi[nq - 1], weight, out);
    if (i < d) weighted_values(bits, nq, scores, stride, &values, d, i, 1, lo[0], hi[nq - 1], weight, out);
}

/* Item i: the i-th group of QUERIES pairs; a key-value head's groups follow one another. */
INLINE void attend_groups(int bits, const attend_call *call, int64_t from, int64_t to, int thread) {
    const int pairs = call->n * (call->op->q_heads / call->op->kv_heads);
    const int groups = (pairs + QUERIES - 1) / QUERIES;
    float *scores = call->scores + (int64_t)thread * QUERIES * call->scores_stride;
    for (int64_t i = from; i < to; i++) {
        const int kv = (int)(i / groups), first = (int)(i % groups) * QUERIES;
        switch (pairs - first < QUERIES ? pairs - first : QUERIES) {
#define PAIRS(N) case N: attend_pairs(bits, N, call, kv, first, scores); break;
            PAIRS(1) PAIRS(2) PAIRS(3) PAIRS(4)
#if QUERIES == 8
            PAIRS(5) PAIRS(6) PAIRS(7) PAIRS(8)
#endif
        }
    }
}

static void attend_f32_task(void *arg, int64_t from, int64_t to, int thread) { attend_groups(32, arg, from, to, thread); }
static void attend_f16_task(void *arg, int64_t from, int64_t to, int thread) { attend_groups(16, arg, from, to, thread); }
static void attend_i8_task(void *arg, int64_t from, int64_t to, int thread) { attend_groups(8, arg, from, to, thread); }

/* 0, or -1 when there is no memory for the scores. */
API int pe_attend(pool_t *pool, const attend_t *op, int32_t n, int32_t position) {
    const int64_t stride = (position + n + KEYS - 1) / KEYS * KEYS;
    const int64_t size = stride * QUERIES * pool->threads;
    if (size > pool->scores_size) {
        free(pool->scores);
        pool->scores_size = 0;
        pool->scores = aligned_alloc(64, (size_t)(size * 2) * sizeof(float));
        if (!pool->scores) return -1;
        pool->scores_size = size * 2;
    }
    attend_call call = {op, n, position, pool->scores, stride};
    const int64_t pairs = (int64_t)n * (op->q_heads / op->kv_heads);
    pool_run(pool, append_task, &call, n);
    task_fn *task = op->bits == 32 ? attend_f32_task : op->bits == 8 ? attend_i8_task : attend_f16_task;
    pool_run(pool, task, &call, op->kv_heads * ((pairs + QUERIES - 1) / QUERIES));
    return 0;
}

/* ---- f48: f64 values in 6 bytes ------------------------------------------------------------------- */

/* The upper 32 bits of each value, then the next 16 of each, then an exception (index, low 16 bits) for
 * each value whose low 16 bits are not zero; see kernels/f48.py. */
typedef uint32_t __attribute__((aligned(1), may_alias)) u32;
typedef uint16_t __attribute__((aligned(1), may_alias)) u16;
enum { F48_GROUP = 64, F48_BYTES = 6, EXCEPTION_BYTES = 6 }; /* values looked through at once; bytes of each */

/* The number of exceptions, or -1 if there are more than `max_exceptions`. */
API int64_t pe_f48_encode(const uint64_t *values, int64_t count, uint8_t *out, int64_t max_exceptions) {
    u32 *restrict high = (u32 *)out;
    u16 *restrict next = (u16 *)(out + 4 * count);
    uint8_t *exception = out + F48_BYTES * count;
    int64_t exceptions = 0;
    for (int64_t i = 0; i < count; i += F48_GROUP) {
        const int n = count - i < F48_GROUP ? (int)(count - i) : F48_GROUP;
        uint64_t any = 0;
        for (int j = 0; j < n; j++) {
            const uint64_t v = values[i + j];
            high[i + j] = (uint32_t)(v >> 32);
            next[i + j] = (uint16_t)(v >> 16);
            any |= v;
        }
        for (int j = 0; j < n && (any & 0xffff); j++) {
            const uint32_t index = (uint32_t)(i + j);
            const uint16_t low = (uint16_t)values[i + j];
            if (!low) continue;
            if (exceptions == max_exceptions) return -1;
            memcpy(exception, &index, sizeof index);
            memcpy(exception + sizeof index, &low, sizeof low);
            exception += EXCEPTION_BYTES;
            exceptions++;
        }
    }
    return exceptions;
}

/* 0, or 1 where an exception's index is not below `count`. */
API int pe_f48_decode(const uint8_t *body, int64_t count, int64_t exceptions, uint64_t *restrict out) {
    const u32 *restrict high = (const u32 *)body;
    const u16 *restrict next = (const u16 *)(body + 4 * count);
    const uint8_t *exception = body + F48_BYTES * count;
    for (int64_t i = 0; i < count; i++) out[i] = (uint64_t)high[i] << 32 | (uint64_t)next[i] << 16;
    for (int64_t k = 0; k < exceptions; k++, exception += EXCEPTION_BYTES) {
        uint32_t index;
        uint16_t low;
        memcpy(&index, exception, sizeof index);
        memcpy(&low, exception + sizeof index, sizeof low);
        if (index >= count) return 1;
        out[index] = (out[index] & ~(uint64_t)0xffff) | low;
    }
    return 0;
}

/* ---- ABI: what native.py checks ---------------------------------------------------------------------- */

/* Raise it when the meaning of a field or function changes, but no layout does. */
enum { ABI = 2 };

static const field_t layout[] = {
    SIZE("abi", ABI), SIZE("tile", TILE), SIZE("block", BLOCK), SIZE("low_rank_tokens", LR_TOKENS),
    SIZE("cache_keys", KEYS), STRUCT(xblock),
#define F(NAME) FIELD(weights_t, NAME)
    STRUCT(weights_t), F(data), F(stride), F(quants), F(highs), F(scales), F(mins), F(superscales),
    F(supermins), F(bias), F(count), F(rows), F(cols), F(format), F(superblock), F(out_offset),
#undef F
#define F(NAME) FIELD(project_t, NAME)
    STRUCT(project_t), F(x), F(sums), F(post_norm), F(norm), F(blocks), F(plain), F(scratch), F(products),
    F(out), F(weights), F(out_stride), F(n_weights), F(width), F(reuse_input), F(eps),
#undef F
#define F(NAME) FIELD(project_sum_t, NAME)
    STRUCT(project_sum_t), F(x), F(blocks), F(plain), F(scratch), F(products), F(sums), F(weights),
    F(activation), F(width), F(rows), F(accumulate),
#undef F
#define F(NAME) FIELD(low_rank_part_t, NAME)
    STRUCT(low_rank_part_t), F(a), F(b), F(b_stride), F(column), F(width), F(rank), F(padded), F(rows),
    F(out_offset),
#undef F
#define F(NAME) FIELD(low_rank_t, NAME)
    STRUCT(low_rank_t), F(x), F(norm), F(scratch), F(out), F(sums), F(parts), F(out_stride), F(n_parts),
    F(width), F(activation), F(padded), F(columns), F(eps),
#undef F
#define F(NAME) FIELD(attend_t, NAME)
    STRUCT(attend_t), F(qkv), F(cos), F(sin), F(q_norm), F(k_norm), F(keys), F(values), F(key_scales),
    F(value_scales), F(out), F(q_heads), F(kv_heads), F(head_dim), F(n_ctx), F(window), F(scale), F(eps), F(bits),
#undef F
};

/* One of the sizes and offsets that native.py relies on, NULL past the last. */
API const field_t *pe_field(int i) { return FIELD_AT(layout, i); }

/* The format with Format.code `i`, NULL past the last. */
API const format_t *pe_format(int i) { return i >= 0 && i < N_FORMATS ? formats + i : NULL; }
