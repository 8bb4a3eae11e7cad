/* project and project_sum: against double precision, and any way to run them against any other. */

enum { TOKENS = 11 };
static const int chunks[] = {TOKENS, 1, 3, 8};

enum { HIDDEN = 256, ROWS_A = 40, COUNT_A = 3, ROWS_B = 7, COUNT_B = 2, OUT = ROWS_A * COUNT_A + ROWS_B * COUNT_B };

static void project_chunks(pool_t *pool, const project_t *op, const float *x, int chunk) {
    memcpy(op->x, x, sizeof(float) * TOKENS * HIDDEN);
    for (int t = 0; t < TOKENS; t += chunk) {
        project_t part = *op;
        part.x += t * HIDDEN;
        part.sums += t * HIDDEN;
        part.out += t * OUT;
        pe_project(pool, &part, least(chunk, TOKENS - t), 0);
    }
}

static void check_project(report_t *report, const project_t *op, const float *x) {
    double y[HIDDEN], size;
    part_tokens(op->blocks, TOKENS, HIDDEN / BLOCK);
    for (int t = 0; t < TOKENS; t++) {
        const xblock *blocks = op->blocks + t * (HIDDEN / BLOCK);
        for (int i = 0; i < HIDDEN; i++) y[i] = (float)op->sums[t * HIDDEN + i];
        norm_row(y, op->post_norm, HIDDEN, op->eps, y);
        for (int i = 0; i < HIDDEN; i++) {
            y[i] += x[t * HIDDEN + i];
            expect_close(report, op->x[t * HIDDEN + i], y[i], 1e-5 + fabs(y[i]) * 1e-6, "residual");
            y[i] = op->x[t * HIDDEN + i];
        }
        norm_row(y, op->norm, HIDDEN, op->eps, y);
        check_blocks(report, blocks, y, HIDDEN);
        const float *out = op->out + t * OUT;
        for (const weights_t *w = op->weights; w < op->weights + op->n_weights; w++) {
            for (int i = 0; i < w->rows * w->count; i++, out++) {
                const double bias = w->bias ? w->bias[i] : 0;
                const double want = dot_row(w, i / w->rows, i % w->rows, blocks, &size) + bias;
                expect_close(report, *out, want, (size + fabs(bias)) * 3e-6, "project");
            }
        }
    }
}

/* Each shard alone, as another board would hold it, and its first tile of rows alone. */
static void project_shards(report_t *report, pool_t *pool, const project_t *op, const float *x) {
    for (int i = 0; i < COUNT_A; i++) {
        weights_t w = op->weights[0];
        float out[TOKENS * OUT];
        project_t part = *op;
        w.data += i * w.stride;
        w.bias += i * w.rows;
        w.count = 1;
        if (i == COUNT_A - 1) w.rows = TILE;
        part.weights = &w;
        part.n_weights = 1;
        part.out = out;
        project_chunks(pool, &part, x, TOKENS);
        for (int t = 0; t < TOKENS; t++) {
            const size_t size = sizeof(float) * (size_t)w.rows;
            expect_same(report, out + t * OUT, op->out + t * OUT + i * ROWS_A, size, "project, one shard");
        }
    }
}

static void vary_project(report_t *report, pool_t *const *pools, const project_t *op, const float *x) {
    static float out[TOKENS * OUT];
    project_t again = *op;
    again.out = out;
    for (int p = 0; p < POOLS; p++) {
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            memset(out, 255, sizeof out);
            project_chunks(pools[p], &again, x, chunks[c]);
            expect_same(report, out, op->out, sizeof out, "project, other threads and chunks");
        }
        DISTURBED(project_chunks(pools[p], &again, x, TOKENS));
        expect_same(report, out, op->out, sizeof out, "project, in another mode");
        const int first = 5;
        memcpy(op->x, x, sizeof(float) * TOKENS * HIDDEN);
        pe_project(pools[p], &again, TOKENS, first);
        const size_t size = sizeof(float) * (TOKENS - first) * OUT;
        expect_same(report, out, op->out + first * OUT, size, "project, last tokens");
    }
    project_shards(report, pools[1], op, x);
}

static void test_project(report_t *report, pool_t *const *pools, int format) {
    weights_t weights[2] = {
        draw_weights(format, ROWS_A, HIDDEN, COUNT_A, 1 + (uint32_t)format),
        draw_weights(format, ROWS_B, HIDDEN, COUNT_B, 101 + (uint32_t)format),
    };
    weights[0].bias = draw_rows(1, ROWS_A * COUNT_A, 2);
    weights[1].out_offset = ROWS_A * COUNT_A;
    const float *x = draw_rows(TOKENS, HIDDEN, 3), *norms = draw_rows(2, HIDDEN, 4);
    const project_t op = {
        .x = room(sizeof(float) * TOKENS * HIDDEN), .sums = draw_sums(TOKENS, HIDDEN, 5),
        .post_norm = norms, .norm = norms + HIDDEN, .blocks = room(sizeof(xblock) * TOKENS * (HIDDEN / BLOCK)),
        .scratch = room(sizeof(float) * POOLS * HIDDEN), .out = room(sizeof(float) * TOKENS * OUT),
        .weights = weights, .out_stride = OUT, .n_weights = 2, .width = HIDDEN, .eps = 1e-5f,
    };
    project_chunks(pools[0], &op, x, TOKENS);
    check_project(report, &op, x);
    add_to_hash(report, op.x, sizeof(float) * TOKENS * HIDDEN);
    add_to_hash(report, op.out, sizeof(float) * TOKENS * OUT);
    vary_project(report, pools, &op, x);
    const void *owned[] = {weights[0].data, weights[0].bias, weights[1].data, x, norms,
                           op.x, op.sums, op.blocks, op.scratch, op.out};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)owned[i]);
}

