/* Clean rows of delimited text to typed Arrow columns, in one pass over the bytes.
 *
 * `read` walks over the lines of a chunk. A line becomes a row only when nothing at all is strange about it: as many
 * fields as columns, quotes in order, UTF-8, and every cell a plain value of its column's type or one of its words for
 * missing. Every other line is left alone and told by its state, for the Python rooms that look closer; this code
 * repairs nothing, guesses nothing and needs no second opinion, so it may be stricter than they are, never kinder.
 * Without it (no compiler at installation) Polars and NumPy do the same more slowly; a test holds both together.
 *
 * Memory: every index is checked against the line's end before it is read; buffers grow by doubling and belong to the
 * Arrow arrays that are given away (Arrow C data interface, https://arrow.apache.org/docs/format/CDataInterface.html).
 * The lock of the interpreter is free while lines are read: nothing of Python's is touched then.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <locale.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_arrow.h"
#ifdef __APPLE__
#include <xlocale.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE_ENDIAN_WORDS
#endif

enum { DONE = 0, GOOD = 1, BAD = 2, ODD = 4, QUOTED = 8 };
enum { PLAIN = 0, HIGH = 1, SPECIAL = 2 };
enum { MOST_DIGITS = 18, MOST_EXACT = 15, LONG_NUMBER = 64, MOST_GUESSED = 1 << 17 };

/* ── Arrow ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* What an exported array owns: its buffers, and the list of them. */
typedef struct {
    const void *buffers[4];
    int64_t variadic;
} Owned;

static void release_schema(struct ArrowSchema *schema) { schema->release = NULL; }

static void release_array(struct ArrowArray *array) {
    Owned *owned = array->private_data;
    free((void *)owned->buffers[0]);
    free((void *)owned->buffers[1]);
    if (array->n_buffers == 4) free((void *)owned->buffers[2]);
    free(owned);
    array->release = NULL;
}

static void drop_schema(PyObject *capsule) {
    struct ArrowSchema *schema = PyCapsule_GetPointer(capsule, "arrow_schema");
    if (schema->release) schema->release(schema);
    free(schema);
}

static void drop_array(PyObject *capsule) {
    struct ArrowArray *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (array->release) array->release(array);
    free(array);
}

/* ── columns ────────────────────────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const char *text;
    Py_ssize_t size;
} Word;

/* A cell that holds a word for missing. */
typedef struct {
    int32_t row, column, word;
} Hit;

/* One column: its type ('i' 'f' 'b' 'D' 'T' 's', or '-' when it is dropped), and its cells so far. */
typedef struct {
    char type;
    bool spelt; /* cells are kept as they are spelt, and only checked against the type */
    bool easy;  /* a value that can be read before its end is known: no word for missing reads as one */
    uint8_t usual, between; /* times: 1 has a date, 2 a date, a sign and a time of day, as in 2024-02-29 23:59:59 */
    const char *format;
    Py_ssize_t format_size;
    Word *words; /* missing, then true, then false */
    bool first[256]; /* bytes that words for missing begin with */
    Py_ssize_t missing, truths, lies;
    uint8_t *valid, *cells;
    size_t room;   /* rows that fit */
    uint8_t *heap; /* text that is too long to lie in its view */
    size_t fill, capacity;
} Column;

typedef struct {
    const uint8_t *data;
    size_t size, reach;
    int delimiter, quote;
    uint8_t newline;
    uint8_t open[256], closed[256]; /* classes of bytes outside and inside quotes */
    Column *columns;
    size_t width;
    locale_t plain;
    const int64_t *places; /* where rows begin and end, when that is given; they may hold line endings inside quotes */
    size_t row_count;
    int64_t *starts;
    uint8_t *states;
    size_t lines, line_room, rows, guess; /* how many rows there may be: a multiple of eight */
    Hit *hits;
    size_t hit_count, hit_room;
} Reader;

static bool as_text(const Column *column) { return column->spelt || column->type == 's'; }

static size_t cell_size(const Column *column) {
    if (as_text(column)) return sizeof(View);
    return column->type == 'D' ? 4 : column->type == 'b' ? 1 : 8;
}

static bool grow_column(const Reader *reader, Column *column) {
    size_t room = column->room ? column->room * 2 : reader->guess;
    uint8_t *cells = realloc(column->cells, room * cell_size(column));
    if (!cells) return false;
    column->cells = cells;
    uint8_t *valid = realloc(column->valid, room / 8);
    if (!valid) return false;
    memset(valid + column->room / 8, 0xFF, (room - column->room) / 8); /* cleared where a cell is missing */
    column->valid = valid;
    column->room = room;
    return true;
}

static void put_valid(Column *column, size_t row, bool valid) {
    uint8_t bit = (uint8_t)(1u << (row & 7));
    if (valid) column->valid[row >> 3] |= bit;
    else column->valid[row >> 3] &= (uint8_t)~bit;
}

