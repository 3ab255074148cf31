/* Broken rows of delimited text, a batch at a time: where they end, how they read, which repair fits their columns.
 *
 * This is `rows.row_end`, `dialect.split`, `gauge.gauge` and `repair.mend` once more, without Python's objects and with
 * the interpreter's lock free, for the dialects that the kernel knows. It says the same as they do, by the same sums in
 * the same order; what it cannot say for sure (a month in words, characters that are no UTF-8, digits of another
 * script) it leaves to them, row by row: ASK. A test holds both together. Without it (no compiler at installation)
 * Python does everything.
 *
 * Memory: what is made for a row lies in blocks that are taken back after it; results are buffers that grow by doubling.
 * Every index is checked against the end of its row. Two things end a row early from anywhere, by a jump to its
 * beginning: memory that is not there, and a cell that cannot be judged here. Nothing but the blocks is held then.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ASK = 0, READ = 1, MENDED = 2, REFUSED = 3, BLANK = 4 };        /* what became of a row */
enum { LOOK = 0, KNOWN = 1, BARE = 2 }; /* how a row is looked at: as any; as one that reads; as one that is to be mended */
enum { NO_CODE, QUOTE, MISSING, FOREIGN, EXTRA, UNQUOTED, MISSING_END }; /* repairs, as in batch.CODES */
enum { BLANKS, GROUPS, DECIMALS, FORMAT, WORD };                           /* cells read more kindly, as in batch.KINDER */
enum { SURE, NO_READING, NO_FIT, ALIKE };                               /* why not, as in batch.said */
enum { CANNOT = 1, NO_MEMORY = 2 };                                     /* why a row was ended early */
enum { LONG_ROW = 1 << 16, LONG_CELL = 400, MOST_QUOTES = 24, MOST_COMPARED = 12, HEADS = 2048, BLOCK = 1 << 16 };
enum { HOLD = 0x1a };
#define NOWHERE 99.0
#define SLACK 1e-9
#define MISFIT 6.0
#define MISSHAPEN 4.0

typedef struct {
    const uint8_t *at;
    size_t size;
} Span;

typedef struct {
    Span *items;
    size_t count;
} Spans;

/* A format of dates: the signs and literals it is made of, as `quick.program` writes them (none: not known to be apart);
 * its literals without blanks; bytes that may stand between them. */
typedef struct {
    Span program, literals;
    const uint8_t *skipped; /* 256 flags; NULL: nothing is known */
} Format;

/* What a column looks like: `gauge.gauge` as data. */
typedef struct {
    uint8_t kind; /* 'w' vocabulary, 't' text, 'i' and 'f' plain numbers, 'n' marked ones, 'b' truths, 'd' times */
    double empty, strange, rare;
    Spans nulls, words, shapes;
    size_t longest_null;
    bool exact;
    Span prefix;
    const uint8_t *heads; /* HEADS flags: characters that cells do not begin with */
    bool sized, digits;
    bool real, marked, day; /* a number with a fraction; numbers have marks as a rule; dates are days */
    long shortest, longest, decimals;
    const uint8_t *letters; /* 256 flags: bytes that no value has */
    int group, decimal;
    Format *formats;
    size_t format_count;
} Gauge;

typedef struct {
    double accept, margin, fault, unclosed, loose, literal, insert, foreign, drop, tail, join, split, easy;
} Costs;

/* One column of the pattern of a line that is surely a row: its kind ('n' a number, 'd' a digit somewhere, 'w' only the
 * words, 't' anything), and words that may stand there instead. */
typedef struct {
    uint8_t kind;
    Spans words;
} Cell;

/* A table, ready to judge; what it points to lives as long as `spec`. */
typedef struct {
    PyObject *spec;
    uint8_t delimiter, newline;
    int quote;
    size_t reach, width, text_count;
    Costs costs;
    Gauge *gauges;
    size_t *texts;
    uint8_t *open;
    double *tails;
    Span others;
    Cell *cells;
    size_t cell_count;
    Spans missing; /* words that are known to mean so, as they are mostly spelt */
} Table;

/* ── memory ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

typedef struct Block {
    struct Block *next;
    size_t size, used;
} Block;

typedef struct {
    uint8_t *data;
    size_t fill, room;
} Buffer;

typedef struct {
    Span *fields;
    uint8_t *quoted;
    size_t count;
    double cost;
    uint8_t code;
} Attempt;

typedef struct {
    double cost;
    const Attempt *attempt;
    int64_t place, cut;
    uint8_t code;
} Found;

/* What came of one row, with where its clean text begins, or that which is shown of it, and how long that is. */
typedef struct {
    int64_t first, last, begin, end, text, size;
    int32_t column, fields;
    uint8_t state, note, codes[4], why, way;
} Told;

/* A cell that was read more kindly: its row's first line, where its spelling in the source is kept, and how it was. */
typedef struct {
    int64_t first, at, size;
    int32_t column, kinder;
} Kinder;

typedef struct {
    const Table *table;
    jmp_buf escape;
    Block *blocks, *block;
    Found *found;
    size_t found_count, found_room;
    double *before, *after;
    Buffer text, shown, told; /* clean rows; values that come nearest; what became of each row */
    Buffer kinder, spelt;     /* cells read more kindly; how they were spelt */
    bool kind;                /* whether cells are read more kindly at all */
} Mender;

static void *take(Mender *m, size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (!m->block || m->block->size - m->block->used < size) {
        Block *next = m->block ? m->block->next : m->blocks;
        while (next && next->size < size) m->block = next, next = next->next;
        if (!next) {
            size_t room = size > BLOCK ? size : BLOCK;
            next = malloc(sizeof *next + 16 + room);
            if (!next) longjmp(m->escape, NO_MEMORY);
            next->next = NULL;
            next->size = room;
            if (m->block) m->block->next = next;
            else m->blocks = next;
        }
        next->used = 0;
        m->block = next;
    }
    void *out = (void *)((((uintptr_t)(m->block + 1) + 15) & ~(uintptr_t)15) + m->block->used);
    m->block->used += size;
    return out;
}

/* Take back all that was made for a row; one block is kept for the next. */
static void clear(Mender *m) {
    m->block = NULL;
    m->found_count = 0;
    Block *more = m->blocks ? m->blocks->next : NULL;
    if (more) m->blocks->next = NULL;
    while (more) {
        Block *next = more->next;
        free(more);
        more = next;
    }
}

static void grow(Mender *m, Buffer *buffer, size_t size) {
    if (buffer->room - buffer->fill >= size) return;
    size_t room = buffer->room ? buffer->room : 1 << 12;
    while (room - buffer->fill < size) room *= 2;
    uint8_t *data = realloc(buffer->data, room);
    if (!data) longjmp(m->escape, NO_MEMORY);
    buffer->data = data;
    buffer->room = room;
}

static void put(Mender *m, Buffer *buffer, const void *data, size_t size) {
    grow(m, buffer, size);
    if (size) memcpy(buffer->data + buffer->fill, data, size);
    buffer->fill += size;
}

/* ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

static bool letter(uint8_t byte) { return (byte | 0x20) >= 'a' && (byte | 0x20) <= 'z'; }

static bool white(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

static bool same(Span a, Span b) { return a.size == b.size && (!a.size || !memcmp(a.at, b.at, a.size)); }

static Span part(Span of, size_t begin, size_t end) { return (Span){of.at + begin, end - begin}; }

static const uint8_t *find(const uint8_t *at, const uint8_t *end, int byte) {
    return byte >= 0 && at < end ? memchr(at, byte, (size_t)(end - at)) : NULL;
}

static bool holds(Span span, int byte) { return find(span.at, span.at + span.size, byte) != NULL; }

static size_t count(Span span, int byte) {
    size_t out = 0;
    for (const uint8_t *at = span.at, *end = at + span.size; (at = find(at, end, byte)); at++) out++;
    return out;
}

static bool ascii(Span span) {
    for (size_t n = 0; n < span.size; n++)
        if (span.at[n] > 0x7F) return false;
    return true;
}

/* Whether bytes are UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool utf8(Span span) {
    const uint8_t *at = span.at, *end = at + span.size;
    while (at < end) {
        uint8_t lead = *at++;
        if (lead < 0x80) continue;
        int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || end - at < more) return false;
        uint8_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        uint8_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (*at < least || *at > most) return false;
        for (int n = 1; n < more; n++)
            if ((at[n] & 0xC0) != 0x80) return false;
        at += more;
    }
    return true;
}

/* How many bytes of white space (Unicode's) a text begins with at a place, or ends with before it; 0 when none. */
static size_t white_at(const uint8_t *at, size_t left) {
    if (!left) return 0;
    if (white(at[0])) return 1;
    if (left >= 2 && at[0] == 0xC2 && (at[1] == 0x85 || at[1] == 0xA0)) return 2;
    if (left < 3) return 0;
    if (at[0] == 0xE1) return at[1] == 0x9A && at[2] == 0x80 ? 3 : 0;
    if (at[0] == 0xE3) return at[1] == 0x80 && at[2] == 0x80 ? 3 : 0;
    if (at[0] != 0xE2) return 0;
    if (at[1] == 0x80) return at[2] <= 0x8A || at[2] == 0xA8 || at[2] == 0xA9 || at[2] == 0xAF ? 3 : 0;
    return at[1] == 0x81 && at[2] == 0x9F ? 3 : 0;
}

/* A cell without white space at its ends, as `gauge.stripped`. */
static Span stripped(Span cell) {
    size_t size;
    while ((size = white_at(cell.at, cell.size))) cell = part(cell, size, cell.size);
    while (cell.size) {
        const uint8_t *end = cell.at + cell.size;
        if (white(end[-1])) size = 1;
        else if (cell.size >= 2 && end[-2] == 0xC2 && white_at(end - 2, 2)) size = 2;
        else if (cell.size >= 3 && end[-3] >= 0xE1 && white_at(end - 3, 3) == 3) size = 3;
        else break;
        cell.size -= size;
    }
    return cell;
}

/* A cell without quotes at its ends. */
static Span unquoted(Span cell, int quote) {
    if (quote < 0) return cell;
    while (cell.size && cell.at[0] == quote) cell = part(cell, 1, cell.size);
    while (cell.size && cell.at[cell.size - 1] == quote) cell.size--;
    return cell;
}

static bool among(const Spans *spans, Span cell) {
    for (size_t n = 0; n < spans->count; n++)
        if (same(spans->items[n], cell)) return true;
    return false;
}

/* ── gauges: what speaks against a cell in a column ─────────────────────────────────────────────────────────────── */

