/* The C data interface of Arrow, as far as it is spoken here: https://arrow.apache.org/docs/format/CDataInterface.html */

#pragma once

#include <stdint.h>

struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* A cell of text: up to INLINE bytes lie in it from `prefix` on, more lie in a buffer. */
enum { INLINE = 12 };

typedef struct {
    int32_t size;
    uint8_t prefix[4];
    int32_t buffer, offset;
} View;