static bool grow_heap(Column *column, size_t size) {
    size_t capacity = column->capacity ? column->capacity : 1 << 16;
    while (capacity - column->fill < size) capacity *= 2;
    uint8_t *heap = realloc(column->heap, capacity);
    if (!heap) return false;
    column->heap = heap;
    column->capacity = capacity;
    return true;
}

/* Keep text as an Arrow string view; `doubled` says that each quote in it is written twice. */
static inline bool put_text(const Reader *reader, Column *column, const uint8_t *text, size_t size, bool doubled) {
    View view = {.size = (int32_t)size};
    uint8_t *cell = column->cells + reader->rows * sizeof view;
    if (size <= INLINE && !doubled) {
#ifdef LITTLE_ENDIAN_WORDS
        if (reader->data + reader->size - text >= 16) {
            /* Twelve bytes are read whatever the size, and what is not of the text is cut off. */
            uint64_t low, high;
            memcpy(&low, text, 8);
            memcpy(&high, text + 8, 8);
            low = size < 8 ? low & ((1ull << (8 * size)) - 1) : low;
            high = size > 8 ? high & ((1ull << (8 * (size - 8))) - 1) : 0;
            uint64_t first = (uint64_t)size | low << 32, second = low >> 32 | high << 32;
            memcpy(cell, &first, 8);
            memcpy(cell + 8, &second, 8);
            return true;
        }
#endif
        memcpy((uint8_t *)&view + 4, text, size);
        memcpy(cell, &view, sizeof view);
        return true;
    }
    if (column->capacity - column->fill < size && !grow_heap(column, size)) return false;
    uint8_t *target = column->heap + column->fill;
    if (doubled) {
        size_t kept = 0;
        for (size_t at = 0; at < size; at++) {
            target[kept++] = text[at];
            if (text[at] == reader->quote) at++;
        }
        view.size = (int32_t)kept;
    } else {
        memcpy(target, text, size);
    }
    if (view.size <= INLINE) {
        memcpy((uint8_t *)&view + 4, target, (size_t)view.size);
    } else {
        memcpy(view.prefix, target, 4);
        view.offset = (int32_t)column->fill;
        column->fill += (size_t)view.size;
    }
    memcpy(cell, &view, sizeof view);
    return true;
}

/* ── cells ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

/* These read a value from the front of what is left of a line, and return where it ends; NULL when there is none. */

#ifdef LITTLE_ENDIAN_WORDS
/* Read up to eight digits at once: how many stand at the front of eight bytes, and their value (D. Lemire, Quickly
 * parsing eight digits, 2018). */
