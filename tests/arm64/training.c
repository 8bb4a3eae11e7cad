/* Self-test of the kernels of training: prints a hash of each operation's bits, which must be that of
 * every other level, and shows that another library's rounding mode changes none. */
#include "../../picoedge/kernels/training.c"

#include "numbers.h"

/* Runs each operation in the process's mode, then in a disturbed one. */
static int disturbed;
#define RUN(call) do { if (disturbed) DISTURBED(call); else call; } while (0)

/* All sizes from 2^-40 to 2^3: products are often subnormal where `small` is set. */
static float *draw_sizes(int64_t count, int small, uint32_t seed) {
    float *x = room((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++) {
        const int exponent = (int)(draw(&seed) % 44) - 40 - (small ? 30 : 0);
        x[i] = ldexpf(draw_float(&seed), i % 5 ? exponent : 0);
    }
    return x;
}

static void add(report_t *report, const void *values, int64_t count, size_t size) {
    add_to_hash(report, values, (size_t)count * size);
}
#define ADD(values, count) add(report, values, count, sizeof *(values))

typedef struct { int64_t m, n, k; int turn_a, turn_b, accumulate; } product_t;

static void test_products(report_t *report) {
    static const product_t products[] = {
        {1, 40, 300, 0, 1, 0}, {37, 29, 513, 0, 1, 0}, {37, 29, 257, 1, 0, 1}, {250, 33, 300, 0, 0, 0},
        {9, 1940, 260, 0, 1, 1}, {64, 64, 16, 0, 0, 0}, {3, 5, 0, 0, 0, 0},
    };
    float *scratch = room(SGEMM_SCRATCH * sizeof(float));
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        const product_t p = products[i];
        float *a = draw_sizes(p.m * p.k + 1, 1, 1), *b = draw_sizes(p.k * p.n + 1, 0, 2);
        float *c = draw_sizes(p.m * p.n, 0, 3);
        RUN(pe_sgemm(p.m, p.n, p.k, a, p.turn_a ? 1 : p.k, p.turn_a ? p.m : 1, b, p.turn_b ? 1 : p.n,
                     p.turn_b ? p.k : 1, c, p.n, p.accumulate, scratch));
        ADD(c, p.m * p.n);
        free(a), free(b), free(c);
    }
    free(scratch);
}

static void test_norms(report_t *report) {
    enum { N = 7, W = 144 };
    float *x = draw_sizes(N * W, 1, 4), *gain = draw_sizes(W, 0, 5), *dy = draw_sizes(N * W, 1, 6);
    float *out = draw_sizes(N * W, 0, 7), *dgain = draw_sizes(W, 0, 8), scale[N];
    RUN(pe_norm(x, gain, out, scale, N, W, 0x1p-60f));
    ADD(out, N * W);
    ADD(scale, N);
    RUN(pe_norm_vjp(x, gain, scale, dy, out, dgain, N, W));
    RUN(pe_norm_vjp(x, gain, scale, dy, out, NULL, N, W));
    ADD(out, N * W);
    ADD(dgain, W);
    free(x), free(gain), free(dy), free(out), free(dgain);
}

static void test_rotation(report_t *report) {
    enum { N = 14, LENGTH = 7, D = 16, HEADS = 3 };
    float *x = draw_sizes(N * D * (HEADS + 1), 1, 9), *rope = draw_sizes(LENGTH * D, 0, 10);
    for (int turn = 1; turn >= -1; turn -= 2) {
        RUN(pe_rotate(x, rope, rope + LENGTH * D / 2, N, LENGTH, HEADS, D, D * (HEADS + 1), (float)turn));
        ADD(x, N * D * (HEADS + 1));
    }
    free(x), free(rope);
}

typedef struct { int length, heads, kv_heads, head_dim, window; } layer_t;

static void test_attention(report_t *report) {
    static const layer_t layers[] = {{70, 4, 2, 16, 0}, {130, 2, 1, 32, 40}, {5, 1, 1, 16, 3}};
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        const layer_t l = layers[i];
        const int64_t row = (l.heads + 2 * l.kv_heads) * l.head_dim, all = l.length * row, out = l.length * l.heads * l.head_dim;
        float *qkv = draw_sizes(all, 0, 11), *d_out = draw_sizes(out, 1, 12), *o = room(sizeof *o * (size_t)out);
        float *dqkv = draw_sizes(all, 0, 13), *tops = room(sizeof *o * (size_t)(2 * l.heads * l.length));
        const int k = l.heads * l.head_dim, v = k + l.kv_heads * l.head_dim;
        attention_t op = {
            .q = qkv, .k = qkv + k, .v = qkv + v, .o = o, .tops = tops, .scales = tops + l.heads * l.length,
            .d_o = d_out, .dq = dqkv, .dk = dqkv + k, .dv = dqkv + v,
            .scratch = room(sizeof *o * (size_t)(SGEMM_SCRATCH + 2 * QUERIES * (l.length + TILE))),
            .length = l.length, .stride = row, .o_stride = l.heads * l.head_dim, .q_heads = l.heads,
            .kv_heads = l.kv_heads, .head_dim = l.head_dim, .window = l.window, .scale = 0.25f,
        };
        RUN(pe_attention(&op));
        RUN(pe_attention_vjp(&op));
        ADD(o, out);
        ADD(tops, 2 * l.heads * l.length);
        ADD(dqkv, all);
        free(qkv), free(d_out), free(o), free(dqkv), free(tops), free(op.scratch);
    }
}

