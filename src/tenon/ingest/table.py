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
SEAM = (
    rb"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Za-z_])|(?<=[A-Z]{2})(?=[A-Z][a-z])|(?<=[Dd][Aa][Tt][Ee])(?=[Tt][Ii][Mm][Ee])"
)
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
SCALE = rb"1(?:[ .,']?0{3})+"
YEAR = rb"(?:1[89]|20|21)\d\d"
HEADERS = 6  # more header rows than this are data
BLOCK = 20  # more rows of names and values than this are a table
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
    width = _width(full[_block(rows) :]) if dialect.delimiter else 1
    numbers = [n for n, row in enumerate(rows) if not row.blank and len(row.values) == width]
    if not numbers:
        return Table(width=width, begin=rows[0].begin, body=tuple(rows))
    untitled = _untitled(rows, numbers, width)
    above = untitled[0] - 1 if untitled[0] == numbers[0] else -1
    numbers = untitled
    kinds = _kinds([rows[n] for n in numbers], width)
    rows = _mended(rows, numbers[0], width, dialect)
    first = above if above >= 0 and _nearly(rows[above], rows[numbers[0] :], width, kinds) else numbers[0]
    header_at = _header(rows, first, width, kinds)
    if not header_at:
        start = numbers[0]
        return Table(width=width, begin=rows[start].begin, preamble=rows[start].begin, body=tuple(rows[start:]))
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


def _block(rows: Sequence[Row]) -> int:
    """Count the rows of a block of names and values above the table: two cells each, the second of many kinds."""
    count = 0
    held: list[str] = []
    for row in rows:
        if row.blank or len(row.values) != 2 or not row.values[0].strip() or kind(row.values[0]) in TYPED:
            break
        held.append(kind(row.values[1]))
        count += 1
    # Names over values of one kind are a table.
    mixed = count == 1 or (count == 2 and held[0] in TYPED) or len(set(held[1:])) > 1
    rest = [len(row.values) for row in rows[count:] if not row.blank]
    wider = rest and sum(size > 2 for size in rest) > 0.6 * len(rest) and len(rest) > 1
    return count if wider and mixed and count <= BLOCK else 0


