/* The operations once more, one number after the other in double precision. */

static double f16_value(const uint8_t *plane, int64_t index) {
    uint16_t h;
    memcpy(&h, plane + 2 * index, 2);
    const int exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    const double size = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -size : size;
}

static int quant_at(const weights_t *w, const uint8_t *base, int64_t block, int r, int e) {
    const int bits = formats[w->format].bits, v = e / 4, at = 4 * r + e % 4;
    if (bits == 8) return (int8_t)base[w->quants + (block * 8 + v) * 64 + at];
    const int byte = base[w->quants + (block * 4 + v % 4) * 64 + at], low = v < 4 ? byte & 15 : byte >> 4;
    if (bits == 5) return low | (base[w->highs + block * 64 + at] >> v & 1) << 4;
    if (bits == 6) return low | (base[w->highs + (block * 2 + v / 4) * 64 + at] >> 2 * (v % 4) & 3) << 4;
    return low;
}

/* One weight in two parts, what the quant gives and the minimum: their sum is the weight. */
static double weight_at(const weights_t *w, int shard, int row, int col, double *minimum) {
    const format_t *f = formats + w->format;
    const uint8_t *base = w->data + shard * w->stride;
    const int tile = row / TILE, r = row % TILE, e = col % BLOCK;
    const int64_t block = (int64_t)tile * (w->cols / BLOCK) + col / BLOCK;
    const int q = quant_at(w, base, block, r, e) - f->offset;
    *minimum = 0;
    if (!f->super) {
        if (f->has_min) *minimum = f16_value(base + w->mins, block * TILE + r);
        return q * f16_value(base + w->scales, block * TILE + r);
    }
    const int64_t super = ((int64_t)tile * (w->cols / w->superblock) + col / w->superblock) * TILE + r;
    const double scale = f16_value(base + w->superscales, super);
    if (f->bits == 6) return q * scale * (int8_t)base[w->scales + (block * 2 + e / 16) * TILE + r];
    *minimum = -f16_value(base + w->supermins, super) * base[w->mins + block * TILE + r];
    return q * scale * base[w->scales + block * TILE + r];
}

/* A row of a shard times quantized activations; `size` is the sum of all terms' magnitudes. */
static double dot_row(const weights_t *w, int shard, int row, const xblock *x, double *size) {
    double sum = 0;
    *size = 0;
    for (int col = 0; col < w->cols; col++) {
        const xblock *b = x + col / BLOCK;
        double minimum;
        const double part = weight_at(w, shard, row, col, &minimum), a = (double)b->q[col % BLOCK] * b->scale;
        sum += (part + minimum) * a;
        *size += (fabs(part) + fabs(minimum)) * fabs(a);
    }
    return sum;
}

/* Where pairs of tokens are computed together their columns lie mixed: gives each token its own back. */
static void part_tokens(xblock *tokens, int n, int blocks) {
#if defined(TOKEN_PAIRS)
    for (int i = 0; i < n / 2 * blocks; i++) {
        xblock *x = tokens + i / blocks * 2 * blocks + i % blocks, *y = x + blocks;
        int8_t both[2 * BLOCK];
        memcpy(both, x->q, BLOCK);
        memcpy(both + BLOCK, y->q, BLOCK);
        for (int c = 0; c < BLOCK; c++) {
            x->q[c] = both[c / 8 * 16 + c % 8];
            y->q[c] = both[c / 8 * 16 + c % 8 + 8];
        }
    }
#else
    (void)tokens, (void)n, (void)blocks;
#endif
}

/* Do these blocks hold y, to half a step of theirs? */
static void check_blocks(report_t *report, const xblock *x, const double *y, int width) {
    for (int b = 0; b < width / BLOCK; b++, x++, y += BLOCK) {
        double amax = 0;
        int half[2] = {0, 0};
        for (int i = 0; i < BLOCK; i++) {
            amax = fmax(amax, fabs(y[i]));
            half[i / 16] += x->q[i];
            expect_close(report, (double)x->q[i] * x->scale, y[i], 0.501 * x->scale, "activation");
        }
        expect_close(report, x->scale, amax / 127, amax * 1e-7, "activation scale");
        expect(report, half[0] == x->half[0] && half[1] == x->half[1], "activation sums", "not those of q");
        expect_close(report, x->sum, (double)x->scale * (half[0] + half[1]), x->scale * 1e-3, "scaled sum");
    }
}