/* Whether a cell is a value: 1 yes, 0 no, -1 that is for Python to say. */

static int fits_int(Span cell) {
    const uint8_t *at = cell.at, *end = at + cell.size;
    bool minus = at < end && *at == '-';
    if (at < end && (*at == '-' || *at == '+')) at++;
    const uint8_t *begin = at;
    while (at < end && digit(*at)) at++;
    if (at < end || at == begin || cell.size >= LONG_CELL) return 0;
    if (*begin == '0' && end - begin > 1) return 0; /* 007 is a code */
    if (cell.size <= 18) return 1;
    if (end - begin != 19) return end - begin < 19;
    return memcmp(begin, minus ? "9223372036854775808" : "9223372036854775807", 19) <= 0;
}

static bool word_at(const uint8_t *at, const uint8_t *end, const char *word) {
    size_t size = strlen(word);
    if ((size_t)(end - at) != size) return false;
    for (size_t n = 0; n < size; n++)
        if ((at[n] | 0x20) != (uint8_t)word[n] || at[n] > 0x7F) return false;
    return true;
}

static int fits_float(Span cell) {
    const uint8_t *at = cell.at, *end = at + cell.size;
    if (at < end && (*at == '-' || *at == '+')) at++;
    if (word_at(at, end, "inf") || word_at(at, end, "infinity") || word_at(at, end, "nan")) return 1;
    const uint8_t *begin = at;
    while (at < end && digit(*at)) at++;
    bool whole = at > begin;
    if (at < end && *at == '.') {
        begin = ++at;
        while (at < end && digit(*at)) at++;
        if (!whole && at == begin) return 0;
    } else if (!whole) {
        return 0;
    }
    if (at < end && (*at | 0x20) == 'e') {
        at++;
        if (at < end && (*at == '-' || *at == '+')) at++;
        begin = at;
        while (at < end && digit(*at)) at++;
        if (at == begin) return 0;
    }
    return at == end;
}

/* Without the blanks that a number with marks may have at its ends. */
static Span bare_of(Span cell) {
    while (cell.size && (cell.at[0] == ' ' || (cell.size > 1 && cell.at[0] == 0xC2 && cell.at[1] == 0xA0)))
        cell = part(cell, cell.at[0] == ' ' ? 1 : 2, cell.size);
    for (;;) {
        if (cell.size && cell.at[cell.size - 1] == ' ') cell.size--;
        else if (cell.size > 1 && cell.at[cell.size - 2] == 0xC2 && cell.at[cell.size - 1] == 0xA0) cell.size -= 2;
        else return cell;
    }
}

/* Numbers with marks: those that are beyond doubt. */
static int fits_marked(const Gauge *gauge, Span cell) {
    bool some = false;
    cell = bare_of(cell);
    for (size_t n = 0; n < cell.size; n++) {
        if (cell.at[n] > 0x7F) return -1;
        some |= digit(cell.at[n]);
        if (gauge->letters[cell.at[n]]) return 0;
    }
    if (!some) return 0;
    const uint8_t *at = cell.at, *end = at + cell.size;
    if (at < end && *at == '-') at++;
    size_t digits = 0, run = 0;
    bool grouped = false, zero = at < end && *at == '0';
    for (; at < end; at++) {
        if (digit(*at)) {
            digits++, run++;
        } else if (*at == gauge->group && (grouped ? run == 3 : run >= 1 && run <= 3)) {
            grouped = true;
            run = 0;
        } else {
            break;
        }
    }
    if (!digits || digits > 15 || (grouped && run != 3) || (zero && digits > 1 && !gauge->real)) return -1;
    if (at == end) return 1;
    if (*at != gauge->decimal) return -1;
    for (run = 0, at++; at < end && digit(*at); at++) run++;
    return at == end && run >= 1 && run <= 15 ? 1 : -1;
}

static int fits_bool(const Gauge *gauge, Span cell) {
    for (size_t n = 0; n < cell.size; n++)
        if (cell.at[n] > 0x7F) return -1;
    for (size_t n = 0; n < gauge->words.count; n++) {
        Span word = gauge->words.items[n];
        size_t place = 0;
        if (word.size != cell.size) continue;
        while (place < cell.size) {
            uint8_t byte = cell.at[place];
            if ((byte >= 'A' && byte <= 'Z' ? byte + 32 : byte) != word.at[place]) break;
            place++;
        }
        if (place == cell.size) return 1;
    }
    return 0;
}

