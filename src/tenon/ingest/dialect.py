"""How one file is laid out: Dialect, and the reference reading of a row under it.

A dialect is a delimiter (one byte or several), a quote, an escape and a line ending; all are ASCII, so rows can be cut
on raw bytes whatever 8-bit encoding the text has. `split` is the one definition of how a row is read; the vectorised
scan (`scan.py`) only decides which lines need no second look, and hands all others here.

A quote opens a field only at its start and closes it only before a delimiter or the end of the row; elsewhere it is
text. A doubled quote inside a quoted field is one quote. `split` never fails: it says how many faults it had to
tolerate (a quote inside a quoted field, text after the closing quote, no closing quote), and `repair` weighs the
alternatives.

Rejected: Python's csv module (it drops a stray quote without saying so, and knows no multi-character delimiter).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SPACES = b" \t"
NAMES = ("delimiter", "quote", "escape", "doubled", "newline", "row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The layout of one file. `quote` and `escape` are empty where there is none.

    `spaced` says that delimiters are followed by a space that belongs to no value. `doubled` lists other characters
    that are always written twice inside quoted fields. `newline` is ``\\n`` (also for CRLF) or ``\\r``; with `mixed`,
    both end a line. `row` is a pattern that a line without quotes matches only when it is a row by itself (see
    `plan`); empty: none is known.
    """

    delimiter: bytes = b","
    quote: bytes = b'"'
    escape: bytes = b""
    doubled: bytes = b""
    newline: bytes = b"\n"
    mixed: bool = False
    spaced: bool = False
    row: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """Return the dialect as plain data."""
        text = {name: getattr(self, name).decode("latin-1") for name in NAMES}
        return {**text, "mixed": self.mixed, "spaced": self.spaced}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Dialect:
        """Rebuild the dialect from plain data."""
        text = {name: str(body[name]).encode("latin-1") for name in NAMES}
        return Dialect(**text, mixed=bool(body["mixed"]), spaced=bool(body["spaced"]))

    @property
    def said(self) -> str:
        """Name the delimiter as a person would."""
        names = {
            b"\t": "tab",
            b" ": "space",
            b",": "comma",
            b";": "semicolon",
            b"|": "pipe",
            b":": "colon",
            b"": "none",
        }
        text = names.get(self.delimiter, f"'{self.delimiter.decode('latin-1')}'")
        return f"{text} and space" if self.spaced else text


@dataclass(slots=True)
class Split:
    """A row read under a dialect: values, which of them were quoted, faults tolerated, whether quotes closed.

    Not frozen, because one is made for every way to read a broken row, and freezing triples what that costs.
    """

    values: list[bytes]
    quoted: list[bool]
    faults: int
    closed: bool


def loose(values: list[bytes], quoted: list[bool], quote: bytes) -> bool:
    """Whether a value that was not quoted holds a quote."""
    if not quote or quote not in b"".join(values):
        return False
    return any(quote in value and not closed for value, closed in zip(values, quoted, strict=True))


def chomp(row: bytes) -> bytes:
    """Return the row without its line ending (LF, CRLF or CR)."""
    if row.endswith(b"\n"):
        row = row[:-1]
    return row[:-1] if row.endswith(b"\r") else row


def split(row: bytes, dialect: Dialect) -> Split:
    """Read one row (without its line ending) into values; quotes as above, faults counted, never an error."""
    delimiter, quote = dialect.delimiter, dialect.quote
    if not delimiter:
        if quote and row[:1] == quote:
            value, _, faults, closed = _quoted(row, 0, dialect, len(row))
            return Split([value], [closed], faults, closed)
        return Split([row], [False], 0, True)
    if (not quote or quote not in row) and not dialect.escape:
        values = row.split(delimiter)
        if dialect.spaced:
            values[1:] = [value[1:] if value[:1] == b" " else value for value in values[1:]]
        return Split(values, [False] * len(values), 0, True)
    if not dialect.escape and not dialect.doubled and tidy(dialect, 0).fullmatch(row):
        return _split_tidy(row, dialect)
    return _split_quoted(row, dialect)


@lru_cache(maxsize=256)
def tidy(dialect: Dialect, width: int) -> re.Pattern[bytes]:
    """Return the pattern of rows in which every quote is in order: of `width` fields, or (0) of any number."""
    quote, mark = re.escape(dialect.quote), re.escape(dialect.delimiter)
    space = rb"\x20?+" if dialect.spaced else b""
    stop = dialect.delimiter if len(dialect.delimiter) == 1 else b""
    plain = (
        rb"[^" + quote + re.escape(stop) + rb"]" if stop or not mark else rb"(?:(?!" + mark + rb")[^" + quote + rb"])"
    )
    blank = b"" if dialect.delimiter in (b" ", b"\t") else rb"(?!\s*+" + quote + rb")"
    field = (
        rb"(?:" + quote + rb"(?:[^" + quote + rb"]++|" + quote * 2 + rb")*+" + quote + rb"|" + blank + plain + rb"*+)"
    )
    times = rb"*+" if not width else rb"{%d}" % (width - 1)
    return re.compile(field + rb"(?:" + mark + space + field + rb")" + times if mark else field, re.DOTALL)


def _split_tidy(row: bytes, dialect: Dialect) -> Split:
    """Read a row in which every quote is in order: outside quotes, all is plain."""
    quote, delimiter = dialect.quote, dialect.delimiter
    values: list[bytes] = []
    quoted: list[bool] = []
    at, size, step = 0, len(row), len(delimiter)
    while True:
        at = _skip_plain(row, at, dialect, values, quoted)
        if at > size:
            return Split(values, quoted, 0, True)
        if dialect.spaced and values and row[at : at + 1] == b" ":
            at += 1
        end = row.find(quote, at + 1)
        while row[end + 1 : end + 2] == quote:
            end = row.find(quote, end + 2)
        value = row[at + 1 : end]
        values.append(value.replace(quote + quote, quote) if quote in value else value)
        quoted.append(True)
        at = end + 1
        if at >= size:
            return Split(values, quoted, 0, True)
        at += step


