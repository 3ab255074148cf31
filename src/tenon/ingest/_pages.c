/* Columns to the pages of a Parquet row group: encoded here, compressed by whoever is given, put one after the other.
 *
 * `encode` takes columns as Arrow arrays and chooses how each is written from its values alone, so the same values give
 * the same bytes: a dictionary where values come again, differences in as many bits as they need for whole numbers and
 * times, the bytes of decimals sorted by their place, and lengths apart from the bytes of text. What is packed so has
 * little left to compress; a page is compressed where a sample of it says that this helps. A row group is one page for
 * each column, with a page of its dictionary before it.
 *
 * Source: the Apache Parquet format (Encodings.md, parquet.thrift) and the Thrift compact protocol; D. Lemire and
 * L. Boytsov, Decoding billions of integers per second through vectorization, 2012, for differences in blocks.
 *
 * Memory: buffers grow by doubling and fail by name; what a view of text points to is held against the size of its
 * buffer; searching a dictionary is bounded, so that no input makes it slow. The interpreter's lock is free while
 * columns are encoded. Rejected: Polars' writer (as good, but three times the processor time, most of it compressing
 * what could have been packed), and multiplying decimals to whole numbers (another type for whoever reads).
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_arrow.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Parquet is written in little-endian order"
#endif

enum { PLAIN = 0, RLE = 3, DELTA_BINARY = 5, DELTA_LENGTH = 6, RLE_DICTIONARY = 8, BYTE_SPLIT = 9 };
enum { BOOLEAN = 0, INT32 = 1, INT64 = 2, DOUBLE = 5, BYTE_ARRAY = 6 };
enum { BLOCK = 128, MINIS = 4, MINI = 32 };
enum { FIRST_LOOK = 4096, TOO_MANY = 3072, PROBES = 8, DICTIONARY_BYTES = 1 << 20 };
enum { SAMPLED = 1 << 16, SAMPLE = 1 << 14, STATISTIC = 64 };

/* ── Arrow ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};

/* ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    uint8_t *data;
    size_t size, room;
} Bytes;

/* Make room for more bytes at the end, and return where they go; NULL without memory. */
static uint8_t *room(Bytes *out, size_t more) {
    if (out->room - out->size < more) {
        size_t size = out->room ? out->room : 256;
        while (size - out->size < more) size *= 2;
        uint8_t *data = realloc(out->data, size);
        if (!data) return NULL;
        out->data = data;
        out->room = size;
    }
    return out->data + out->size;
}

static bool put(Bytes *out, const void *data, size_t size) {
    uint8_t *at = room(out, size);
    if (!at) return false;
    if (size) memcpy(at, data, size);
    out->size += size;
    return true;
}

static bool put_byte(Bytes *out, int byte) {
    uint8_t one = (uint8_t)byte;
    return put(out, &one, 1);
}

static bool put_varint(Bytes *out, uint64_t number) {
    uint8_t *at = room(out, 10), *begin = at;
    if (!at) return false;
    for (; number > 0x7F; number >>= 7) *at++ = (uint8_t)(number | 0x80);
    *at++ = (uint8_t)number;
    out->size += (size_t)(at - begin);
    return true;
}

static bool put_zigzag(Bytes *out, int64_t number) {
    return put_varint(out, ((uint64_t)number << 1) ^ (uint64_t)(number >> 63));
}

/* Write numbers of up to 57 bits one after the other, each in so many bits, and the last byte filled with zeros. */
static bool put_packed(Bytes *out, const uint32_t *values, size_t count, int width) {
    size_t size = (count * (size_t)width + 7) / 8, have = 0;
    uint8_t *at = room(out, size + 8);
    if (!at) return false;
    uint64_t held = 0;
    for (size_t n = 0; n < count; n++) {
        held |= (uint64_t)values[n] << have;
        have += (size_t)width;
        if (have >= 32) {
            uint32_t low = (uint32_t)held;
            memcpy(at, &low, 4);
            at += 4;
            held >>= 32;
            have -= 32;
        }
    }
    memcpy(at, &held, 8);
    out->size += size;
    return true;
}

static int bits(uint64_t number) { return number ? 64 - __builtin_clzll(number) : 0; }

/* ── columns ────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* One column: where its values lie, those that are not null one after the other, and what is written of it. */
typedef struct {
    char kind; /* 'i' whole numbers, 'd' those of 32 bits, 'f' decimals, 'b' truths, 's' text */
    bool bytes; /* truths have a byte each */
    struct ArrowSchema schema; /* as it was taken, until it is released */
    struct ArrowArray array;
    size_t rows, count;
    const uint8_t *valid; /* NULL when nothing is null */
    size_t offset;
    const void *source;
    const uint8_t *const *heaps;
    const int64_t *heap_sizes;
    size_t heap_count;
    int64_t *numbers; /* of 'i', 'd' and 'f' (its bits) */
    View *views;
    void *own; /* what of these belongs to the column */
    uint32_t *places; /* of the values in the dictionary */
    Bytes levels, values, dictionary;
    uint32_t entries;
    int encoding;
    bool bounded;
    uint8_t least[STATISTIC], most[STATISTIC];
    size_t least_size, most_size;
} Column;

