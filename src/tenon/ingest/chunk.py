"""One chunk of rows becomes a frame of text: good lines as they stand, the others repaired, refused or skipped by name.

Polars reads the text; this module only decides what it is given. `express` hands over a whole chunk and then proves
that nothing was lost: as many rows as lines, and as many delimiters and quotes as bytes are missing. When the proof
fails, `careful` scans the lines, gives Polars the good ones, reads, repairs or refuses the others one by one, and
merges both in their old order. Both ways give the same rows for the same bytes.

Where rows lie (offset and line) is computed only when somebody asks: most chunks have nothing to report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from tenon.ingest.charset import Charset, to_utf8, utf8
from tenon.ingest.dialect import Dialect, Split, chomp, loose, split
from tenon.ingest.profile import Profile
from tenon.ingest.rejoin import TOO_FEW, Joined, rejoin
from tenon.ingest.repair import Mended, mend
from tenon.ingest.scan import Lines, Mask, Places, marks_of, pairs, scan

AT_ONCE = 10_000  # broken rows looked at together: each takes kilobytes then
UNUSED = (0x1F, 0x1E, 0x1D, 0x1C, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0E, 0x0F, 0x10, 0x11, 0x12, 0x13, 0x14)

PACKED = frozenset((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda", b"\x1f\x8b", b"\x28\xb5"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How to read the chunks of one file: dialect, characters, what columns look like, and the header to know again.

    With `text`, every column stays text. `joins` says that lines may be halves of a row; `opens` that the chunk begins
    where the table does, `closes` that it ends where the table does or a line follows that is plainly a row.
    """

    dialect: Dialect
    charset: Charset
    profiles: Sequence[Profile]
    header_rows: tuple[bytes, ...] = ()
    header_raw: bytes = b""
    reach: int = 1 << 22
    text: bool = False
    joins: bool = False
    opens: bool = False
    closes: bool = False

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return len(self.profiles)


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that could not be read: where it lies, its bytes, the column and reason, and what would have fixed it."""

    begin: int
    end: int
    line: int
    column: int
    code: str
    fix: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """A row that was repaired: its number in the frame, the column, the repair, and what the source said."""

    row: int
    column: int
    code: str
    was: str


@dataclass(frozen=True, slots=True)
class Text:
    """A chunk as text: columns "0", "1", … of a frame; where its rows lie; what became of everything else."""

    frame: pl.DataFrame
    begins: Places | None = None
    ends: Places | None = None
    lines: Places | None = None
    repaired: Sequence[Repaired] = ()
    refused: list[Refused] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)


def names(width: int) -> list[str]:
    """Return the names of the text columns."""
    return [str(column) for column in range(width)]


def polars(data: bytes, separator: bytes, quote: bytes, eol: bytes, width: int) -> pl.DataFrame:
    """Read clean rows with Polars; raises when they are not clean."""
    # Polars unpacks what begins like a compressed file, "x^" for one; a header in front keeps it from that.
    packed = data[:2] in PACKED or data[:3] == b"\xef\xbb\xbf"
    if packed:
        data = separator.join(name.encode() for name in names(width)) + eol + data
    return pl.read_csv(
        data,
        has_header=packed,
        separator=(separator or b"\x1f").decode("ascii"),
        quote_char=quote.decode("ascii") or None,
        eol_char=eol.decode("ascii"),
        schema=dict.fromkeys(names(width), pl.String),
        empty_string_is_null=False,
    )


# ── the whole chunk at once ──────────────────────────────────────────────────────────────────────────────────────────


def express(data: bytes, layout: Layout) -> Text | None:
    """Read a whole chunk at once; None when it cannot be proven that nothing but clean rows is in it."""
    dialect = layout.dialect
    if dialect.spaced or dialect.escape or dialect.doubled or dialect.mixed or b"\x00" in data:
        return None
    if len(dialect.delimiter) > 1 or dialect.delimiter > b"\x7f":
        return None
    if layout.header_raw and layout.header_raw in data:
        return None
    # Polars drops a carriage return at the end of a value without a word.
    if b"\n" in data if dialect.newline == b"\r" else data.count(b"\r") != data.count(b"\r\n"):
        return None
    if len(data) > layout.reach + 2 and _longer(data, dialect.newline, layout.reach + 2):
        return None
    a = np.frombuffer(data, dtype=np.uint8)
    lines = int(np.count_nonzero(a == dialect.newline[0])) + (not data.endswith(dialect.newline))
    separator = dialect.delimiter or _spare(data)
    if not separator:
        return None
    try:
        frame = polars(data, separator, dialect.quote, dialect.newline, layout.width)
    except (pl.exceptions.PolarsError, OSError):
        return None
    if frame.height != lines:
        return None
    if dialect.quote and dialect.quote in data:
        # Every byte is a value's, a delimiter, a line ending, or a quote; of a doubled quote one stays in the value.
        quotes, twice = pairs(a, dialect)
        return Text(frame) if twice >= 0 and _missing(data, frame, dialect) + quotes == twice else None
    if dialect.delimiter and int(np.count_nonzero(a == dialect.delimiter[0])) != lines * (layout.width - 1):
        return None
    return Text(frame)


def _longer(data: bytes, newline: bytes, most: int) -> bool:
    """Whether a line is longer than `most` bytes: looked for in leaps of that size."""
    begin = 0
    while len(data) - begin > most:
        end = data.rfind(newline, begin, begin + most)
        if end < 0:
            return True
        begin = end + 1
    return False


def _missing(data: bytes, frame: pl.DataFrame, dialect: Dialect) -> int:
    """Return how many bytes values, delimiters and line endings are more than the chunk: minus the quotes dropped."""
    width, lines = frame.width, frame.height
    kept = int(frame.select(pl.sum_horizontal(pl.all().str.len_bytes().sum())).item() or 0)
    ends = lines if data.endswith(dialect.newline) else lines - 1
    if dialect.newline == b"\n" and b"\r" in data:
        ends += data.count(b"\r\n")
    return kept + lines * (width - 1) + ends - len(data)


def _spare(data: bytes) -> bytes:
    """Return a control character that does not occur in the data; empty when all do."""
    return next((bytes((byte,)) for byte in UNUSED if byte not in data), b"")


# ── line by line ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of the rows that are no good lines: values by first line, with the last line; refusals and skips."""

    rows: list[tuple[int, int, list[bytes]]]
    repaired: dict[int, tuple[int, str, str]]
    refused: list[Refused]
    skipped: dict[str, int]
    encodings: dict[str, int]


