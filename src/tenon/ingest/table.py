"""Where the table is in a file: preamble, header, first row, width; from the first rows, read under the dialect.

The width is the number of fields most rows have; of tables that follow each other, the first of any size. Rows above
the first full row are a preamble, and so are full-width rows that are empty but for their first cell. A row is a
header when its cells do not look like the column below them: text over numbers, dates or money. Where every column is
text, softer evidence decides: names are short, distinct, without digits, and do not come again below.

Several header rows are joined cell by cell with a space. A header with one name too many or too few is mended when it
can be (an empty name, an unnamed first column); otherwise columns are named by number. Rows that leave out empty cells
at their end are usual, so a header longer than its rows sets the width.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tenon.ingest.detect import TYPED, kind, shape
from tenon.ingest.dialect import Dialect, chomp, split
from tenon.ingest.repair import attempts
from tenon.ingest.rows import Heard, row_end

ROWS = 1000
SEAM = rb"(?<=[a-z])(?=[A-Z])|(?<=[A-Z]{2})(?=[A-Z][a-z])|(?<=[Dd][Aa][Tt][Ee])(?=[Tt][Ii][Mm][Ee])"
# Words in names that say what a column holds.
NAMED = (
    ("date", (b"date", b"datum", b"fecha", b"day")),
    ("time", (b"time", b"hour")),
    ("int", (b"qty", b"quantity", b"count", b"number", b"year", b"age")),
    ("money", (b"price", b"cost", b"amount", b"fee", b"revenue")),
    ("percent", (b"percent", b"pct")),
    ("url", (b"url", b"link", b"website")),
    ("email", (b"mail",)),
)
YEAR = rb"(?:1[89]|20|21)\d\d"
HEADERS = 6  # more header rows than this are data
FAMILY = {"float": "int", "number": "int", "percent": "percent", "money": "money", "stamp": "date"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the sample with where it lies and how it was read."""

    begin: int
    end: int
    raw: bytes
    values: list[bytes]
    quoted: list[bool]
    faults: int

    @property
    def blank(self) -> bool:
        """Whether the row has nothing in it."""
        return not any(value.strip(b" \t\x00") for value in self.values)

    @property
    def filled(self) -> int:
        """Count the cells that have something in them."""
        return sum(bool(value.strip()) for value in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The layout of the table in one file: how many columns, where rows begin, and the header as spelt.

    `header` is empty where there is none. `begin` is the offset of the first row after the header, `preamble` that of
    the first header row; `header_rows` are the header's lines as bytes, by which a repeated header is known again.
    """

    width: int
    begin: int
    preamble: int = 0
    header: tuple[bytes, ...] = ()
    header_rows: tuple[bytes, ...] = ()
    body: tuple[Row, ...] = field(default=(), repr=False)


def rows_of(data: bytes, begin: int, dialect: Dialect, *, reach: int, limit: int = ROWS) -> list[Row]:
    """Read rows from the beginning of a sample, at most `limit`."""
    out: list[Row] = []
    heard = Heard()
    while begin < len(data) and len(out) < limit:
        end, _ = row_end(data, begin, dialect, reach, heard)
        raw = chomp(data[begin:end])
        read = split(raw, dialect)
        out.append(Row(begin, end, raw, read.values, read.quoted, read.faults))
        begin = end
    return out


def find(rows: Sequence[Row], dialect: Dialect) -> Table:
    """Find the table in the rows of a sample."""
    full = [row for row in rows if not row.blank]
    if not full:
        return Table(width=0, begin=rows[-1].end if rows else 0)
    width = _width(full) if dialect.delimiter else 1
    numbers = [n for n, row in enumerate(rows) if not row.blank and len(row.values) == width]
    if not numbers:
        return Table(width=width, begin=rows[0].begin, body=tuple(rows))
    kinds = _kinds([rows[n] for n in numbers], width)
    rows = _mended(rows, numbers[0], width, dialect)
    first = _first(rows, numbers, width, kinds)
    header_at = [] if first is None else _header(rows, first, width, kinds)
    if not header_at:
        return _headless(rows, numbers, width, kinds)
    names, width = _names(rows, header_at, width)
    last = header_at[-1]
    begin = rows[last].end
    return Table(
        width=width,
        begin=begin,
        preamble=rows[header_at[0]].begin,
        header=tuple(names),
        header_rows=tuple(_row_bytes(rows[n]) for n in header_at),
        body=tuple(rows[last + 1 :]),
    )


def _row_bytes(row: Row) -> bytes:
    return b"\x1f".join(row.values)


def _mended(rows: Sequence[Row], first: int, width: int, dialect: Dialect) -> Sequence[Row]:
    """Read the row above the first full one as a broken header, when one fault explains it."""
    above = first - 1
    while above >= 0 and rows[above].blank:
        above -= 1
    if above < 0 or width < 3 or len(rows[above].values) == width:
        return rows
    row = rows[above]
    for one in sorted(attempts(row.raw, dialect, width)[1:], key=lambda one: one.cost):
        named = all(name.strip() and kind(name) not in TYPED for name in one.fields)
        # A title may have as many words as the table has columns.
        telling = one.code != "delimiter" or b" " not in row.raw or width > 4
        if len(one.fields) == width and named and telling and len(set(one.fields)) == width:
            mended = Row(row.begin, row.end, row.raw, one.fields, one.quoted, 0)
            return [*rows[:above], mended, *rows[above + 1 :]]
    return rows


def _headless(rows: Sequence[Row], numbers: list[int], width: int, kinds: list[str]) -> Table:
    """Lay out a file without a header: rows begin at the first full row that is no padded title."""
    start = numbers[0]
    for n in numbers:
        if width < 3 or rows[n].filled > 1 or _fits(rows[n].values, kinds):
            start = n
            break
    return Table(width=width, begin=rows[start].begin, preamble=rows[start].begin, body=tuple(rows[start:]))


def _width(full: Sequence[Row]) -> int:
    """Return the number of fields of the first table of any size."""
    counts = Counter(len(row.values) for row in full if len(row.values) > 1)
    if not counts:
        return 1
    most = max(counts.values())
    mode = max(count for count, n in counts.items() if n == most)
    at = [n for n, row in enumerate(full) if len(row.values) == mode]
    start = at[0] if len(at) < 20 else at[len(at) // 20]
    before = Counter(len(row.values) for row in full[:start] if len(row.values) > 1)
    for width, number in before.most_common(1):
        # A table of its own size before this one, not a block of titles and dates, nor ragged rows of the same table.
        apart = sum(len(row.values) == width for row in full[start:]) <= 0.1 * number
        if width != mode and number >= max(4, 0.25 * most) and apart:
            return width
    first = next(len(row.values) for row in full if len(row.values) > 1)
    again = sum(len(row.values) == first for row in full)
    if (
        first > mode
        and again > max(1, 0.05 * len(full))
        and sum(len(row.values) > first for row in full) <= 0.05 * len(full)
    ):
        return first  # rows leave out empty cells at their end
    return mode


def _kinds(rows: Sequence[Row], width: int) -> list[str]:
    """Name what each column mostly holds, leaving out the first row, which may be a header."""
    body = rows[1:] if len(rows) > 1 else rows
    out = []
    for column in range(width):
        counts: Counter[str] = Counter()
        for row in body[:300]:
            name = kind(row.values[column])
            if name not in ("empty", "null"):
                counts[FAMILY.get(name, name)] += 1
        total = sum(counts.values())
        name, number = counts.most_common(1)[0] if counts else ("empty", 0)
        out.append(
            name
            if total and (number >= 0.8 * total or (name in TYPED and number >= 0.6 * total))
            else "text"
            if total
            else "empty"
        )
    return out


def _fits(values: Sequence[bytes], kinds: Sequence[str]) -> int:
    """Count the cells that look like their typed column."""
    return sum(
        name in TYPED and FAMILY.get(kind(value), kind(value)) == name
        for value, name in zip(values, kinds, strict=False)
    )


def _strange(values: Sequence[bytes], kinds: Sequence[str]) -> int:
    """Count the cells that look like no number, date or money although their column is one."""
    return sum(
        name in TYPED and bool(value.strip()) and kind(value) not in TYPED and kind(value) != "null"
        for value, name in zip(values, kinds, strict=False)
    )


def _first(rows: Sequence[Row], numbers: list[int], width: int, kinds: list[str]) -> int | None:
    """Return the number of the first row that may be a header: full, or nearly, and no title."""
    start = numbers[0]
    # The header may have one name too many or too few, directly above the first full row.
    above = start - 1
    if (
        above >= 0
        and not rows[above].blank
        and abs(len(rows[above].values) - width) <= max(1, width // 4)
        and width > 2
    ):
        row = rows[above]
        if row.filled >= 0.6 * width and not _fits(row.values, kinds) and all(kind(v) not in TYPED for v in row.values):
            return above
    for n in numbers:
        row = rows[n]
        if width >= 3 and row.filled <= max(1, width // 4) and kinds.count("empty") < width - 1:
            continue  # a title padded to the full width
        return n
    return None


def _header(rows: Sequence[Row], first: int, width: int, kinds: list[str]) -> list[int]:
    """Return the numbers of the header rows from `first` on; none when the first row is data."""
    typed = sum(name in TYPED for name in kinds)
    found: list[int] = []
    for n in range(first, min(first + HEADERS, len(rows))):
        row = rows[n]
        if row.blank and found:
            continue
        if abs(len(row.values) - width) > (max(1, width // 4) if n == first else 0):
            break
        if typed:
            strange, fits = _strange(row.values, kinds), _fits(row.values, kinds)
            if fits and _years(rows, n, kinds):
                strange, fits = strange + fits, 0
            last = n == len(rows) - 1
            if strange == 0 or fits > strange // 3 or (found and not _same_style(rows[found[-1]], row, strange, typed)):
                break
            if found and ((last and len(rows) > 1) or _comes_again(rows, n)):
                break
        elif found or not _named(rows, n, width):
            break
        found.append(n)
    return found


def _comes_again(rows: Sequence[Row], first: int) -> bool:
    """Whether a cell of a row stands in its column again below: a value, so the row is no second row of a header."""
    own = rows[first].values
    # A row that is the same all through is the header once more.
    body = [row.values for row in rows[first + 1 : first + 101] if len(row.values) == len(own) and row.values != own]
    return any(value.strip() and any(row[column] == value for row in body) for column, value in enumerate(own))


def _years(rows: Sequence[Row], n: int, kinds: Sequence[str]) -> bool:
    """Whether all the numbers of a row are years that follow each other, over columns that hold none: it names them."""
    row = rows[n]
    typed = [c for c, name in enumerate(kinds) if name in TYPED and c < len(row.values) and row.values[c].strip()]
    years = [int(row.values[c]) for c in typed if re.fullmatch(YEAR, row.values[c].strip())]
    steps = {after - before for before, after in itertools.pairwise(years)}
    if len(years) < max(2, len(typed)) or len(steps) != 1 or steps == {0}:
        return False
    below = [other.values[c].strip() for other in rows[n + 1 : n + 100] for c in typed if c < len(other.values)]
    return sum(re.fullmatch(YEAR, cell) is not None for cell in below) <= 0.2 * len(below)


def _same_style(above: Row, row: Row, strange: int, typed: int) -> bool:
    """Whether a second header row is one: typed columns hold words there, most of them, or all that hold anything."""
    return strange == row.filled or (2 * strange > typed and 2 * row.filled >= min(above.filled, len(row.values)))


def _named(rows: Sequence[Row], first: int, width: int) -> bool:
    """Whether the first row of an all-text table is a header, by softer evidence; a lone row of words is one."""
    names = [value.strip() for value in rows[first].values]
    body = [row for row in rows[first + 1 :] if len(row.values) == width and not row.blank][:300]
    if any(kind(name) in TYPED or kind(name) in ("url", "email") for name in names if name):
        return False
    if not body:
        return all(names) or width > 1
    if sum(bool(name) for name in names) < max(1, width // 2):
        return False
    score = 0.0
    for column, name in enumerate(names[:width]):
        cells = [row.values[column].strip() for row in body]
        cells = [cell for cell in cells if cell]
        if not cells or not name:
            continue
        again = sum(cell == name for cell in cells)
        if again:
            score -= 2.0 if again < 0.5 * len(cells) else 3.0
            continue
        shapes = Counter(shape(cell) for cell in cells)
        if shape(name) not in shapes:
            # Few shapes below and another one above: codes, postcodes, addresses.
            score += 1.5 if len(shapes) <= max(2, len(cells) // 5) else 0.3
        digits = sum(any(48 <= byte <= 57 for byte in cell) for cell in cells) / len(cells)
        if digits > 0.5 and not any(48 <= byte <= 57 for byte in name):
            score += 1.0
        mean = sum(map(len, cells)) / len(cells)
        if len(name) < 0.5 * mean or len(name) > 3 * mean:
            score += 0.5
    if len(set(names)) < len(names):
        score -= 1.0
    if all(re.fullmatch(rb"[A-Za-z_][\w .\-/()#%]*", name) for name in names if name):
        score += 0.4
    return score > 0.0 or (len(body) < 2 and all(names))


def _names(rows: Sequence[Row], numbers: Sequence[int], width: int) -> tuple[list[bytes], int]:
    """Join the header rows into names, and settle the width when the header and the rows disagree."""
    parts = [list(rows[n].values) for n in numbers]
    longest = max(len(part) for part in parts)
    body = [len(row.values) for row in rows[numbers[-1] + 1 :] if not row.blank]
    if longest > width:
        first = parts[0]
        spare = [n for n, name in enumerate(first) if not name.strip()]
        over = longest - width
        if len(spare) >= over and len(parts) == 1:
            # Empty names that no column has: an extra delimiter, or padding at the end.
            drop = set(spare[:over] if first[-1].strip() else spare[-over:])
            parts[0] = [name for n, name in enumerate(first) if n not in drop]
        elif all(name.strip() for name in first) and max(body, default=0) <= longest:
            width = longest  # rows leave out what is empty at their end
    for n, part in enumerate(parts):
        if len(part) == width - 1 and len(parts) == 1:
            parts[n] = _short(part, rows, numbers, width)
        parts[n] = (parts[n] + [b""] * width)[:width]
    return (parts[0] if len(parts) == 1 else _joined(parts, width)), width


def _joined(parts: Sequence[Sequence[bytes]], width: int) -> list[bytes]:
    """Join several header rows, column by column, saying nothing twice, but for a header that is there twice.

    A cell that goes over several columns is written in the first of them: where names are not told apart without it,
    it counts for the empty cells after it as well.
    """

    def names(rows: Sequence[Sequence[bytes]]) -> list[bytes]:
        said = ([part[column] for part in rows if part[column].strip()] for column in range(width))
        return [b" ".join(column if twice else dict.fromkeys(column)) for column in said]

    twice = all(list(part) == list(parts[0]) for part in parts)
    plain = names(parts)
    if len(set(plain)) == len(plain):
        return plain
    wide = [list(part) for part in parts]
    for part in wide[:-1]:
        for column in range(1, width):
            if not part[column].strip() and parts[-1][column].strip():
                part[column] = part[column - 1]
    spread = names(wide)
    return spread if len(set(spread)) == len(spread) else plain


def _short(names: list[bytes], rows: Sequence[Row], numbers: Sequence[int], width: int) -> list[bytes]:
    """Place the names of a header that is one short, where they say most about their columns."""
    body = [row for row in rows[numbers[-1] + 1 :] if len(row.values) == width and not row.blank][:200]
    kinds = _kinds(body, width) if body else ["text"] * width
    ways: list[list[bytes]] = []
    for n, name in enumerate(names):
        # Two quoted names, or a plain and a quoted one, whose delimiter is missing.
        place = name.find(b'"')
        if 0 < place < len(name) - 1:
            ways.append([*names[:n], name[:place], name[place:].strip(b'"'), *names[n + 1 :]])
    if body and all(not row.values[-1].strip() for row in body):
        ways.append([*names, b""])  # every row ends in a delimiter
    if body and len({row.values[0] for row in body}) == len(body):
        ways.append([b"", *names])  # row names without a name of their own
    for n, name in enumerate(names):
        seams = [seam.start() for seam in re.finditer(SEAM, name)]
        ways.extend([*names[:n], name[:place], name[place:], *names[n + 1 :]] for place in seams)
    ways.append([*names, b""])
    return max(ways, key=lambda way: _said(way, kinds))


def _said(names: Sequence[bytes], kinds: Sequence[str]) -> int:
    """Count the names that say what their column holds, less those that say something else."""
    score = 0
    for name, held in zip(names, kinds, strict=True):
        low = name.lower()
        told = {what for what, words in NAMED if any(word in low for word in words)}
        score += (held in told) - (bool(told) and held not in told and held != "empty")
    return score