static bool is_valid(const Column *column, size_t row) {
    size_t at = row + column->offset;
    return !column->valid || column->valid[at >> 3] >> (at & 7) & 1;
}

static const uint8_t *text(const Column *column, const View *view) {
    return view->size <= INLINE ? (const uint8_t *)view + 4 : column->heaps[view->buffer] + view->offset;
}

/* Whether each view points into its buffer. */
static bool sound(const Column *column) {
    for (size_t n = 0; n < column->count; n++) {
        const View *view = &column->views[n];
        if (view->size < 0) return false;
        if (view->size <= INLINE) continue;
        if (view->buffer < 0 || (size_t)view->buffer >= column->heap_count || view->offset < 0) return false;
        if ((int64_t)view->offset + view->size > column->heap_sizes[view->buffer]) return false;
    }
    return true;
}

/* Take the values that are not null together. */
static bool gather(Column *column) {
    size_t size = column->kind == 's' ? sizeof(View) : 8, count = 0;
    const uint8_t *source = (const uint8_t *)column->source + column->offset * (column->kind == 'd' ? 4 : size);
    if (column->kind == 'b') return true;
    column->own = malloc(column->valid || column->kind == 'd' ? (column->rows + 1) * size : 1);
    if (!column->own) return false;
    if (column->kind == 'd') {
        int64_t *out = column->own;
        for (size_t n = 0; n < column->rows; n++) {
            int32_t value;
            memcpy(&value, source + 4 * n, 4);
            out[count] = value;
            count += is_valid(column, n);
        }
        column->numbers = out;
    } else if (column->valid) {
        uint8_t *out = column->own;
        for (size_t n = 0; n < column->rows; n++) {
            memcpy(out + count * size, source + n * size, size);
            count += is_valid(column, n);
        }
    }
    void *values = column->valid || column->kind == 'd' ? column->own : (void *)(uintptr_t)source;
    if (column->kind == 's') column->views = values;
    else column->numbers = values;
    return column->kind != 's' || sound(column);
}

/* ── levels and indices ─────────────────────────────────────────────────────────────────────────────────────────── */

static bool put_run(Bytes *out, uint32_t value, size_t count, int width) {
    return put_varint(out, (uint64_t)count << 1) && put(out, &value, (size_t)(width + 7) / 8);
}

static bool put_groups(Bytes *out, const uint32_t *values, size_t count, int width) {
    size_t whole = count & ~(size_t)7;
    uint32_t last[8] = {0};
    if (!count) return true;
    if (count > whole) memcpy(last, values + whole, (count - whole) * sizeof *last);
    return put_varint(out, (uint64_t)((count + 7) / 8) << 1 | 1) && put_packed(out, values, whole, width) &&
           (count == whole || put_packed(out, last, 8, width));
}

/* Write small numbers as runs of one value and groups of packed ones. */
static bool put_hybrid(Bytes *out, const uint32_t *values, size_t count, int width) {
    size_t begin = 0, at = 0;
    while (at < count) {
        size_t end = at + 1;
        while (end < count && values[end] == values[at]) end++;
        if (end - at >= 16) {
            if (!put_groups(out, values + begin, at - begin, width)) return false;
            if (!put_run(out, values[at], end - at, width)) return false;
            begin = at = end;
        } else {
            /* Packed values stand in groups of eight. */
            at = at + 8 < count ? at + 8 : count;
        }
    }
    return put_groups(out, values + begin, count - begin, width);
}

/* Write which rows have a value. */
static bool put_levels(Column *column) {
    if (column->count == column->rows || !column->count)
        return !column->rows || put_run(&column->levels, column->count > 0, column->rows, 1);
    uint32_t *levels = malloc(column->rows * sizeof *levels);
    if (!levels) return false;
    for (size_t n = 0; n < column->rows; n++) levels[n] = is_valid(column, n);
    bool fine = put_hybrid(&column->levels, levels, column->rows, 1);
    free(levels);
    return fine;
}

/* ── dictionaries ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* Values seen so far: for each where it was first, and its key: a number is its own, of a text it is the hash. */
typedef struct {
    uint32_t *slots, *firsts;
    uint64_t *keys;
    size_t mask, room;
    uint32_t count;
} Table;

static uint64_t mixed(uint64_t one, uint64_t two) {
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)one * two;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t sum = (one ^ (two >> 32 | two << 32)) * 0x9E3779B97F4A7C15u;
    return sum ^ sum >> 29;
#endif
}

static uint64_t word(const void *at) {
    uint64_t out;
    memcpy(&out, at, 8);
    return out;
}