/* ---- project_sum ----------------------------------------------------------------------------------- */

enum { COLS = 128, SHARDS = 3, WIDTH = COLS * SHARDS, ROWS = 40 };

static void sum_chunks(pool_t *pool, const project_sum_t *op, int chunk) {
    const int halves = op->activation ? 2 : 1;
    for (int t = 0; t < TOKENS; t += chunk) {
        project_sum_t part = *op;
        part.x += t * halves * op->width;
        part.sums += t * ROWS;
        pe_project_sum(pool, &part, least(chunk, TOKENS - t), 0);
    }
}

static void check_sum(report_t *report, const project_sum_t *op) {
    double y[WIDTH];
    part_tokens(op->blocks, TOKENS, WIDTH / BLOCK);
    for (int t = 0; t < TOKENS; t++) {
        const float *gate = op->x + t * (op->activation ? 2 : 1) * WIDTH, *up = gate + WIDTH;
        for (int i = 0; i < WIDTH; i++) y[i] = activation_of(op->activation, gate[i]) * (op->activation ? up[i] : 1);
        const xblock *blocks = op->blocks + t * (WIDTH / BLOCK);
        check_blocks(report, blocks, y, WIDTH);
        for (int row = 0; row < ROWS; row++) {
            double want = 0, size = 0, part;
            for (int shard = 0; shard < SHARDS; shard++, size += part)
                want += dot_row(op->weights, shard, row, blocks + shard * (COLS / BLOCK), &part);
            expect_close(report, op->sums[t * ROWS + row], want, size * 3e-6, "project_sum");
        }
    }
}

/* The shards' own sums, added in order, are the sum. */
static void sum_shards(report_t *report, pool_t *pool, const project_sum_t *op) {
    const int halves = op->activation ? 2 : 1;
    static float x[TOKENS * 2 * COLS];
    static double sums[TOKENS * ROWS], total[TOKENS * ROWS];
    memset(total, 0, sizeof total);
    for (int shard = 0; shard < SHARDS; shard++) {
        weights_t w = *op->weights;
        w.data += shard * w.stride;
        w.count = 1;
        project_sum_t part = *op;
        part.x = x;
        part.sums = sums;
        part.weights = &w;
        part.width = COLS;
        for (int i = 0; i < TOKENS * halves; i++)
            memcpy(x + i * COLS, op->x + i * WIDTH + shard * COLS, sizeof(float) * COLS);
        sum_chunks(pool, &part, TOKENS);
        for (int i = 0; i < TOKENS * ROWS; i++) total[i] += sums[i];
    }
    expect_same(report, total, op->sums, sizeof total, "project_sum, shard by shard");
}

static void vary_sum(report_t *report, pool_t *const *pools, const project_sum_t *op) {
    static double sums[TOKENS * ROWS];
    project_sum_t again = *op;
    again.sums = sums;
    for (int p = 0; p < POOLS; p++) {
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            memset(sums, 255, sizeof sums);
            sum_chunks(pools[p], &again, chunks[c]);
            expect_same(report, sums, op->sums, sizeof sums, "project_sum, other threads and chunks");
        }
        DISTURBED(sum_chunks(pools[p], &again, TOKENS));
        expect_same(report, sums, op->sums, sizeof sums, "project_sum, in another mode");
    }
}

static void test_project_sum(report_t *report, pool_t *const *pools, int format, int activation) {
    const weights_t w = draw_weights(format, ROWS, COLS, SHARDS, 7 + (uint32_t)format);
    const project_sum_t op = {
        .x = draw_rows(TOKENS, 2 * WIDTH, 8), .blocks = room(sizeof(xblock) * TOKENS * (WIDTH / BLOCK)),
        .scratch = room(sizeof(float) * POOLS * WIDTH), .sums = room(sizeof(double) * TOKENS * ROWS),
        .weights = &w, .activation = activation, .width = WIDTH, .rows = ROWS,
    };
    sum_chunks(pools[0], &op, TOKENS);
    check_sum(report, &op);
    add_to_hash(report, op.sums, sizeof(double) * TOKENS * ROWS);
    vary_sum(report, pools, &op);
    sum_shards(report, pools[2], &op);
    const void *owned[] = {w.data, op.x, op.blocks, op.scratch, op.sums};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)owned[i]);
}
