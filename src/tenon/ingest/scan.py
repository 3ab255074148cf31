"""Which lines of a chunk need no second look: found with NumPy over the whole chunk, not row by row.

A line is good when its quotes are well formed by themselves (they open after a delimiter, close before one, or are
doubled), when it has exactly as many fields as the table has columns, and when nothing else is strange about it: no
zero bytes, no escapes, no line ending of another kind, not blank. Every other line is looked at with the reference
rules of `rows` and `dialect`; a line that is open at its end takes the following lines with it, as `row_end` says.

Memory: about ten times the chunk at its peak, all of it freed on return but the line table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenon.ingest.charset import utf8
from tenon.ingest.dialect import Dialect
from tenon.ingest.rows import Heard, row_end

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
BLANKS = 64  # blanks before a quote that are followed back; more are left to the reference rules


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a chunk: where they begin, where their text ends, where they end; which are good rows as they stand.

    `odd` marks lines that are not UTF-8. `groups` are the other rows, each with its first and last line (n x 2).
    """

    starts: Places
    stops: Places
    ends: Places
    good: Mask
    odd: Mask
    groups: Places


def line_table(a: NDArray[np.uint8], dialect: Dialect) -> tuple[Places, Places, Places]:
    """Return where each line begins, where its text stops, and where it ends after its line ending."""
    ends = np.flatnonzero(a == dialect.newline[0]) + 1
    if dialect.mixed:
        returns = np.flatnonzero(a == 13)
        following = np.where(returns + 1 < len(a), a[np.minimum(returns + 1, len(a) - 1)], 0)
        ends = np.union1d(ends, returns[following != 10] + 1)
    if len(a) and (not len(ends) or ends[-1] != len(a)):
        ends = np.append(ends, len(a))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]) if len(ends) else ends
    return starts, stops_of(a, starts, ends, dialect), ends


def stops_of(a: NDArray[np.uint8], starts: Places, ends: Places, dialect: Dialect) -> Places:
    """Return where the text of each line stops, before its line ending."""
    last = a[ends - 1]
    stops: Places = ends - ((last == 10) | (last == 13))
    if dialect.newline == b"\n":
        inner = np.maximum(stops - 1, 0)
        stops = stops - ((last == 10) & (stops > starts) & (a[inner] == 13))
    return stops


def scan(data: bytes, dialect: Dialect, width: int, *, reach: int) -> Lines:
    """Find the lines of a chunk that begins and ends at row borders, and say which are good."""
    a = np.frombuffer(data, dtype=np.uint8)
    starts, stops, ends = line_table(a, dialect)
    marks = marks_of(a, dialect.delimiter)
    total = np.diff(np.searchsorted(marks, ends), prepend=0)
    good = np.ones(len(starts), dtype=bool)
    quotes = np.flatnonzero(a == dialect.quote[0]) if dialect.quote else np.zeros(0, dtype=np.int64)
    counts = np.zeros(len(starts), dtype=np.int64)
    if len(quotes):
        counts, formed, within = _quotes(a, quotes, marks, dialect, starts, stops, ends)
        good &= formed
        total = total - within
    good &= total == width - 1
    size = stops - starts
    good &= size <= reach
    for byte in (b"\x00", dialect.escape):
        if byte and byte in data:
            good[np.searchsorted(ends, np.flatnonzero(a == byte[0]), side="right")] = False
    if not dialect.mixed:
        good[np.searchsorted(ends, _stray(data, a, dialect), side="right")] = False
    if dialect.doubled:
        twice = np.flatnonzero((a[:-1] == dialect.doubled[0]) & (a[1:] == dialect.doubled[0]))
        good[np.searchsorted(ends, twice, side="right")] = False
    if dialect.delimiter and dialect.quote and not dialect.spaced:
        # A quote after blanks opens a field as well: rare, so left to the reference rules.
        good &= ~_blank_quotes(a, quotes, ends, len(starts), dialect)
    odd = _odd(data, starts, stops)
    if not dialect.delimiter.isascii():
        good &= ~odd  # what is no UTF-8 here may hold the delimiter once it is
    groups = groups_of(data, dialect, good, counts, starts, ends, reach)
    claim(groups, good)
    return Lines(starts, stops, ends, good, odd, groups)