/* Mix all bytes of a text; the last sixteen may be mixed twice. A short one lies in its view, with zeros behind it. */
static uint64_t hash_text(const Column *column, const View *view) {
    const uint64_t first = 0xA0761D6478BD642Fu, second = 0xE7037ED1A0B428DBu;
    uint64_t hash = mixed(word(view) ^ first, word((const uint8_t *)view + 8) ^ second);
    if (view->size <= INLINE) return hash;
    const uint8_t *at = text(column, view), *end = at + view->size;
    hash = (uint64_t)view->size ^ second;
    for (; end - at > 16; at += 16) hash = mixed(word(at) ^ hash, word(at + 8) ^ first);
    if (view->size < 16) return mixed(word(at) ^ hash, word(end - 8) ^ first);
    return mixed(word(end - 16) ^ hash, word(end - 8) ^ first);
}

static bool same_text(const Column *column, const View *one, const View *two) {
    if (word(one) != word(two)) return false;
    if (one->size <= INLINE) return word((const uint8_t *)one + 8) == word((const uint8_t *)two + 8);
    return !memcmp(text(column, one), text(column, two), (size_t)one->size);
}

static uint64_t spread(uint64_t key) { return mixed(key ^ 0xA0761D6478BD642Fu, 0xE7037ED1A0B428DBu); }

/* Make the table twice as large. */
static bool grow(Table *table, bool words) {
    size_t size = table->mask ? 2 * (table->mask + 1) : 1024;
    uint32_t *slots = calloc(size, sizeof *slots);
    if (!slots) return false;
    free(table->slots);
    table->slots = slots;
    table->mask = size - 1;
    uint32_t *firsts = realloc(table->firsts, size / 2 * sizeof *firsts);
    if (!firsts) return false;
    table->firsts = firsts;
    uint64_t *keys = realloc(table->keys, size / 2 * sizeof *keys);
    if (!keys) return false;
    table->keys = keys;
    table->room = size / 2;
    for (uint32_t n = 0; n < table->count; n++) {
        size_t slot = (words ? keys[n] : spread(keys[n])) & table->mask;
        while (slots[slot]) slot = (slot + 1) & table->mask;
        slots[slot] = n + 1;
    }
    return true;
}

/* Number the values in the order in which they are first seen; 0 when a dictionary does not help, -1 without memory.
 * `words` is known where this is called, so that there are two of it, each without the other's questions. */
static inline int look_up_one(Column *column, Table *table, bool words) {
    size_t steps = 0, heavy = 0, bound = PROBES * column->count + FIRST_LOOK;
    uint32_t *places = column->places = malloc((column->count + 1) * sizeof *places);
    if (!places || !grow(table, words)) return -1;
    for (size_t n = 0; n < column->count; n++) {
        const View *view = column->views + n;
        uint64_t key = words ? hash_text(column, view) : (uint64_t)column->numbers[n];
        size_t slot = (words ? key : spread(key)) & table->mask;
        uint32_t entry;
        for (; (entry = table->slots[slot]); slot = (slot + 1) & table->mask) {
            if (table->keys[entry - 1] == key &&
                (!words || same_text(column, view, column->views + table->firsts[entry - 1])))
                break;
            if (++steps > bound) return 0;
        }
        if (!entry) {
            heavy += words ? (size_t)view->size + 4 : 8;
            if (heavy > DICTIONARY_BYTES) return 0;
            table->keys[table->count] = key;
            table->firsts[table->count] = (uint32_t)n;
            entry = table->slots[slot] = ++table->count;
            if (table->count == table->room && !grow(table, words)) return -1;
        }
        places[n] = entry - 1;
        if (n == FIRST_LOOK && table->count > TOO_MANY) return 0;
    }
    return 1;
}

static int look_up(Column *column, Table *table) {
    return column->kind == 's' ? look_up_one(column, table, true) : look_up_one(column, table, false);
}

/* Write the values of a dictionary, and the numbers of the column's values in it. */
static bool put_dictionary(Column *column, const Table *table) {
    for (uint32_t n = 0; n < table->count; n++) {
        uint32_t first = table->firsts[n];
        const View *view = column->views + first;
        if (column->kind == 's') {
            if (!put(&column->dictionary, &view->size, 4)) return false;
            if (!put(&column->dictionary, text(column, view), (size_t)view->size)) return false;
        } else if (!put(&column->dictionary, &column->numbers[first], column->kind == 'd' ? 4 : 8)) {
            return false;
        }
    }
    column->entries = table->count;
    column->encoding = RLE_DICTIONARY;
    column->values.size = 0;
    int width = bits(table->count - 1);
    if (!width) width = 1;
    return put_byte(&column->values, width) && put_hybrid(&column->values, column->places, column->count, width);
}

