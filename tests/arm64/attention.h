/* attend: the cache and the result against double precision, and prefill against decoding. */

enum { POSITIONS = 45, CONTEXT = 48 };
typedef struct { const char *name; int bits, q_heads, kv_heads, head_dim, window, norms; } heads_t;
static const heads_t shapes[] = {
    {"9/3x64", 16, 9, 3, 64, 0, 0}, {"4/1x96w20", 16, 4, 1, 96, 20, 1}, {"5/5x16", 16, 5, 5, 16, 0, 1},
    {"9/3x64-f32", 32, 9, 3, 64, 0, 0}, {"4/1x96w20-f32", 32, 4, 1, 96, 20, 1}, {"5/5x16-f32", 32, 5, 5, 16, 0, 1},
    {"9/3x64-8bit", 8, 9, 3, 64, 0, 0}, {"4/1x96w20-8bit", 8, 4, 1, 96, 20, 1},
    {"5/5x16-8bit", 8, 5, 5, 16, 0, 1}, {"7/1x48-8bit", 8, 7, 1, 48, 0, 0},
};

static int row_of(const attend_t *op) { return (op->q_heads + 2 * op->kv_heads) * op->head_dim; }

static void attend_chunks(report_t *report, pool_t *pool, const attend_t *op, const float *qkv, int chunk,
                          float *out) {
    const int row = row_of(op);
    memset(op->keys, 0, (size_t)(op->bits / 8 * op->kv_heads * CONTEXT * op->head_dim));
    memcpy(op->qkv, qkv, sizeof(float) * (size_t)(POSITIONS * row));
    for (int t = 0; t < POSITIONS; t += chunk) {
        attend_t part = *op;
        part.qkv += t * row;
        part.out = out + t * op->q_heads * op->head_dim;
        expect(report, !pe_attend(pool, &part, least(chunk, POSITIONS - t), t), "attend", "no memory");
    }
}

/* One head's numbers in the cache are within half a step; `scales` 0: in f16 or f32. */
static void check_stored(report_t *report, const double *got, const double *want, const double *scales, int d, int bits) {
    for (int i = 0; i < d; i++) {
        const double half = bits == 32 ? 0 : 0x1p-25 + fabs(want[i]) * 0x1.01p-11;
        const double error = scales[i] ? scales[i] * (0.5 + 1e-5) : half;
        expect_close(report, got[i], want[i], 1e-6 + error, "cache");
    }
    for (int first = 0; scales[0] && first < d; first += BLOCK) {
        double amax = 0;
        for (int i = first; i < least(first + BLOCK, d); i++) amax = fmax(amax, fabs(want[i]));
        expect_close(report, scales[first], amax / 127, 1e-7 + amax / 127 * 0x1.01p-11, "scale");
    }
}

static void check_cache(report_t *report, const attend_t *op, const float *k, int position) {
    const int d = op->head_dim;
    double key[512], value[512], stored_key[512], stored_value[512], key_scales[512], value_scales[512];
    for (int kv = 0; kv < op->kv_heads; kv++, k += d) {
        rotate_head(op, k, op->k_norm, position, key);
        for (int i = 0; i < d; i++) {
            value[i] = k[op->kv_heads * d + i];
            stored_key[i] = key_at(op, kv, position, i);
            stored_value[i] = value_at(op, kv, position, i);
            key_scales[i] = key_scale_at(op, kv, position, i);
            value_scales[i] = value_scale_at(op, kv, position, i);
        }
        check_stored(report, stored_key, key, key_scales, d, op->bits);
        check_stored(report, stored_value, value, value_scales, d, op->bits);
    }
}

static void check_attend(report_t *report, const attend_t *op, const float *qkv) {
    const int d = op->head_dim, group = op->q_heads / op->kv_heads;
    double q[512], want[512];
    for (int t = 0; t < POSITIONS; t++) check_cache(report, op, qkv + t * row_of(op) + op->q_heads * d, t);
    for (int t = 0; t < POSITIONS; t++) {
        for (int h = 0; h < op->q_heads; h++) {
            rotate_head(op, qkv + t * row_of(op) + h * d, op->q_norm, t, q);
            attend_head(op, q, h / group, t, want);
            for (int i = 0; i < d; i++)
                expect_close(report, op->out[(t * op->q_heads + h) * d + i], want[i], 2e-5, "attend");
        }
    }
}

/* Cosines and sines need no libm: points of the circle by the rational parametrization. */
static void draw_rope(float *cosines, float *sines, int n, uint32_t seed) {
    for (int i = 0; i < n; i++) {
        const float m = draw_float(&seed);
        cosines[i] = (1 - m * m) / (1 + m * m);
        sines[i] = 2 * m / (1 + m * m);
    }
}

static void test_attend(report_t *report, pool_t *const *pools, const heads_t *shape) {
    static const int sizes[] = {POSITIONS, 1, 7, 32};
    const int d = shape->head_dim, kv = shape->kv_heads * CONTEXT * d, outs = POSITIONS * shape->q_heads * d;
    float *rope = room(sizeof(float) * (size_t)(CONTEXT * d)), *again = room(sizeof(float) * (size_t)outs);
    draw_rope(rope, rope + CONTEXT * d / 2, CONTEXT * d / 2, 11);
    float *norms = draw_rows(2, d, 12);
    attend_t op = {
        .cos = rope, .sin = rope + CONTEXT * d / 2, .q_norm = shape->norms ? norms : NULL,
        .k_norm = shape->norms ? norms + d : NULL, .keys = room(4 * (size_t)kv), .values = room(4 * (size_t)kv),
        .key_scales = shape->bits == 8 ? room(2 * (size_t)kv) : NULL,
        .value_scales = shape->bits == 8 ? room(2 * (size_t)kv) : NULL,
        .out = room(sizeof(float) * (size_t)outs), .q_heads = shape->q_heads, .kv_heads = shape->kv_heads,
        .head_dim = d, .n_ctx = CONTEXT, .window = shape->window, .scale = 0.125f, .eps = 1e-6f,
        .bits = shape->bits,
    };
    op.qkv = room(sizeof(float) * (size_t)(POSITIONS * row_of(&op)));
    float *qkv = room(sizeof(float) * (size_t)(POSITIONS * row_of(&op)));
    uint32_t seed = 13;
    for (int i = 0; i < POSITIONS * row_of(&op); i++) qkv[i] = 2 * draw_float(&seed);
    attend_chunks(report, pools[0], &op, qkv, POSITIONS, op.out);
    check_attend(report, &op, qkv);
    add_to_hash(report, op.out, sizeof(float) * (size_t)outs);
    for (int p = 0; p < POOLS; p++) {
        for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
            attend_chunks(report, pools[p], &op, qkv, sizes[c], again);
            expect_same(report, again, op.out, sizeof(float) * (size_t)outs, "attend, other threads and chunks");
        }
        DISTURBED(attend_chunks(report, pools[p], &op, qkv, 7, again));
        expect_same(report, again, op.out, sizeof(float) * (size_t)outs, "attend, in another mode");
    }
    void *owned[] = {rope, again, norms, op.keys, op.values, op.key_scales, op.value_scales, op.out, op.qkv, qkv};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}
