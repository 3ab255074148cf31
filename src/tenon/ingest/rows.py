"""Where rows begin and end: the one definition, which depends on the bytes nearby and never on where reading began.

A row ends at the end of a line, unless a quoted field is open there. A quote that nobody closes must not swallow the
file, and a worker that starts in the middle must find the same rows as one that comes from the beginning. Both follow
from one local rule, `fresh`: a line that looks like a row all through (numbers and dates where the table has them) is
one. Otherwise look at the next quote after its start that can be judged by its neighbours. If it opens a field, the
line began outside quotes; if it closes one, the line began inside; if there is none for as long as a row may be,
outside. A fresh line always begins a row, whatever came before it. So an open quote ends at the first fresh line, a
range of the file begins at its first fresh line and goes on to the first fresh line after its end, and the ranges fit
together however the file is cut.

Rejected: the parity of quotes since the beginning of the file (one stray quote turns the rest inside out), and trying
both states at every border (twice the work, and still no answer for a stray quote).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tenon.ingest.dialect import SPACES, Dialect


def judged(data: bytes, place: int, dialect: Dialect) -> int:
    """Judge the quote at `place` by its neighbours: 1 it opens a field, -1 it closes one, 0 it cannot be told."""
    quote, delimiter = dialect.quote, dialect.delimiter
    before, after = data[place - 1 : place] if place else b"\n", data[place + 1 : place + 2]
    if before == quote or after == quote or (dialect.escape and before == dialect.escape):
        return 0
    at_start = place == 0 or before in (b"\n", b"\r")
    at_end = not after or after in (b"\n", b"\r")
    if delimiter:
        at_start = at_start or data.endswith(delimiter, 0, place)
        at_end = at_end or data.startswith(delimiter, place + 1)
        if dialect.spaced:
            at_start = at_start or data.endswith(delimiter + b" ", 0, place)
    return (1 if at_start else 0) - (1 if at_end else 0)


def told(data: bytes, start: int, dialect: Dialect, reach: int) -> tuple[bool, int]:
    """Whether the next quote that can be judged says "outside" at `start`; and how far that answer holds.

    A line that is plainly a row ends the search: with no quote to judge before it, `start` is outside as well. So a
    reader that stops at such a line comes to the same answer as one that sees what follows.
    """
    stop = min(len(data), start + reach)
    line = line_end(data, start, dialect)
    place = data.find(dialect.quote, start, stop)
    while place >= 0:
        while line <= place:
            if plainly(data, line, dialect):
                return True, line
            line = line_end(data, line, dialect)
        verdict = judged(data, place, dialect)
        if verdict:
            return verdict > 0, place
        place = data.find(dialect.quote, place + 1, stop)
    return True, stop


@lru_cache(maxsize=64)
def _row(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern)


def plainly(data: bytes, start: int, dialect: Dialect) -> bool:
    """Whether the line at `start` looks like a row all through."""
    return bool(dialect.row) and _row(dialect.row).match(data, start) is not None


def line_end(data: bytes, start: int, dialect: Dialect) -> int:
    """Return where the line that contains `start` ends, after its line ending."""
    place = data.find(dialect.newline, start)
    if dialect.mixed:
        other = data.find(b"\r", start, place if place >= 0 else len(data))
        if other >= 0 and other + 1 != place:
            place = other
    return len(data) if place < 0 else place + 1


def first_fresh(data: bytes, begin: int, dialect: Dialect, reach: int) -> int:
    """Return the first fresh line start at or after `begin`; the end when there is none. Looks at data[begin - 1]."""
    start = 0 if begin == 0 else line_end(data, begin - 1, dialect)
    if not dialect.quote:
        return start
    outside, until = False, -1
    while start < len(data):
        if plainly(data, start, dialect):
            return start
        if start > until:
            outside, until = told(data, start, dialect, reach)
        if outside:
            return start
        start = line_end(data, start, dialect)
    return len(data)


@dataclass(slots=True)
class Heard:
    """The last answer of `told`: from where, how far it holds, and what it was; kept from row to row of the same bytes.

    Quotes that cannot be judged may go on for megabytes, and each row would look through all of them again.
    """

    begin: int = 0
    until: int = -1
    outside: bool = False

    def ask(self, data: bytes, place: int, dialect: Dialect, reach: int) -> bool:
        """Whether `place` is outside quotes."""
        if not self.begin <= place <= self.until:
            self.begin = place
            self.outside, self.until = told(data, place, dialect, reach)
        return self.outside


def row_end(data: bytes, start: int, dialect: Dialect, reach: int, heard: Heard | None = None) -> tuple[int, bool]:
    """Return where the row that begins at `start` ends, and whether its quotes closed (one line when they did not).

    Who asks for row after row of the same bytes passes on what was `heard`.
    """
    line = line_end(data, start, dialect)
    quote, delimiter = dialect.quote, dialect.delimiter
    if not quote or data.find(quote, start, line) < 0:
        return line, True
    stop = min(len(data), start + reach)
    at = start
    while True:
        if dialect.spaced and data[at : at + 1] == b" " and at > start:
            at += 1
        ahead = at
        while ahead < stop and data[ahead] in SPACES and not (delimiter and data.startswith(delimiter, ahead)):
            ahead += 1
        if data[ahead : ahead + 1] == quote:
            after = _close(data, ahead, dialect, stop, reach, heard or Heard())
            if after < 0:
                return line, False
            at = after
        else:
            end = line_end(data, at, dialect)
            place = data.find(delimiter, at, end) if delimiter else -1
            while dialect.escape and place > at and data[place - 1 : place] == dialect.escape:
                place = data.find(delimiter, place + 1, end)
            if place < 0:
                return end, True
            at = place
        if at >= len(data):
            return len(data), True
        if delimiter and data.startswith(delimiter, at):
            at += len(delimiter)
            continue
        return line_end(data, at, dialect), True


def _close(data: bytes, at: int, dialect: Dialect, stop: int, reach: int, heard: Heard) -> int:
    """Return the place after the quoted field that opens at `at`; -1 when it does not close before a fresh line."""
    quote, delimiter, escape = dialect.quote, dialect.delimiter, dialect.escape
    find, crossed = at + 1, line_end(data, at, dialect)
    while True:
        place = data.find(quote, find, stop)
        if place < 0:
            return -1
        while crossed <= place:
            if plainly(data, crossed, dialect):
                return -1
            if heard.ask(data, crossed, dialect, reach):
                return -1
            crossed = line_end(data, crossed, dialect)
        if escape and data[place - 1 : place] == escape and not _even(data, place, at + 1, escape):
            find = place + 1
            continue
        after = place + 1
        if data[after : after + 1] == quote:
            find = place + 2
            continue
        while after < stop and data[after] in SPACES and not (delimiter and data.startswith(delimiter, after)):
            after += 1
        if after >= len(data) or data[after : after + 1] in (b"\n", b"\r"):
            return after
        if delimiter and data.startswith(delimiter, after):
            return after
        find = place + 1


def _even(data: bytes, place: int, begin: int, escape: bytes) -> bool:
    count = 0
    while place - count - 1 >= begin and data[place - count - 1 : place - count] == escape:
        count += 1
    return count % 2 == 0