/* ── encodings ──────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Write 32 numbers of so many bits. */
static void pack(uint8_t *at, const uint64_t *values, int width) {
    uint64_t held = 0;
    int have = 0;
    for (int n = 0; n < MINI; n++) {
        held |= values[n] << have;
        have += width;
        if (have >= 64) {
            memcpy(at, &held, 8);
            at += 8;
            have -= 64;
            held = have ? values[n] >> (width - have) : 0;
        }
    }
    if (have) memcpy(at, &held, 4);
}

/* Write whole numbers as differences, less the least of their block, in as many bits as the largest of 32 needs. */
static bool put_deltas(Bytes *out, const int64_t *values, size_t count, bool narrow) {
    if (!put_varint(out, BLOCK) || !put_varint(out, MINIS) || !put_varint(out, count)) return false;
    if (!put_zigzag(out, count ? values[0] : 0)) return false;
    for (size_t begin = 1; begin < count; begin += BLOCK) {
        size_t size = count - begin < BLOCK ? count - begin : BLOCK;
        int64_t deltas[BLOCK], least = INT64_MAX;
        for (size_t n = 0; n < size; n++) {
            uint64_t delta = (uint64_t)values[begin + n] - (uint64_t)values[begin + n - 1];
            deltas[n] = narrow ? (int32_t)(uint32_t)delta : (int64_t)delta;
            least = deltas[n] < least ? deltas[n] : least;
        }
        if (!put_zigzag(out, least)) return false;
        uint8_t *at = room(out, MINIS + BLOCK * 8);
        if (!at) return false;
        uint8_t *widths = at, *body = at + MINIS;
        for (size_t mini = 0; mini < MINIS; mini++) {
            uint64_t left[MINI] = {0}, any = 0;
            size_t from = mini * MINI, to = from + MINI < size ? from + MINI : size;
            for (size_t n = from; n < to; n++) {
                uint64_t more = (uint64_t)deltas[n] - (uint64_t)least;
                left[n - from] = narrow ? (uint32_t)more : more;
                any |= left[n - from];
            }
            widths[mini] = (uint8_t)bits(any);
            pack(body, left, widths[mini]);
            body += 4 * widths[mini];
        }
        out->size += (size_t)(body - at);
    }
    return true;
}

/* Write the first bytes of all decimals, then the second, and so on. */
static bool put_split(Bytes *out, const int64_t *values, size_t count) {
    uint8_t *at = room(out, 8 * count);
    if (!at) return false;
    for (size_t n = 0; n < count; n++) {
        uint64_t value = (uint64_t)values[n];
        for (size_t byte = 0; byte < 8; byte++) at[byte * count + n] = (uint8_t)(value >> (8 * byte));
    }
    out->size += 8 * count;
    return true;
}

/* Write the lengths of all texts, then their bytes. */
static bool put_texts(Column *column, size_t size) {
    int64_t *lengths = malloc((column->count + 1) * sizeof *lengths);
    if (!lengths) return false;
    for (size_t n = 0; n < column->count; n++) lengths[n] = column->views[n].size;
    bool fine = put_deltas(&column->values, lengths, column->count, true);
    free(lengths);
    uint8_t *at = fine ? room(&column->values, size) : NULL;
    if (!at) return false;
    for (size_t n = 0; n < column->count; n++) {
        const View *view = &column->views[n];
        memcpy(at, text(column, view), (size_t)view->size);
        at += view->size;
    }
    column->values.size += size;
    return true;
}

static bool put_truths(Column *column) {
    uint8_t *out = room(&column->values, (column->rows + 7) / 8 + 1);
    if (!out) return false;
    memset(out, 0, (column->rows + 7) / 8 + 1);
    size_t count = 0;
    bool seen[2] = {false, false};
    for (size_t n = 0; n < column->rows; n++) {
        if (!is_valid(column, n)) continue;
        const uint8_t *source = column->source;
        size_t at = n + column->offset;
        bool truth = column->bytes ? source[at] != 0 : source[at >> 3] >> (at & 7) & 1;
        seen[truth] = true;
        out[count >> 3] |= (uint8_t)(truth << (count & 7));
        count++;
    }
    column->values.size += (count + 7) / 8;
    column->bounded = count > 0;
    column->least[0] = !seen[0];
    column->most[0] = seen[1];
    column->least_size = column->most_size = 1;
    return true;
}

/* ── statistics ─────────────────────────────────────────────────────────────────────────────────────────────────── */

static void keep_bounds(Column *column, const void *least, size_t least_size, const void *most, size_t most_size) {
    column->bounded = least_size <= STATISTIC && most_size <= STATISTIC;
    if (!column->bounded) return;
    memcpy(column->least, least, column->least_size = least_size);
    memcpy(column->most, most, column->most_size = most_size);
}

static void bound_numbers(Column *column) {
    int64_t least = column->numbers[0], most = least;
    for (size_t n = 1; n < column->count; n++) {
        least = column->numbers[n] < least ? column->numbers[n] : least;
        most = column->numbers[n] > most ? column->numbers[n] : most;
    }
    keep_bounds(column, &least, column->kind == 'd' ? 4 : 8, &most, column->kind == 'd' ? 4 : 8);
}