def careful(data: bytes, layout: Layout, table: Lines | None = None, done: Mask | None = None) -> Text:
    """Read a chunk with a look at every line that is not good; gives the same rows as `express` where that succeeds.

    With a table of its lines, those that are `done` are left out.
    """
    if table is None:
        table = scan(data, layout.dialect, layout.width, reach=layout.reach)
    decided = decide(data, table, layout)
    put_together(decided, rejoin(data, table, layout, decided.refused, mended_short(decided)))
    good = table.good if done is None else table.good & ~done
    if layout.header_raw and layout.header_raw in data:
        again = repeated(data, table, layout.header_raw)
        decided.skipped["repeated-header"] = int((table.ends - table.starts)[again].sum())
        good = good & ~again
    numbers = np.flatnonzero(good)
    frame = frame_of(_text_of(data, table, good, layout, decided.encodings), len(numbers), layout)
    if frame is None:
        lines, _ = to_utf8((data[table.starts[n] : table.stops[n]] for n in numbers.tolist()), layout.charset)
        frame = by_hand([split(line, layout.dialect).values for line in lines], layout.width)
    lasts = numbers
    if decided.rows:
        firsts = np.array([first for first, _, _ in decided.rows], dtype=np.int64)
        extra = by_hand([values for _, _, values in decided.rows], layout.width)
        merged = np.concatenate([numbers, firsts])
        order = np.argsort(merged, kind="stable")
        frame = pl.concat([frame, extra])[order]
        lasts = np.concatenate([numbers, np.array([last for _, last, _ in decided.rows], dtype=np.int64)])[order]
        numbers = merged[order]
    repaired = []
    if decided.repaired:
        rows = np.searchsorted(numbers, list(decided.repaired))
        repaired = [Repaired(row, *told) for row, told in zip(rows.tolist(), decided.repaired.values(), strict=True)]
    skipped = {name: size for name, size in decided.skipped.items() if size}
    begins, ends = table.starts[numbers], table.ends[lasts]
    return Text(frame, begins, ends, numbers, repaired, decided.refused, skipped, decided.encodings)