static inline int eight(const uint8_t *at, uint64_t *out) {
    uint64_t word;
    memcpy(&word, at, 8);
    word ^= 0x3030303030303030u;
    uint64_t others = ((word + 0x7676767676767676u) | word) & 0x8080808080808080u; /* exact up to the first */
    int count = others ? __builtin_ctzll(others) >> 3 : 8;
    if (!count) return 0;
    word <<= 64 - 8 * count; /* zeros come before the digits */
    word = word * 10 + (word >> 8);
    *out = (((word & 0x000000FF000000FFu) * 0x000F424000000064u) +
            (((word >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >> 32;
    return count;
}
#endif

static const int64_t TENS[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};

static inline const uint8_t *read_int(const uint8_t *at, const uint8_t *end, int64_t *out) {
    bool minus = at < end && *at == '-';
    at += minus;
    const uint8_t *begin = at;
    int64_t value = 0;
    /* 007 is a code: as a number it would lose its zeros. */
    if (end - at > 1 && *at == '0' && digit(at[1])) return NULL;
#ifdef LITTLE_ENDIAN_WORDS
    for (int count = 8; count == 8 && end - at >= 8 && at - begin <= 8; at += count) {
        uint64_t part = 0;
        count = eight(at, &part);
        value = value * TENS[count] + (int64_t)part;
    }
#endif
    for (; at < end && digit(*at); at++) {
        if (at - begin == MOST_DIGITS) return NULL;
        value = value * 10 + (*at - '0');
    }
    *out = minus ? -value : value;
    return at == begin ? NULL : at;
}

static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* Up to fifteen digits and a power of ten up to 22 are both exact, so one division rounds once and right (W. Clinger,
 * How to read floating point numbers accurately, 1990); the C library reads the others, in the C locale. */
static const uint8_t *read_any_float(const Reader *reader, const uint8_t *at, const uint8_t *end, double *out) {
    const uint8_t *begin = at;
    bool minus = at < end && *at == '-', plain = true;
    at += minus;
    int64_t mantissa = 0;
    int digits = 0, decimals = 0;
    if (at >= end || !digit(*at)) return NULL;
    for (; at < end && digit(*at); at++) {
        if (digits < MOST_EXACT) mantissa = mantissa * 10 + (*at - '0');
        digits += digits || *at != '0';
    }
    if (at < end && *at == '.') {
        at++;
        if (at >= end || !digit(*at)) return NULL;
        for (; at < end && digit(*at); at++, decimals++) {
            if (digits < MOST_EXACT) mantissa = mantissa * 10 + (*at - '0');
            digits += digits || *at != '0';
        }
    }
    if (at < end && (*at | 0x20) == 'e') {
        plain = false;
        at++;
        if (at < end && (*at == '-' || *at == '+')) at++;
        if (at >= end || !digit(*at)) return NULL;
        while (at < end && digit(*at)) at++;
    }
    if (plain && digits <= MOST_EXACT && decimals <= 22) {
        double value = (double)mantissa / POWERS[decimals];
        *out = minus ? -value : value;
        return at;
    }
    char copy[LONG_NUMBER];
    size_t size = (size_t)(at - begin);
    if (size >= sizeof copy) return NULL;
    memcpy(copy, begin, size);
    copy[size] = 0;
    *out = strtod_l(copy, NULL, reader->plain);
    return isfinite(*out) ? at : NULL;
}

static inline const uint8_t *read_float(const Reader *reader, const uint8_t *at, const uint8_t *end, double *out) {
#ifdef LITTLE_ENDIAN_WORDS
    /* Mostly up to eight digits before the point and up to seven behind it. */
    const uint8_t *p = at + (at < end && *at == '-');
    if (end - p >= 24) {
        uint64_t whole, part = 0;
        int count = eight(p, &whole), decimals = 0;
        p += count;
        if (count && *p == '.') {
            decimals = eight(p + 1, &part);
            p += 1 + decimals;
            if (!decimals) count = 0;
        }
        if (count && decimals < 8 && !digit(*p) && (*p | 0x20) != 'e') {
            double value = (double)((int64_t)whole * TENS[decimals] + (int64_t)part) / POWERS[decimals];
            *out = *at == '-' ? -value : value;
            return p;
        }
    }
#endif
    return read_any_float(reader, at, end, out);
}

static int two(const uint8_t *at) { return digit(at[0]) && digit(at[1]) ? (at[0] - '0') * 10 + at[1] - '0' : -1; }

/* Days from 1970-01-01 in the proleptic Gregorian calendar (H. Hinnant, chrono-Compatible Low-Level Date Algorithms). */
static int64_t days(int64_t year, int month, int day) {
    year -= month <= 2;
    int64_t era = year / 400, of_era = year - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/* Read a date or a timestamp by a format of Y m d H M S (each as wide as it is), f (a fraction or nothing) and literals
 * after a backslash; microseconds, or days for a date. */
static const uint8_t *read_any_time(const Column *column, const uint8_t *at, const uint8_t *end, int64_t *out) {
    static const int LENGTHS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0;
    int64_t micro = 0;
    for (Py_ssize_t n = 0; n < column->format_size; n++) {
        uint8_t sign = (uint8_t)column->format[n];
        if (sign == 'Y') {
            if (end - at < 4) return NULL;
            int high = two(at), low = two(at + 2);
            if (high < 10 || low < 0) return NULL;
            year = high * 100 + low;
            at += 4;
        } else if (sign == '\\') {
            if (at >= end || *at != (uint8_t)column->format[++n]) return NULL;
            at++;
        } else if (sign == 'f') {
            if (at >= end || *at != '.') continue;
            int64_t unit = 100000;
            if (++at >= end || !digit(*at)) return NULL;
            for (; at < end && digit(*at); at++, unit /= 10) {
                if (!unit) return NULL;
                micro += (*at - '0') * unit;
            }
        } else {
            int pair = end - at < 2 ? -1 : two(at);
            if (pair < 0) return NULL;
            *(sign == 'm' ? &month : sign == 'd' ? &day : sign == 'H' ? &hour : sign == 'M' ? &minute : &second) = pair;
            at += 2;
        }
    }
    if (month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59) return NULL;
    bool leap = month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > LENGTHS[month - 1] + leap) return NULL;
    int64_t date = days(year, month, day);
    *out = column->type == 'D' ? date : (((date * 24 + hour) * 60 + minute) * 60 + second) * 1000000 + micro;
    return at;
}

#ifdef LITTLE_ENDIAN_WORDS
/* Take signs from bytes; what is left are the digits' values, or false where one is no digit or a sign is another. */
static inline bool bare(const uint8_t *at, uint64_t signs, uint64_t most, uint64_t *out) {
    uint64_t word;
    memcpy(&word, at, 8);
    word ^= signs;
    *out = word;
    return !(((word + most) | word) & 0x8080808080808080u);
}
#endif

/* The same for year, month and day with a sign between them, and hour, minute and second, which are most common. */
static inline const uint8_t *read_time(const Column *column, const uint8_t *at, const uint8_t *end, int64_t *out) {
#ifdef LITTLE_ENDIAN_WORDS
    static const uint8_t LENGTHS[] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0, 0, 0};
    uint64_t date, clock;
    int64_t second = 0;
    if (!column->usual || end - at < 19) return read_any_time(column, at, end, out);
    if (!bare(at, 0x2D30302D30303030u, 0x7F76767F76767676u, &date)) return NULL;
    uint8_t tens = (uint8_t)(at[8] - '0'), ones = (uint8_t)(at[9] - '0');
    if (tens > 9 || ones > 9) return NULL;
    date = date * 10 + (date >> 8);
    int year = (int)(date & 0xFF) * 100 + (int)(date >> 16 & 0xFF), month = (int)(date >> 40 & 0xFF);
    int day = tens * 10 + ones;
    if (column->usual > 1) {
        if (at[10] != column->between || !bare(at + 11, 0x30303A30303A3030u, 0x76767F76767F7676u, &clock)) return NULL;
        clock = clock * 10 + (clock >> 8);
        int hour = (int)(clock & 0xFF), minute = (int)(clock >> 24 & 0xFF), rest = (int)(clock >> 48 & 0xFF);
        if (hour > 23 || minute > 59 || rest > 59) return NULL;
        second = (hour * 60 + minute) * 60 + rest;
    }
    if (year < 1000 || month < 1 || month > 12 || day < 1) return NULL;
    bool leap = month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > LENGTHS[month] + leap) return NULL;
    int64_t number = days(year, month, day);
    *out = column->type == 'D' ? number : (number * 86400 + second) * 1000000;
    return at + (column->usual > 1 ? 19 : 10);
#else
    return read_any_time(column, at, end, out);
#endif
}

static bool same(const Word *word, const uint8_t *at, size_t size, bool any_case) {
    if ((size_t)word->size != size) return false;
    if (!any_case) return !memcmp(word->text, at, size);
    for (size_t n = 0; n < size; n++) {
        uint8_t byte = at[n];
        if ((byte >= 'A' && byte <= 'Z' ? byte + 32 : byte) != (uint8_t)word->text[n]) return false;
    }
    return true;
}

static bool read_bool(const Column *column, const uint8_t *at, size_t size, uint8_t *out) {
    for (Py_ssize_t n = column->missing; n < column->missing + column->truths + column->lies; n++)
        if (same(&column->words[n], at, size, true)) {
            *out = n < column->missing + column->truths;
            return true;
        }
    return false;
}

/* Keep that a cell is missing, and by which word; one that is kept as spelt is missing only when it is empty. */
static bool put_missing(Reader *reader, Column *column, Py_ssize_t word, size_t size) {
    size_t row = reader->rows;
    put_valid(column, row, false);
    memset(column->cells + row * cell_size(column), 0, cell_size(column));
    if (!size || column->spelt) return true;
    if (reader->hit_count == reader->hit_room) {
        size_t room = reader->hit_room ? reader->hit_room * 2 : 1024;
        Hit *hits = realloc(reader->hits, room * sizeof *hits);
        if (!hits) return false;
        reader->hits = hits;
        reader->hit_room = room;
    }
    reader->hits[reader->hit_count++] = (Hit){(int32_t)row, (int32_t)(column - reader->columns), (int32_t)word};
    return true;
}

/* Read a number or a time from the front of what is left of a line, and keep it unless it is kept as spelt; returns
 * where it ends, or NULL. */
static inline const uint8_t *put_value(Reader *reader, Column *column, const uint8_t *at, const uint8_t *end) {
    uint8_t *cell = column->cells + reader->rows * cell_size(column);
    int64_t whole = 0;
    double real = 0;
    if (column->type == 'f') at = read_float(reader, at, end, &real);
    else at = column->type == 'i' ? read_int(at, end, &whole) : read_time(column, at, end, &whole);
    if (at && !column->spelt) {
        int32_t date = (int32_t)whole;
        if (column->type == 'f') memcpy(cell, &real, 8);
        else if (column->type == 'D') memcpy(cell, &date, 4);
        else memcpy(cell, &whole, 8);
    }
    return at;
}

/* Read one cell into its column at the reader's row; false when it is no plain value. */
static bool put_cell(Reader *reader, Column *column, const uint8_t *at, size_t size, bool doubled) {
    size_t row = reader->rows;
    if (!doubled && (!size || column->first[*at]))
        for (Py_ssize_t n = 0; n < column->missing; n++)
            if (same(&column->words[n], at, size, false)) {
                if (!size || !column->spelt) return put_missing(reader, column, n, size);
                return put_text(reader, column, at, size, false);
            }
    if (column->type == 's') return put_text(reader, column, at, size, doubled);
    if (doubled) return false;
    if (column->type == 'b') {
        uint8_t truth;
        if (!read_bool(column, at, size, &truth)) return false;
        if (!column->spelt) column->cells[row] = truth;
    } else if (put_value(reader, column, at, at + size) != at + size) {
        return false;
    }
    return !column->spelt || put_text(reader, column, at, size, false);
}

/* ── lines ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

/* Whether bytes are UTF-8 (RFC 3629). */
static bool utf8(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        uint8_t lead = *at++;
        if (lead < 0x80) continue;
        int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || end - at < more) return false;
        if ((lead == 0xE0 && *at < 0xA0) || (lead == 0xED && *at > 0x9F)) return false;
        if ((lead == 0xF0 && *at < 0x90) || (lead == 0xF4 && *at > 0x8F)) return false;
        for (; more; more--, at++)
            if ((*at & 0xC0) != 0x80) return false;
    }
    return true;
}

