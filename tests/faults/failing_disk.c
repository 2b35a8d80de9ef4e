/* A disk that fails: the n-th change below a folder, or every one from the n-th on, ends with an errno.
 *
 * Preloaded into one process. FAILING_DISK_UNDER names the folder, FAILING_DISK_CONTROL a file of four 64-bit numbers
 * that both sides map (tests/faults/failing_disk.py): changes left until one fails, 0 for none; the errno; whether all
 * after it fail too; and how many have failed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int64_t left, error, for_ever, failed;
};

static struct control *control;
static const char *under;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAILING_DISK_CONTROL");
    under = getenv("FAILING_DISK_UNDER");
    if (!path || !under) return;
    int fd = REAL(open)(path, O_RDWR);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

/* Count one change of what lies at path; true where it must fail. */
static int fails_at(const char *path) {
    if (!control || __atomic_load_n(&control->left, __ATOMIC_SEQ_CST) <= 0) return 0;
    if (strncmp(path, under, strlen(under))) return 0;
    int64_t left = __atomic_load_n(&control->left, __ATOMIC_SEQ_CST);
    do {
        if (left <= 0) return 0;
        if (left == 1 && control->for_ever) break;
    } while (!__atomic_compare_exchange_n(&control->left, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (left > 1) return 0;
    __atomic_fetch_add(&control->failed, 1, __ATOMIC_SEQ_CST);
    errno = (int)control->error;
    return 1;
}

static int fails_on(int fd) {
    if (!control || __atomic_load_n(&control->left, __ATOMIC_SEQ_CST) <= 0) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails_at(path);
}

ssize_t write(int fd, const void *from, size_t size) {
    return fails_on(fd) ? -1 : REAL(write)(fd, from, size);
}

ssize_t writev(int fd, const struct iovec *from, int count) {
    return fails_on(fd) ? -1 : REAL(writev)(fd, from, count);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    return fails_on(fd) ? -1 : REAL(pwrite)(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    return fails_on(fd) ? -1 : REAL(pwrite64)(fd, from, size, at);
}

int fsync(int fd) {
    return fails_on(fd) ? -1 : REAL(fsync)(fd);
}

int fdatasync(int fd) {
    return fails_on(fd) ? -1 : REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size) {
    return fails_on(fd) ? -1 : REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    return fails_on(fd) ? -1 : REAL(ftruncate64)(fd, size);
}

int rename(const char *from, const char *to) {
    return fails_at(to) ? -1 : REAL(rename)(from, to);
}

int link(const char *from, const char *to) {
    return fails_at(to) ? -1 : REAL(link)(from, to);
}

int unlink(const char *path) {
    return fails_at(path) ? -1 : REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode) {
    return fails_at(path) ? -1 : REAL(mkdir)(path, mode);
}

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                     \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails_at(path)) return -1;         \
        return REAL(name)(path, flags, mode);                                             \
    }

OPEN(open)
OPEN(open64)
