/* What disk.c writes down and power.c reads: how to take back each write that was not synced. Both run on one machine. */
#ifndef DISK_H
#define DISK_H
#include <stdint.h>

#define RECORD_MAGIC 0x6f646e75u /* "undo" */
/* In the folder of what can be taken back: where names are written down, and how files that lost theirs are called. */
#define NAMES_FILE "names"
#define KEPT_PREFIX "kept."
#define SEQUENCE_FILE "sequence"

enum kind {
    WRITTEN = 1,   /* `length` bytes at `offset`; the file had `size`; what stood there follows */
    RESIZED = 2,   /* to `offset` bytes; the file had `size`; what was cut off follows */
    SYNCED = 3,    /* this file, with all up to `sequence` */
    CREATED = 4,   /* the path follows */
    RENAMED = 5,   /* from and to follow, each with a zero; `length` is 1 where the new name was taken */
    REMOVED = 6,   /* the path follows */
    FOLDER_SYNCED = 7, /* the path follows; with all up to `sequence` */
};

/* Before what it says it was done. A file of these can end in a part of one: that was never done. */
struct record {
    uint32_t magic, kind;
    uint64_t sequence, offset, length, size;
    uint64_t bytes; /* that follow */
};

#endif