/* Return the next byte that is special, or the end; `*high` when a byte before it is above 0x7F. Sixteen bytes are tried
 * at once, or eight: `marks` has a bit for each byte that is below 14, the delimiter or the quote; for eight it is exact
 * up to the first of them (Bit Twiddling Hacks, S. E. Anderson: "determine if a word has a byte less than n"). Sixteen
 * may go over the end of a line, where a mark stands, but never over that of the data. */
static inline const uint8_t *find_special(const Reader *reader, const uint8_t *classes, const uint8_t *p,
                                          const uint8_t *end, bool *high) {
#ifdef __SSE2__
    const uint8_t *last = reader->data + reader->size;
    const __m128i comma = _mm_set1_epi8((char)reader->delimiter), low = _mm_set1_epi8(13);
    const __m128i mark = _mm_set1_epi8((char)(reader->quote < 0 ? reader->delimiter : reader->quote));
    while (p < end && last - p >= 16) {
        __m128i sixteen = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i found = _mm_or_si128(_mm_cmpeq_epi8(sixteen, comma), _mm_cmpeq_epi8(sixteen, mark));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_min_epu8(sixteen, low), sixteen));
        unsigned marks = (unsigned)_mm_movemask_epi8(found), highs = (unsigned)_mm_movemask_epi8(sixteen);
        if (!marks) {
            *high |= highs != 0;
            p += 16;
            continue;
        }
        int place = __builtin_ctz(marks);
        *high |= (highs & ((1u << place) - 1)) != 0;
        p += place;
        if (p >= end) return end;
        if (classes[*p] == SPECIAL) return p;
        p++;
    }
    if (p >= end) return end;
