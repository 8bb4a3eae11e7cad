/* f32 matrices: to the bit what one scalar chain of fused multiply-adds gives. */

static weights_t draw_dense(int rows, int cols, int count, uint32_t seed) {
    const int64_t values = (int64_t)rows * cols;
    weights_t w = {.count = count, .rows = rows, .cols = cols, .format = F32, .quants = 64, .stride = 128 + 4 * values};
    uint8_t *data = room((size_t)(w.stride * count));
    for (int shard = 0; shard < count; shard++) {
        float *at = (float *)(data + shard * w.stride + w.quants);
        for (int64_t i = 0; i < values; i++) at[i] = draw_float(&seed);
    }
    w.data = data;
    return w;
}

static float chain(const float *w, const float *x, int cols) {
    float total = 0;
    for (int from = 0; from < cols; from += DEPTH) {
        float sum = 0;
        for (int k = from; k < least(from + DEPTH, cols); k++) sum = fmaf(x[k], w[k], sum);
        total = from ? total + sum : sum;
    }
    return total;
}

static void check_dense_project(report_t *report, const project_t *op) {
    for (int t = 0; t < TOKENS; t++) {
        const float *out = op->out + t * OUT, *x = op->plain + t * HIDDEN;
        for (const weights_t *w = op->weights; w < op->weights + op->n_weights; w++)
            for (int i = 0; i < w->rows * w->count; i++, out++) {
                const float product = chain(dense_rows(w, i / w->rows, i % w->rows), x, HIDDEN);
                const float want = w->bias ? product + w->bias[i] : product;
                expect_same(report, out, &want, sizeof want, "project in f32");
            }
    }
}

static void test_dense_project(report_t *report, pool_t *const *pools) {
    weights_t weights[2] = {draw_dense(ROWS_A, HIDDEN, COUNT_A, 1), draw_dense(ROWS_B, HIDDEN, COUNT_B, 2)};
    weights[0].bias = draw_rows(1, ROWS_A * COUNT_A, 3);
    weights[1].out_offset = ROWS_A * COUNT_A;
    const float *x = draw_rows(TOKENS, HIDDEN, 3), *norms = draw_rows(2, HIDDEN, 4);
    const project_t op = {
        .x = room(sizeof(float) * TOKENS * HIDDEN), .sums = draw_sums(TOKENS, HIDDEN, 5), .post_norm = norms,
        .norm = norms + HIDDEN, .plain = room(sizeof(float) * TOKENS * HIDDEN),
        .scratch = room(sizeof(float) * POOLS * HIDDEN), .products = room(sizeof(float) * POOLS * DENSE_SCRATCH),
        .out = room(sizeof(float) * TOKENS * OUT), .weights = weights, .out_stride = OUT, .n_weights = 2,
        .width = HIDDEN, .eps = 1e-5f,
    };
    project_chunks(pools[0], &op, x, TOKENS);
    check_dense_project(report, &op);
    add_to_hash(report, op.x, sizeof(float) * TOKENS * HIDDEN);
    add_to_hash(report, op.out, sizeof(float) * TOKENS * OUT);
    vary_project(report, pools, &op, x);
    const void *owned[] = {weights[0].data, weights[0].bias, weights[1].data, x, norms, op.x,
                           op.sums, op.plain, op.scratch, op.products, op.out};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)owned[i]);
}

enum { LONG = 528, LONG_SHARDS = 2 }; /* columns: three chains */

static void test_dense_sum(report_t *report, pool_t *const *pools) {
    const weights_t w = draw_dense(ROWS, LONG, LONG_SHARDS, 7);
    const project_sum_t op = {
        .x = draw_rows(TOKENS, LONG * LONG_SHARDS, 8), .products = room(sizeof(float) * POOLS * DENSE_SCRATCH),
        .sums = room(sizeof(double) * TOKENS * ROWS), .weights = &w, .width = LONG * LONG_SHARDS, .rows = ROWS,
    };
    sum_chunks(pools[0], &op, TOKENS);
    for (int i = 0; i < TOKENS * ROWS; i++) {
        double want = 0;
        for (int shard = 0; shard < LONG_SHARDS; shard++)
            want += (double)chain(dense_rows(&w, shard, i % ROWS), op.x + i / ROWS * op.width + shard * LONG, LONG);
        expect_same(report, op.sums + i, &want, sizeof want, "project_sum in f32");
    }
    add_to_hash(report, op.sums, sizeof(double) * TOKENS * ROWS);
    vary_sum(report, pools, &op);
    const void *owned[] = {w.data, op.x, op.products, op.sums};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)owned[i]);
}