static void test_gates(report_t *report) {
    enum { N = 5, W = 48 };
    for (int kind = SILU; kind <= GELU_TANH; kind++) {
        float *gate_up = draw_sizes(N * 2 * W, 1, 14), *d = draw_sizes(N * W, 1, 15), *out = room(sizeof *out * N * W);
        gate_up[0] = -200, gate_up[1] = 200, gate_up[2] = -90;
        RUN(pe_gated(gate_up, out, N, W, kind));
        RUN(pe_gated_vjp(gate_up, d, N, W, kind));
        ADD(out, N * W);
        ADD(gate_up, N * 2 * W);
        free(gate_up), free(d), free(out);
    }
}

static void test_losses(report_t *report) {
    enum { N = 6, V = 160 };
    float *logits = draw_sizes(N * V, 0, 16);
    const int32_t targets[N] = {0, 159, -1, 7, 7, 80};
    double losses[N];
    RUN(pe_cross_entropy(logits, targets, losses, N, V, 0x1p-20f));
    ADD(logits, N * V);
    ADD(losses, N);
    free(logits);
}

static void test_rows(report_t *report) {
    enum { N = 9, W = 32, ROWS = 4 };
    float *dx = draw_sizes(N * W, 1, 17), *table = draw_sizes(ROWS * W, 1, 18);
    const int32_t tokens[N] = {0, 3, 3, 1, 0, 0, 2, 3, 1};
    RUN(pe_add_rows(dx, tokens, table, N, W));
    ADD(table, ROWS * W);
    free(dx), free(table);
}

static void test_sums(report_t *report) {
    enum { N = 3 * SUM_BLOCK };
    static int32_t plane[N], rows[3];
    static int64_t wide[SUM_BLOCK];
    memset(plane, 0, sizeof plane);
    for (int i = 0; i < 3; i++) rows[i] = -1;
    sums_t sums = {.plane = plane, .rows = rows, .wide = wide, .capacity = 1, .exponent = 36, .narrow = 29};
    float *out = room(sizeof *out * N);
    for (uint32_t micro_batch = 0; micro_batch < 3; micro_batch++) {
        float *x = draw_sizes(N, 0, 19 + micro_batch);
        for (int i = 0; i < N; i++) x[i] *= i / SUM_BLOCK == 1 ? 256.0f : 0x1p-16f;
        int32_t bad = 0;
        int64_t at = 0;
        RUN(at = pe_sums_add(&sums, x, N, 0, &bad));
        expect(report, at == 3 && !bad, "sums", "stopped");
        free(x);
    }
    RUN(pe_sums_take(&sums, out, N));
    ADD(out, N);
    free(out);
}

static void test_adamw(report_t *report) {
    enum { N = 1003 };
    float *w = draw_sizes(N, 0, 22), *m = draw_sizes(N, 1, 23), *v = draw_sizes(N, 1, 24), *g = draw_sizes(N, 1, 25);
    const adamw_t step = {0.75f, 0.875f, 0.125f, 0.96875f, 0.03125f, 0.9990234375f, 0x1p-10f, 1.5f, 0x1p-27f};
    for (int i = 0; i < N; i++) v[i] = fabsf(v[i]);
    RUN(pe_adamw(&step, w, m, v, g, N));
    ADD(w, N);
    ADD(m, N);
    ADD(v, N);
    free(w), free(m), free(v), free(g);
}

static void test_squares(report_t *report) {
    enum { N = 1003, SEGMENT = 400 };
    float *g = draw_sizes(N, 1, 26);
    double sums[3];
    RUN(pe_squares(g, sums, N, SEGMENT));
    ADD(sums, 3);
    free(g);
}

typedef struct { const char *name; void (*test)(report_t *); } test_t;
static const test_t tests[] = {
    {"products", test_products}, {"norms", test_norms}, {"rotation", test_rotation},
    {"attention", test_attention}, {"gates", test_gates}, {"losses", test_losses}, {"rows", test_rows},
    {"sums", test_sums}, {"adamw", test_adamw}, {"squares", test_squares},
};

int main(void) {
    long failures = 0;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        report_t reports[2] = {{0xcbf29ce484222325u, 0}, {0xcbf29ce484222325u, 0}};
        for (disturbed = 0; disturbed < 2; disturbed++) tests[i].test(reports + disturbed);
        expect_same(reports, &reports[0].hash, &reports[1].hash, sizeof reports[0].hash, "in another mode");
        printf("%s %016llx\n", tests[i].name, (unsigned long long)reports[0].hash);
        if (reports[0].failures) fprintf(stderr, "%s: %ld failures\n", tests[i].name, reports[0].failures);
        failures += reports[0].failures + reports[1].failures;
    }
    return failures ? 1 : 0;
}