#endif
#ifdef LITTLE_ENDIAN_WORDS
    const uint64_t ones = 0x0101010101010101u, tops = ones << 7;
    const uint64_t delimiter = ones * (uint8_t)reader->delimiter;
    const uint64_t quote = ones * (uint8_t)(reader->quote < 0 ? reader->delimiter : reader->quote);
    while (end - p >= 8) {
        uint64_t word, one, two;
        memcpy(&word, p, 8);
        one = word ^ delimiter;
        two = word ^ quote;
        uint64_t marks = (((word - ones * 14) & ~word) | ((one - ones) & ~one) | ((two - ones) & ~two)) & tops;
        if (!marks) {
            *high |= (word & tops) != 0;
            p += 8;
            continue;
        }
        int place = __builtin_ctzll(marks);
        *high |= (word & tops & ((1ull << place) - 1)) != 0;
        p += place >> 3;
        if (classes[*p] == SPECIAL) return p;
        p++;
    }
#endif
    for (; p < end && classes[*p] != SPECIAL; p++) *high |= classes[*p] == HIGH;
    return p;
}

/* Find the next field of a line: its bytes, whether quotes are doubled in it, whether it has bytes above 0x7F. False
 * when it is not well formed. `*at` goes on to the delimiter after it, or the line's end. */
static inline bool next_field(const Reader *reader, const uint8_t **at, const uint8_t *end, const uint8_t **begin,
                       size_t *size, bool *doubled, bool *high) {
    const uint8_t *p = *at;
    *doubled = *high = false;
    if (p < end && *p == reader->quote) {
        *begin = ++p;
        for (;; p++) {
            p = find_special(reader, reader->closed, p, end, high);
            if (p >= end || *p != reader->quote) return false;
            if (p + 1 >= end || p[1] != reader->quote) break;
            *doubled = true;
            p++;
        }
        *size = (size_t)(p - *begin);
        p++;
        *at = p;
        return p == end || *p == reader->delimiter;
    }
    *begin = p;
    p = find_special(reader, reader->open, p, end, high);
    *size = (size_t)(p - *begin);
    *at = p;
    return p == end || *p == reader->delimiter;
}