/* Whether a cell is a date beyond doubt: as strict as `gauge.PARTS`, or, `exact`, as the kernel, digit for digit. */
static bool dated(Span program, Span cell, bool exact) {
    static const int LENGTHS[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year = 0, month = 0, day = 0;
    size_t at = 0;
    if (!program.size) return false;
    for (size_t n = 0; n < program.size; n++) {
        uint8_t sign = program.at[n];
        if (sign == '\\') {
            if (++n >= program.size || at >= cell.size || cell.at[at++] != program.at[n]) return false;
            continue;
        }
        size_t size = 0;
        int value = 0;
        for (; size < 5 && at < cell.size && digit(cell.at[at]); at++, size++) value = value * 10 + (cell.at[at] - '0');
        if (sign == 'Y') {
            if (size != 4 || value < 1000) return false;
            year = value;
            continue;
        }
        if (size < 1 + (size_t)exact || size > 2) return false;
        if (sign == 'm') month = value;
        if (sign == 'd') day = value;
        int least = sign == 'm' || sign == 'd', most = sign == 'm' ? 12 : sign == 'd' ? 31 : sign == 'H' ? 23 : 59;
        if (value < least || value > most) return false;
    }
    if (at != cell.size) return false;
    bool leap = month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return day <= LENGTHS[month - 1] + leap;
}

/* Whether a cell may be of a format at all: its literals are there in order, and nothing else but digits, blanks and
 * what the format may have between them. */
static bool maybe(const Format *format, Span cell) {
    size_t next = 0;
    if (!format->skipped) return true;
    for (size_t n = 0; n < cell.size; n++) {
        uint8_t byte = cell.at[n];
        if (byte > 0x7F) return true;
        if (digit(byte) || white(byte)) continue;
        if (next < format->literals.size && format->literals.at[next] == byte) next++;
        else if (!format->skipped[byte]) return false;
    }
    return next == format->literals.size;
}

static int fits_time(const Gauge *gauge, Span cell) {
    bool some = false, plain = true;
    for (size_t n = 0; n < cell.size; n++) {
        some |= digit(cell.at[n]);
        plain &= cell.at[n] < 0x80;
    }
    if (!some) return 0;
    if (plain)
        for (size_t n = 0; n < cell.size; n++)
            if (gauge->letters[cell.at[n]]) return 0;
    int out = 0;
    for (size_t n = 0; n < gauge->format_count; n++) {
        if (dated(gauge->formats[n].program, cell, false)) return 1;
        if (maybe(&gauge->formats[n], cell)) out = -1;
    }
    return out;
}

static int fits(const Gauge *gauge, Span cell) {
    switch (gauge->kind) {
    case 'i': return fits_int(cell);
    case 'f': return fits_float(cell);
    case 'n': return fits_marked(gauge, cell);
    case 'b': return fits_bool(gauge, cell);
    case 'd': return fits_time(gauge, cell);
    default: return -1;
    }
}

/* Hold a plain number against the digits seen, as `gauge._digits`. */
static double digits(Mender *m, const Gauge *gauge, Span cell) {
    while (cell.size && (cell.at[0] == ' ' || cell.at[0] == '+' || cell.at[0] == '-')) cell = part(cell, 1, cell.size);
    while (cell.size && strchr(" +-", cell.at[cell.size - 1]) && cell.at[cell.size - 1]) cell.size--;
    const uint8_t *point = find(cell.at, cell.at + cell.size, '.');
    long whole = (long)(point ? (size_t)(point - cell.at) : cell.size);
    long after = (long)cell.size - whole - 1;
    if (after < 0) after = 0;
    double cost = 1.5 * (double)(whole > gauge->longest ? whole - gauge->longest : 0) +
                  1.0 * (double)(whole < gauge->shortest ? gauge->shortest - whole : 0);
    cost = cost + 1.5 * (double)(after > gauge->decimals ? after - gauge->decimals : 0);
    if (cost > 4.0) cost = 4.0;
    if (cell.size > 1 && cell.at[0] == '0') {
        if (cell.at[1] > 0x7F) longjmp(m->escape, CANNOT);
        if (digit(cell.at[1])) cost += 3.0;
    }
    return cell.size && cell.at[cell.size - 1] == '.' ? cost + 1.0 : cost;
}

static double judge_typed(Mender *m, const Gauge *gauge, Span cell) {
    Span bare = stripped(cell);
    if (bare.size <= gauge->longest_null && among(&gauge->nulls, bare)) return gauge->empty;
    int fit = fits(gauge, cell);
    if (fit < 1 && bare.size != cell.size) {
        int other = fits(gauge, bare);
        fit = other == 1 ? 1 : fit < 0 || other < 0 ? -1 : 0;
    }
    if (fit < 0) longjmp(m->escape, CANNOT);
    double cost = fit ? 0.0 : MISFIT;
    return gauge->digits ? cost + digits(m, gauge, cell) : cost;
}

/* Whether a cell has one shape: A a capital, a small letters, 9 a digit, anything else itself; where a shape is not
 * exact, A and 9 are any number of them. */
static bool shaped(const Gauge *gauge, Span shape, Span cell) {
    size_t at = 0;
    for (size_t n = 0; n < shape.size; n++) {
        uint8_t sign = shape.at[n];
        size_t begin = at;
        if (sign == 'A') {
            while (at < cell.size && cell.at[at] >= 'A' && cell.at[at] <= 'Z' && (at == begin || !gauge->exact)) at++;
        } else if (sign == '9') {
            while (at < cell.size && digit(cell.at[at]) && (at == begin || !gauge->exact)) at++;
        } else if (sign == 'a') {
            while (at < cell.size && ((cell.at[at] >= 'a' && cell.at[at] <= 'z') || cell.at[at] > 0x7F)) at++;
        } else if (at < cell.size && cell.at[at] == sign) {
            at++;
        }
        if (at == begin) return false;
    }
    return at == cell.size;
}

/* Hold the length of a text against those seen, as `gauge._size`. */
static double sized(const Gauge *gauge, Span cell) {
    size_t size = 0;
    for (size_t n = 0; n < cell.size; n++) size += (cell.at[n] & 0xC0) != 0x80;
    double under = log2((double)(gauge->shortest + 1) / (double)(size + 1)) - 0.5;
    double over = log2((double)(size + 1) / (double)(gauge->longest + 1)) - 0.5;
    double cost = 1.5 * ((under > 0.0 ? under : 0.0) + (over > 0.0 ? over : 0.0));
    return cost < 3.0 ? cost : 3.0;
}

static double judge_text(Mender *m, const Gauge *gauge, Span cell) {
    Span bare = stripped(cell);
    if (bare.size <= gauge->longest_null && among(&gauge->nulls, bare)) return gauge->empty;
    if (gauge->strange >= 0) return gauge->strange;
    double cost = 0.0;
    if (gauge->shapes.count) {
        cost = MISSHAPEN;
        for (size_t n = 0; n < gauge->shapes.count && cost > 0.0; n++)
            if (shaped(gauge, gauge->shapes.items[n], cell)) cost = 0.0;
    } else if (gauge->heads) {
        size_t head = cell.at[0];
        if (head > 0x7F) {
            if (head >= 0xE0 || head < 0xC2 || cell.size < 2) longjmp(m->escape, CANNOT);
            head = (head & 0x1F) << 6 | (cell.at[1] & 0x3F);
        }
        cost = gauge->heads[head] ? gauge->rare : 0.0;
    }
    if (gauge->prefix.size && (cell.size < gauge->prefix.size || memcmp(cell.at, gauge->prefix.at, gauge->prefix.size)))
        cost += MISSHAPEN;
    return gauge->sized ? cost + sized(gauge, cell) : cost;
}

static double judge(Mender *m, size_t column, Span cell) {
    const Gauge *gauge = &m->table->gauges[column];
    if (gauge->kind == 't') return judge_text(m, gauge, cell);
    if (gauge->kind != 'w') return judge_typed(m, gauge, cell);
    if (among(&gauge->nulls, cell)) return gauge->empty;
    Span bare = stripped(cell);
    if (bare.size <= gauge->longest_null && among(&gauge->nulls, bare)) return gauge->empty;
    return among(&gauge->words, cell) ? 0.0 : gauge->strange;
}

/* ── reading a row ──────────────────────────────────────────────────────────────────────────────────────────────── */

typedef struct {
    Attempt read;
    size_t faults;
    bool closed;
} Split;

static Span replaced(Mender *m, Span inner, int quote) {
    if (quote < 0 || !holds(inner, quote)) return inner;
    uint8_t *out = take(m, inner.size);
    size_t size = 0;
    for (size_t n = 0; n < inner.size; n++) {
        out[size++] = inner.at[n];
        if (inner.at[n] == quote && n + 1 < inner.size && inner.at[n + 1] == quote) n++;
    }
    return (Span){out, size};
}

static size_t skip_blanks(Span row, size_t at, uint8_t delimiter) {
    while (at < row.size && (row.at[at] == ' ' || row.at[at] == '\t') && row.at[at] != delimiter) at++;
    return at;
}

/* Read the quoted field that opens at a place, as `dialect._quoted`; returns its end, 0 when it does not close before
 * `until`. */
static size_t read_quoted(Mender *m, Span row, size_t at, uint8_t delimiter, size_t until, Span *value, size_t *faults) {
    int quote = m->table->quote;
    size_t from = at + 1, wrong = 0;
    for (;;) {
        const uint8_t *found = from < until ? find(row.at + from, row.at + until, quote) : NULL;
        if (!found) return 0;
        size_t place = (size_t)(found - row.at), after = place + 1;
        if (after < row.size && row.at[after] == quote) {
            from = place + 2;
            continue;
        }
        if (after < row.size && row.at[after] != delimiter) {
            size_t ahead = skip_blanks(row, after, delimiter);
            if (ahead == after || (ahead < row.size && row.at[ahead] != delimiter)) {
                wrong++;
                from = after;
                continue;
            }
            after = ahead;
        }
        *value = replaced(m, part(row, at + 1, place), quote);
        *faults += wrong;
        return after;
    }
}

/* Read a row into fields, as `dialect.split`. */
static Split split(Mender *m, Span row, uint8_t delimiter) {
    int quote = m->table->quote;
    size_t most = count(row, delimiter) + 1, at = 0;
    Split out = {.closed = true};
    out.read.fields = take(m, most * sizeof(Span));
    out.read.quoted = take(m, most);
    bool dead = false;
    const uint8_t *end = row.at + row.size;
    for (;;) {
        const uint8_t *mark = find(row.at + at, end, quote), *stop;
        /* Fields before the one with the next quote are plain. */
        while ((stop = find(row.at + at, mark ? mark : end, delimiter))) {
            out.read.quoted[out.read.count] = false;
            out.read.fields[out.read.count++] = part(row, at, (size_t)(stop - row.at));
            at = (size_t)(stop - row.at) + 1;
        }
        if (!mark) {
            out.read.quoted[out.read.count] = false;
            out.read.fields[out.read.count++] = part(row, at, row.size);
            return out;
        }
        size_t begin = at;
        if (row.at[at] == ' ' || row.at[at] == '\t') {
            size_t ahead = skip_blanks(row, at, delimiter);
            if (ahead < row.size && row.at[ahead] == quote) at = ahead;
        }
        if (row.at[at] == quote) {
            size_t until = row.size;
            if (dead)
                for (until = at; until < row.size && row.at[until] == quote;) until++;
            Span value;
            size_t after = read_quoted(m, row, at, delimiter, until, &value, &out.faults);
            if (after) {
                out.read.quoted[out.read.count] = true;
                out.read.fields[out.read.count++] = value;
                if (after >= row.size) return out;
                at = after + 1;
                continue;
            }
            out.faults++;
            out.closed = false;
            dead = true;
            at = begin;
        }
        stop = find(row.at + at, end, delimiter);
        out.read.quoted[out.read.count] = false;
        out.read.fields[out.read.count++] = part(row, at, stop ? (size_t)(stop - row.at) : row.size);
        if (!stop) return out;
        at = (size_t)(stop - row.at) + 1;
    }
}

/* Whether every quote of a row is in order and it has as many fields as columns, as `dialect.tidy`. */
static bool tidy(const Table *table, Span row) {
    size_t at = 0;
    for (size_t fields = 1;; fields++, at++) {
        if (at < row.size && row.at[at] == table->quote) {
            for (at++;; at += 2) {
                const uint8_t *found = find(row.at + at, row.at + row.size, table->quote);
                if (!found) return false;
                at = (size_t)(found - row.at);
                if (at + 1 >= row.size || row.at[at + 1] != table->quote) break;
            }
            at++;
        } else {
            while (at < row.size && row.at[at] != table->delimiter) {
                if (row.at[at] == table->quote) return false;
                at++;
            }
        }
        if (at == row.size) return fields == table->width;
        if (row.at[at] != table->delimiter) return false;
    }
}

static bool loose(const Attempt *read, int quote) {
    if (quote >= 0)
        for (size_t n = 0; n < read->count; n++)
            if (!read->quoted[n] && holds(read->fields[n], quote)) return true;
    return false;
}

static bool marked(const Attempt *read, int quote) {
    if (quote >= 0)
        for (size_t n = 0; n < read->count; n++)
            if (holds(read->fields[n], quote)) return true;
    return false;
}

/* Weigh a row as it stands, as `repair._weighed`. */
static Attempt *weighed(Mender *m, const Split *split) {
    const Costs *costs = &m->table->costs;
    Attempt *out = take(m, sizeof *out);
    *out = split->read;
    out->cost = costs->fault * (double)split->faults + (split->closed ? 0.0 : costs->unclosed);
    if (m->table->quote >= 0) {
        size_t odd = 0;
        for (size_t n = 0; n < out->count; n++) odd += !out->quoted[n] && count(out->fields[n], m->table->quote) % 2;
        out->cost += costs->loose * (double)odd;
    }
    out->code = split->faults ? QUOTE : NO_CODE;
    return out;
}

/* ── fields against columns, as in repair.py ────────────────────────────────────────────────────────────────────── */

static void note(Mender *m, double cost, const Attempt *attempt, size_t place, uint8_t code, int64_t cut) {
    if (m->found_count == m->found_room) {
        size_t room = m->found_room ? m->found_room * 2 : 64;
        Found *found = realloc(m->found, room * sizeof *found);
        if (!found) longjmp(m->escape, NO_MEMORY);
        m->found = found;
        m->found_room = room;
    }
    m->found[m->found_count++] =
        (Found){.cost = cost, .attempt = attempt, .place = (int64_t)place, .cut = cut, .code = code};
}

/* Add up what the first cells cost in the first columns, as long as it is not above `most`; returns how many sums. */
static size_t prefix(Mender *m, const Span *cells, double most, size_t stop) {
    size_t out = 1;
    double total = m->before[0] = 0.0;
    for (size_t n = 0; n < stop; n++) {
        total += judge(m, n, cells[n]);
        if (total > most) break;
        m->before[out++] = total;
    }
    return out;
}

static size_t suffix(Mender *m, const Span *cells, size_t size, double most, size_t deep) {
    size_t out = 1;
    double total = m->after[0] = 0.0;
    for (size_t back = 1; back <= deep; back++) {
        total += judge(m, m->table->width - back, cells[size - back]);
        if (total > most) break;
        m->after[out++] = total;
    }
    return out;
}

/* What stood between fields that are joined again. */
static uint8_t glue(const Mender *m, const Attempt *attempt) {
    return attempt->code == FOREIGN ? ' ' : m->table->delimiter;
}

static Span joined(Mender *m, const Attempt *attempt, size_t begin, size_t end) {
    size_t size = end - begin - 1, at = 0;
    for (size_t n = begin; n < end; n++) size += attempt->fields[n].size;
    uint8_t *out = take(m, size);
    for (size_t n = begin; n < end; n++) {
        if (n > begin) out[at++] = glue(m, attempt);
        if (attempt->fields[n].size) memcpy(out + at, attempt->fields[n].at, attempt->fields[n].size);
        at += attempt->fields[n].size;
    }
    return (Span){out, size};
}

/* Add to a cost what speaks against the fields from a place on being one text. */
static double joined_cost(Mender *m, const Attempt *attempt, size_t place, double cost) {
    size_t end = place + attempt->count - m->table->width + 1;
    bool tight = false, empty = false, quoted = false;
    for (size_t n = place; n < end; n++) {
        Span field = attempt->fields[n];
        tight |= n > place && !(field.size && field.at[0] == ' ');
        empty |= !field.size;
        quoted |= attempt->quoted[n];
    }
    cost += judge(m, place, unquoted(joined(m, attempt, place, end), m->table->quote));
    if (glue(m, attempt) != ' ') {
        cost += 0.8 * (double)tight;
        cost += 1.0 * (double)empty;
    }
    return cost + 2.0 * (double)quoted;
}

static bool dropped(const Attempt *attempt, size_t width, size_t place) {
    size_t shift = attempt->count - width;
    if (attempt->fields[place + shift - 1].size || (place < width && !attempt->fields[place + shift].size)) return false;
    for (size_t n = place; n < place + shift; n++)
        if (attempt->fields[n].size) return false;
    return true;
}

/* Readings of a row with too many fields: empty ones dropped at one place, or text that was cut joined. */
static void too_many(Mender *m, const Attempt *attempt, const Span *cells, double room) {
    const Table *table = m->table;
    const Costs *costs = &table->costs;
    size_t width = table->width, shift = attempt->count - width, drops = 0, joins = 0, last = 0, deep = 0;
    double most = costs->accept < room ? costs->accept : room;
    size_t *drop = take(m, (width + 1) * sizeof *drop);
    for (size_t place = 0; place <= width; place++)
        if (dropped(attempt, width, place)) drop[drops++] = place;
    if (most >= costs->join) joins = table->text_count;
    if (drops) last = drop[drops - 1];
    if (joins && table->texts[joins - 1] > last) last = table->texts[joins - 1];
    size_t before = prefix(m, cells, most, last);
    if (before == 1 && !(drops && !drop[0]) && !(joins && !table->texts[0])) return;
    while (drops && drop[drops - 1] >= before) drops--;
    while (joins && table->texts[joins - 1] >= before) joins--;
    if (drops) deep = width - drop[0];
    if (joins && width - table->texts[0] - 1 > deep) deep = width - table->texts[0] - 1;
    size_t after = suffix(m, cells, attempt->count, most, deep);
    for (size_t n = 0; n < drops; n++) {
        size_t place = drop[n];
        if (width - place >= after) continue;
        double cost = m->before[place] + m->after[width - place];
        if (cost > costs->accept) continue;
        cost += place == width ? costs->tail : costs->drop + 0.3 * (double)(shift - 1);
        note(m, attempt->cost + cost, attempt, place, EXTRA, -1);
    }
    for (size_t n = 0; n < joins; n++) {
        size_t place = table->texts[n];
        if (width - place - 1 >= after) continue;
        double cost = m->before[place] + m->after[width - place - 1] + costs->join;
        if (cost <= most) note(m, attempt->cost + joined_cost(m, attempt, place, cost), attempt, place, UNQUOTED, -1);
    }
}

typedef struct {
    double cost;
    size_t cut;
} Cut;

/* Find the two best places to cut a field for two columns, as `repair._cuts`; returns how many there are. */
static size_t cuts(Mender *m, Span field, size_t place, double room, Cut *best) {
    int quote = m->table->quote;
    bool mark = quote >= 0 && holds(field, quote), whole = ascii(field);
    size_t out = 0;
    double most = MISFIT < room ? MISFIT : room;
    for (size_t cut = 1; cut < field.size; cut++) {
        if (!whole && (field.at[cut] & 0xC0) == 0x80) continue;
        double cost = judge(m, place, part(field, 0, cut));
        if (cost >= most) continue;
        cost += judge(m, place + 1, part(field, cut, field.size));
        if (mark && field.at[cut - 1] != quote && field.at[cut] != quote) cost += 1.0;
        if (cost >= most) continue;
        /* Cuts come in order, so of equal ones the first stays before. */
        Cut one = {cost, cut};
        if (out && cost < best[0].cost) best[1] = best[0], best[0] = one, out = 2;
        else if (!out) best[0] = one, out = 1;
        else if (out == 1 || cost < best[1].cost) best[1] = one, out = 2;
        if (out == 2) most = best[1].cost;
    }
    return out;
}

/* Readings of a row with fewer fields than columns: cells left out at the end, or two fields run together. */
static void too_few(Mender *m, const Attempt *attempt, const Span *cells, double room) {
    const Table *table = m->table;
    const Costs *costs = &table->costs;
    size_t width = table->width, size = attempt->count, lacking = width - size;
    double tail = table->tails[lacking], most = costs->accept + costs->margin;
    if (room < most) most = room;
    if (lacking > 1 && tail > most) return;
    size_t before = prefix(m, cells, most, size);
    if (before > size && m->before[before - 1] + tail <= costs->accept + costs->margin)
        note(m, attempt->cost + (m->before[before - 1] + tail), attempt, size, MISSING_END, -1);
    if (lacking > 1) return;
    size_t after = suffix(m, cells, size, most, width - 2);
    size_t stop = width - 1 < before ? width - 1 : before;
    for (size_t place = width - 1 > after ? width - 1 - after : 0; place < stop; place++) {
        double base = m->before[place] + m->after[width - place - 2] + costs->split;
        Span field = attempt->fields[place];
        if (base > most || field.size <= 1 || field.size > LONG_CELL) continue;
        Cut best[2];
        size_t found = 2;
        if (table->open[place] && table->open[place + 1] && table->quote < 0)
            best[0] = (Cut){0.0, 1}, best[1] = (Cut){0.0, field.size - 1};
        else found = cuts(m, field, place, room - base, best);
        for (size_t n = 0; n < found; n++)
            note(m, attempt->cost + (base + best[n].cost), attempt, place, MISSING, (int64_t)best[n].cut);
    }
}

/* List the readings of an attempt with at most one more fault, but for those that cost the bound or more. */
static void readings(Mender *m, const Attempt *attempt, double bound) {
    const Table *table = m->table;
    size_t width = table->width, size = attempt->count, far = width > 3 ? width : 3;
    double room = bound - attempt->cost + SLACK;
    if ((size > width ? size - width : width - size) > far || room <= 0) return;
    const Span *cells = attempt->fields;
    if (marked(attempt, table->quote)) {
        Span *bare = take(m, size * sizeof *bare);
        for (size_t n = 0; n < size; n++) bare[n] = unquoted(cells[n], table->quote);
        cells = bare;
    }
    if (size > width) {
        too_many(m, attempt, cells, room);
        return;
    }
    if (size < width) {
        too_few(m, attempt, cells, room);
        return;
    }
    double total = 0.0, peak = 0.0;
    size_t worst = SIZE_MAX;
    for (size_t n = 0; n < width; n++) {
        double cost = judge(m, n, cells[n]);
        if (cost == 0.0) continue;
        total += cost;
        if (total >= room) return;
        if (cost > peak) peak = cost, worst = n;
    }
    note(m, attempt->cost + total, attempt, peak >= 1 ? worst : SIZE_MAX, NO_CODE, -1);
}

/* ── ways to cut a row, as in repair.py ─────────────────────────────────────────────────────────────────────────── */

typedef struct {
    const Attempt **items;
    size_t count;
    double best;
} Seen;

/* Take up one more way to cut a row, unless it gives the fields of one before. */
static void attempt(Mender *m, Seen *seen, Split *split, double cost, uint8_t code) {
    for (size_t n = 0; n < seen->count; n++) {
        const Attempt *other = seen->items[n];
        size_t at = 0;
        if (other->count != split->read.count) continue;
        while (at < other->count && same(other->fields[at], split->read.fields[at])) at++;
        if (at == other->count) return;
    }
    Attempt *out = take(m, sizeof *out);
    *out = split->read;
    out->cost = cost;
    out->code = code;
    seen->items[seen->count++] = out;
    size_t first = m->found_count;
    readings(m, out, seen->best + m->table->costs.margin);
    for (size_t n = first; n < m->found_count; n++)
        if (m->found[n].cost < seen->best) seen->best = m->found[n].cost;
}

/* Whether a delimiter put in leaves none at the edge of a quoted value. */
static bool edged(const Attempt *read, uint8_t delimiter) {
    for (size_t n = 0; n < read->count; n++) {
        Span field = read->fields[n];
        if (read->quoted[n] && field.size && (field.at[0] == delimiter || field.at[field.size - 1] == delimiter))
            return true;
    }
    return false;
}

static void with_put_in(Mender *m, Seen *seen, Span row, size_t place, const char *signs, size_t size) {
    uint8_t *out = take(m, row.size + 1);
    memcpy(out, row.at, place);
    memcpy(out + place, signs, size);
    memcpy(out + place + size, row.at + place + 1, row.size - place - 1);
    Span opened = {out, row.size - 1 + size};
    if (!tidy(m->table, opened)) return;
    Split read = split(m, opened, m->table->delimiter);
    if (!edged(&read.read, m->table->delimiter)) attempt(m, seen, &read, m->table->costs.insert, MISSING);
}

static void as_text(Mender *m, Seen *seen, Span row, size_t place) {
    uint8_t *out = take(m, row.size);
    memcpy(out, row.at, row.size);
    out[place] = HOLD;
    Span literal = {out, row.size};
    if (!tidy(m->table, literal)) return;
    Split read = split(m, literal, m->table->delimiter);
    for (size_t n = 0; n < read.read.count; n++) {
        Span *field = &read.read.fields[n];
        if (!holds(*field, HOLD)) continue;
        uint8_t *copy = take(m, field->size);
        for (size_t at = 0; at < field->size; at++)
            copy[at] = field->at[at] == HOLD ? (uint8_t)m->table->quote : field->at[at];
        field->at = copy;
    }
    attempt(m, seen, &read, m->table->costs.literal, QUOTE);
}

static void quote_attempts(Mender *m, Seen *seen, Span row) {
    const Table *table = m->table;
    uint8_t delimiter = table->delimiter, mark = (uint8_t)table->quote;
    char before[2] = {(char)delimiter, (char)mark}, after[2] = {(char)mark, (char)delimiter};
    size_t quotes = count(row, table->quote), place = 0;
    if (quotes > MOST_QUOTES) return;
    for (size_t n = 0; n < quotes; n++, place++) {
        place = (size_t)(find(row.at + place, row.at + row.size, table->quote) - row.at);
        if (quotes % 2) {
            as_text(m, seen, row, place);
            continue;
        }
        size_t ahead = place;
        while (ahead && row.at[ahead - 1] == ' ') ahead--;
        /* A delimiter that is a blank itself is stripped with the blanks. */
        if (place && !(ahead && row.at[ahead - 1] == delimiter)) with_put_in(m, seen, row, place, before, 2);
        ahead = place + 1;
        while (ahead < row.size && row.at[ahead] == ' ') ahead++;
        if (!(ahead < row.size && row.at[ahead] == delimiter)) with_put_in(m, seen, row, place, after, 2);
    }
}

static bool doubled(Span row, int quote) {
    for (const uint8_t *at = row.at, *end = at + row.size; (at = find(at, end, quote)) && at + 1 < end; at++)
        if (at[1] == quote) return true;
    return false;
}

static void others(Mender *m, Seen *seen, Span row, const Attempt *plain) {
    const Table *table = m->table;
    int quote = table->quote;
    if (quote >= 0 && holds(row, quote) &&
        (plain->cost > 0 || loose(plain, quote) || (plain->count < table->width && doubled(row, quote))))
        quote_attempts(m, seen, row);
    size_t least = table->width - 1;
    for (size_t n = 0; n < table->others.size; n++) {
        uint8_t other = table->others.at[n];
        if (!least || count(row, other) < least) continue;
        Split read = split(m, row, other);
        if (read.read.count > least && read.read.count <= 2 * table->width && !read.faults)
            attempt(m, seen, &read, table->costs.foreign, FOREIGN);
    }
}

/* Build the values of a reading, one for each column, as `repair._build`. */
static const Span *build(Mender *m, const Found *found) {
    const Attempt *attempt = found->attempt;
    size_t width = m->table->width, size = attempt->count, place = (size_t)found->place;
    if (size == width) return attempt->fields;
    Span *out = take(m, width * sizeof *out);
    if (found->code == MISSING_END) {
        memcpy(out, attempt->fields, size * sizeof *out);
        for (size_t n = size; n < width; n++) out[n] = (Span){(const uint8_t *)"", 0};
        return out;
    }
    memcpy(out, attempt->fields, place * sizeof *out);
    if (found->code == EXTRA) {
        memcpy(out + place, attempt->fields + place + (size - width), (width - place) * sizeof *out);
    } else if (found->code == UNQUOTED) {
        size_t end = place + size - width + 1;
        out[place] = joined(m, attempt, place, end);
        memcpy(out + place + 1, attempt->fields + end, (width - place - 1) * sizeof *out);
    } else {
        Span field = attempt->fields[place];
        out[place] = part(field, 0, (size_t)found->cut);
        out[place + 1] = part(field, (size_t)found->cut, field.size);
        memcpy(out + place + 2, attempt->fields + place + 1, (width - place - 2) * sizeof *out);
    }
    return out;
}

static void sort(Found *found, size_t count) {
    for (size_t n = 1; n < count; n++) {
        Found one = found[n];
        size_t at = n;
        for (; at && found[at - 1].cost > one.cost; at--) found[at] = found[at - 1];
        found[at] = one;
    }
}

/* Choose the cheapest reading, if all that give other values are dearer by the margin; returns its values, if any. */
static const Span *choose(Mender *m, Told *told) {
    const Table *table = m->table;
    told->state = REFUSED;
    told->column = -1;
    if (!m->found_count) {
        told->why = NO_READING;
        return NULL;
    }
    sort(m->found, m->found_count);
    const Found *best = m->found;
    const Span *values = build(m, best);
    told->codes[0] = best->attempt->code;
    told->codes[1] = best->code;
    told->column = (int32_t)best->place;
    told->why = SURE;
    if (best->cost > table->costs.accept) {
        told->why = NO_FIT;
        return values;
    }
    for (size_t n = 1; n < m->found_count && n < MOST_COMPARED; n++) {
        const Found *one = &m->found[n];
        if (one->cost >= best->cost + table->costs.margin) break;
        const Span *other = build(m, one);
        for (size_t column = 0; column < table->width; column++) {
            if (same(unquoted(values[column], table->quote), unquoted(other[column], table->quote))) continue;
            told->codes[2] = one->attempt->code;
            told->codes[3] = one->code;
            told->why = ALIKE;
            return values;
        }
    }
    told->state = MENDED;
    return values;
}

static const Span *mend(Mender *m, Span row, const Attempt *plain, Told *told) {
    readings(m, plain, NOWHERE);
    Seen seen = {.best = NOWHERE};
    for (size_t n = 0; n < m->found_count; n++)
        if (m->found[n].cost < seen.best) seen.best = m->found[n].cost;
    if (seen.best > m->table->costs.easy) {
        seen.items = take(m, (2 + 2 * MOST_QUOTES + m->table->others.size) * sizeof *seen.items);
        seen.items[seen.count++] = plain;
        others(m, &seen, row, plain);
    }
    told->fields = (int32_t)plain->count;
    return choose(m, told);
}

/* ── rows of a chunk ────────────────────────────────────────────────────────────────────────────────────────────── */

/* Write values as one clean row with its line ending; a value that cannot be written cleanly is for Python to keep. */
static void spell(Mender *m, const Span *values, size_t count) {
    const Table *table = m->table;
    Buffer *text = &m->text;
    for (size_t n = 0; n < count; n++) {
        Span value = values[n];
        if (holds(value, '\r')) longjmp(m->escape, CANNOT);
        bool must = (table->quote >= 0 && holds(value, table->quote)) || holds(value, table->delimiter) ||
                    holds(value, '\n') || (value.size && (value.at[0] == ' ' || value.at[0] == '\t'));
        if (must && table->quote < 0 && (holds(value, table->delimiter) || holds(value, '\n')))
            longjmp(m->escape, CANNOT);
        grow(m, text, 2 * value.size + 4);
        if (n) text->data[text->fill++] = table->delimiter;
        if (!must || table->quote < 0) {
            put(m, text, value.at, value.size);
            continue;
        }
        text->data[text->fill++] = (uint8_t)table->quote;
        for (size_t at = 0; at < value.size; at++) {
            if (value.at[at] == table->quote) text->data[text->fill++] = (uint8_t)table->quote;
            text->data[text->fill++] = value.at[at];
        }
        text->data[text->fill++] = (uint8_t)table->quote;
    }
    put(m, text, &table->newline, 1);
}

/* Write the values that come nearest, for a person to see. */
static void show(Mender *m, const Span *values, Told *told) {
    told->text = (int64_t)m->shown.fill;
    for (size_t n = 0; n < m->table->width; n++) {
        if (n) put(m, &m->shown, " | ", 3);
        put(m, &m->shown, values[n].at, values[n].size);
    }
    told->size = (int64_t)m->shown.fill - told->text;
}

/* ── cells read more kindly, as `typed.soften` does ─────────────────────────────────────────────────────────────── */

/* A cell without what cannot be seen, and without blanks and quotes at its ends; false when that is for Python. */
static bool tidied(Mender *m, Span cell, Span *out) {
    uint8_t *kept = take(m, cell.size + 1);
    size_t size = 0;
    for (size_t n = 0; n < cell.size; n++) {
        uint8_t byte = cell.at[n];
        if (byte > 0x7F) {
            size_t left = cell.size - n;
            const uint8_t *at = cell.at + n;
            bool space = left >= 3 && at[0] == 0xE2 && at[1] == 0x80 && (at[2] == 0x87 || at[2] == 0xAF || at[2] == 0x8B);
            if (left >= 2 && at[0] == 0xC2 && at[1] == 0xA0) n += 1;
            else if (space || (left >= 3 && at[0] == 0xEF && at[1] == 0xBB && at[2] == 0xBF)) n += 2;
            else return false;
        } else if (byte >= ' ' && byte != 0x7F) {
            kept[size++] = byte;
        }
    }
    Span bare = {kept, size};
    for (int round = 0; round < 3; round++) {
        const char *ends = round == 1 ? "\"'`" : " ";
        while (bare.size && strchr(ends, bare.at[0])) bare = part(bare, 1, bare.size);
        while (bare.size && strchr(ends, bare.at[bare.size - 1])) bare.size--;
    }
    *out = bare;
    return true;
}

/* Whether the kernel reads a cell as a value of this column, whatever else there is in the row. */
static bool plain(const Gauge *gauge, Span cell) {
    size_t at = cell.size && cell.at[0] == '-', digits = 0, decimals = 0;
    switch (gauge->kind) {
    case 'd': return gauge->format_count && dated(gauge->formats[0].program, cell, true);
    case 'b': return fits_bool(gauge, cell) == 1;
    case 'i': case 'f': case 'n': break;
    default: return true;
    }
    /* 007 is a code, which a whole number does not keep. */
    if (!gauge->real && cell.size - at > 1 && cell.at[at] == '0' && digit(cell.at[at + 1])) return false;
    for (; at < cell.size && digit(cell.at[at]); at++) digits++;
    if (at < cell.size && cell.at[at] == '.' && gauge->real)
        for (at++; at < cell.size && digit(cell.at[at]); at++) decimals++;
    bool point = at && cell.at[at - 1] == '.';
    return at == cell.size && !point && digits && digits + decimals <= (gauge->real ? 15 : 18);
}

/* Take the marks between thousands out of a number that has them after every third digit. */
static bool ungrouped(Mender *m, const Gauge *gauge, Span cell, Span *out) {
    uint8_t *kept = take(m, cell.size + 1), mark = 0;
    size_t at = cell.size && cell.at[0] == '-', size = 0, run = 0;
    if (at) kept[size++] = '-';
    for (; at < cell.size; at++) {
        uint8_t byte = cell.at[at];
        if (digit(byte)) kept[size++] = byte, run++;
        else if ((byte == ',' || byte == ' ' || byte == '\'') && (mark ? byte == mark && run == 3 : run >= 1 && run <= 3))
            mark = byte, run = 0;
        else break;
    }
    if (!mark || run != 3 || (gauge->kind != 'n' && gauge->kind != 'i' && gauge->kind != 'f')) return false;
    if (at < cell.size) {
        memcpy(kept + size, cell.at + at, cell.size - at);
        size += cell.size - at;
    }
    *out = (Span){kept, size};
    return plain(gauge, *out);
}

/* Read a day with the month in three letters, "3 Feb 2021" or "03-Feb-2021", and write it as the column does. */
static bool named_day(Mender *m, const Gauge *gauge, Span cell, Span *out) {
    static const char MONTHS[] = "janfebmaraprmayjunjulaugsepoctnovdec";
    size_t at = cell.size > 1 && digit(cell.at[1]) ? 2 : 1;
    if (cell.size != at + 9 || !digit(cell.at[0])) return false;
    uint8_t mark = cell.at[at];
    if ((mark != ' ' && mark != '-') || cell.at[at + 4] != mark) return false;
    int month = 0;
    for (int n = 0; n < 12 && !month; n++) {
        int same = 0;
        for (int k = 0; k < 3; k++) same += letter(cell.at[at + 1 + k]) && (cell.at[at + 1 + k] | 0x20) == MONTHS[3 * n + k];
        if (same == 3) month = n + 1;
    }
    for (size_t n = at + 5; n < cell.size; n++)
        if (!digit(cell.at[n])) return false;
    if (!month || !gauge->format_count) return false;
    Span program = gauge->formats[0].program;
    uint8_t *made = take(m, 4 * program.size + 1), day[2] = {at == 2 ? cell.at[0] : '0', cell.at[at - 1]};
    size_t size = 0;
    for (size_t n = 0; n < program.size; n++) {
        uint8_t sign = program.at[n];
        if (sign == 'Y') memcpy(made + size, cell.at + at + 5, 4), size += 4;
        else if (sign == 'm') made[size++] = '0' + (uint8_t)(month / 10), made[size++] = '0' + (uint8_t)(month % 10);
        else if (sign == 'd') made[size++] = day[0], made[size++] = day[1];
        else if (sign == '\\') made[size++] = program.at[++n];
        else return false;
    }
    *out = (Span){made, size};
    return plain(gauge, *out);
}

/* Read one cell more kindly; returns how (see KINDER), or -1 when that is for Python. */
static int soften(Mender *m, const Gauge *gauge, Span cell, Span *out) {
    Span bare, whole;
    if (among(&m->table->missing, cell)) {
        *out = (Span){(const uint8_t *)"", 0};
        return WORD;
    }
    if (gauge->kind == 'b' || !tidied(m, cell, &bare) || !bare.size) return -1;
    *out = bare;
    if (plain(gauge, bare)) return same(bare, cell) ? -1 : BLANKS;
    /* What may be a value in another spelling of the column's own is not read in a foreign one. */
    if (fits(gauge, bare)) return -1;
    if (gauge->kind == 'd') return gauge->day && named_day(m, gauge, bare, out) ? FORMAT : -1;
    if (gauge->marked) return -1;
    if (ungrouped(m, gauge, bare, out)) return GROUPS;
    if (gauge->real || gauge->kind != 'i') return -1;
    const uint8_t *point = find(bare.at, bare.at + bare.size, '.');
    if (!point || point + 1 == bare.at + bare.size) return -1;
    for (const uint8_t *at = point + 1; at < bare.at + bare.size; at++)
        if (*at != '0') return -1;
    whole = part(bare, 0, (size_t)(point - bare.at));
    *out = whole;
    return whole.size <= 15 && plain(gauge, whole) ? DECIMALS : -1;
}

static void tell_kinder(Mender *m, int64_t first, size_t column, int kinder, Span cell) {
    Kinder one = {.first = first, .at = (int64_t)m->spelt.fill, .size = (int64_t)cell.size, .column = (int32_t)column,
                  .kinder = kinder};
    put(m, &m->kinder, &one, sizeof one);
    put(m, &m->spelt, cell.at, cell.size);
}

/* Read the cells of a row more kindly where their column does not take them as they are. Returns the values, which are
 * those given where nothing was changed, or a cell is for Python after all. */
static const Span *settled(Mender *m, const Span *values, int64_t first) {
    const Table *table = m->table;
    size_t fill = m->kinder.fill, spelt = m->spelt.fill;
    Span *out = NULL;
    for (size_t n = 0; n < table->width; n++) {
        const Gauge *gauge = &table->gauges[n];
        if (strchr("wt", gauge->kind) || among(&gauge->nulls, values[n]) || plain(gauge, values[n])) continue;
        Span value;
        int kinder = -1;
        /* Marks and blanks that are usual in the numbers of a column are no repair. */
        bool usual = gauge->marked && fits_marked(gauge, values[n]) == 1;
        if (usual) value = bare_of(values[n]);
        usual = usual && (plain(gauge, value) || ungrouped(m, gauge, value, &value));
        if (!usual && !fits(gauge, values[n])) kinder = soften(m, gauge, values[n], &value);
        if (!usual && kinder < 0) {
            m->kinder.fill = fill;
            m->spelt.fill = spelt;
            return values;
        }
        if (!out) {
            out = take(m, table->width * sizeof *out);
            memcpy(out, values, table->width * sizeof *out);
        }
        out[n] = value;
        if (!usual) tell_kinder(m, first, n, kinder, values[n]);
    }
    return out ? out : values;
}

static Span chomped(Span row) {
    if (row.size && row.at[row.size - 1] == '\n') row.size--;
    if (row.size && row.at[row.size - 1] == '\r') row.size--;
    return row;
}

static bool blank(Span row, uint8_t delimiter) {
    for (size_t n = 0; n < row.size; n++) {
        uint8_t byte = row.at[n];
        if (byte != ' ' && byte != '\t' && byte != '\r' && byte != '\n' && byte != delimiter) return false;
    }
    return true;
}

/* Read, repair or refuse one row, in one of the ways above. */
static void read_row(Mender *m, Span raw, uint8_t way, Told *told) {
    const Table *table = m->table;
    Span row = way == BARE ? raw : chomped(raw);
    if (row.size > LONG_ROW || raw.size > table->reach + 2) longjmp(m->escape, CANNOT);
    if (holds(row, 0)) {
        uint8_t *kept = take(m, row.size);
        size_t size = 0;
        for (size_t n = 0; n < row.size; n++)
            if (row.at[n]) kept[size++] = row.at[n];
        row = (Span){kept, size};
        told->note = true;
    }
    if (!utf8(row)) longjmp(m->escape, CANNOT);
    if (way == KNOWN) {
        Split read = {0};
        const Span *values = NULL;
        if (m->kind) {
            read = split(m, row, table->delimiter);
            if (read.read.count == table->width) values = settled(m, read.read.fields, told->first);
        }
        told->state = READ;
        if (values && values != read.read.fields) {
            spell(m, values, table->width);
            return;
        }
        put(m, &m->text, row.at, row.size);
        put(m, &m->text, &table->newline, 1);
        return;
    }
    if (way == LOOK && blank(row, table->delimiter)) {
        told->state = BLANK;
        return;
    }
    Split read = split(m, row, table->delimiter);
    if (way == LOOK && read.closed && !read.faults && !loose(&read.read, table->quote) && read.read.count == table->width) {
        spell(m, m->kind ? settled(m, read.read.fields, told->first) : read.read.fields, table->width);
        told->state = READ;
        return;
    }
    const Span *values = mend(m, row, weighed(m, &read), told);
    if (told->state == MENDED) spell(m, m->kind ? settled(m, values, told->first) : values, table->width);
    else if (values) show(m, values, told);
}

/* Do one row, with a place to jump back to from anywhere in it, and keep what came of it. */
static bool guarded(Mender *m, Span raw, uint8_t way, int64_t first, int64_t last, int64_t begin) {
    if (m->told.room - m->told.fill < sizeof(Told)) {
        size_t room = m->told.room ? m->told.room * 2 : 64 * sizeof(Told);
        uint8_t *data = realloc(m->told.data, room);
        if (!data) return false;
        m->told.data = data;
        m->told.room = room;
    }
    size_t fill = m->text.fill, shown = m->shown.fill, kinder = m->kinder.fill, spelt = m->spelt.fill;
    Told *told = (Told *)(void *)(m->told.data + m->told.fill);
    m->told.fill += sizeof *told;
    *told = (Told){.first = first, .last = last, .begin = begin, .end = begin + (int64_t)raw.size,
                   .text = (int64_t)fill, .column = -1, .way = way};
    int why = setjmp(m->escape);
    if (!why) {
        read_row(m, raw, way, told);
        if (told->state == READ || told->state == MENDED) told->size = (int64_t)(m->text.fill - fill);
    } else {
        told->state = ASK;
        m->text.fill = fill;
        m->shown.fill = shown;
        m->kinder.fill = kinder;
        m->spelt.fill = spelt;
    }
    clear(m);
    return why != NO_MEMORY;
}

/* Whether the lines that quotes hold together read as one row: 1 yes, 0 no, -1 there is no memory. */
static int together(Mender *m, Span raw) {
    volatile int out = -1;
    if (!setjmp(m->escape)) {
        Split read = split(m, chomped(raw), m->table->delimiter);
        out = !read.faults && read.closed;
    }
    clear(m);
    return out;
}

/* Rows to be looked at: the first and last line of each, and in which way. */
typedef struct {
    const uint8_t *data;
    size_t size, lines, count;
    const int64_t *starts, *ends, *firsts, *lasts;
    const uint8_t *ways;
} Rows;

static bool read_rows(Mender *m, const Rows *rows) {
    for (size_t n = 0; n < rows->count; n++) {
        int64_t first = rows->firsts[n], last = rows->lasts[n];
        int64_t begin = rows->starts[first];
        Span raw = {rows->data + begin, (size_t)(rows->ends[last] - begin)};
        int whole = last == first || raw.size > LONG_ROW ? 1 : together(m, raw);
        if (whole < 0) return false;
        if (whole && !guarded(m, raw, rows->ways[n], first, last, begin)) return false;
        for (int64_t line = first; !whole && line <= last; line++) {
            begin = rows->starts[line];
            raw = (Span){rows->data + begin, (size_t)(rows->ends[line] - begin)};
            if (!guarded(m, raw, LOOK, line, line, begin)) return false;
        }
    }
    return true;
}

/* ── where rows end, as in rows.py ──────────────────────────────────────────────────────────────────────────────── */

/* A chunk, and the last answer to whether a place is outside quotes: from where to where it holds. */
typedef struct {
    const Table *table;
    const uint8_t *data;
    size_t size, begin, until;
    bool heard, outside;
} Chunk;

static size_t line_end(const Chunk *chunk, size_t at) {
    const uint8_t *found = find(chunk->data + at, chunk->data + chunk->size, chunk->table->newline);
    return found ? (size_t)(found - chunk->data) + 1 : chunk->size;
}

static size_t quote_at(const Chunk *chunk, size_t at, size_t stop) {
    const uint8_t *found = at < stop ? find(chunk->data + at, chunk->data + stop, chunk->table->quote) : NULL;
    return found ? (size_t)(found - chunk->data) : SIZE_MAX;
}

static bool stops(const Table *table, uint8_t byte) {
    return byte == table->delimiter || byte == table->quote || byte == '\r' || byte == '\n';
}

static uint8_t lower(uint8_t byte) { return byte >= 'A' && byte <= 'Z' ? byte + 32 : byte; }

/* Match a number with a blank, a sign and a mark of money before it; returns where it ends, SIZE_MAX when there is none. */
static size_t number_at(const Chunk *chunk, size_t at) {
    const Table *table = chunk->table;
    for (int tried = 7; tried >= 0; tried--) {
        size_t place = at;
        if (tried & 4 && !(place < chunk->size && chunk->data[place++] == ' ')) continue;
        if (tried & 2 && !(place < chunk->size && strchr("-+(", chunk->data[place]) && chunk->data[place++])) continue;
        if (tried & 1) {
            uint8_t byte = place < chunk->size ? chunk->data[place++] : '0';
            if (letter(byte) || digit(byte) || byte == '_' || white(byte) || stops(table, byte)) continue;
        }
        if (place >= chunk->size || !digit(chunk->data[place])) continue;
        while (place < chunk->size && !letter(chunk->data[place]) && !stops(table, chunk->data[place])) place++;
        return place;
    }
    return SIZE_MAX;
}

/* Match one column of a line that is plainly a row; returns where it ends, SIZE_MAX when it is none. */
static size_t cell_at(const Chunk *chunk, const Cell *cell, size_t at) {
    size_t place = at;
    bool some = cell->kind == 't';
    if (cell->kind == 'n') {
        place = number_at(chunk, at);
        if (place != SIZE_MAX) return place;
    } else if (cell->kind != 'w') {
        for (; place < chunk->size && !stops(chunk->table, chunk->data[place]); place++) some |= digit(chunk->data[place]);
        if (some) return place;
    }
    for (size_t n = 0; n < cell->words.count; n++) {
        Span word = cell->words.items[n];
        size_t same = 0;
        if (word.size > chunk->size - at) continue;
        while (same < word.size && lower(chunk->data[at + same]) == lower(word.at[same])) same++;
        if (same == word.size) return at + same;
    }
    return SIZE_MAX;
}

static bool plainly(const Chunk *chunk, size_t at) {
    const Table *table = chunk->table;
    if (!table->cell_count) return false;
    for (size_t n = 0; n < table->cell_count; n++) {
        if (n && (at >= chunk->size || chunk->data[at++] != table->delimiter)) return false;
        at = cell_at(chunk, &table->cells[n], at);
        if (at == SIZE_MAX) return false;
    }
    return at < chunk->size && (chunk->data[at] == '\r' || chunk->data[at] == '\n');
}

/* Judge the quote at a place by its neighbours: 1 it opens a field, -1 it closes one, 0 it cannot be told. */
static int judged(const Chunk *chunk, size_t place) {
    const Table *table = chunk->table;
    bool last = place + 1 >= chunk->size;
    uint8_t before = place ? chunk->data[place - 1] : '\n', after = last ? '\n' : chunk->data[place + 1];
    if (before == table->quote || after == table->quote) return 0;
    bool opens = before == '\n' || before == '\r' || before == table->delimiter;
    bool closes = after == '\n' || after == '\r' || after == table->delimiter;
    return (int)opens - (int)closes;
}

/* Ask whether a place is outside quotes. */
static bool outside(Chunk *chunk, size_t start) {
    if (chunk->heard && start >= chunk->begin && start <= chunk->until) return chunk->outside;
    size_t reach = chunk->table->reach, stop = chunk->size - start > reach ? start + reach : chunk->size;
    size_t line = line_end(chunk, start);
    *chunk = (Chunk){.table = chunk->table, .data = chunk->data, .size = chunk->size, .begin = start, .until = stop,
                     .heard = true, .outside = true};
    for (size_t place = quote_at(chunk, start, stop); place != SIZE_MAX; place = quote_at(chunk, place + 1, stop)) {
        for (; line <= place; line = line_end(chunk, line))
            if (plainly(chunk, line)) {
                chunk->until = line;
                return true;
            }
        int verdict = judged(chunk, place);
        if (!verdict) continue;
        chunk->until = place;
        return chunk->outside = verdict > 0;
    }
    return true;
}

static size_t past_blanks(const Chunk *chunk, size_t at, size_t stop) {
    while (at < stop && (chunk->data[at] == ' ' || chunk->data[at] == '\t') &&
           chunk->data[at] != chunk->table->delimiter)
        at++;
    return at;
}

/* Return the place after the quoted field that opens at a place; SIZE_MAX when it does not close before a fresh line. */
static size_t close_of(Chunk *chunk, size_t at, size_t stop) {
    size_t from = at + 1, crossed = line_end(chunk, at);
    for (;;) {
        size_t place = quote_at(chunk, from, stop);
        if (place == SIZE_MAX) return SIZE_MAX;
        for (; crossed <= place; crossed = line_end(chunk, crossed))
            if (plainly(chunk, crossed) || outside(chunk, crossed)) return SIZE_MAX;
        size_t after = place + 1;
        if (after < chunk->size && chunk->data[after] == chunk->table->quote) {
            from = place + 2;
            continue;
        }
        after = past_blanks(chunk, after, stop);
        if (after >= chunk->size || chunk->data[after] == '\n' || chunk->data[after] == '\r' ||
            chunk->data[after] == chunk->table->delimiter)
            return after;
        from = place + 1;
    }
}

static size_t row_end(Chunk *chunk, size_t start) {
    const Table *table = chunk->table;
    size_t line = line_end(chunk, start), at = start;
    if (table->quote < 0 || quote_at(chunk, start, line) == SIZE_MAX) return line;
    size_t stop = chunk->size - start > table->reach ? start + table->reach : chunk->size;
    for (;;) {
        size_t ahead = past_blanks(chunk, at, stop);
        if (ahead < chunk->size && chunk->data[ahead] == table->quote) {
            at = close_of(chunk, ahead, stop);
            if (at == SIZE_MAX) return line;
        } else {
            size_t end = line_end(chunk, at);
            const uint8_t *found = find(chunk->data + at, chunk->data + end, table->delimiter);
            if (!found) return end;
            at = (size_t)(found - chunk->data);
        }
        if (at >= chunk->size) return chunk->size;
        if (chunk->data[at] != table->delimiter) return line_end(chunk, at);
        at++;
    }
}

/* Gather the lines that are not good into rows: pairs of first and last line. False: there is no memory. */
static bool gather(Chunk *chunk, const Rows *rows, const uint8_t *quoted, Buffer *out) {
    for (size_t n = 0; n < rows->lines; n++) {
        if (rows->ways[n]) continue;
        size_t last = n;
        if (quoted[n]) {
            int64_t end = (int64_t)row_end(chunk, (size_t)rows->starts[n]);
            while (last + 1 < rows->lines && rows->ends[last] < end) last++;
        }
        if (out->room - out->fill < 16) {
            size_t room = out->room ? out->room * 2 : 1 << 12;
            uint8_t *data = realloc(out->data, room);
            if (!data) return false;
            out->data = data;
            out->room = room;
        }
        int64_t pair[2] = {(int64_t)n, (int64_t)last};
        memcpy(out->data + out->fill, pair, 16);
        out->fill += 16;
        n = last;
    }
    return true;
}

/* ── Python ─────────────────────────────────────────────────────────────────────────────────────────────────────── */

static bool refuse(const char *why) {
    PyErr_SetString(PyExc_ValueError, why);
    return false;
}

static bool take_spans(PyObject *tuple, Spans *out) {
    out->items = calloc((size_t)PyTuple_Size(tuple) + 1, sizeof *out->items);
    if (!out->items) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t n = 0; n < PyTuple_Size(tuple); n++) {
        char *text;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(tuple, n), &text, &size) < 0) return false;
        out->items[out->count++] = (Span){(const uint8_t *)text, (size_t)size};
    }
    return true;
}

