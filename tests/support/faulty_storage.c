/* A storage with faults, preloaded under a program: what it reads of some files fails as told.
 *
 *   FAULTY_PATH   reads of files whose path contains this are counted
 *   FAULTY_AFTER  so many of them are sound
 *   FAULTY_HOW    the next ones: eio, zero (as at the end of a file), short (each brings half),
 *                 slow (the first takes FAULTY_S seconds), hang (none ever returns)
 *   FAULTY_COUNT  at the end, the count of reads is written to this file
 *   FAULTY_STOP   the program stops itself (SIGSTOP) after so many writes to its standard output
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512
#define SOUND (-2)

static atomic_long reads, writes;

static const char *told(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

static int watched(int fd)
{
    char link[64], path[4096];
    if (!*told("FAULTY_PATH"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, told("FAULTY_PATH")) != NULL;
}

/* What a read returns instead of reading: SOUND, 0, -1; `*part` says of how much to read. */
static ssize_t fault(int fd, int *part)
{
    const char *how = told("FAULTY_HOW");
    *part = 1;
    if (!watched(fd))
        return SOUND;
    long late = atomic_fetch_add(&reads, 1) - atol(told("FAULTY_AFTER"));
    if (late < 0 || !*how)
        return SOUND;
    if (!strcmp(how, "eio")) {
        errno = EIO;
        return -1;
    }
    if (!strcmp(how, "zero"))
        return 0;
    if (!strcmp(how, "short"))
        *part = 2;
    if (!strcmp(how, "slow") && late == 0)
        usleep((useconds_t)(1e6 * atof(told("FAULTY_S"))));
    while (!strcmp(how, "hang"))
        pause();
    return SOUND;
}

static size_t some(size_t count, int part)
{
    size_t less = count / part / SECTOR * SECTOR;
    return part == 1 || less == 0 ? count : less;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int fd, void *data, size_t count)
{
    int part;
    ssize_t result = fault(fd, &part);
    return result != SOUND ? result : REAL(read)(fd, data, some(count, part));
}

#define PREAD(name, offset_t)                                                                    \
    ssize_t name(int fd, void *data, size_t count, offset_t offset)                              \
    {                                                                                            \
        int part;                                                                                \
        ssize_t result = fault(fd, &part);                                                       \
        return result != SOUND ? result : REAL(name)(fd, data, some(count, part), offset);       \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

/* A read comes in one piece; of several, the first is enough. */
static struct iovec some_of(const struct iovec *pieces, int part)
{
    return (struct iovec){pieces[0].iov_base, some(pieces[0].iov_len, part)};
}

#define PREADV(name, offset_t)                                                                   \
    ssize_t name(int fd, const struct iovec *pieces, int count, offset_t offset)                 \
    {                                                                                            \
        int part;                                                                                \
        ssize_t result = fault(fd, &part);                                                       \
        struct iovec first = some_of(pieces, part);                                              \
        if (result != SOUND)                                                                     \
            return result;                                                                       \
        return REAL(name)(fd, part == 1 ? pieces : &first, part == 1 ? count : 1, offset);       \
    }
PREADV(preadv, off_t)
PREADV(preadv64, off64_t)

#define PREADV2(name, offset_t)                                                                  \
    ssize_t name(int fd, const struct iovec *pieces, int count, offset_t offset, int flags)      \
    {                                                                                            \
        int part;                                                                                \
        ssize_t result = fault(fd, &part);                                                       \
        struct iovec first = some_of(pieces, part);                                              \
        if (result != SOUND)                                                                     \
            return result;                                                                       \
        return REAL(name)(fd, part == 1 ? pieces : &first, part == 1 ? count : 1, offset, flags); \
    }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)

static long stop_after(void)
{
    return atol(told("FAULTY_STOP"));
}

ssize_t write(int fd, const void *data, size_t count)
{
    ssize_t result = REAL(write)(fd, data, count);
    int error = errno;
    if (fd == 1 && *told("FAULTY_STOP") && atomic_fetch_add(&writes, 1) + 1 == stop_after())
        raise(SIGSTOP);
    errno = error;
    return result;
}

__attribute__((destructor)) static void tell_count(void)
{
    const char *path = told("FAULTY_COUNT");
    FILE *file = *path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", atomic_load(&reads));
        fclose(file);
    }
}
