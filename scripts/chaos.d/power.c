/* What a loss of power leaves of what disk.c wrote down and nobody synced.
 *
 *   power FOLDER UNDO SEED
 *
 * FOLDER is DISK_BELOW and UNDO is DISK_UNDO of processes that have ended. Of what was synced nothing is taken. Of the rest the
 * seed decides one of three kinds of loss:
 *   all     everything is gone
 *   behind  what was done after some moment is gone
 *   mixed   each sector of 512 bytes of each file is as one of the writes to it left it, or as it was synced; a file has any length
 *           that it had meanwhile; of the names in each folder, those are gone that were given or taken after some moment of its own
 * A name is safe when its folder was synced, and a file's bytes when the file was. What is left counts as synced.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"

#define SECTOR_BYTES 512
#define FILES_MAX 8192

static const char *folder, *undo;
static uint64_t chance;
static enum { ALL, BEHIND, MIXED } loss;
/* Where everything behind is gone: what was done after this. */
static uint64_t moment;
static struct { ino_t inode; char path[PATH_MAX]; } *files;
static size_t files_count;
static unsigned long taken_back;

static void fail(const char *what) {
    perror(what);
    exit(2);
}

/* xorshift64*, of a seed that was mixed first. */
static uint64_t below(uint64_t bound) {
    chance ^= chance >> 12, chance ^= chance << 25, chance ^= chance >> 27;
    return (chance * 0x2545F4914F6CDD1Dull >> 11) % bound;
}

static char *read_whole(const char *path, size_t *length) {
    FILE *file = fopen(path, "r");
    struct stat about;
    if (!file || fstat(fileno(file), &about)) fail(path);
    char *bytes = malloc(about.st_size + 1);
    if (!bytes) fail(path);
    *length = fread(bytes, 1, about.st_size, file);
    fclose(file);
    return bytes;
}

/* The records of a file, of which the last may be cut off. */
static struct record **parse(char *bytes, size_t length, size_t *count) {
    struct record **records = NULL;
    size_t at = 0, room = 0;
    *count = 0;
    while (at + sizeof(struct record) <= length) {
        struct record *record = malloc(sizeof *record);
        memcpy(record, bytes + at, sizeof *record);
        if (record->magic != RECORD_MAGIC || at + sizeof *record + record->bytes > length) break;
        record = realloc(record, sizeof *record + record->bytes);
        memcpy(record + 1, bytes + at + sizeof *record, record->bytes);
        at += sizeof *record + record->bytes;
        if (*count == room) records = realloc(records, (room = room ? 2 * room : 256) * sizeof *records);
        if (!record || !records) fail("memory");
        records[(*count)++] = record;
    }
    return records;
}

static int look_at(const char *path, const struct stat *about, int kind) {
    if (kind == FTW_F) {
        if (files_count == FILES_MAX) abort();
        files[files_count].inode = about->st_ino;
        snprintf(files[files_count++].path, PATH_MAX, "%s", path);
    }
    return 0;
}

static const char *path_of(ino_t inode) {
    for (size_t at = 0; at < files_count; at++)
        if (files[at].inode == inode) return files[at].path;
    return NULL;
}

/* How many of so many writes, in their order, the disk has. */
static size_t had_of(struct record **records, size_t count) {
    size_t had = 0;
    switch (loss) {
    case ALL: return 0;
    case BEHIND:
        while (had < count && records[had]->sequence <= moment) had++;
        return had;
    default:
        /* None and all more often than one of very many would be. */
        switch (below(4)) {
        case 0: return 0;
        case 1: return count;
        default: return below(count + 1);
        }
    }
}

/* Takes back what was written to one file. */
static void take_back_bytes(const char *path, struct record **records, size_t count) {
    uint64_t synced = 0;
    size_t first = 0;
    for (size_t at = 0; at < count; at++)
        if (records[at]->kind == SYNCED && records[at]->sequence > synced) synced = records[at]->sequence;
    size_t writes = 0;
    for (size_t at = 0; at < count; at++) {
        if (records[at]->kind == SYNCED || records[at]->sequence <= synced) continue;
        records[first + writes++] = records[at];
    }
    if (!writes) return;
    int file = open(path, O_RDWR);
    if (file < 0) fail(path);
    size_t had = had_of(records, writes);
    uint64_t length = had < writes ? records[had]->size : (uint64_t)lseek(file, 0, SEEK_END);
    /* Each sector by itself: a table of how many of the writes it has. */
    uint64_t end = length;
    for (size_t at = 0; at < writes; at++) {
        uint64_t reached = records[at]->offset + (records[at]->kind == WRITTEN ? records[at]->length : records[at]->bytes);
        if (reached > end) end = reached;
    }
    uint32_t *has = NULL;
    if (loss == MIXED && below(2)) {
        has = malloc((end / SECTOR_BYTES + 1) * sizeof *has);
        if (!has) fail("memory");
        for (uint64_t sector = 0; sector <= end / SECTOR_BYTES; sector++) has[sector] = below(writes + 1);
    }
    for (size_t at = writes; at-- > 0;) {
        struct record *record = records[at];
        uint64_t start = record->offset, stop = start + (record->kind == WRITTEN ? record->length : record->bytes);
        const char *old = (const char *)(record + 1);
        static const char zeros[SECTOR_BYTES];
        int any = 0;
        for (uint64_t place = start; place < stop;) {
            uint64_t next = (place / SECTOR_BYTES + 1) * SECTOR_BYTES;
            if (next > stop) next = stop;
            if (at >= (has ? has[place / SECTOR_BYTES] : had)) {
                uint64_t known = place - start < record->bytes ? record->bytes - (place - start) : 0;
                if (known > next - place) known = next - place;
                if (pwrite(file, old + (place - start), known, place) != (ssize_t)known) fail(path);
                uint64_t rest = next - place - known;
                if (rest && pwrite(file, zeros, rest, place + known) != (ssize_t)rest) fail(path);
                any = 1;
            }
            place = next;
        }
        taken_back += any || at >= had;
    }
    if (ftruncate(file, length)) fail(path);
    close(file);
    free(has);
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *walk) {
    (void)about, (void)kind, (void)walk;
    return remove(path);
}