static bool take_format(PyObject *item, Format *format) {
    const char *program, *literals, *skipped;
    Py_ssize_t sizes[3];
    int seen[3] = {0};
    if (!PyArg_ParseTuple(item, "y#y#y#", &program, &sizes[0], &literals, &sizes[1], &skipped, &sizes[2])) return false;
    for (Py_ssize_t n = 0; n < sizes[0]; n++) {
        if (program[n] == '\\' && ++n < sizes[0]) continue;
        if (n >= sizes[0] || !program[n] || !strchr("YmdHMS", program[n])) return refuse("expected signs of Y m d H M S");
        for (int sign = 0; sign < 3; sign++) seen[sign] += program[n] == "Ymd"[sign];
    }
    if (sizes[0] && (seen[0] != 1 || seen[1] != 1 || seen[2] != 1)) return refuse("expected a year, a month and a day");
    if (sizes[2] && sizes[2] != 256) return refuse("expected 256 flags");
    format->program = (Span){(const uint8_t *)program, (size_t)sizes[0]};
    format->literals = (Span){(const uint8_t *)literals, (size_t)sizes[1]};
    format->skipped = sizes[2] ? (const uint8_t *)skipped : NULL;
    return true;
}

static bool take_gauge(PyObject *item, Gauge *gauge) {
    int kind, exact, sized, digits, day;
    PyObject *nulls, *words, *shapes, *formats;
    const char *prefix, *heads, *letters;
    Py_ssize_t prefix_size, heads_size, letters_size;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a column is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(item, "CdddO!O!O!py#y#ppllly#iipO!", &kind, &gauge->empty, &gauge->strange, &gauge->rare,
                          &PyTuple_Type, &nulls, &PyTuple_Type, &words, &PyTuple_Type, &shapes, &exact, &prefix,
                          &prefix_size, &heads, &heads_size, &sized, &digits, &gauge->shortest, &gauge->longest,
                          &gauge->decimals, &letters, &letters_size, &gauge->group, &gauge->decimal, &day,
                          &PyTuple_Type, &formats))
        return false;
    if (!take_spans(nulls, &gauge->nulls) || !take_spans(words, &gauge->words) || !take_spans(shapes, &gauge->shapes))
        return false;
    gauge->kind = (uint8_t)kind;
    gauge->exact = exact;
    gauge->digits = digits;
    gauge->prefix = (Span){(const uint8_t *)prefix, (size_t)prefix_size};
    gauge->heads = heads_size ? (const uint8_t *)heads : NULL;
    gauge->sized = sized;
    gauge->real = kind == 'f' || (kind == 'n' && gauge->decimal >= 0);
    gauge->marked = kind == 'n';
    gauge->day = kind == 'd' && day;
    gauge->letters = (const uint8_t *)letters;
    if (!kind || !strchr("wtifnbd?", kind)) return refuse("expected a kind of column");
    if ((heads_size && heads_size != HEADS) || letters_size != 256) return refuse("expected as many flags as characters");
    if (!among(&gauge->nulls, (Span){(const uint8_t *)"", 0})) return refuse("expected an empty cell to be missing");
    for (size_t n = 0; n < gauge->nulls.count; n++)
        if (gauge->nulls.items[n].size > gauge->longest_null) gauge->longest_null = gauge->nulls.items[n].size;
    gauge->format_count = (size_t)PyTuple_Size(formats);
    gauge->formats = calloc(gauge->format_count + 1, sizeof *gauge->formats);
    if (!gauge->formats) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t n = 0; n < gauge->format_count; n++)
        if (!take_format(PyTuple_GetItem(formats, (Py_ssize_t)n), &gauge->formats[n])) return false;
    return true;
}

