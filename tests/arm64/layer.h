/* The vector layer by itself, where the operations above it would reach its corners too seldom. */

/* Sums of products at their largest, where 16 bits would overflow first. */
static void test_extremes(report_t *report) {
    static const int cases[][3] = {{4, 15, 127}, {4, 15, -127}, {5, 31, 127}, {5, 31, -127}, {6, 63, 127},
                                   {6, 63, -127}, {8, -128, 127}, {8, -128, -127}, {8, 127, 127}, {8, 127, -127}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int bits = cases[c][0], weight = cases[c][1], value = cases[c][2], bias = bits == 8 ? Q8_BIAS : 0;
        uint8_t bytes[4 * LANES];
        int8_t x[BLOCK];
        wv w[8];
        memset(bytes, weight, sizeof bytes);
        memset(x, value, sizeof x);
        for (int v = 0; v < 8; v++) w[v] = bits == 8 ? wv_bias(wv_load(bytes)) : wv_load(bytes);
        const vi sum = block_dot(bits, 8, w, x, 5 - bias * BLOCK * value);
        int32_t lanes[LANES];
        memcpy(lanes, &sum, sizeof lanes);
        for (int i = 0; i < LANES; i++)
            expect_close(report, lanes[i], 5 + BLOCK * weight * value, 0, "block_dot at its limits");
        add_to_hash(report, lanes, sizeof *lanes);
    }
}

/* Every half but NaN there and back; then roundings to half: ties, subnormals, overflow. */
static void test_halves(report_t *report) {
    uint16_t halves[LANES], back[LANES];
    float wide[LANES];
    for (int h = 0; h < 1 << 16; h += LANES) {
        if ((h & 0x7c00) == 0x7c00) continue;
        for (int i = 0; i < LANES; i++) halves[i] = (uint16_t)(h + i);
        vf_store(wide, vf_from_f16(halves));
        vf_to_f16(back, vf_load(wide));
        expect_same(report, halves, back, sizeof halves, "half to float and back");
        for (int i = 0; i < LANES; i++)
            expect_close(report, wide[i], f16_value((const uint8_t *)halves, i), 0, "half to float");
        for (int i = 0; i < LANES; i++) wide[i] *= (h + i) % 3 ? 1 + 0x1p-11f : 1 + 0x3p-12f;
        vf_to_f16(back, vf_load(wide));
        add_to_hash(report, back, sizeof back);
    }
}

static void test_exp(report_t *report) {
    float x[LANES], y[LANES];
    uint32_t seed = 17;
    for (int round = 0; round < 4096; round += LANES) {
        for (int i = 0; i < LANES; i++) x[i] = draw_float(&seed) * 87;
        vf_store(y, vf_exp(vf_load(x)));
        for (int i = 0; i < LANES; i++) expect_close(report, y[i], exp(x[i]), exp(x[i]) * 3e-7, "exp");
        add_to_hash(report, y, sizeof y);
    }
    for (int i = 0; i < LANES; i++) x[i] = i % 2 ? -INFINITY : 1000;
    vf_store(y, vf_exp(vf_load(x)));
    expect(report, y[0] > 1e38f && y[0] < INFINITY && y[1] > 0 && y[1] < 2e-38f, "exp", "its ends are not clamped");
}

/* Blocks in 8 bits: ties, zeros, and numbers whose scale an f16 holds badly or not at all. */
static void test_narrow(report_t *report) {
    static const float sizes[] = {0, 1e-40f, 1e-30f, 1e-7f, 1e-4f, 1, 127, 65504, 8e6f, 1e20f, 3e38f, INFINITY};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int width = 16; width <= BLOCK; width += 16) {
            float x[BLOCK];
            int8_t q[BLOCK] = {0};
            for (int i = 0; i < BLOCK; i++) x[i] = i % 5 && i != 16 ? sizes[s] * ((float)(i - 16) / 32) : 0;
            if (isfinite(sizes[s])) x[3] = sizes[s];
            const uint16_t half = quantize_block_i8(x, width, q);
            const double scale = f16_value((const uint8_t *)&half, 0), largest = 65504;
            for (int i = 0; i < width; i++) {
                const double want = fmin(fmax(x[i], -127 * largest), 127 * largest);
                expect_close(report, q[i] * scale, want, scale * 0.51 + 127 * 0x1p-25, "quantize_block_i8");
            }
            add_to_hash(report, q, sizeof q);
            add_to_hash(report, &half, sizeof half);
        }
    }
}
