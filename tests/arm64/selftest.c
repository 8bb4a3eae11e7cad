/* Self-test of the kernels: every operation and format against double precision, and the same bits for
 * any number of threads, any chunk of tokens and any split into shards. Prints a hash of the output's
 * bits for each, which must be that of every other level: tests/arm64/run.sh compares them. */
#include "../../picoedge/kernels/native.c"

enum { POOLS = 3 };
static int least(int a, int b) { return a < b ? a : b; }

#include "material.h"
#include "reference.h"

#include "attention.h"
#include "layer.h"
#include "projections.h"
#include "dense.h"

static long finish(const char *operation, const char *name, report_t report) {
    printf("%s %s %016llx\n", operation, name, (unsigned long long)report.hash);
    if (report.failures) fprintf(stderr, "%s %s: %ld failures\n", operation, name, report.failures);
    return report.failures;
}

int main(void) {
    const report_t empty = {0xcbf29ce484222325u, 0};
    pool_t *pools[POOLS];
    long failures = 0;
    for (int p = 0; p < POOLS; p++)
        if (!(pools[p] = pe_pool_open(p + 1))) return 2;
    for (int format = 0; format < N_FORMATS; format++) {
        report_t project = empty, sum = empty;
        test_project(&project, pools, format);
        for (int activation = NO_ACTIVATION; activation <= GELU_TANH; activation++)
            test_project_sum(&sum, pools, format, activation);
        failures += finish("project", formats[format].name, project);
        failures += finish("project_sum", formats[format].name, sum);
    }
    report_t project = empty, sum = empty;
    test_dense_project(&project, pools);
    test_dense_sum(&sum, pools);
    failures += finish("project", "f32", project);
    failures += finish("project_sum", "f32", sum);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        report_t attend = empty;
        test_attend(&attend, pools, shapes + s);
        failures += finish("attend", shapes[s].name, attend);
    }
    report_t layer = empty;
    test_extremes(&layer);
    test_halves(&layer);
    test_exp(&layer);
    test_narrow(&layer);
    failures += finish("vector", "layer", layer);
    for (int p = 0; p < POOLS; p++) pe_pool_close(pools[p]);
    return failures ? 1 : 0;
}