/* Return how many fields a line has; 0 when they are not well formed. */
static size_t fields(const Reader *reader, const uint8_t *at, const uint8_t *end) {
    const uint8_t *begin;
    size_t size, count = 1;
    bool doubled, high;
    for (;; at++, count++) {
        if (!next_field(reader, &at, end, &begin, &size, &doubled, &high)) return 0;
        if (at == end) return count;
    }
}

/* Read one field of a line as a cell; false when it is not well formed, or no plain value. */
static bool read_field(Reader *reader, Column *column, const uint8_t **at, const uint8_t *end, size_t *filled) {
    const uint8_t *begin;
    size_t size;
    bool doubled, high;
    if (column->type != '-' && reader->rows >= column->room && !grow_column(reader, column)) return false;
    if (column->easy) {
        /* Mostly a value ends where its field does: it is read without looking for that first. */
        const uint8_t *stop = put_value(reader, column, *at, reader->data + reader->size);
        if (stop && stop <= end && (stop == end || *stop == reader->delimiter)) {
            *filled += (size_t)(stop - *at);
            *at = stop;
            return true;
        }
    }
    if (!next_field(reader, at, end, &begin, &size, &doubled, &high)) return false;
    *filled += size;
    if (column->type == '-') return !high || utf8(begin, begin + size);
    return (!high || utf8(begin, begin + size)) && put_cell(reader, column, begin, size, doubled);
}

/* Forget what was read of a row. */
static void forget(Reader *reader, size_t hits) {
    reader->hit_count = hits;
    for (size_t n = 0; n < reader->width; n++)
        if (reader->columns[n].room > reader->rows) put_valid(&reader->columns[n], reader->rows, true);
}

/* Read one line as a row; returns its state. */
static uint8_t read_line(Reader *reader, const uint8_t *begin, const uint8_t *end) {
    if ((size_t)(end - begin) > reader->reach) return BAD;
    const uint8_t *at = begin;
    size_t filled = 0, hits = reader->hit_count;
    for (size_t n = 0; n < reader->width; n++, at++)
        if (!read_field(reader, &reader->columns[n], &at, end, &filled) || (n + 1 == reader->width) != (at == end)) {
            forget(reader, hits);
            return fields(reader, begin, end) == reader->width ? GOOD : BAD;
        }
    /* Blank rows are skipped by name, elsewhere. */
    if (!filled) {
        forget(reader, hits);
        return GOOD;
    }
    reader->rows++;
    return DONE;
}

static bool note_line(Reader *reader, const uint8_t *begin, const uint8_t *end, uint8_t state) {
    if (reader->lines == reader->line_room) {
        size_t room = reader->line_room ? reader->line_room * 2 : 1 << 14;
        int64_t *starts = realloc(reader->starts, room * sizeof *starts);
        if (!starts) return false;
        reader->starts = starts;
        uint8_t *states = realloc(reader->states, room);
        if (!states) return false;
        reader->states = states;
        reader->line_room = room;
    }
    if (state != DONE) {
        if (!utf8(begin, end)) state |= ODD;
        bool quoted = reader->quote >= 0 && memchr(begin, reader->quote, (size_t)(end - begin));
        /* Where all quotes are in order none is open at the end of the line. */
        if (quoted && state & BAD && !fields(reader, begin, end)) state |= QUOTED;
    }
    reader->starts[reader->lines] = begin - reader->data;
    reader->states[reader->lines++] = state;
    return true;
}

/* Read rows that begin at known places. */
static bool read_rows(Reader *reader) {
    reader->guess = (reader->row_count + 64) & ~(size_t)7;
    for (size_t n = 0; n < reader->row_count; n++) {
        const uint8_t *begin = reader->data + reader->places[2 * n], *end = reader->data + reader->places[2 * n + 1];
        if (!note_line(reader, begin, end, read_line(reader, begin, end))) return false;
    }
    return true;
}

static bool read_lines(Reader *reader) {
    const uint8_t *at = reader->data, *last = at + reader->size;
    const uint8_t *first = reader->size ? memchr(at, reader->newline, reader->size) : NULL;
    size_t size = first ? (size_t)(first - at) + 1 : reader->size + 1;
    reader->guess = (reader->size / size + reader->size / size / 8 + 64) & ~(size_t)7;
    if (reader->guess > MOST_GUESSED) reader->guess = MOST_GUESSED;
    while (at < last) {
        const uint8_t *found = memchr(at, reader->newline, (size_t)(last - at));
        const uint8_t *stop = found ? found : last, *next = found ? found + 1 : last;
        if (found && reader->newline == '\n' && stop > at && stop[-1] == '\r') stop--;
        if (!note_line(reader, at, stop, read_line(reader, at, stop))) return false;
        at = next;
    }
    return true;
}