static int is_in(const char *path, const char *parent) {
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    return strcmp(dirname(copy), parent) == 0;
}

/* Takes back names, the last one first. */
static void take_back_names(struct record **records, size_t count) {
    /* Folder by folder: up to when its names are safe, and up to when the disk has them. */
    static struct { char path[PATH_MAX]; uint64_t synced, had; } folders[64];
    size_t folders_count = 0;
    for (size_t at = 0; at < count; at++) {
        char parent[PATH_MAX];
        int syncs = records[at]->kind == FOLDER_SYNCED;
        snprintf(parent, sizeof parent, "%s", (char *)(records[at] + 1));
        const char *path = syncs ? parent : dirname(parent);
        size_t found = 0;
        while (found < folders_count && strcmp(folders[found].path, path)) found++;
        if (found == 64) abort();
        if (found == folders_count) snprintf(folders[folders_count++].path, PATH_MAX, "%s", path);
        if (syncs && records[at]->sequence > folders[found].synced) folders[found].synced = records[at]->sequence;
    }
    for (size_t number = 0; number < folders_count; number++) {
        struct record **own = calloc(count + 1, sizeof *own);
        size_t names = 0;
        for (size_t at = 0; at < count; at++)
            if (records[at]->kind != FOLDER_SYNCED && records[at]->sequence > folders[number].synced &&
                is_in((char *)(records[at] + 1), folders[number].path))
                own[names++] = records[at];
        size_t had = had_of(own, names);
        folders[number].had = had == 0 ? folders[number].synced : own[had - 1]->sequence;
        free(own);
    }
    for (size_t at = count; at-- > 0;) {
        struct record *record = records[at];
        const char *path = (const char *)(record + 1), *to = path + strlen(path) + 1;
        if (record->kind == FOLDER_SYNCED) continue;
        size_t number = 0;
        while (!is_in(path, folders[number].path)) number++;
        if (record->sequence <= folders[number].had) continue;
        char kept[PATH_MAX];
        snprintf(kept, sizeof kept, "%s/" KEPT_PREFIX "%lu", undo, (unsigned long)record->sequence);
        taken_back++;
        /* What was killed before it was done has nothing to take back. */
        switch (record->kind) {
        case CREATED: nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); break;
        case RENAMED:
            if (access(path, F_OK)) (void)!rename(to, path);
            if (record->length && access(to, F_OK)) (void)!link(kept, to);
            break;
        case REMOVED: if (access(path, F_OK)) (void)!link(kept, path); break;
        }
    }
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "power FOLDER UNDO SEED\n");
        return 2;
    }
    folder = realpath(arguments[1], NULL), undo = realpath(arguments[2], NULL);
    files = malloc(FILES_MAX * sizeof *files);
    if (!folder || !undo || !files) fail("power");
    chance = (strtoull(arguments[3], NULL, 10) + 1) * 0x9E3779B97F4A7C15ull | 1;
    for (int round = 0; round < 8; round++) below(2);
    loss = below(4) == 0 ? ALL : below(2) ? BEHIND : MIXED;
    if (ftw(folder, look_at, 16) || ftw(undo, look_at, 16)) fail("ftw");

    DIR *list = opendir(undo);
    if (!list) fail(undo);
    struct { ino_t inode; struct record **records; size_t count; } *all = NULL;
    size_t all_count = 0;
    uint64_t first = UINT64_MAX, last = 0;
    for (struct dirent *item; (item = readdir(list));) {
        char path[PATH_MAX], *rest;
        int names = !strcmp(item->d_name, NAMES_FILE);
        unsigned long inode = strtoul(item->d_name, &rest, 16);
        if (!names && (*rest || rest == item->d_name)) continue;
        snprintf(path, sizeof path, "%s/%s", undo, item->d_name);
        size_t length;
        char *bytes = read_whole(path, &length);
        all = realloc(all, (all_count + 1) * sizeof *all);
        if (!all) fail("memory");
        all[all_count].inode = names ? 0 : inode;
        all[all_count].records = parse(bytes, length, &all[all_count].count);
        free(bytes);
        for (size_t at = 0; at < all[all_count].count; at++) {
            uint64_t sequence = all[all_count].records[at]->sequence;
            if (sequence < first) first = sequence;
            if (sequence > last) last = sequence;
        }
        all_count++;
    }
    closedir(list);
    /* Nearer to the end more often: most is synced. */
    if (first <= last) moment = last - below(below(last - first + 1) + 1);
    for (size_t at = 0; at < all_count; at++) {
        const char *path = all[at].inode ? path_of(all[at].inode) : NULL;
        if (path) take_back_bytes(path, all[at].records, all[at].count);
    }
    for (size_t at = 0; at < all_count; at++)
        if (!all[at].inode) take_back_names(all[at].records, all[at].count);

    list = opendir(undo);
    if (!list) fail(undo);
    for (struct dirent *item; (item = readdir(list));)
        if (item->d_name[0] != '.' && strcmp(item->d_name, SEQUENCE_FILE) && unlinkat(dirfd(list), item->d_name, 0)) fail(item->d_name);
    closedir(list);
    printf("%s: %lu writes and names are gone\n", loss == ALL ? "all" : loss == BEHIND ? "behind" : "mixed", taken_back);
    return 0;
}