def decide(data: bytes, table: Lines, layout: Layout) -> Decided:
    """Read, repair or refuse every row that is no good line."""
    out = Decided([], {}, [], {}, {})
    waiting: list[tuple[int, int, bytes, str]] = []
    reads: list[Split] = []
    dialect, width = layout.dialect, layout.width
    blank = b" \t\r\n" + dialect.delimiter
    for first, last, begin, end in _apart(data, table, layout):
        raw = data[begin:end]
        if len(raw) > layout.reach + 2:
            out.refused.extend(_pieces_of(table, first, last, layout.reach))
            continue
        row, note = _cleaned(raw, layout, out.encodings)
        if not row.strip(blank):
            out.skipped["blank"] = out.skipped.get("blank", 0) + len(raw)
            continue
        read = split(row, dialect)
        tidy = read.closed and not read.faults and not loose(read.values, read.quoted, dialect.quote)
        if tidy and len(read.values) == width:
            out.rows.append((first, last, read.values))
            if note:
                out.repaired[first] = (-1, note, shown(raw))
        else:
            waiting.append((first, last, row, note))
            reads.append(read)
        if len(waiting) >= AT_ONCE:
            _mend(waiting, reads, table, layout, out)
            waiting, reads = [], []
    _mend(waiting, reads, table, layout, out)
    return out


def _mend(
    waiting: Sequence[tuple[int, int, bytes, str]], reads: list[Split], table: Lines, layout: Layout, out: Decided
) -> None:
    """Repair or refuse rows that do not read without a doubt."""
    answers = mend([row for _, _, row, _ in waiting], layout.dialect, layout.profiles, reads)
    for (first, last, row, note), read, mended in zip(waiting, reads, answers, strict=True):
        # Where all stays text, a cell that is odd by its quote alone is kept as it stands, as any other odd cell is.
        odd = layout.text and len(read.values) == layout.width and mended.values == read.values and mended.alone
        if mended.sure or odd:
            code = "+".join(part for part in (note, mended.code) if part and part != "none")
            out.rows.append((first, last, mended.values))
            if code:
                out.repaired[first] = (mended.column, code, shown(row))
        else:
            begin, end = int(table.starts[first]), int(table.ends[last])
            out.refused.append(Refused(begin, end, first, mended.column, "fields", said(mended)))


def mended_short(decided: Decided) -> set[int]:
    """Return the rows of one line that had too few fields and were mended."""
    told = decided.repaired
    return {first for first, last, _ in decided.rows if first == last and told.get(first, (0, "", ""))[1] in TOO_FEW}


def put_together(decided: Decided, joined: Mapping[int, Joined]) -> None:
    """Put the halves of rows that were put together in place of what became of each."""
    if not joined:
        return
    gone = {line for one in joined.values() for line in (one.first, one.last)}
    decided.rows[:] = [row for row in decided.rows if row[0] not in gone]
    decided.refused[:] = [one for one in decided.refused if one.line not in gone]
    for line in gone:
        decided.repaired.pop(line, None)
    for first, one in joined.items():
        decided.rows.append((first, one.last, one.values))
        decided.repaired[first] = (one.column, "line-break", one.was)


def _apart(data: bytes, table: Lines, layout: Layout) -> Iterator[tuple[int, int, int, int]]:
    """Yield the rows that are no good lines: first and last line, begin and end.

    Lines that only a faulty quote holds together are rows by themselves: a stray quote in one row and a quote at the
    end of the next look like one value over two lines.
    """
    firsts, lasts = table.groups[:, 0], table.groups[:, 1]
    places = zip(
        firsts.tolist(), lasts.tolist(), table.starts[firsts].tolist(), table.ends[lasts].tolist(), strict=True
    )
    for first, last, begin, end in places:
        if last > first:
            read = split(chomp(data[begin:end]), layout.dialect)
            if read.faults or not read.closed:
                for line in range(first, last + 1):
                    yield line, line, int(table.starts[line]), int(table.ends[line])
                continue
        yield first, last, begin, end


def said(mended: Mended) -> str:
    """Say what would have fixed a row."""
    if not mended.values:
        return mended.why
    values = " | ".join(value.decode("utf-8", "replace") for value in mended.values)
    return f"{mended.why}; nearest ({mended.code}): {values[:500]}"


def _cleaned(raw: bytes, layout: Layout, encodings: dict[str, int]) -> tuple[bytes, str]:
    """Return a row without its line ending and zero bytes, as UTF-8, with a note of what was taken out."""
    row, note = chomp(raw), ""
    if b"\x00" in row:
        row, note = row.replace(b"\x00", b""), "nul"
    if not row.isascii() and not utf8(row):
        (row,), counts = to_utf8([row], layout.charset)
        for name, count in counts.items():
            encodings[name] = encodings.get(name, 0) + count
    return row, note


def _pieces_of(table: Lines, first: int, last: int, reach: int) -> Iterator[Refused]:
    """Refuse a row that is too long, each piece with the line it begins in."""
    for piece in too_long(int(table.starts[first]), int(table.ends[last]), first, reach):
        yield replace(piece, line=int(np.searchsorted(table.ends, piece.begin, side="right")))