static void free_table(Table *table) {
    for (size_t n = 0; table->gauges && n < table->width; n++) {
        Gauge *gauge = &table->gauges[n];
        free(gauge->nulls.items), free(gauge->words.items), free(gauge->shapes.items), free(gauge->formats);
    }
    for (size_t n = 0; table->cells && n < table->cell_count; n++) free(table->cells[n].words.items);
    free(table->missing.items);
    free(table->gauges), free(table->texts), free(table->open), free(table->tails), free(table->cells);
    Py_XDECREF(table->spec);
    free(table);
}

static void drop_table(PyObject *capsule) {
    Table *table = PyCapsule_GetPointer(capsule, "tenon.table");
    if (table) free_table(table);
}

/* Fill in a table from (delimiter, quote, newline, reach, costs, gauges, open, tails, others, cells, missing). */
static bool take_table(PyObject *spec, Table *table) {
    int delimiter, newline;
    Py_ssize_t reach, open_size, tail_size, other_size;
    const char *open, *tails, *others;
    PyObject *costs, *gauges, *cells, *missing;
    if (!PyArg_ParseTuple(spec, "iiinO!O!y#y#y#O!O!", &delimiter, &table->quote, &newline, &reach, &PyTuple_Type, &costs,
                          &PyTuple_Type, &gauges, &open, &open_size, &tails, &tail_size, &others, &other_size,
                          &PyTuple_Type, &cells, &PyTuple_Type, &missing))
        return false;
    if (!take_spans(missing, &table->missing)) return false;
    Costs *c = &table->costs;
    if (!PyArg_ParseTuple(costs, "ddddddddddddd", &c->accept, &c->margin, &c->fault, &c->unclosed, &c->loose, &c->literal,
                          &c->insert, &c->foreign, &c->drop, &c->tail, &c->join, &c->split, &c->easy))
        return false;
    table->delimiter = (uint8_t)delimiter;
    table->newline = (uint8_t)newline;
    table->reach = (size_t)reach;
    size_t width = (size_t)PyTuple_Size(gauges), count = (size_t)PyTuple_Size(cells);
    if (!width || (size_t)open_size != width || (size_t)tail_size != (width + 1) * sizeof(double) || other_size > 64)
        return refuse("expected as many of each as columns");
    table->gauges = calloc(width, sizeof *table->gauges);
    table->texts = calloc(width, sizeof *table->texts);
    table->open = malloc(width);
    table->tails = malloc((width + 1) * sizeof(double));
    table->cells = calloc(count + 1, sizeof *table->cells);
    if (!table->gauges || !table->texts || !table->open || !table->tails || !table->cells) {
        PyErr_NoMemory();
        return false;
    }
    table->width = width;
    table->cell_count = count;
    memcpy(table->open, open, width);
    memcpy(table->tails, tails, (width + 1) * sizeof(double));
    table->others = (Span){(const uint8_t *)others, (size_t)other_size};
    for (size_t n = 0; n < width; n++) {
        if (!take_gauge(PyTuple_GetItem(gauges, (Py_ssize_t)n), &table->gauges[n])) return false;
        if (strchr("wt", table->gauges[n].kind)) table->texts[table->text_count++] = n;
    }
    for (size_t n = 0; n < count; n++) {
        int kind;
        PyObject *words;
        if (!PyArg_ParseTuple(PyTuple_GetItem(cells, (Py_ssize_t)n), "CO!", &kind, &PyTuple_Type, &words)) return false;
        table->cells[n].kind = (uint8_t)kind;
        if (!take_spans(words, &table->cells[n].words)) return false;
    }
    return true;
}