/* What is no number has no place in an order; zero may have either sign. */
static void bound_decimals(Column *column) {
    double least = INFINITY, most = -INFINITY, value;
    bool any = false;
    for (size_t n = 0; n < column->count; n++) {
        memcpy(&value, &column->numbers[n], 8);
        least = value < least ? value : least;
        most = value > most ? value : most;
        any |= value == value;
    }
    if (!any) return;
    if (least == 0) least = -0.0;
    if (most == 0) most = 0.0;
    keep_bounds(column, &least, 8, &most, 8);
}

static int order(const Column *column, const View *one, const View *two) {
    uint32_t first, second;
    memcpy(&first, one->prefix, 4);
    memcpy(&second, two->prefix, 4);
    /* Bytes of a prefix that a short text does not have are zero. */
    if (first != second) return __builtin_bswap32(first) < __builtin_bswap32(second) ? -1 : 1;
    int size = one->size < two->size ? one->size : two->size;
    int found = memcmp(text(column, one), text(column, two), (size_t)size);
    return found ? found : (one->size > two->size) - (one->size < two->size);
}

static void bound_texts(Column *column, const Table *table) {
    size_t count = table ? table->count : column->count;
    const View *least = column->views, *most = least;
    for (size_t n = 0; n < count; n++) {
        const View *view = column->views + (table ? table->firsts[n] : n);
        if (order(column, view, least) < 0) least = view;
        else if (order(column, view, most) > 0) most = view;
    }
    keep_bounds(column, text(column, least), (size_t)least->size, text(column, most), (size_t)most->size);
}

/* ── a column ───────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool encode_plainly(Column *column, size_t size) {
    if (column->kind == 's') {
        column->encoding = DELTA_LENGTH;
        return put_texts(column, size);
    }
    column->encoding = column->kind == 'f' ? BYTE_SPLIT : DELTA_BINARY;
    return column->kind == 'f' ? put_split(&column->values, column->numbers, column->count)
                               : put_deltas(&column->values, column->numbers, column->count, column->kind == 'd');
}

/* Encode the values of a column in the shorter of two ways. */
static bool encode_values(Column *column) {
    Table table = {0};
    int found = look_up(column, &table);
    bool fine = found >= 0;
    size_t size = 0, plain = 8 * column->count, packed = 0;
    if (column->kind == 's')
        for (size_t n = 0; n < column->count; n++) size += (size_t)column->views[n].size;
    if (fine) {
        if (column->kind == 's') bound_texts(column, found ? &table : NULL);
        else if (column->kind == 'f') bound_decimals(column);
        else bound_numbers(column);
    }
    if (found > 0) {
        for (uint32_t n = 0; n < table.count; n++)
            packed += column->kind == 's' ? 4 + (size_t)column->views[table.firsts[n]].size : 8;
        packed += column->count * (size_t)bits(table.count) / 8;
        if (column->kind == 's') plain = size + column->count;
    }
    bool whole = column->kind == 'i' || column->kind == 'd';
    if (fine && whole) {
        fine = encode_plainly(column, size);
        plain = column->values.size;
    }
    if (fine && found > 0 && packed < plain - plain / 16) fine = put_dictionary(column, &table);
    else if (fine && !whole) fine = encode_plainly(column, size);
    free(table.slots), free(table.firsts), free(table.keys);
    return fine;
}

static bool encode(Column *column) {
    column->count = 0;
    for (size_t n = 0; column->valid && n < column->rows; n++) column->count += is_valid(column, n);
    if (!column->valid) column->count = column->rows;
    else if (column->count == column->rows) column->valid = NULL;
    column->encoding = PLAIN;
    if (!gather(column) || !put_levels(column)) return false;
    if (column->kind == 'b') return put_truths(column);
    return !column->count || encode_values(column);
}

/* ── Thrift ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

enum { TRUE = 1, FALSE = 2, T_I32 = 5, T_I64 = 6, BINARY = 8, LIST = 9, STRUCT = 12 };

/* A structure that is being written: its bytes, and the number of the field before. */
typedef struct {
    Bytes *out;
    int last;
    bool fine;
} Fields;

static void put_field(Fields *fields, int number, int type) {
    fields->fine = fields->fine && put_byte(fields->out, (number - fields->last) << 4 | type);
    fields->last = number;
}

static void put_number(Fields *fields, int number, int type, int64_t value) {
    put_field(fields, number, type);
    fields->fine = fields->fine && put_zigzag(fields->out, value);
}

static void put_binary(Fields *fields, int number, const void *data, size_t size) {
    put_field(fields, number, BINARY);
    fields->fine = fields->fine && put_varint(fields->out, size) && put(fields->out, data, size);
}