/* ── Python ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static const char *arrow_format(const Column *column) {
    if (as_text(column)) return "vu";
    switch (column->type) {
    case 'i': return "l";
    case 'f': return "g";
    case 'b': return "C";
    case 'D': return "tdD";
    default: return "tsu:";
    }
}

/* Give a column's buffers away as two capsules (schema, array); the column is empty afterwards. */
static PyObject *export_column(const Reader *reader, Column *column) {
    struct ArrowSchema *schema = calloc(1, sizeof *schema);
    struct ArrowArray *array = calloc(1, sizeof *array);
    Owned *owned = calloc(1, sizeof *owned);
    if (!schema || !array || !owned || (!column->room && !grow_column(reader, column))) {
        free(schema), free(array), free(owned);
        return PyErr_NoMemory();
    }
    *schema = (struct ArrowSchema){.format = arrow_format(column), .name = "", .flags = 2, .release = release_schema};
    owned->buffers[0] = column->valid;
    owned->buffers[1] = column->cells;
    int64_t count = 2;
    if (as_text(column)) {
        owned->variadic = (int64_t)column->fill;
        if (column->heap) owned->buffers[count++] = column->heap;
        owned->buffers[count++] = &owned->variadic;
    }
    *array = (struct ArrowArray){.length = (int64_t)reader->rows, .null_count = -1, .n_buffers = count,
                                 .buffers = owned->buffers, .release = release_array, .private_data = owned};
    column->valid = column->cells = column->heap = NULL;
    PyObject *first = PyCapsule_New(schema, "arrow_schema", drop_schema);
    PyObject *second = PyCapsule_New(array, "arrow_array", drop_array);
    PyObject *pair = first && second ? PyTuple_Pack(2, first, second) : NULL;
    if (!first) free(schema);
    if (!second) release_array(array), free(array);
    Py_XDECREF(first);
    Py_XDECREF(second);
    return pair;
}

static bool take_words(PyObject *tuple, Word *words, Py_ssize_t *at) {
    for (Py_ssize_t n = 0; n < PyTuple_Size(tuple); n++) {
        char *text;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(tuple, n), &text, &words[*at].size) < 0) return false;
        words[(*at)++].text = text;
    }
    return true;
}

/* Fill in a column from (type, spelt, format, missing, true, false); what it points to lives as long as the tuple. */
static bool take_column(PyObject *spec, Column *column) {
    int type, spelt;
    PyObject *missing, *truths, *lies;
    if (!PyTuple_Check(spec)) {
        PyErr_SetString(PyExc_TypeError, "a column is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(spec, "Cpy#O!O!O!", &type, &spelt, &column->format, &column->format_size, &PyTuple_Type,
                          &missing, &PyTuple_Type, &truths, &PyTuple_Type, &lies))
        return false;
    column->type = (char)type;
    bool date = column->format_size >= 7 && !memcmp(column->format, "Y\\-m\\-d", 7);
    bool clock = date && column->format_size == 16 && column->format[7] == '\\' && !memcmp(column->format + 9, "H\\:M\\:S", 7);
    column->usual = date && column->format_size == 7 ? 1 : clock ? 2 : 0;
    column->between = clock ? (uint8_t)column->format[8] : 0;
    column->spelt = spelt;
    column->missing = PyTuple_Size(missing);
    column->truths = PyTuple_Size(truths);
    column->lies = PyTuple_Size(lies);
    column->words = calloc((size_t)(column->missing + column->truths + column->lies) + 1, sizeof *column->words);
    if (!column->words) {
        PyErr_NoMemory();
        return false;
    }
    Py_ssize_t at = 0;
    if (!take_words(missing, column->words, &at)) return false;
    for (Py_ssize_t n = 0; n < at; n++)
        if (column->words[n].size) column->first[(uint8_t)*column->words[n].text] = true;
    return take_words(truths, column->words, &at) && take_words(lies, column->words, &at);
}

/* Whether values of a column can be read without looking for the end of the field first: it has a number or a time, no
 * word for missing reads as one, and neither the delimiter nor the quote can stand in one. */
static bool is_easy(const Reader *reader, const Column *column) {
    if (column->spelt || !strchr("ifDT", column->type)) return false;
    for (int n = 0; n < 2; n++) {
        int sign = n ? reader->quote : reader->delimiter;
        if (sign >= 0 && (sign > 0x7F || digit((uint8_t)sign) || memchr("+-.eE", sign, 5))) return false;
        if (sign >= 0 && column->format_size && memchr(column->format, sign, (size_t)column->format_size)) return false;
    }
    for (Py_ssize_t n = 0; n < column->missing; n++) {
        const uint8_t *at = (const uint8_t *)column->words[n].text, *end = at + column->words[n].size, *stop;
        int64_t whole;
        double real;
        if (column->type == 'i') stop = read_int(at, end, &whole);
        else if (column->type == 'f') stop = read_float(reader, at, end, &real);
        else stop = read_time(column, at, end, &whole);
        if (stop == end) return false;
    }
    return true;
}