def _skip_plain(row: bytes, at: int, dialect: Dialect, values: list[bytes], quoted: list[bool]) -> int:
    """Read the fields from a place on that come before one with a quote; return where that begins, or past the end."""
    place = row.find(dialect.quote, at)
    plain = row[at : len(row) if place < 0 else place].split(dialect.delimiter)
    if place >= 0:
        begin = place - len(plain.pop())
    else:
        # A field that begins where the row ends is empty, and is one.
        begin = len(row) + 1
    if dialect.spaced:
        plain = [v[1:] if v[:1] == b" " and (n or values) else v for n, v in enumerate(plain)]
    values += plain
    quoted += [False] * len(plain)
    return begin


def _split_quoted(row: bytes, dialect: Dialect) -> Split:
    delimiter, quote = dialect.delimiter, dialect.quote
    values: list[bytes] = []
    quoted: list[bool] = []
    faults, closed, at, size, step = 0, True, 0, len(row), len(delimiter)
    dead = False
    while True:
        if quote and not dialect.escape:
            at = _skip_plain(row, at, dialect, values, quoted)
            if at > size:
                break
        begin = at
        if dialect.spaced and values and row[at : at + 1] == b" ":
            begin = at = at + 1
        if quote and row[at : at + 1] in (b" ", b"\t"):
            # A quote after blanks still opens the field; blanks before plain text are part of it.
            ahead = at
            while ahead < size and row[ahead] in SPACES and not row.startswith(delimiter, ahead):
                ahead += 1
            at = ahead if row[ahead : ahead + 1] == quote else at
        if quote and row[at : at + 1] == quote:
            # Where one field found no quote to close it, a later one finds none but in its own run of quotes.
            value, end, wrong, shut = _quoted(row, at, dialect, _run(row, at, dialect) if dead else size)
            if shut:
                faults += wrong
                values.append(value)
                quoted.append(True)
                at = end
                if at >= size:
                    break
                at += step
                continue
            faults, closed, dead = faults + 1, False, True
            at = begin
        end = _unquoted(row, at, dialect)
        value = row[at:end]
        if dialect.escape and dialect.escape in value:
            value = value.replace(dialect.escape + delimiter, delimiter)
        values.append(value)
        quoted.append(False)
        at = end
        if at >= size:
            break
        at += step
    return Split(values, quoted, faults, closed)


def _unquoted(row: bytes, at: int, dialect: Dialect) -> int:
    """Return where the unquoted field that starts at `at` ends."""
    end = row.find(dialect.delimiter, at)
    while dialect.escape and end > at and _escaped(row, end, at, dialect.escape):
        end = row.find(dialect.delimiter, end + 1)
    return len(row) if end < 0 else end


def _escaped(row: bytes, place: int, begin: int, escape: bytes) -> bool:
    """Whether the character at `place` is escaped: an odd number of escapes stands before it."""
    count = 0
    while place - count - 1 >= begin and row[place - count - 1 : place - count] == escape:
        count += 1
    return count % 2 == 1


def _run(row: bytes, at: int, dialect: Dialect) -> int:
    """Return where the run of quotes and escapes that begins at `at` ends."""
    signs = dialect.quote + dialect.escape
    while at < len(row) and row[at] in signs:
        at += 1
    return at


def _quoted(row: bytes, at: int, dialect: Dialect, until: int) -> tuple[bytes, int, int, bool]:
    """Read the quoted field that opens at `at`; return its value, its end, the faults in it, whether it closed.

    The quote that closes it is looked for before `until`.
    """
    quote, delimiter, escape = dialect.quote, dialect.delimiter, dialect.escape
    faults, find = 0, at + 1
    while True:
        place = row.find(quote, find, until)
        if place < 0:
            return row[at:], len(row), faults + 1, False
        if escape and _escaped(row, place, at + 1, escape):
            find = place + 1
            continue
        after = place + 1
        if row[after : after + 1] == quote:
            find = place + 2
            continue
        if after < len(row) and not (delimiter and row.startswith(delimiter, after)):
            ahead = after
            while ahead < len(row) and row[ahead] in SPACES and not (delimiter and row.startswith(delimiter, ahead)):
                ahead += 1
            if ahead == after or (ahead < len(row) and not (delimiter and row.startswith(delimiter, ahead))):
                faults += 1
                find = after
                continue
            after = ahead
        return _plain(row[at + 1 : place], dialect), after, faults, True


def _plain(inner: bytes, dialect: Dialect) -> bytes:
    """Undo doubling and escaping inside a quoted field."""
    quote, escape = dialect.quote, dialect.escape
    if quote in inner:
        if escape:
            inner = inner.replace(escape + quote, quote)
        inner = inner.replace(quote + quote, quote)
    for other in dialect.doubled:
        inner = inner.replace(bytes((other, other)), bytes((other,)))
    return inner


def join(values: list[bytes], delimiter: bytes = b",", quote: bytes = b'"') -> bytes:
    """Write values as one clean row, quoted only where it must be, without a line ending."""
    out = []
    for value in values:
        if quote in value or delimiter in value or b"\n" in value or b"\r" in value or value[:1] in (b" ", b"\t"):
            value = quote + value.replace(quote, quote + quote) + quote
        out.append(value)
    return delimiter.join(out)