static bool put_list(Bytes *out, size_t size, int type) {
    return size < 15 ? put_byte(out, (int)size << 4 | type) : put_byte(out, 0xF0 | type) && put_varint(out, size);
}

static Fields put_struct(Fields *fields, int number) {
    put_field(fields, number, STRUCT);
    return (Fields){fields->out, 0, fields->fine};
}

static void end_struct(Fields *inner, Fields *outer) { outer->fine = inner->fine && put_byte(outer->out, 0); }

/* Write the head of a page. `levels` is how many bytes of it say which rows have a value; those are never compressed. */
static bool put_page(Bytes *out, const Column *column, bool dictionary, size_t raw, size_t packed, bool compressed) {
    Fields page = {out, 0, true};
    size_t levels = dictionary ? 0 : column->levels.size;
    put_number(&page, 1, T_I32, dictionary ? 2 : 3);
    put_number(&page, 2, T_I32, (int64_t)(raw + levels));
    put_number(&page, 3, T_I32, (int64_t)(packed + levels));
    Fields inner = put_struct(&page, dictionary ? 7 : 8);
    if (dictionary) {
        put_number(&inner, 1, T_I32, column->entries);
        put_number(&inner, 2, T_I32, PLAIN);
    } else {
        put_number(&inner, 1, T_I32, (int64_t)column->rows);
        put_number(&inner, 2, T_I32, (int64_t)(column->rows - column->count));
        put_number(&inner, 3, T_I32, (int64_t)column->rows);
        put_number(&inner, 4, T_I32, column->encoding);
        put_number(&inner, 5, T_I32, (int64_t)levels);
        put_number(&inner, 6, T_I32, 0);
        put_field(&inner, 7, compressed ? TRUE : FALSE);
    }
    end_struct(&inner, &page);
    return page.fine && put_byte(out, 0);
}

/* Where the pages of a column lie, and how large they are. */
typedef struct {
    Bytes head, dictionary_head;
    PyObject *packed, *packed_dictionary; /* NULL when not compressed */
    const uint8_t *body, *dictionary;
    size_t size, dictionary_size;
    int codec;
} Pages;

static size_t dictionary_page(const Pages *pages) { return pages->dictionary_head.size + pages->dictionary_size; }

static size_t data_page(const Column *column, const Pages *pages) {
    return pages->head.size + column->levels.size + pages->size;
}

static int physical(const Column *column) {
    return column->kind == 'b' ? BOOLEAN : column->kind == 'd' ? INT32 : column->kind == 'f' ? DOUBLE
           : column->kind == 's' ? BYTE_ARRAY : INT64;
}

/* Write what the footer says of a column whose pages begin at a place. */
static bool put_chunk(Bytes *out, const Column *column, const Pages *pages, const char *name, size_t name_size, int64_t at) {
    bool dictionary = column->encoding == RLE_DICTIONARY;
    int64_t size = (int64_t)(data_page(column, pages) + (dictionary ? dictionary_page(pages) : 0));
    int64_t raw = (int64_t)(pages->head.size + column->levels.size + column->values.size +
                            (dictionary ? pages->dictionary_head.size + column->dictionary.size : 0));
    Fields chunk = {out, 0, true};
    put_number(&chunk, 2, T_I64, 0);
    Fields meta = put_struct(&chunk, 3);
    put_number(&meta, 1, T_I32, physical(column));
    put_field(&meta, 2, LIST);
    meta.fine = meta.fine && put_list(out, dictionary ? 3 : 2, T_I32) && put_zigzag(out, RLE) &&
                (!dictionary || put_zigzag(out, PLAIN)) && put_zigzag(out, column->encoding);
    put_field(&meta, 3, LIST);
    meta.fine = meta.fine && put_list(out, 1, BINARY) && put_varint(out, name_size) && put(out, name, name_size);
    put_number(&meta, 4, T_I32, pages->codec);
    put_number(&meta, 5, T_I64, (int64_t)column->rows);
    put_number(&meta, 6, T_I64, raw);
    put_number(&meta, 7, T_I64, size);
    put_number(&meta, 9, T_I64, at + (dictionary ? (int64_t)dictionary_page(pages) : 0));
    if (dictionary) put_number(&meta, 11, T_I64, at);
    Fields known = put_struct(&meta, 12);
    put_number(&known, 3, T_I64, (int64_t)(column->rows - column->count));
    if (column->bounded) {
        put_binary(&known, 5, column->most, column->most_size);
        put_binary(&known, 6, column->least, column->least_size);
    }
    end_struct(&known, &meta);
    end_struct(&meta, &chunk);
    return chunk.fine && put_byte(out, 0);
}

