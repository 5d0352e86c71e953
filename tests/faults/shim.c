/* Fails the n-th of chosen calls on paths below a prefix, for one process and those that are forked from it.

   LD_PRELOAD puts it between a program and the C library. It does nothing until `faults_arm` is called, by ctypes: the
   settings lie in memory that forked processes share, so one warm process that forks serves any number of cases, calls
   of workers are counted with those of their parent, and what was failed can be read after a SIGKILL.

   FAULTS in the environment of a program, as "PREFIX:CALLS:N:FROM_THEN_ON:ACTION", arms it at the start. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SHORT_WRITE = -1, KILL = -2 }; /* actions; any other is an errno */
enum { LOGGED = 1 << 16 };

static struct shared {
    atomic_int armed;
    atomic_long count, log_length, struck_at;
    long n;
    int from_then_on, action;
    char prefix[PATH_MAX], calls[512], log[LOGGED];
} *shared;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "shim: no %s\n", name);
        abort();
    }
    return found;
}

/* prefix: an absolute path. calls: names with a space before and after each. n: from 1; 0 only counts. */
void faults_arm(const char *prefix, const char *calls, long n, int from_then_on, int action) {
    shared->armed = 0;
    snprintf(shared->prefix, sizeof shared->prefix, "%s", prefix);
    snprintf(shared->calls, sizeof shared->calls, "%s", calls);
    shared->n = n, shared->from_then_on = from_then_on, shared->action = action;
    shared->count = 0;
    shared->log_length = 0;
    shared->struck_at = 0;
    memset(shared->log, 0, LOGGED);
    shared->armed = 1;
}

void faults_disarm(void) { shared->armed = 0; }
long faults_count(void) { return shared->count; }
long faults_struck_at(void) { return shared->struck_at; } /* ns of the monotonic clock at the first failed call; 0 */
const char *faults_log(void) { return shared->log; } /* a line a failed call: its number, name and path */

__attribute__((constructor)) static void begin(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char prefix[PATH_MAX], calls[512];
    long n;
    int from_then_on, action;
    const char *asked = getenv("FAULTS");
    if (asked && sscanf(asked, "%4095[^:]:%511[^:]:%ld:%d:%d", prefix, calls, &n, &from_then_on, &action) == 5)
        faults_arm(prefix, calls, n, from_then_on, action);
}

static int below_prefix(const char *path) {
    size_t length = strlen(shared->prefix);
    return !strncmp(path, shared->prefix, length) && (path[length] == '/' || !path[length]);
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

/* What is to become of this call: 0 for nothing, else the action. */
static int struck(const char *call, const char *path) {
    if (!below_prefix(path)) return 0;
    long number = ++shared->count;
    if (!shared->n || number < shared->n || (number > shared->n && !shared->from_then_on)) return 0;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long never = 0;
    atomic_compare_exchange_strong(&shared->struck_at, &never, now.tv_sec * 1000000000L + now.tv_nsec);
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
    long place = atomic_fetch_add(&shared->log_length, length);
    if (place + length < LOGGED) memcpy(shared->log + place, line, length);
    if (shared->action == KILL) {
        kill(0, SIGKILL); /* the whole job: workers are of its process group */
        pause();
    }
    return shared->action;
}

static int is_chosen(const char *call) {
    char name[32];
    if (!shared || !shared->armed) return 0;
    snprintf(name, sizeof name, " %s ", call);
    return strstr(shared->calls, name) != NULL;
}

static int fails_fd(const char *call, int fd) {
    if (!is_chosen(call)) return 0;
    int before = errno;
    char path[PATH_MAX];
    path_of(fd, path);
    int action = struck(call, path);
    errno = action > 0 ? action : before;
    return action;
}

static int fails_at(const char *call, int folder, const char *name) {
    if (!is_chosen(call)) return 0;
    int before = errno;
    char path[2 * PATH_MAX] = "";
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(path, PATH_MAX)) path[0] = 0;
        } else {
            path_of(folder, path);
        }
        strcat(path, "/");
    }
    strncat(path, name, PATH_MAX - 1);
    int action = struck(call, path);
    errno = action > 0 ? action : before;
    return action;
}