def claim(groups: Places, good: Mask) -> None:
    """Take the lines of rows over several lines out of the good ones."""
    for first, last in groups[groups[:, 1] > groups[:, 0]].tolist():
        good[first : last + 1] = False


def _stray(data: bytes, a: NDArray[np.uint8], dialect: Dialect) -> Places:
    """Return where a line ending of another kind stands in the middle of a line: Polars would drop it."""
    if dialect.newline == b"\r":
        return np.flatnonzero(a == 10) if b"\n" in data else np.zeros(0, dtype=np.int64)
    if data.count(b"\r") == data.count(b"\r\n"):
        return np.zeros(0, dtype=np.int64)
    returns = np.flatnonzero(a == 13)
    lone: Places = returns[a[np.minimum(returns + 1, len(a) - 1)] != 10]
    return lone


def marks_of(a: NDArray[np.uint8], delimiter: bytes) -> Places:
    """Return where delimiters begin, overlapping ones counted once."""
    if not delimiter:
        return np.zeros(0, dtype=np.int64)
    found = np.flatnonzero(a == delimiter[0])
    for offset in range(1, len(delimiter)):
        found = found[found + offset < len(a)]
        found = found[a[found + offset] == delimiter[offset]]
    if len(delimiter) > 1 and len(found) > 1 and bool((np.diff(found) < len(delimiter)).any()):
        kept, last = [], -len(delimiter)
        for place in found.tolist():
            if place >= last + len(delimiter):
                kept.append(place)
                last = place
        found = np.array(kept, dtype=np.int64)
    return found


def pairs(a: NDArray[np.uint8], dialect: Dialect) -> tuple[int, int]:
    """Count the quotes of a chunk, and those doubled inside fields; the latter -1 when any quote is not well formed."""
    quotes = np.flatnonzero(a == dialect.quote[0])
    if len(quotes) % 2:
        return len(quotes), -1
    opening, closing = quotes[0::2], quotes[1::2]
    before = a[np.maximum(opening - 1, 0)]
    after = a[np.minimum(closing + 1, len(a) - 1)]
    delimiter = dialect.delimiter[0] if dialect.delimiter else 10
    twice = np.zeros(len(opening), dtype=bool)
    twice[1:] = opening[1:] == closing[:-1] + 1
    start = (before == delimiter) | (before == 10) | (before == 13) | twice
    start[:1] |= opening[:1] == 0
    end = (after == delimiter) | (after == 10) | (after == 13) | np.append(twice[1:], False)
    end[-1:] |= closing[-1:] == len(a) - 1
    return len(quotes), int(twice.sum()) if bool(start.all()) and bool(end.all()) else -1


def _quotes(
    a: NDArray[np.uint8], quotes: Places, marks: Places, dialect: Dialect, starts: Places, stops: Places, ends: Places
) -> tuple[NDArray[np.int64], Mask, NDArray[np.int64]]:
    """Return for each line how many quotes it has, whether they are well formed, and how many delimiters they hide."""
    line = np.searchsorted(ends, quotes, side="right")
    counts = np.bincount(line, minlength=len(starts)).astype(np.int64)
    first = np.cumsum(counts) - counts
    opening = (np.arange(len(quotes)) - first[line]) % 2 == 0
    quote, delimiter = dialect.quote[0], dialect.delimiter
    before = a[np.maximum(quotes - 1, 0)]
    after = a[np.minimum(quotes + 1, len(a) - 1)]
    at_start = quotes == starts[line]
    at_end = quotes + 1 >= stops[line]
    doubled_before = (before == quote) & ~at_start
    doubled_after = (after == quote) & ~at_end
    if delimiter:
        size = len(delimiter)
        after_mark = np.isin(quotes - size, marks) if size > 1 else before == delimiter[0]
        before_mark = np.isin(quotes + 1, marks) if size > 1 else after == delimiter[0]
        at_start |= after_mark & (quotes > starts[line])
        at_end |= before_mark
        if dialect.spaced:
            second = a[np.maximum(quotes - 1 - size, 0)]
            at_start |= (before == 32) & (second == delimiter[-1]) & (quotes - 1 - size >= starts[line])
    fine = np.where(opening, at_start | doubled_before, at_end | doubled_after)
    formed = counts % 2 == 0
    formed[line[~fine]] = False
    hidden = np.zeros(len(starts), dtype=np.int64)
    even = (counts % 2 == 0)[line]
    begin, end, at = quotes[opening & even], quotes[~opening & even], line[opening & even]
    if len(marks) and len(begin):
        held = np.searchsorted(marks, end) - np.searchsorted(marks, begin)
        hidden = np.bincount(at, weights=held, minlength=len(starts)).astype(np.int64)
    return counts, formed, hidden