static PyObject *repair_prepare(PyObject *module, PyObject *spec) {
    (void)module;
    if (!PyTuple_Check(spec)) {
        PyErr_SetString(PyExc_TypeError, "a table is a tuple");
        return NULL;
    }
    Table *table = calloc(1, sizeof *table);
    if (!table) return PyErr_NoMemory();
    Py_INCREF(spec);
    table->spec = spec;
    PyObject *out = take_table(spec, table) ? PyCapsule_New(table, "tenon.table", drop_table) : NULL;
    if (!out) free_table(table);
    return out;
}

/* Check that lines lie in the data, in order, and rows among the lines. */
static bool sound(const Rows *rows) {
    for (size_t n = 0; n < rows->lines; n++) {
        int64_t begin = n ? rows->ends[n - 1] : 0;
        if (rows->starts[n] < begin || rows->ends[n] < rows->starts[n] || rows->ends[n] > (int64_t)rows->size) return false;
    }
    for (size_t n = 0; n < rows->count; n++)
        if (rows->firsts[n] < 0 || rows->lasts[n] < rows->firsts[n] || rows->lasts[n] >= (int64_t)rows->lines) return false;
    return true;
}

static PyObject *repair_groups(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule, *out = NULL;
    Py_buffer data, starts, ends, good, quoted;
    if (!PyArg_ParseTuple(args, "Oy*y*y*y*y*", &capsule, &data, &starts, &ends, &good, &quoted)) return NULL;
    const Table *table = PyCapsule_GetPointer(capsule, "tenon.table");
    Rows rows = {.data = data.buf, .size = (size_t)data.len, .lines = (size_t)good.len, .starts = starts.buf,
                 .ends = ends.buf, .ways = good.buf};
    bool fits = starts.len == good.len * 8 && ends.len == good.len * 8 && quoted.len == good.len;
    if (table && (!fits || !sound(&rows))) PyErr_SetString(PyExc_ValueError, "expected lines in the data, in order");
    if (table && !PyErr_Occurred()) {
        Chunk chunk = {.table = table, .data = rows.data, .size = rows.size};
        Buffer pairs = {0};
        bool fine;
        Py_BEGIN_ALLOW_THREADS
        fine = gather(&chunk, &rows, quoted.buf, &pairs);
        Py_END_ALLOW_THREADS
        out = fine ? PyBytes_FromStringAndSize(pairs.data ? (const char *)pairs.data : "", (Py_ssize_t)pairs.fill)
                   : PyErr_NoMemory();
        free(pairs.data);
    }
    PyBuffer_Release(&data), PyBuffer_Release(&starts), PyBuffer_Release(&ends);
    PyBuffer_Release(&good), PyBuffer_Release(&quoted);
    return out;
}

