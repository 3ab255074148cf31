"""Where the first table of a file ends because another one begins: `table_break`, asked of every piece with odd rows.

Another table shows as a row that was refused, or kept although it does not fit: words where values should be, and below
it rows that are as wide as it and not as wide as the first table. A row that repeats names of the first header is the
header of another table by itself. What follows is looked at in the bytes at hand, and in the input again only near the
end of a piece: a file may have a million refused rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenon.ingest import table
from tenon.ingest.charset import to_utf8
from tenon.ingest.chunk import Text
from tenon.ingest.detect import TYPED, kind
from tenon.ingest.dialect import chomp, split
from tenon.ingest.plan import FilePlan
from tenon.ingest.stream import View
from tenon.ingest.typed import Typed, Where

NEAR = 1 << 16  # bytes after a row in which the rows of its table are looked for
FOLLOWING = 3  # rows after a header of another table that must look like it


def table_break(offset: int, data: bytes, text: Text, done: Typed, where: Where, view: View, file: FilePlan) -> int:
    """Return where another table begins in this piece (-1: nowhere): a row that is a header, and rows like it after.

    A header spelt byte for byte like the first is the same export going on; one spelt otherwise is another table.
    """
    if file.format != "csv" or not (text.refused or done.refused or done.kept):
        return -1
    begins, ends, _ = where() if done.kept else (None, None, None)
    candidates = {one.begin: one.end for one in (*text.refused, *done.refused) if one.code != "too-long"}
    if begins is not None and ends is not None:
        candidates |= {int(begins[row]): int(ends[row]) for row in done.kept}
    own = {tuple(row.split(b"\x1f")) for row in file.header_rows}
    names = {name.strip().lower() for row in own for name in row if name.strip()}
    for begin in sorted(candidates):
        end = candidates[begin]
        if end - begin > NEAR:
            continue
        (row,), _ = to_utf8([chomp(data[begin:end])], file.charset)
        cells = split(row, file.dialect).values
        if len(cells) < 2 or not all(cell.strip() for cell in cells[:2]) or any(kind(cell) in TYPED for cell in cells):
            continue
        shared = sum(cell.strip().lower() in names for cell in cells)
        if tuple(cells) in own or (shared >= 2 and 2 * shared >= len(cells)):
            return begin
        if len(set(cells)) == len(cells) != len(file.targets):
            # What follows is mostly in the piece; the file is opened again only near its end.
            place = offset + end
            ahead = data[end : end + NEAR] if end + NEAR <= len(data) else view.read(place, place + NEAR)
            if _followed(ahead, place + len(ahead) >= view.size, cells, file):
                return begin
    return -1


def _followed(data: bytes, last: bool, cells: Sequence[bytes], file: FilePlan) -> bool:
    """Whether the rows that some bytes begin with, the `last` of the input or not, are of a table with this header."""
    width = len(cells)
    rows = [row for row in table.rows_of(data, 0, file.dialect, reach=NEAR, limit=FOLLOWING + 2) if not row.blank]
    if not last and rows:
        rows.pop()
    rows = rows[:FOLLOWING]
    if not rows or any(len(row.values) != width for row in rows):
        return False
    if any(cell.strip() and row.values[n] == cell for row in rows for n, cell in enumerate(cells)):
        return False  # a cell that comes again below is no name
    typed_below = sum(all(kind(row.values[n]) in TYPED for row in rows) for n in range(width))
    return len(rows) >= FOLLOWING or (typed_below > 0 and last)
