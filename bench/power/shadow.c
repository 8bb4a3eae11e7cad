/* Preloaded into a board's processes: what a power cut leaves is what fsync has been asked for.
 *
 * BENCH_SHADOW is a folder. An fsync of a file beneath BENCH_SHADOW_OF leaves a copy of its content
 * there, an fsync of a folder the list of its names. Both are called by the file's number and time
 * of birth, so that a new file with an old number is another one. The copy is made after the real
 * fsync and put in place by a rename: a copy that a kill interrupts never happened. Lists of names
 * are called KEY.names.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEY = 64, PART = 1 << 16 };

/* "NUMBER-BIRTH" of what `path` beneath `folder` names; 0, or -1. A link is not followed. */
static int key_at(int folder, const char *path, char *key, struct statx *its) {
    int how = AT_SYMLINK_NOFOLLOW | (*path ? 0 : AT_EMPTY_PATH);
    if (statx(folder, path, how, STATX_BASIC_STATS | STATX_BTIME, its)) return -1;
    snprintf(key, KEY, "%" PRIu64 "-%" PRId64 ".%09" PRIu32, (uint64_t)its->stx_ino,
             (int64_t)its->stx_btime.tv_sec, its->stx_btime.tv_nsec);
    return 0;
}

/* For the bench, which has no statx. */
int bench_key(const char *path, char *key) {
    struct statx its;
    return key_at(AT_FDCWD, path, key, &its);
}

static void copy_content(int from, int to) {
    char part[PART];
    for (ssize_t n; (n = read(from, part, sizeof part)) > 0;)
        if (write(to, part, (size_t)n) != n) return;
}

static void copy_names(int from, int to) {
    DIR *folder = fdopendir(dup(from));
    if (!folder) return;
    rewinddir(folder);
    for (struct dirent *one; (one = readdir(folder));) {
        struct statx its;
        char key[KEY];
        if (!strcmp(one->d_name, ".") || !strcmp(one->d_name, "..")) continue;
        if (key_at(from, one->d_name, key, &its)) continue;
        dprintf(to, "%s %s\n", key, one->d_name);
    }
    closedir(folder);
}

static void keep(int fd) {
    const char *shadow = getenv("BENCH_SHADOW"), *of = getenv("BENCH_SHADOW_OF");
    char link[64], path[PATH_MAX], key[KEY], beside[PATH_MAX], there[PATH_MAX];
    struct statx its;
    if (!shadow || !of) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    char after = strncmp(path, of, strlen(of)) ? '?' : path[strlen(of)];
    if ((after && after != '/') || key_at(fd, "", key, &its)) return;
    int from = open(link, O_RDONLY | O_CLOEXEC);
    snprintf(beside, sizeof beside, "%s/.%ld-%s", shadow, (long)syscall(SYS_gettid), key);
    snprintf(there, sizeof there, "%s/%s%s", shadow, key, S_ISDIR(its.stx_mode) ? ".names" : "");
    int to = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from >= 0 && to >= 0) {
        if (S_ISDIR(its.stx_mode))
            copy_names(from, to);
        else
            copy_content(from, to);
        struct timespec times[2] = {{0, UTIME_OMIT}, {its.stx_mtime.tv_sec, its.stx_mtime.tv_nsec}};
        futimens(to, times);
        rename(beside, there);
    }
    if (from >= 0) close(from);
    if (to >= 0) close(to);
}

#define SYNC(name) \
    int name(int fd) { \
        static int (*real)(int); \
        if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        int failed = real(fd); \
        if (!failed) keep(fd); \
        return failed; \
    }

SYNC(fsync)
SYNC(fdatasync)