def _blank_quotes(a: NDArray[np.uint8], quotes: Places, ends: Places, count: int, dialect: Dialect) -> Mask:
    """Mark lines where a quote follows blanks after a delimiter, or blanks follow a quote before one."""
    out = np.zeros(count, dtype=bool)
    if not len(quotes) or dialect.delimiter in (b" ", b"\t"):
        return out
    before = a[np.maximum(quotes - 1, 0)]
    blank = quotes[((before == 32) | (before == 9)) & (quotes > 0)]
    ahead = blank - 1
    for _ in range(BLANKS):
        more = ((a[ahead] == 32) | (a[ahead] == 9)) & (ahead > 0)
        if not more.any():
            break
        ahead = ahead - more
    edge = (a[ahead] == dialect.delimiter[-1]) | (a[ahead] == 10) | (a[ahead] == 13) | (ahead == 0)
    edge |= (a[ahead] == 32) | (a[ahead] == 9)
    out[np.searchsorted(ends, blank[edge], side="right")] = True
    return out


def _odd(data: bytes, starts: Places, stops: Places) -> Mask:
    """Mark the lines that are not valid UTF-8."""
    out = np.zeros(len(starts), dtype=bool)
    if data.isascii() or utf8(data):
        return out
    a = np.frombuffer(data, dtype=np.uint8)
    lines = np.unique(np.searchsorted(stops, _invalid(a), side="right"))
    out[lines[lines < len(starts)]] = True
    return out


def _invalid(a: NDArray[np.uint8]) -> Places:
    """Return where bytes above 0x7F do not form UTF-8 (RFC 3629), looking at those bytes only."""
    high = np.flatnonzero(a > 0x7F)
    byte = a[high]
    lead = np.where(byte >= 0xF0, 3, np.where(byte >= 0xE0, 2, np.where(byte >= 0xC2, 1, 0)))
    follows = byte < 0xC0
    owed = np.zeros(len(high), dtype=bool)
    for back in (1, 2, 3):
        near = high[back:] == high[:-back] + back
        owed[back:] |= near & (lead[:-back] >= back)
    bad = (follows != owed) | (byte > 0xF4) | ((byte >= 0xC0) & (byte < 0xC2))
    # A lead byte must be followed by as many as it says, in the range that it allows.
    for back in (1, 2, 3):
        last = np.zeros(len(high), dtype=bool)
        last[:-back] = high[back:] == high[:-back] + back
        bad |= (lead >= back) & ~last
    second = a[np.minimum(high + 1, len(a) - 1)]
    bad |= ((byte == 0xE0) & (second < 0xA0)) | ((byte == 0xED) & (second > 0x9F))
    bad |= ((byte == 0xF0) & (second < 0x90)) | ((byte == 0xF4) & (second > 0x8F))
    out: Places = high[bad]
    return out


def groups_of(
    data: bytes, dialect: Dialect, good: Mask, counts: NDArray[np.int64], starts: Places, ends: Places, reach: int
) -> Places:
    """Gather the lines that are not good into rows, each with its first and last line; `counts` tells of quotes."""
    out: list[tuple[int, int]] = []
    done, heard = -1, Heard()
    for number in np.flatnonzero(~good).tolist():
        if number <= done:
            continue
        last = number
        if counts[number]:
            end, _ = row_end(data, int(starts[number]), dialect, reach, heard)
            if end != ends[number]:
                last = int(np.searchsorted(ends, end))
        out.append((number, last))
        done = last
    return np.array(out, dtype=np.int64).reshape(-1, 2)
