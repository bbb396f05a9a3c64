/* A disk that can be looked at, filled up, and robbed of power.
 *
 * Preloaded into a process (LD_PRELOAD). Every change of a file below BANYAN_DISK_FOLDER is appended to the file
 * BANYAN_DISK_TRACE, in order, so that a test can rebuild what a real disk might hold had the power failed at any point:
 * everything synced, and of the rest whatever it likes. A write to a file named "acks" is noted as an acknowledgement.
 * BANYAN_DISK_QUOTA names a file that holds a number of bytes: what would grow a file beyond it in sum fails with ENOSPC.
 * While a file named by BANYAN_DISK_SICK exists, fsync and fdatasync fail with EIO.
 *
 * Record: op u8, path length u16, offset u64, data length u64, path, data; little-endian.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE, SYNC, UNLINK, RENAME, CREATE, ACK };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -2;
static const char *folder;

static int ready(void) {
    if (trace == -2) {
        const char *path = getenv("BANYAN_DISK_TRACE");
        folder = getenv("BANYAN_DISK_FOLDER");
        trace = path && folder ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    }
    return folder != NULL;
}

static int ours(const char *path) {
    if (!ready() || !path) return 0;
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return ours(path);
}

/* One call: appends of several processes of one folder, a controller and a command beside it, stay whole. */
static void put(struct iovec *parts, int count, size_t size) {
    if (syscall(SYS_writev, trace, parts, count) != (ssize_t)size) abort();
}

static void record(uint8_t op, const char *path, uint64_t offset, const void *data, uint64_t size) {
    if (trace < 0) return;
    uint16_t length = (uint16_t)strlen(path);
    struct iovec parts[] = {{&op, 1}, {&length, 2}, {&offset, 8}, {&size, 8}, {(void *)path, length}, {(void *)data, size}};
    put(parts, 6, 19 + length + size);
}

static uint64_t quota(void) {
    const char *path = getenv("BANYAN_DISK_QUOTA");
    char text[32] = {0};
    if (!path) return UINT64_MAX;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return UINT64_MAX;
    if (syscall(SYS_read, fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    return strtoull(text, NULL, 10);
}

static uint64_t used(void) {
    static const char *const names[] = {"store.db", "store.db-wal", "store.db-journal"};
    uint64_t total = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[PATH_MAX];
        struct stat status;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (!stat(path, &status)) total += (uint64_t)status.st_size;
    }
    return total;
}

static int no_room(int fd, uint64_t end) {
    struct stat status;
    if (!getenv("BANYAN_DISK_QUOTA") || fstat(fd, &status) || end <= (uint64_t)status.st_size) return 0;
    return used() + (end - (uint64_t)status.st_size) > quota();
}

static int sick(void) {
    const char *path = getenv("BANYAN_DISK_SICK");
    return path && !access(path, F_OK);
}

static ssize_t write_at(int fd, const void *data, size_t size, off_t offset, int positioned) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return positioned ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
    pthread_mutex_lock(&lock);
    off_t at = positioned ? offset : lseek(fd, 0, SEEK_CUR);
    ssize_t done;
    if (no_room(fd, (uint64_t)at + size)) {
        errno = ENOSPC;
        done = -1;
    } else {
        done = positioned ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
        const char *name = strrchr(path, '/');
        if (done > 0) record(!strcmp(name, "/acks") ? ACK : WRITE, path, (uint64_t)at, data, (uint64_t)done);
    }
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { return write_at(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return write_at(fd, data, size, offset, 1); }

int ftruncate64(int fd, off64_t size) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_ftruncate, fd, size);
    if (!done) record(TRUNCATE, path, (uint64_t)size, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int sync_fd(int fd, long call) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(call, fd);
    if (sick()) { errno = EIO; return -1; }
    int done = (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    if (!done) record(SYNC, path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

int unlink(const char *path) {
    int done = (int)syscall(SYS_unlink, path);
    pthread_mutex_lock(&lock);
    if (!done && ours(path)) record(UNLINK, path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to) {
    int done = (int)syscall(SYS_rename, from, to);
    pthread_mutex_lock(&lock);
    if (!done && ours(from)) record(RENAME, from, 0, to, strlen(to));
    pthread_mutex_unlock(&lock);
    return done;
}

static int open_at(int base, const char *path, int flags, mode_t mode) {
    struct stat status;
    int creates = (flags & O_CREAT) && ours(path) && stat(path, &status);
    int fd = (int)syscall(SYS_openat, base, path, flags, mode);
    if (fd >= 0 && creates) {
        pthread_mutex_lock(&lock);
        record(CREATE, path, 0, "", 0);
        pthread_mutex_unlock(&lock);
    }
    return fd;
}
#define MODE ({ va_list list; va_start(list, flags); mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; va_end(list); mode; })
int open(const char *path, int flags, ...) { return open_at(AT_FDCWD, path, flags, MODE); }
int open64(const char *path, int flags, ...) { return open_at(AT_FDCWD, path, flags, MODE); }
int openat(int base, const char *path, int flags, ...) { return open_at(base, path, flags, MODE); }
int openat64(int base, const char *path, int flags, ...) { return open_at(base, path, flags, MODE); }