static PyObject *given(const Buffer *buffer) {
    return PyBytes_FromStringAndSize(buffer->data ? (const char *)buffer->data : "", (Py_ssize_t)buffer->fill);
}

static PyObject *repair_mend(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule, *out = NULL;
    Py_buffer data, starts, ends, firsts, lasts, ways;
    int kind;
    if (!PyArg_ParseTuple(args, "Oy*y*y*y*y*y*p", &capsule, &data, &starts, &ends, &firsts, &lasts, &ways, &kind))
        return NULL;
    Mender m = {.table = PyCapsule_GetPointer(capsule, "tenon.table"), .kind = kind};
    Rows rows = {.data = data.buf, .size = (size_t)data.len, .lines = (size_t)starts.len / 8,
                 .count = (size_t)ways.len, .starts = starts.buf, .ends = ends.buf, .firsts = firsts.buf,
                 .lasts = lasts.buf, .ways = ways.buf};
    bool fits = starts.len % 8 == 0 && ends.len == starts.len && firsts.len == ways.len * 8 && lasts.len == firsts.len;
    if (m.table && (!fits || !sound(&rows))) PyErr_SetString(PyExc_ValueError, "expected lines in the data, in order");
    if (m.table && !PyErr_Occurred()) {
        bool fine;
        m.before = malloc((m.table->width + 2) * sizeof(double));
        m.after = malloc((m.table->width + 2) * sizeof(double));
        Py_BEGIN_ALLOW_THREADS
        fine = m.before && m.after && read_rows(&m, &rows);
        Py_END_ALLOW_THREADS
        out = fine ? Py_BuildValue("(NNNNN)", given(&m.told), given(&m.text), given(&m.shown), given(&m.kinder),
                                   given(&m.spelt))
                   : PyErr_NoMemory();
        clear(&m);
        free(m.blocks), free(m.found), free(m.before), free(m.after);
        free(m.text.data), free(m.shown.data), free(m.told.data), free(m.kinder.data), free(m.spelt.data);
    }
    PyBuffer_Release(&data), PyBuffer_Release(&starts), PyBuffer_Release(&ends);
    PyBuffer_Release(&firsts), PyBuffer_Release(&lasts), PyBuffer_Release(&ways);
    return out;
}

