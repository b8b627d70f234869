/* A disk that is full, fails or loses power, for one process: loaded before the C library (LD_PRELOAD), it stands before
 * the calls that write. Files below the folder DISK_BELOW alone are concerned. No privileges are needed.
 *
 *   DISK_ROOM   a file of one byte, which may be written meanwhile: '0' there is room; '1' whatever would make a file
 *               longer fails with ENOSPC; '2' so does everything that writes, as on file systems that never overwrite
 *   DISK_UNDO   a folder in which it writes down how to take back each write, rename and removal, until it is synced.
 *               power.c takes back what a loss of power could have taken
 *   DISK_FAULT  PATTERN CALL NUMBER ACTION: what the NUMBERth CALL on a file meets whose path below DISK_BELOW fits
 *               PATTERN (as a shell has it; a folder's own path is that of the folder, `.` the first)
 *                 CALL    write, sync, create, rename, remove, resize
 *                 ACTION  kill      the process is killed before it
 *                         killed    the process is killed after it
 *                         torn      half of it is written, and the process is killed
 *                         fail      it fails with EIO, this once
 *                         broken    it fails with EIO, and so does every call that writes from then on
 *                         short     half of it is written, and then it fails with ENOSPC
 *                         slow      it takes 100 ms
 *                         lie       a sync does nothing and says that it did, and so do all that fit from then on
 *
 * What reads is left alone, and so is what is written through a mapping.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"

#define FILES_MAX 4096
#define UNDO_BYTES_MAX (64 << 20)
#define SLOW_NS 100000000

/* Files below the folder that were opened, by inode. */
static struct file { ino_t inode; char path[256]; } files[FILES_MAX];
static size_t files_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static char below[PATH_MAX];
static size_t below_length;
static const volatile char *room;
static int undo = -1; /* the folder */
static volatile uint64_t *sequence;

static struct { char pattern[256], call[16], action[16]; long number, met; int broken; } fault;

/* --- calls of the C library ------------------------------------------------------------------------ */