static PyObject *results(Reader *reader) {
    PyObject *columns = PyList_New(0), *out = NULL;
    for (size_t n = 0; columns && n < reader->width; n++) {
        Column *column = &reader->columns[n];
        PyObject *pair = column->type == '-' ? (Py_INCREF(Py_None), Py_None) : export_column(reader, column);
        if (!pair || PyList_Append(columns, pair) < 0) Py_CLEAR(columns);
        Py_XDECREF(pair);
    }
    if (columns)
        out = Py_BuildValue("(y#y#Oy#)", (const char *)reader->starts, (Py_ssize_t)(reader->lines * sizeof(int64_t)),
                            (const char *)reader->states, (Py_ssize_t)reader->lines, columns,
                            reader->hits ? (const char *)reader->hits : "", (Py_ssize_t)(reader->hit_count * sizeof(Hit)));
    Py_XDECREF(columns);
    return out;
}

static PyObject *kernel_read(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data, rows = {0};
    int newline;
    Py_ssize_t reach;
    PyObject *specs, *out = NULL;
    Reader reader = {0};
    if (!PyArg_ParseTuple(args, "y*iiinO!|y*", &data, &reader.delimiter, &reader.quote, &newline, &reach, &PyTuple_Type,
                          &specs, &rows))
        return NULL;
    reader.data = data.buf;
    reader.size = (size_t)data.len;
    reader.newline = (uint8_t)newline;
    reader.reach = (size_t)reach;
    reader.width = (size_t)PyTuple_Size(specs);
    for (int byte = 0; byte < 256; byte++) reader.open[byte] = reader.closed[byte] = byte > 0x7F ? HIGH : PLAIN;
    reader.open[reader.delimiter & 255] = SPECIAL;
    if (reader.quote >= 0) reader.open[reader.quote & 255] = reader.closed[reader.quote & 255] = SPECIAL;
    /* A zero byte, or a line ending that ends no line here, is for others to look at. */
    reader.open[0] = reader.closed[0] = reader.open['\r'] = reader.closed['\r'] = SPECIAL;
    reader.open['\n'] = SPECIAL;
    reader.closed['\n'] = rows.len ? PLAIN : SPECIAL;
    reader.plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    reader.columns = calloc(reader.width + 1, sizeof *reader.columns);
    reader.starts = malloc(8);
    reader.states = malloc(8);
    bool fine = reader.plain && reader.columns && reader.starts && reader.states;
    if (!fine) PyErr_NoMemory();
    if (data.len > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a chunk has at most 2 GiB");
        fine = false;
    }
    if (fine && rows.len) {
        reader.places = rows.buf;
        reader.row_count = (size_t)rows.len / (2 * sizeof(int64_t));
        for (size_t n = 0; fine && n < reader.row_count; n++)
            fine = reader.places[2 * n] >= (n ? reader.places[2 * n - 1] : 0) &&
                   reader.places[2 * n] <= reader.places[2 * n + 1] && reader.places[2 * n + 1] <= data.len;
        if (!fine) PyErr_SetString(PyExc_ValueError, "expected rows that lie in the data, in order");
    }
    for (size_t n = 0; fine && n < reader.width; n++)
        fine = take_column(PyTuple_GetItem(specs, (Py_ssize_t)n), &reader.columns[n]);
    for (size_t n = 0; fine && n < reader.width; n++)
        reader.columns[n].easy = is_easy(&reader, &reader.columns[n]);
    if (fine) {
        Py_BEGIN_ALLOW_THREADS
        fine = rows.len ? read_rows(&reader) : read_lines(&reader);
        Py_END_ALLOW_THREADS
        out = fine ? results(&reader) : PyErr_NoMemory();
    }
    for (size_t n = 0; reader.columns && n < reader.width; n++) {
        Column *column = &reader.columns[n];
        free(column->words), free(column->valid), free(column->cells), free(column->heap);
    }
    free(reader.columns), free(reader.starts), free(reader.states), free(reader.hits);
    if (reader.plain) freelocale(reader.plain);
    PyBuffer_Release(&data);
    if (rows.obj) PyBuffer_Release(&rows);
    return out;
}

/* Let the C library keep freed memory of a chunk's size for the next chunk: giving it back and taking it again costs a
 * page fault for every 4 KiB, a quarter of all the time. */
static PyObject *kernel_keep(PyObject *module, PyObject *args) {
    (void)module;
    int bytes;
    if (!PyArg_ParseTuple(args, "i", &bytes)) return NULL;
#ifdef M_MMAP_THRESHOLD
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, bytes);
#endif
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"keep", kernel_keep, METH_VARARGS, "keep(bytes): freed memory that is not given back at once; the whole process's."},
    {"read", kernel_read, METH_VARARGS,
     "read(data, delimiter, quote, newline, reach, columns, rows=None) -> (starts, states, columns, hits): see quick.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&MODULE); }