def _untitled(rows: Sequence[Row], numbers: list[int], width: int) -> list[int]:
    """Leave out the full rows at the beginning that are titles or names and values, padded to the full width.

    They fill their first cells only, and leave cells empty that every row of the table has; below them is a blank row
    or one that fills those cells.
    """
    filled = [rows[n].filled for n in numbers]
    usual = sorted(filled)[len(filled) // 2]
    begin = next(n for n, count in enumerate(filled) if count >= usual)
    table = [rows[n] for n in numbers[begin:] if 2 * rows[n].filled > max(filled)]
    always = {c for c in range(width) if sum(bool(row.values[c].strip()) for row in table) >= 0.9 * len(table)}
    start = 0
    for place, n in enumerate(numbers[: min(BLOCK, len(numbers) - 1)]):
        row = rows[n]
        last = max((c for c in range(width) if row.values[c].strip()), default=width)
        lacking = {c for c in always if c > last}
        if row.filled <= last or not lacking:
            break
        short = 2 * len(lacking) >= len(always) and row.filled <= max(1, width // 2)
        if _above(rows[n + 1 : n + 2 + BLOCK], lacking, alone=row.filled == 1, short=short):
            start = place + 1
    return numbers[start:]


def _above(below: Sequence[Row], lacking: set[int], *, alone: bool, short: bool) -> bool:
    """Whether a row above these, with cells lacking, is no row of their table.

    A gap follows it, or a row that has those cells and, but for a title of one cell, names the columns. One that is not
    `short` of much needs both.
    """
    gap = False
    for row in below:
        if row.blank and short:
            return True
        gap = gap or row.blank
        if len(row.values) > max(lacking) and all(row.values[c].strip() for c in lacking):
            names = all(kind(value) not in TYPED for value in row.values)
            return (short and (alone or names)) or (gap and names)
    return False


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


def _nearly(row: Row, below: Sequence[Row], width: int, kinds: list[str]) -> bool:
    """Whether the row above the first full one may be its header, with one name too many or too few."""
    if len(row.values) == width - 1 > 1 and row.filled > 1 and _open(below, width):
        return True
    if row.blank or width < 3 or abs(len(row.values) - width) > max(1, width // 4) or row.filled < 0.6 * width:
        return False
    return not _fits(row.values, kinds) and all(kind(value) not in TYPED for value in row.values)


def _open(rows: Sequence[Row], width: int) -> bool:
    """Whether every full row ends in a delimiter, with nothing after it."""
    return all(not row.values[-1].strip() for row in rows if len(row.values) == width)


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
            if fits and found and (2 * row.filled <= width or not row.values[0].strip()):
                # Numbers are given in thousands: a unit, in a row of units.
                scales = sum(re.fullmatch(SCALE, value.strip()) is not None for value in row.values)
                strange, fits = strange + scales, fits - scales
            series = _series(rows, n, kinds)
            if series:
                strange, fits = strange + series, 0
            last = n == len(rows) - 1
            if not fits and not strange and not found and _grouping(rows, n, width, kinds):
                found.append(n)
                continue
            if strange == 0 or fits > strange // 3 or (found and not _same_style(rows[found[-1]], row, strange, typed)):
                break
            if found and row.filled == 1 and row.values[0].strip():
                break  # the name of a section of rows
            if found and not series and ((last and len(rows) > 1) or _comes_again(rows, n, kinds)):
                break
        elif found:
            if row.values != rows[first].values:
                break
        elif not _named(rows, n, width):
            break
        found.append(n)
    return found


def _grouping(rows: Sequence[Row], n: int, width: int, kinds: Sequence[str]) -> bool:
    """Whether a row names groups of columns: words with gaps between them, directly above a row of more names."""
    below = rows[n + 1] if n + 1 < len(rows) else rows[n]
    return (
        rows[n].filled < below.filled
        and len(below.values) == width
        and (_series(rows, n + 1, kinds) > 0 or (_strange(below.values, kinds) > 0 and not _fits(below.values, kinds)))
    )


def _comes_again(rows: Sequence[Row], first: int, kinds: Sequence[str]) -> bool:
    """Whether cells of a row stand in their columns again below: values, so the row is no second row of a header.

    One word under several may be a name and a value; one in a column of numbers may not.
    """
    own = rows[first].values
    # A row that is the same all through is the header once more.
    body = [row.values for row in rows[first + 1 : first + 101] if len(row.values) == len(own) and row.values != own]
    again = [c for c, value in enumerate(own) if value.strip() and any(row[c] == value for row in body)]
    return 3 * len(again) > rows[first].filled or any(kinds[c] in TYPED for c in again)


def _series(rows: Sequence[Row], n: int, kinds: Sequence[str]) -> int:
    """Count the numbers of a row when they are names: years, hours or months that follow each other; else 0.

    All cells over columns with a type go up by one step, and few rows below do so, or hold numbers like them.
    """
    typed = [c for c, name in enumerate(kinds) if name in TYPED]
    cells = [(c, rows[n].values[c].strip()) for c in typed if c < len(rows[n].values) and rows[n].values[c].strip()]
    told = [cell for c, cell in cells if kind(cell) in TYPED or re.fullmatch(rb"[\d ./-]+", cell)]
    years = all(re.fullmatch(YEAR, cell) for cell in told)
    if len(told) < max(2 if years else 4, 0.6 * len(cells)) or not _steps(told):
        return 0
    below = [row for row in rows[n + 1 : n + 100] if not row.blank]
    alike = [[row.values[c].strip() for c, cell in cells if cell in told and c < len(row.values)] for row in below]
    if years:
        found = [cell for cells in alike for cell in cells]
        return 0 if sum(re.fullmatch(YEAR, cell) is not None for cell in found) > 0.2 * len(found) else len(told)
    return 0 if sum(_steps(cells) for cells in alike) > 0.2 * len(alike) else len(told)


def _steps(cells: Sequence[bytes]) -> bool:
    """Whether cells are numbers or dates of one spelling of which one part goes up by a step, and the others stay."""
    parts = [tuple(map(int, re.findall(rb"\d{1,18}", cell))) for cell in cells]
    if len({len(part) for part in parts}) != 1 or len({re.sub(rb"\d+", b"9", cell) for cell in cells}) != 1:
        return False
    moved = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
    return len(moved) == 1 and len({after - before for before, after in itertools.pairwise(moved[0])}) == 1


def _same_style(above: Row, row: Row, strange: int, typed: int) -> bool:
    """Whether a second header row is one: typed columns hold words there, most of them, or all that hold anything."""
    return strange == row.filled or (2 * strange > typed and 2 * row.filled >= min(above.filled, len(row.values)))


def _named(rows: Sequence[Row], first: int, width: int) -> bool:
    """Whether the first row of an all-text table is a header, by softer evidence; a lone row of words is one."""
    names = [value.strip() for value in rows[first].values]
    body = [row for row in rows[first + 1 :] if len(row.values) == width and not row.blank][:300]
    body = [row for row in body if row.values != rows[first].values]  # the header once more
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
    if body and not ways and _open(body, width):
        return [*names, b""]  # every row ends in a delimiter
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
