/* Preloaded into every process of a board: another wall clock, and a card that is full.
 *
 * BENCH_FAULTS names a file of 16 bytes that all of them map: seconds by which the wall clock is
 * wrong (i64), and whether the card is full (i64). Only regular files are on the card, also those
 * that are stdout or stderr: pipes, terminals, sockets and shared memory are not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *faults;
static dev_t card;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("BENCH_FAULTS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat there;
    if (fd < 0 || fstat(fd, &there)) return;
    void *page = mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) return;
    card = there.st_dev;
    faults = page;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int64_t wrong_by(void) { return faults ? faults[0] : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += wrong_by();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);
    if (!failed) now->tv_sec += wrong_by();
    return failed;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}

static int is_full(void) { return faults && faults[1]; }

static int no_room(int fd) {
    struct stat file;
    if (!is_full() || fstat(fd, &file)) return 0;
    if (!S_ISREG(file.st_mode) || file.st_dev != card) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    return no_room(fd) ? -1 : real(fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    return no_room(fd) ? -1 : real(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(pwrite64);
    return no_room(fd) ? -1 : real(fd, data, n, at);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    return no_room(fd) ? -1 : real(fd, parts, n);
}

int posix_fallocate(int fd, off_t at, off_t n) {
    REAL(posix_fallocate);
    return no_room(fd) ? ENOSPC : real(fd, at, n);
}

int posix_fallocate64(int fd, off64_t at, off64_t n) {
    REAL(posix_fallocate64);
    return no_room(fd) ? ENOSPC : real(fd, at, n);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (is_full()) {
        errno = ENOSPC;
        return -1;
    }
    return real(path, mode);
}

int statvfs(const char *path, struct statvfs *room) {
    REAL(statvfs);
    int failed = real(path, room);
    if (!failed && is_full()) room->f_bavail = room->f_bfree = 0;
    return failed;
}

int fstatvfs(int fd, struct statvfs *room) {
    REAL(fstatvfs);
    int failed = real(fd, room);
    if (!failed && is_full()) room->f_bavail = room->f_bfree = 0;
    return failed;
}