#define REAL(type, name, parameters) \
    static type(*original) parameters; \
    if (!original) original = real(#name)

#define MODE \
    mode_t mode = 0; \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE REAL(int, name, (const char *, int, mode_t)); \
        return fails_at("open", AT_FDCWD, path) > 0 ? -1 : original(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        MODE REAL(int, name, (int, const char *, int, mode_t)); \
        return fails_at("open", folder, path) > 0 ? -1 : original(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

DIR *opendir(const char *path) {
    REAL(DIR *, opendir, (const char *));
    return fails_at("open", AT_FDCWD, path) > 0 ? NULL : original(path);
}

ssize_t read(int fd, void *to, size_t count) {
    REAL(ssize_t, read, (int, void *, size_t));
    return fails_fd("read", fd) > 0 ? -1 : original(fd, to, count);
}
#define PREAD(name, type) \
    ssize_t name(int fd, void *to, size_t count, type offset) { \
        REAL(ssize_t, name, (int, void *, size_t, type)); \
        return fails_fd("read", fd) > 0 ? -1 : original(fd, to, count, offset); \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)
#define PREADV(name, type) \
    ssize_t name(int fd, const struct iovec *to, int count, type offset) { \
        REAL(ssize_t, name, (int, const struct iovec *, int, type)); \
        return fails_fd("read", fd) > 0 ? -1 : original(fd, to, count, offset); \
    }
PREADV(preadv, off_t)
PREADV(preadv64, off64_t)
#define PREADV2(name, type) \
    ssize_t name(int fd, const struct iovec *to, int count, type offset, int flags) { \
        REAL(ssize_t, name, (int, const struct iovec *, int, type, int)); \
        return fails_fd("read", fd) > 0 ? -1 : original(fd, to, count, offset, flags); \
    }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)

/* A short write takes half of what it was given, as of a disk that fills. */
static size_t taken(int action, size_t count) { return action == SHORT_WRITE && count > 1 ? count / 2 : count; }
ssize_t write(int fd, const void *from, size_t count) {
    REAL(ssize_t, write, (int, const void *, size_t));
    int action = fails_fd("write", fd);
    return action > 0 ? -1 : original(fd, from, taken(action, count));
}
#define PWRITE(name, type) \
    ssize_t name(int fd, const void *from, size_t count, type offset) { \
        REAL(ssize_t, name, (int, const void *, size_t, type)); \
        int action = fails_fd("write", fd); \
        return action > 0 ? -1 : original(fd, from, taken(action, count), offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define OF_FD(name, call, parameters, arguments) \
    int name parameters { \
        REAL(int, name, parameters); \
        return fails_fd(call, fd) > 0 ? -1 : original arguments; \
    }
OF_FD(fsync, "fsync", (int fd), (fd))
OF_FD(fdatasync, "fsync", (int fd), (fd))
OF_FD(ftruncate, "ftruncate", (int fd, off_t length), (fd, length))
OF_FD(ftruncate64, "ftruncate", (int fd, off64_t length), (fd, length))
/* these return the error, and leave errno alone */
#define FALLOCATE(name, type) \
    int name(int fd, type offset, type length) { \
        REAL(int, name, (int, type, type)); \
        int before = errno, action = fails_fd("fallocate", fd); \
        errno = before; \
        return action > 0 ? action : original(fd, offset, length); \
    }
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)

#define OF_PATH(name, call, folder, parameters, arguments) \
    int name parameters { \
        REAL(int, name, parameters); \
        return fails_at(call, folder, path) > 0 ? -1 : original arguments; \
    }
OF_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), (path, mode))
OF_PATH(mkdirat, "mkdir", folder, (int folder, const char *path, mode_t mode), (folder, path, mode))
OF_PATH(rmdir, "unlink", AT_FDCWD, (const char *path), (path))
OF_PATH(unlink, "unlink", AT_FDCWD, (const char *path), (path))
OF_PATH(unlinkat, "unlink", folder, (int folder, const char *path, int flags), (folder, path, flags))
OF_PATH(rename, "rename", AT_FDCWD, (const char *path, const char *to), (path, to))
OF_PATH(renameat, "rename", folder, (int folder, const char *path, int to_folder, const char *to),
        (folder, path, to_folder, to))
