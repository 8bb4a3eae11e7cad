/* The rounding mode of kernels: to nearest, and subnormals are kept.
 *
 * It belongs to a thread, and code elsewhere in the process may have changed it: a library built with
 * -ffast-math makes every thread that starts later flush to zero. Kernels set it on entry and give back
 * what was.
 */
#ifndef PICOEDGE_ROUNDING_H
#define PICOEDGE_ROUNDING_H

#include "vector.h"

/* The compiler does not know of the mode: what is loaded after the barrier is computed after it, what is
 * stored before it was computed before it. */
#define BARRIER() __asm__ volatile("" : : : "memory")

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned rounding_t;
INLINE rounding_t round_nearest(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(0x1f80); /* all exceptions masked, to nearest, subnormals kept */
    BARRIER();
    return before;
}
INLINE void round_as_before(rounding_t before) {
    BARRIER();
    _mm_setcsr(before);
}
#elif defined(__aarch64__)
typedef uint64_t rounding_t;
INLINE rounding_t round_nearest(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return before;
}
INLINE void round_as_before(rounding_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
typedef int rounding_t;
INLINE rounding_t round_nearest(void) { return 0; }
INLINE void round_as_before(rounding_t before) { (void)before; }
#endif
#define ROUNDED(statement) do { const rounding_t mode = round_nearest(); statement; round_as_before(mode); } while (0)

#endif