/* ── compression ────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Compress bytes by a Python callable; a new reference to a bytes object, or NULL. */
static PyObject *packed(PyObject *compress, const uint8_t *data, size_t size) {
    PyObject *view = PyMemoryView_FromMemory((char *)(uintptr_t)data, (Py_ssize_t)size, PyBUF_READ);
    PyObject *out = view ? PyObject_CallFunctionObjArgs(compress, view, NULL) : NULL;
    Py_XDECREF(view);
    if (out && !PyBytes_Check(out)) {
        PyErr_SetString(PyExc_TypeError, "what is compressed is bytes");
        Py_CLEAR(out);
    }
    return out;
}

/* Compress bytes where that makes them smaller; `*out` stays NULL where it does not. False when it fails. Where all
 * parts of a page are alike a sample tells; of decimals that are split only the last bytes repeat. */
static bool pack_page(PyObject *compress, const Bytes *raw, bool alike, PyObject **out) {
    *out = NULL;
    if (raw->size < 64) return true;
    if (alike && raw->size > SAMPLED) {
        PyObject *sample = packed(compress, raw->data + raw->size / 2, SAMPLE);
        if (!sample) return false;
        Py_ssize_t size = PyBytes_Size(sample);
        Py_DECREF(sample);
        if (size > SAMPLE - SAMPLE / 8) return true;
    }
    PyObject *whole = packed(compress, raw->data, raw->size);
    if (!whole) return false;
    if ((size_t)PyBytes_Size(whole) > raw->size - raw->size / 16) Py_DECREF(whole);
    else *out = whole;
    return true;
}

/* Compress the pages of a column and write their heads. */
static bool finish_column(PyObject *compress, int codec, const Column *column, Pages *pages) {
    bool dictionary = column->encoding == RLE_DICTIONARY;
    size_t most = INT32_MAX - column->levels.size;
    if (column->values.size > most || column->dictionary.size > most || column->rows > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a page has at most 2 GiB");
        return false;
    }
    if (!pack_page(compress, &column->values, column->encoding != BYTE_SPLIT, &pages->packed)) return false;
    if (dictionary && !pack_page(compress, &column->dictionary, true, &pages->packed_dictionary)) return false;
    pages->codec = pages->packed || pages->packed_dictionary ? codec : 0;
    /* A dictionary cannot say by itself that it is not compressed. */
    if (dictionary && pages->codec && !pages->packed_dictionary) {
        pages->packed_dictionary = packed(compress, column->dictionary.data, column->dictionary.size);
        if (!pages->packed_dictionary) return false;
    }
    PyObject *body = pages->packed, *words = pages->packed_dictionary;
    pages->body = body ? (const uint8_t *)PyBytes_AsString(body) : column->values.data;
    pages->size = body ? (size_t)PyBytes_Size(body) : column->values.size;
    pages->dictionary = words ? (const uint8_t *)PyBytes_AsString(words) : column->dictionary.data;
    pages->dictionary_size = words ? (size_t)PyBytes_Size(words) : column->dictionary.size;
    bool fine = put_page(&pages->head, column, false, column->values.size, pages->size, body != NULL);
    if (dictionary)
        fine = fine && put_page(&pages->dictionary_head, column, true, column->dictionary.size, pages->dictionary_size, true);
    if (!fine) PyErr_NoMemory();
    return fine;
}

/* ── Python ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Take the one array of a stream; a stream without any has no rows. */
static bool take_stream(PyObject *capsule, Column *column) {
    struct ArrowArrayStream *stream = PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (!stream) return false;
    struct ArrowArray rest = {0};
    if (!stream->release || stream->get_schema(stream, &column->schema) || stream->get_next(stream, &column->array) ||
        (column->array.release && stream->get_next(stream, &rest))) {
        PyErr_SetString(PyExc_ValueError, "the stream of a column could not be read");
        return false;
    }
    if (rest.release) {
        rest.release(&rest);
        PyErr_SetString(PyExc_ValueError, "a column is one array");
        return false;
    }
    return true;
}

/* Take a column from the capsule of a stream, which is used up. */
static bool take_column(PyObject *capsule, Column *column) {
    if (!take_stream(capsule, column)) return false;
    const struct ArrowSchema *schema = &column->schema;
    const struct ArrowArray *array = &column->array;
    const char *format = schema->format;
    column->bytes = !strcmp(format, "C");
    column->kind = !strcmp(format, "l") || !strncmp(format, "tsu:", 4) ? 'i'
                   : !strcmp(format, "tdD") ? 'd'
                   : !strcmp(format, "g") ? 'f'
                   : !strcmp(format, "b") || column->bytes ? 'b'
                   : !strcmp(format, "vu") ? 's' : 0;
    bool empty = !array->release;
    if (!column->kind || (!empty && (array->length < 0 || array->n_buffers < (column->kind == 's' ? 3 : 2)))) {
        PyErr_Format(PyExc_TypeError, "no column of format %s is known", format);
        return false;
    }
    if (empty) return true;
    if (array->length > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a row group has at most 2 ** 31 rows");
        return false;
    }
    column->rows = (size_t)array->length;
    column->offset = (size_t)array->offset;
    column->valid = array->null_count ? array->buffers[0] : NULL;
    column->source = array->buffers[1];
    if (column->kind == 's') {
        column->heaps = (const uint8_t *const *)array->buffers + 2;
        column->heap_count = (size_t)array->n_buffers - 3;
        column->heap_sizes = array->buffers[array->n_buffers - 1];
    }
    return true;
}

