"""Rows that a line break without quotes split in two, put together again: `rejoin(...)`.

Two lines that are no rows by themselves are one row when they have as many fields as the table, one of which the break
cut (or lies at the edge of), when all of these fit their columns, and when the second line does not look like the
beginning of a row of its own. A break inside a field is kept, and only free text may hold one; a break beside a
delimiter is dropped. One of the two may be a line that was mended by itself, filled up or cut: that what it lacks
stands beside it is the better explanation. Anything else stays as it was, both halves waiting.

What is joined must not depend on where a range ends. So ranges end before a line that is plainly a row, if one is near
(`unit.apart`), and nothing is joined in a stretch of lines without such a row that is longer than what is looked
through for one, or that is not seen whole.

Not joined: a row in three pieces or more, and one whose break lies in or beside its first or last value, so that one of
the halves is a whole row but for that value. Whole rows are not questioned; the other half waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tenon.ingest.charset import to_utf8
from tenon.ingest.dialect import Split, chomp, loose, split
from tenon.ingest.repair import ACCEPT, JOIN, Columns, columns_of
from tenon.ingest.rows import plainly
from tenon.ingest.scan import Lines

if TYPE_CHECKING:
    from tenon.ingest.chunk import Layout, Refused

STRETCH = 1 << 15  # bytes of lines that are not plainly rows in which halves are joined
TOO_FEW = ("missing-end", "missing-delimiter")  # repairs of a line that may be half of a row
ROW = 1 << 14  # bytes of a line that may be plainly a row; one that is longer is not looked at


@dataclass(frozen=True, slots=True)
class Joined:
    """A row of two lines: which, its values, the column of the break, and what the source said."""

    first: int
    last: int
    values: list[bytes]
    column: int
    was: str


class _Around:
    """The lines around halves: asked of line after line, it looks at each line of the chunk twice at most."""

    __slots__ = ("_ahead", "_before", "_data", "_layout", "_lines", "_passed")

    def __init__(self, data: bytes, lines: Lines, layout: Layout) -> None:
        self._data, self._lines, self._layout = data, lines, layout
        self._before = -1  # the last line that is plainly a row
        self._passed = 0  # before this one,
        self._ahead = 0  # and from there up to this one there is none

    def seen(self, line: int) -> bool:
        """Whether the stretch around a line and the next that are not plainly rows is short, and seen whole."""
        starts, ends = self._lines.starts, self._lines.ends
        least = int(np.searchsorted(starts, ends[line + 1] - STRETCH))
        for number in range(line - 1, max(self._passed, least - 1, 0) - 1, -1):
            if self._plainly(number):
                self._before = number
                break
        self._passed = max(self._passed, line)
        first = self._before + 1 if self._before >= least - 1 and self._before >= 0 else 0
        if first == 0 and (least > 0 or not self._layout.opens):
            return False
        self._ahead = max(self._ahead, line + 2)
        while self._ahead < len(starts) and ends[self._ahead - 1] - starts[first] <= STRETCH:
            if self._plainly(self._ahead):
                return True
            self._ahead += 1
        return self._ahead == len(starts) and self._layout.closes and bool(ends[-1] - starts[first] <= STRETCH)

    def _plainly(self, number: int) -> bool:
        begin = int(self._lines.starts[number])
        short = self._lines.ends[number] - begin <= ROW
        return bool(short) and plainly(self._data, begin, self._layout.dialect)


def rejoin(
    data: bytes, lines: Lines, layout: Layout, refused: Sequence[Refused], short: AbstractSet[int]
) -> dict[int, Joined]:
    """Put halves together, by their first line; `short` are lines of too few fields that were mended by themselves."""
    if not layout.joins or not layout.dialect.row:
        return {}
    around = _Around(data, lines, layout)
    halves = {one.line for one in refused if one.code == "fields" and one.end == lines.ends[one.line]}
    found: dict[int, Joined] = {}
    # One of the two at least must be no row by itself.
    firsts = {line for line in halves if line + 1 in halves or line + 1 in short}
    for line in sorted(firsts | {line for line in short if line + 1 in halves}):
        joined = _joined(data, lines, line, layout)
        if joined is not None and around.seen(line):
            found[line] = joined
    # A line that fits to the one before it and to the one after it fits to neither.
    return {line: one for line, one in found.items() if line - 1 not in found and line + 1 not in found}


def _joined(data: bytes, lines: Lines, line: int, layout: Layout) -> Joined | None:
    """Join a line and the next, if all speaks for it."""
    raw = [chomp(data[lines.starts[n] : lines.ends[n]]) for n in (line, line + 1)]
    if any(b"\x00" in row or len(row) > ROW for row in raw):
        return None
    (head, tail), _ = to_utf8(raw, layout.charset)
    columns = columns_of(layout.dialect, tuple(layout.profiles))
    one, two = (split(row, layout.dialect) for row in (head, tail))
    whole = not any(
        read.faults or not read.closed or loose(read.values, read.quoted, layout.dialect.quote) for read in (one, two)
    )
    size = len(one.values)
    if not whole or size >= columns.width or size + len(two.values) != columns.width + 1:
        return None
    middle = _middle(one, two, columns)
    if middle is None or _cost(two.values, columns) <= ACCEPT:
        return None
    values = [*one.values[:-1], middle, *two.values[1:]]
    if JOIN + _cost(values, columns) > ACCEPT:
        return None
    return Joined(line, line + 1, values, size - 1, (head + b"\n" + tail).decode("utf-8", "replace"))


def _middle(one: Split, two: Split, columns: Columns) -> bytes | None:
    """Return the value that lies on both sides of the break; None when it cannot be one."""
    before, after = one.values[-1], two.values[0]
    if not before.strip() or not after.strip():
        return after if not before.strip() else before
    if not columns.open[len(one.values) - 1] or one.quoted[-1] or two.quoted[0]:
        return None
    return before + b"\n" + after


def _cost(values: Sequence[bytes], columns: Columns) -> float:
    """Add up what speaks against some values in the first columns."""
    return sum(judge(value) for judge, value in zip(columns.gauges, values, strict=False))