/* What one column says against cells, one by one: for tests. */
static PyObject *repair_judge(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *capsule, *out = NULL;
    Py_ssize_t column, size;
    const char *cell;
    if (!PyArg_ParseTuple(args, "Ony#", &capsule, &column, &cell, &size)) return NULL;
    Mender m = {.table = PyCapsule_GetPointer(capsule, "tenon.table")};
    if (!m.table) return NULL;
    if (column < 0 || (size_t)column >= m.table->width) {
        PyErr_SetString(PyExc_ValueError, "expected a column of the table");
        return NULL;
    }
    Span span = {(const uint8_t *)cell, (size_t)size};
    if (!setjmp(m.escape)) out = PyFloat_FromDouble(judge(&m, (size_t)column, span));
    else out = (Py_INCREF(Py_None), Py_None);
    return out;
}

static PyMethodDef METHODS[] = {
    {"prepare", repair_prepare, METH_O, "prepare(spec) -> a table ready to judge: see batch.py."},
    {"groups", repair_groups, METH_VARARGS, "groups(table, data, starts, ends, good, quoted) -> pairs of lines."},
    {"mend", repair_mend, METH_VARARGS, "mend(table, data, starts, ends, firsts, lasts, ways, kind) -> (told, text, shown, kinder, spelt)."},
    {"judge", repair_judge, METH_VARARGS, "judge(table, column, cell) -> a cost; None when Python must say."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_repair", NULL, 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__repair(void) { return PyModule_Create(&MODULE); }