#define REAL(type, name, ...) \
    static type (*real_##name)(__VA_ARGS__); \
    static void find_##name(void) { if (!real_##name) real_##name = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name); }

REAL(ssize_t, write, int, const void *, size_t)
REAL(ssize_t, writev, int, const struct iovec *, int)
REAL(ssize_t, pwrite64, int, const void *, size_t, off_t)
REAL(int, fsync, int)
REAL(int, fdatasync, int)
REAL(int, ftruncate64, int, off_t)
REAL(int, open64, const char *, int, ...)
REAL(int, rename, const char *, const char *)
REAL(int, unlink, const char *)
REAL(int, mkdir, const char *, mode_t)

static const char *real_path(const char *path, char *buffer) {
    if (path[0] == '/') return path;
    if (!getcwd(buffer, PATH_MAX / 2)) return NULL;
    size_t length = strlen(buffer);
    snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return buffer;
}

/* The path below the folder; none where it is elsewhere. */
static const char *inside(const char *path) {
    if (!path || !below_length || strncmp(path, below, below_length)) return NULL;
    if (path[below_length] == 0) return ".";
    return path[below_length] == '/' ? path + below_length + 1 : NULL;
}

__attribute__((constructor)) static void open_disk(void) {
    find_write(), find_writev(), find_pwrite64(), find_fsync(), find_fdatasync(), find_ftruncate64();
    find_open64(), find_rename(), find_unlink(), find_mkdir();
    const char *folder = getenv("DISK_BELOW"), *path;
    char buffer[PATH_MAX];
    if (below_length || !folder || !real_path(folder, buffer)) return;
    snprintf(below, sizeof below, "%s", real_path(folder, buffer));
    if ((path = getenv("DISK_ROOM"))) {
        int file = real_open64(path, O_RDONLY | O_CLOEXEC);
        void *page = file < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ, MAP_SHARED, file, 0);
        if (page != MAP_FAILED) room = page;
        if (file >= 0) close(file);
    }
    if ((path = getenv("DISK_UNDO"))) {
        undo = real_open64(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int file = undo < 0 ? -1 : openat(undo, SEQUENCE_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        void *page = MAP_FAILED;
        if (file >= 0 && real_ftruncate64(file, sizeof *sequence) == 0)
            page = mmap(NULL, sizeof *sequence, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (page == MAP_FAILED) {
            static const char told[] = "disk.c: DISK_UNDO is no folder that can be written\n";
            (void)!real_write(2, told, sizeof told - 1);
            _exit(127);
        }
        sequence = page;
    }
    if ((path = getenv("DISK_FAULT")))
        sscanf(path, "%255s %15s %ld %15s", fault.pattern, fault.call, &fault.number, fault.action);
    below_length = strlen(below);
}

/* --- which files ------------------------------------------------------------------------------------ */

static struct file *known(ino_t inode) {
    for (size_t at = 0; at < files_count; at++)
        if (files[at].inode == inode) return &files[at];
    return NULL;
}

static void remember(int fd) {
    char link[64], path[PATH_MAX];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || fstat(fd, &about)) return;
    path[length] = 0;
    const char *name = inside(path);
    struct file *file = known(about.st_ino);
    if (!name) {
        /* An inode that was used before, of a file that is elsewhere. */
        if (file) file->inode = 0;
        return;
    }
    if (!file) file = known(0);
    if (!file && files_count < FILES_MAX) file = &files[files_count++];
    if (!file) abort();
    file->inode = about.st_ino;
    snprintf(file->path, sizeof file->path, "%s", name);
}

/* The file of a descriptor, if it is one below the folder. The lock is held. */
static struct file *file_of(int fd, struct stat *about) {
    if (!below_length || fstat(fd, about) || !(S_ISREG(about->st_mode) || S_ISDIR(about->st_mode))) return NULL;
    return known(about->st_ino);
}

/* --- what can be taken back -------------------------------------------------------------------------- */

static void must(int done) {
    if (done) return;
    static const char told[] = "disk.c: cannot write down how to take a write back\n";
    (void)!real_write(2, told, sizeof told - 1);
    abort();
}

static int undo_file(const char *name) {
    int file = openat(undo, name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    must(file >= 0);
    return file;
}

static void append(int file, struct record record, const void *bytes) {
    record.magic = RECORD_MAGIC;
    if (record.kind != SYNCED && record.kind != FOLDER_SYNCED) record.sequence = ++*sequence;
    struct iovec parts[] = {{&record, sizeof record}, {(void *)bytes, record.bytes}};
    must(real_writev(file, parts, record.bytes ? 2 : 1) == (ssize_t)(sizeof record + record.bytes));
}

static void undo_name(char *name, ino_t inode) { sprintf(name, "%lx", (unsigned long)inode); }

/* Writes down what is in a file from `offset` to `end`, before it is written or cut. */
static void note_bytes(int fd, const struct stat *about, enum kind kind, off_t offset, size_t length, off_t end) {
    char name[32], path[64];
    undo_name(name, about->st_ino);
    size_t bytes = end > offset ? end - offset : 0;
    char *old = malloc(bytes ? bytes : 1);
    must(old != NULL);
    if (bytes) {
        /* The descriptor may be one for writing alone. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int readable = real_open64(path, O_RDONLY | O_CLOEXEC);
        must(readable >= 0 && pread(readable, old, bytes, offset) == (ssize_t)bytes);
        close(readable);
    }
    int file = undo_file(name);
    struct stat undone;
    /* What nobody ever syncs, the system has written by itself long since. */
    if (fstat(file, &undone) == 0 && undone.st_size > UNDO_BYTES_MAX) must(real_ftruncate64(file, 0) == 0);
    append(file, (struct record){.kind = kind, .offset = offset, .length = length, .size = about->st_size, .bytes = bytes}, old);
    close(file);
    free(old);
}

static void note_name(enum kind kind, const char *path, const char *to, int taken) {
    char bytes[2 * PATH_MAX];
    size_t length = strlen(path) + 1;
    memcpy(bytes, path, length);
    if (to) {
        memcpy(bytes + length, to, strlen(to) + 1);
        length += strlen(to) + 1;
    }
    int file = undo_file(NAMES_FILE);
    append(file, (struct record){.kind = kind, .length = taken, .bytes = length}, bytes);
    close(file);
}

/* Keeps a file that is about to lose its name, under the number that the next record gets. */
static int keep(const char *path) {
    char name[64];
    sprintf(name, KEPT_PREFIX "%lu", (unsigned long)(*sequence + 1));
    return linkat(AT_FDCWD, path, undo, name, 0) == 0;
}

/* --- faults ------------------------------------------------------------------------------------------ */

static void end_here(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

enum meets { NOTHING, FAILS, TORN, SHORT, KILLED_AFTER, LIES };

/* What a call meets that is about to be made. The lock is held. */
static enum meets meet(const char *path, const char *call) {
    if (!fault.number) return NOTHING;
    if (fault.broken) return FAILS;
    if (strcmp(call, fault.call) || fnmatch(fault.pattern, path, 0)) return NOTHING;
    if (++fault.met > fault.number && !strcmp(fault.action, "lie")) return LIES;
    if (fault.met != fault.number) return NOTHING;
    char told[PATH_MAX];
    int length = snprintf(told, sizeof told, "disk.c: met %s of %s: %s\n", call, path, fault.action);
    (void)!real_write(2, told, length);
    if (!strcmp(fault.action, "kill")) end_here();
    if (!strcmp(fault.action, "killed")) return KILLED_AFTER;
    if (!strcmp(fault.action, "torn")) return TORN;
    if (!strcmp(fault.action, "lie")) return LIES;
    if (!strcmp(fault.action, "short")) return SHORT;
    if (!strcmp(fault.action, "slow")) {
        nanosleep(&(struct timespec){0, SLOW_NS}, NULL);
        return NOTHING;
    }
    fault.broken = !strcmp(fault.action, "broken");
    return FAILS;
}

static char room_now(void) { return room ? *room : '0'; }

static int fail(int error) {
    pthread_mutex_unlock(&lock);
    errno = error;
    return -1;
}

/* --- calls that write --------------------------------------------------------------------------------- */

/* At the end or where the descriptor stands where `place` is negative. */
static ssize_t write_bytes(int fd, const void *bytes, size_t length, off_t place) {
    struct stat about;
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd, &about);
    if (!file) {
        pthread_mutex_unlock(&lock);
        return place < 0 ? real_write(fd, bytes, length) : real_pwrite64(fd, bytes, length, place);
    }
    off_t offset = place;
    if (place < 0) offset = fcntl(fd, F_GETFL) & O_APPEND ? about.st_size : lseek(fd, 0, SEEK_CUR);
    char now = room_now();
    if (now == '2' || (now == '1' && offset + (off_t)length > about.st_size)) return fail(ENOSPC);
    enum meets met = meet(file->path, "write");
    if (met == FAILS) return fail(EIO);
    if (met == TORN || met == SHORT) length /= 2;
    if (undo >= 0) {
        off_t end = offset + (off_t)length;
        note_bytes(fd, &about, WRITTEN, offset, length, end < about.st_size ? end : about.st_size);
    }
    ssize_t written = place < 0 ? real_write(fd, bytes, length) : real_pwrite64(fd, bytes, length, place);
    if (met == TORN || met == KILLED_AFTER) end_here();
    if (met == SHORT) return fail(ENOSPC);
    pthread_mutex_unlock(&lock);
    return written;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    find_write();
    return fd <= 2 ? real_write(fd, bytes, length) : write_bytes(fd, bytes, length, -1);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t place) {
    find_pwrite64();
    return write_bytes(fd, bytes, length, place);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t place) { return pwrite64(fd, bytes, length, place); }

/* The first part alone, as it may. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct stat about;
    find_writev();
    pthread_mutex_lock(&lock);
    int concerned = fd > 2 && file_of(fd, &about) != NULL;
    pthread_mutex_unlock(&lock);
    if (!concerned) return real_writev(fd, parts, count);
    for (int part = 0; part < count; part++)
        if (parts[part].iov_len) return write_bytes(fd, parts[part].iov_base, parts[part].iov_len, -1);
    return 0;
}

static int resize(int fd, off_t length) {
    struct stat about;
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd, &about);
    enum meets met = NOTHING;
    if (file) {
        char now = room_now();
        if (now == '2' || (now == '1' && length > about.st_size)) return fail(ENOSPC);
        met = meet(file->path, "resize");
        if (met == FAILS || met == SHORT) return fail(EIO);
        if (met == TORN) end_here();
        if (undo >= 0) note_bytes(fd, &about, RESIZED, length, 0, about.st_size);
    }
    int done = real_ftruncate64(fd, length);
    if (met == KILLED_AFTER) end_here();
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate64(int fd, off_t length) { find_ftruncate64(); return resize(fd, length); }
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int sync_file(int fd, int (*sync)(int)) {
    struct stat about;
    char path[PATH_MAX + 256], name[32];
    off_t before = 0;
    uint64_t up_to = 0;
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd, &about);
    enum meets met = NOTHING;
    if (file) {
        met = meet(file->path, "sync");
        if (met == FAILS || met == SHORT) return fail(EIO);
        if (met == TORN) end_here();
        if (met == LIES) {
            pthread_mutex_unlock(&lock);
            return 0;
        }
        (void)!snprintf(path, sizeof path, "%s/%s", below, file->path);
        if (!strcmp(file->path, ".")) snprintf(path, sizeof path, "%s", below);
    }
    if (file && undo >= 0) {
        struct stat undone;
        undo_name(name, about.st_ino);
        up_to = *sequence;
        if (S_ISREG(about.st_mode) && fstatat(undo, name, &undone, 0) == 0) before = undone.st_size;
    }
    /* What is written meanwhile is not covered. */
    pthread_mutex_unlock(&lock);
    int done = sync(fd);
    if (file && undo >= 0 && done == 0) {
        pthread_mutex_lock(&lock);
        if (S_ISDIR(about.st_mode)) {
            int names = undo_file(NAMES_FILE);
            append(names, (struct record){.kind = FOLDER_SYNCED, .sequence = up_to, .bytes = strlen(path) + 1}, path);
            close(names);
        } else if (before > 0) {
            struct stat undone;
            int writes = undo_file(name);
            if (fstat(writes, &undone) == 0 && undone.st_size == before) must(real_ftruncate64(writes, 0) == 0);
            else append(writes, (struct record){.kind = SYNCED, .sequence = up_to}, NULL);
            close(writes);
        }
        pthread_mutex_unlock(&lock);
    }
    if (met == KILLED_AFTER) end_here();
    return done;
}

int fsync(int fd) { find_fsync(); return sync_file(fd, real_fsync); }
int fdatasync(int fd) { find_fdatasync(); return sync_file(fd, real_fdatasync); }

static int open_file(const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *whole = real_path(path, buffer), *name = inside(whole);
    if (!name) return real_open64(path, flags, mode);
    int exists = access(path, F_OK) == 0;
    int creates = (flags & O_CREAT) && !exists, empties = (flags & O_TRUNC) && exists;
    pthread_mutex_lock(&lock);
    enum meets met = NOTHING;
    if (creates) {
        if (room_now() == '2') return fail(ENOSPC);
        met = meet(name, "create");
        if (met == FAILS || met == SHORT) return fail(EIO);
        if (met == TORN) end_here();
        if (undo >= 0) note_name(CREATED, whole, NULL, 0);
    }
    int fd = real_open64(path, empties ? flags & ~O_TRUNC : flags, mode);
    if (fd >= 0) remember(fd);
    if (met == KILLED_AFTER) end_here();
    pthread_mutex_unlock(&lock);
    if (fd >= 0 && empties && resize(fd, 0)) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    find_open64();
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return open_file(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    find_open64();
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return open_file(path, flags, mode);
}

int rename(const char *from, const char *to) {
    char buffers[2][PATH_MAX];
    struct stat about;
    find_rename();
    const char *whole = real_path(from, buffers[0]), *target = real_path(to, buffers[1]), *name = inside(target);
    if (!name || !inside(whole)) return real_rename(from, to);
    pthread_mutex_lock(&lock);
    if (room_now() == '2') return fail(ENOSPC);
    enum meets met = meet(name, "rename");
    if (met == FAILS || met == SHORT) return fail(EIO);
    if (met == TORN) end_here();
    if (undo >= 0 && stat(from, &about) == 0) {
        int taken = keep(to);
        note_name(RENAMED, whole, target, taken);
    }
    int done = real_rename(from, to);
    if (done == 0 && stat(to, &about) == 0) {
        struct file *file = known(about.st_ino);
        if (file) snprintf(file->path, sizeof file->path, "%s", name);
    }
    if (met == KILLED_AFTER) end_here();
    pthread_mutex_unlock(&lock);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    find_mkdir();
    const char *whole = real_path(path, buffer), *name = inside(whole);
    if (!name || access(path, F_OK) == 0) return real_mkdir(path, mode);
    pthread_mutex_lock(&lock);
    if (room_now() == '2') return fail(ENOSPC);
    enum meets met = meet(name, "create");
    if (met == FAILS || met == SHORT) return fail(EIO);
    if (met == TORN) end_here();
    if (undo >= 0) note_name(CREATED, whole, NULL, 0);
    int done = real_mkdir(path, mode);
    if (met == KILLED_AFTER) end_here();
    pthread_mutex_unlock(&lock);
    return done;
}

int unlink(const char *path) {
    char buffer[PATH_MAX];
    find_unlink();
    const char *whole = real_path(path, buffer), *name = inside(whole);
    if (!name) return real_unlink(path);
    pthread_mutex_lock(&lock);
    enum meets met = meet(name, "remove");
    if (met == FAILS || met == SHORT) return fail(EIO);
    if (met == TORN) end_here();
    if (undo >= 0 && access(path, F_OK) == 0) {
        must(keep(path));
        note_name(REMOVED, whole, NULL, 1);
    }
    int done = real_unlink(path);
    if (met == KILLED_AFTER) end_here();
    pthread_mutex_unlock(&lock);
    return done;
}