static void norm_row(const double *x, const float *weight, int width, double eps, double *out) {
    double squares = 0;
    for (int i = 0; i < width; i++) squares += x[i] * x[i];
    for (int i = 0; i < width; i++) out[i] = x[i] / sqrt(squares / width + eps) * weight[i];
}

static double activation_of(int activation, double x) {
    if (activation == SILU) return x / (1 + exp(-x));
    if (activation == GELU_TANH) return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    return x;
}

/* Norm (optional) and rotation of one head. */
static void rotate_head(const attend_t *op, const float *x, const float *norm, int position, double *out) {
    const int d = op->head_dim, half = d / 2;
    double y[512];
    for (int i = 0; i < d; i++) y[i] = x[i];
    if (norm) norm_row(y, norm, d, op->eps, y);
    for (int i = 0; i < half; i++) {
        const double c = op->cos[position * half + i], s = op->sin[position * half + i];
        out[i] = y[i] * c - y[i + half] * s;
        out[i + half] = y[i + half] * c + y[i] * s;
    }
}

/* Scale of dimension i of a key or value in an 8-bit cache; 0 in another. */
static double key_scale_at(const attend_t *op, int kv, int t, int i) {
    const int blocks = (op->head_dim + BLOCK - 1) / BLOCK;
    const int64_t at = ((int64_t)kv * op->n_ctx + t / KEYS * KEYS) * blocks + i / BLOCK * KEYS + t % KEYS;
    return op->key_scales ? f16_value((const uint8_t *)op->key_scales, at) : 0;
}

static double value_scale_at(const attend_t *op, int kv, int t, int i) {
    const int blocks = (op->head_dim + BLOCK - 1) / BLOCK;
    const int64_t at = ((int64_t)kv * op->n_ctx + t) * blocks + i / BLOCK;
    return op->value_scales ? f16_value((const uint8_t *)op->value_scales, at) : 0;
}

static double key_at(const attend_t *op, int kv, int t, int i) {
    const int64_t at = ((int64_t)kv * op->n_ctx + t / KEYS * KEYS) * op->head_dim + i * KEYS + t % KEYS;
    if (op->key_scales) return ((const int8_t *)op->keys)[at] * key_scale_at(op, kv, t, i);
    return op->bits == 32 ? ((const float *)op->keys)[at] : f16_value(op->keys, at);
}

static double value_at(const attend_t *op, int kv, int t, int i) {
    const int64_t at = ((int64_t)kv * op->n_ctx + t) * op->head_dim + i;
    if (op->value_scales) return ((const int8_t *)op->values)[at] * value_scale_at(op, kv, t, i);
    return op->bits == 32 ? ((const float *)op->values)[at] : f16_value(op->values, at);
}

/* One head of one token over the cache as it is. */
static void attend_head(const attend_t *op, const double *q, int kv, int position, double *out) {
    const int d = op->head_dim, from = op->window && position >= op->window ? position - op->window + 1 : 0;
    double total = 0, peak = -INFINITY, scores[512];
    for (int t = from; t <= position; t++) {
        scores[t] = 0;
        for (int i = 0; i < d; i++) scores[t] += q[i] * key_at(op, kv, t, i) * op->scale;
        peak = fmax(peak, scores[t]);
    }
    memset(out, 0, (size_t)d * sizeof *out);
    for (int t = from; t <= position; t++) {
        const double p = exp(scores[t] - peak);
        total += p;
        for (int i = 0; i < d; i++) out[i] += p * value_at(op, kv, t, i);
    }
    for (int i = 0; i < d; i++) out[i] /= total;
}
