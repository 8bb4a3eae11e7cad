/* Numbers from one integer generator, so that every machine has the same; hashes of results; and the
 * rounding mode of another library in the process. */
#include <stdio.h>
#include <stdlib.h>

typedef struct { uint64_t hash; long failures; } report_t;

static uint32_t draw(uint32_t *seed) { /* xorshift */
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

/* Uniform in -1 .. 1, the same bits everywhere. */
static float draw_float(uint32_t *seed) { return (float)((int32_t)draw(seed) >> 8) * 0x1p-23f; }

static void *room(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) abort();
    memset(memory, 0, (bytes + 63) / 64 * 64);
    return memory;
}

/* ---- Reports --------------------------------------------------------------------------------------- */

static void add_to_hash(report_t *report, const void *bytes, size_t size) { /* FNV-1a */
    for (const uint8_t *p = bytes; size--; p++) report->hash = (report->hash ^ *p) * 0x100000001b3u;
}

static void expect(report_t *report, int good, const char *what, const char *detail) {
    if (good) return;
    if (report->failures++ < 5) fprintf(stderr, "%s: %s\n", what, detail);
}

static void expect_same(report_t *report, const void *a, const void *b, size_t size, const char *what) {
    expect(report, !memcmp(a, b, size), what, "other bits");
}

/* ---- Modes ------------------------------------------------------------------------------------------- */

/* To zero, subnormals flushed, in and out; returns the mode before. */
static rounding_t disturb(void) {
    const rounding_t before = round_nearest();
#if defined(__SSE__) || defined(__x86_64__)
    round_as_before(0x1f80 | 0x8040 | 0x6000);
#elif defined(__aarch64__)
    round_as_before((rounding_t)3 << 22 | (rounding_t)1 << 24);
#endif
    return before;
}

/* The call in the disturbed mode of another library. */
#define DISTURBED(call) do { const rounding_t was = disturb(); call; round_as_before(was); } while (0)