/* Put the pages one after the other, and what the footer says of them beside them. */
static PyObject *row_group(PyObject *names, const Column *columns, const Pages *pages, size_t width, int64_t begin) {
    Bytes group = {0};
    size_t total = 0, raw = 0, rows = width ? columns[0].rows : 0;
    for (size_t n = 0; n < width; n++) total += dictionary_page(&pages[n]) + data_page(&columns[n], &pages[n]);
    PyObject *body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total), *out = NULL;
    if (!body) return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AsString(body), *first = at;
    Fields fields = {&group, 0, true};
    put_field(&fields, 1, LIST);
    fields.fine = fields.fine && put_list(&group, width, STRUCT);
    for (size_t n = 0; fields.fine && n < width; n++) {
        const Bytes parts[] = {
            pages[n].dictionary_head, {(uint8_t *)(uintptr_t)pages[n].dictionary, pages[n].dictionary_size, 0},
            pages[n].head, columns[n].levels, {(uint8_t *)(uintptr_t)pages[n].body, pages[n].size, 0},
        };
        char *name;
        Py_ssize_t size;
        int64_t place = begin + (at - first);
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(names, (Py_ssize_t)n), &name, &size) < 0) goto done;
        fields.fine = put_chunk(&group, &columns[n], &pages[n], name, (size_t)size, place);
        for (size_t part = 0; part < sizeof parts / sizeof *parts; part++) {
            if (parts[part].size) memcpy(at, parts[part].data, parts[part].size);
            at += parts[part].size;
        }
        raw += pages[n].head.size + pages[n].dictionary_head.size + columns[n].levels.size + columns[n].values.size +
               columns[n].dictionary.size;
    }
    put_number(&fields, 2, T_I64, (int64_t)raw);
    put_number(&fields, 3, T_I64, (int64_t)rows);
    put_number(&fields, 5, T_I64, begin);
    put_number(&fields, 6, T_I64, (int64_t)total);
    if (fields.fine && put_byte(&group, 0))
        out = Py_BuildValue("(Oy#)", body, (const char *)group.data, (Py_ssize_t)group.size);
    else PyErr_NoMemory();
done:
    free(group.data);
    Py_DECREF(body);
    return out;
}

static PyObject *pages_encode(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *names, *pairs, *compress, *out = NULL;
    int codec;
    long long begin;
    if (!PyArg_ParseTuple(args, "O!O!OiL", &PyTuple_Type, &names, &PyTuple_Type, &pairs, &compress, &codec, &begin))
        return NULL;
    size_t width = (size_t)PyTuple_Size(pairs);
    Column *columns = calloc(width + 1, sizeof *columns);
    Pages *pages = calloc(width + 1, sizeof *pages);
    bool fine = columns && pages;
    if (!fine) PyErr_NoMemory();
    if (fine && PyTuple_Size(names) != PyTuple_Size(pairs)) {
        PyErr_SetString(PyExc_ValueError, "each column has a name");
        fine = false;
    }
    for (size_t n = 0; fine && n < width; n++) {
        fine = take_column(PyTuple_GetItem(pairs, (Py_ssize_t)n), &columns[n]);
        if (fine && columns[n].rows != columns[0].rows) {
            PyErr_SetString(PyExc_ValueError, "columns are of one length");
            fine = false;
        }
    }
    if (fine) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t n = 0; fine && n < width; n++) fine = encode(&columns[n]);
        Py_END_ALLOW_THREADS
        if (!fine) PyErr_SetString(PyExc_MemoryError, "columns could not be encoded");
    }
    for (size_t n = 0; fine && n < width; n++) fine = finish_column(compress, codec, &columns[n], &pages[n]);
    if (fine) out = row_group(names, columns, pages, width, begin);
    for (size_t n = 0; columns && pages && n < width; n++) {
        if (columns[n].array.release) columns[n].array.release(&columns[n].array);
        if (columns[n].schema.release) columns[n].schema.release(&columns[n].schema);
        free(columns[n].own), free(columns[n].places);
        free(columns[n].levels.data), free(columns[n].values.data), free(columns[n].dictionary.data);
        free(pages[n].head.data), free(pages[n].dictionary_head.data);
        Py_XDECREF(pages[n].packed), Py_XDECREF(pages[n].packed_dictionary);
    }
    free(columns), free(pages);
    return out;
}

static PyMethodDef METHODS[] = {
    {"encode", pages_encode, METH_VARARGS,
     "encode(names, columns, compress, codec, begin) -> (pages, row group): see pages.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_pages", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pages(void) { return PyModule_Create(&MODULE); }