def too_long(begin: int, end: int, line: int, reach: int) -> Iterator[Refused]:
    """Refuse a line that is longer than a row may be, in pieces of that size: the same however it was come by."""
    fix = f"a row of at most {reach:,} bytes; this line is longer"
    for place in range(begin, end, reach):
        yield Refused(place, min(place + reach, end), line, -1, "too-long", fix)


def shown(raw: bytes) -> str:
    return chomp(raw).decode("utf-8", "replace")


def repeated(data: bytes, table: Lines, header: bytes) -> Mask:
    """Mark the good lines that are the header once more, byte for byte."""
    out = np.zeros(len(table.starts), dtype=bool)
    place = data.find(header)
    while place >= 0:
        line = int(np.searchsorted(table.ends, place, side="right"))
        out[line] = table.starts[line] == place and data[place : table.stops[line]] == header and table.good[line]
        place = data.find(header, place + 1)
    return out


def _text_of(data: bytes, table: Lines, good: Mask, layout: Layout, encodings: dict[str, int]) -> bytes:
    """Return the good lines one after the other, as UTF-8."""
    odd = good & table.odd
    if good.all() and not odd.any():
        return data
    pieces = []
    edges = np.flatnonzero(np.diff((good & ~odd).astype(np.int8), prepend=0, append=0))
    runs = [(first, data[table.starts[first] : table.ends[last - 1]]) for first, last in edges.reshape(-1, 2).tolist()]
    if odd.any():
        numbers = np.flatnonzero(odd).tolist()
        lines, counts = to_utf8((data[table.starts[n] : table.ends[n]] for n in numbers), layout.charset)
        for name, count in counts.items():
            encodings[name] = encodings.get(name, 0) + count
        runs = sorted([*runs, *zip(numbers, lines, strict=True)], key=lambda run: run[0])
    pieces = [piece for _, piece in runs]
    return b"".join(pieces)


def frame_of(text: bytes, rows: int, layout: Layout) -> pl.DataFrame | None:
    """Read good lines; None when Polars does not find as many rows (it has its own idea of a lone carriage return)."""
    dialect = layout.dialect
    if not rows:
        return pl.DataFrame(schema=dict.fromkeys(names(layout.width), pl.String))
    separator = dialect.delimiter or _spare(text)
    clean = text
    if dialect.mixed or dialect.spaced or len(separator) != 1 or separator > b"\x7f":
        separator = _spare(text)
        clean = _rewrite(text, dialect, separator) if separator else b""
    if separator:
        try:
            frame = polars(clean, separator, dialect.quote, dialect.newline, layout.width)
        except (pl.exceptions.PolarsError, OSError):
            frame = pl.DataFrame()
        if frame.height == rows:
            return frame
    return None


def by_hand(rows: Sequence[Sequence[bytes]], width: int) -> pl.DataFrame:
    """Build a text frame from values read one by one."""
    columns = {
        str(column): pl.Series([row[column].decode("utf-8", "replace") for row in rows], dtype=pl.String)
        for column in range(width)
    }
    return pl.DataFrame(columns)


def _rewrite(text: bytes, dialect: Dialect, separator: bytes) -> bytes:
    """Return good lines with `separator` for the delimiters outside quotes, and LF for their lone carriage returns.

    Every line has its quotes in pairs, so the number of quotes before a place tells whether it is inside.
    """
    a = np.frombuffer(text, dtype=np.uint8).copy()
    quotes = np.flatnonzero(a == dialect.quote[0]) if dialect.quote else np.zeros(0, dtype=np.int64)
    if dialect.mixed:
        returns = np.flatnonzero(a[:-1] == 13)
        if len(a) and a[-1] == 13:
            returns = np.append(returns, len(a) - 1)
        lone = returns[(returns + 1 >= len(a)) | (a[np.minimum(returns + 1, len(a) - 1)] != 10)]
        a[lone[np.searchsorted(quotes, lone) % 2 == 0]] = 10
    marks = marks_of(a, dialect.delimiter)
    marks = marks[np.searchsorted(quotes, marks) % 2 == 0]
    keep = np.ones(len(a), dtype=bool)
    size = len(dialect.delimiter)
    a[marks] = separator[0]
    for offset in range(1, size):
        keep[marks + offset] = False
    if dialect.spaced:
        after = marks[marks + size < len(a)] + size
        keep[after[a[after] == 32]] = False
    return a[keep].tobytes()
