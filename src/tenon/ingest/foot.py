"""Where the rows of a table end and its notes begin: sources, remarks and dates below the last row. `foot(...)`.

A note fills one cell, the first, where every row of the table fills more, and it does not look like what that column
holds: it stands after a blank line, begins with a word or a sign that notes begin with, or is longer than any value.
Notes are looked for from the end of the input upwards, so a row with one cell in the middle of a table stays a row. The
answer depends on the end of the input alone, never on how it will be cut into ranges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tenon.ingest.charset import Charset, to_utf8
from tenon.ingest.dialect import Dialect
from tenon.ingest.gauge import gauge
from tenon.ingest.profile import Profile
from tenon.ingest.repair import OTHERS
from tenon.ingest.table import Row, rows_of

TAIL = 1 << 15  # bytes at the end of an input in which notes are looked for
MOST = 40  # more rows than this are no notes
WORDS = (
    "sources? quellen? datenquellen? fuentes? fontes? bron źródł[oa] zdroj kild[ea] källa lähde forrás kaynak",
    "источники? джерело notes? notas? hinweise? anmerkung(?:en)? bemerkung(?:en)? remarks? remarques? opmerking",
    "uwag[ai] poznámk[ay] примечани[ея] legende? légende leyenda легенда footnotes? disclaimer copyright licen[cs]e",
    "lizenz licencia contact kontakt contacto stand updated extracted generated created exported printed",
    "erstellt actualizado eof n\\.b\\. nb",
)
SAID = (
    "(?:data|datos) sources?|last updated?|(?:data )?as of|mise à jour|stan na|prepared by|for more information|end of"
)
SIGNS = re.compile(
    r"\s*[\"'(\[]*\s*(?:[*†‡§©#]|\(c\)|--|==|\d{1,2}\s?[)\]/]\s|\d{1,2}\.\s\D|https?://|www\."
    rf"|(?:{'|'.join(' '.join(WORDS).split())}|{SAID})\b)",
    re.IGNORECASE,
)


def foot(
    data: bytes, begin: int, dialect: Dialect, profiles: Sequence[Profile], charset: Charset, *, reach: int
) -> int:
    """Return where notes begin in the end of an input, rows of which are read from `begin` on; -1 where none do."""
    width = len(profiles)
    rows = rows_of(data, begin, dialect, reach=reach, limit=1 << 20)
    start = len(rows)
    while start and (rows[start - 1].blank or _alone(rows[start - 1], width)):
        start -= 1
    body = [row for row in rows[:start] if not row.blank]
    if width < 2 or not body or len(rows) - start > 2 * MOST:
        return -1
    sparse = any(row.filled < 2 for row in body)  # rows with one cell are usual here
    judge, longest = gauge(profiles[0]), max(len(row.values[0]) for row in body)
    first = len(rows)
    for place in range(len(rows) - 1, start - 1, -1):
        if rows[place].blank:
            continue
        cell = _text(rows[place], charset)
        strange = profiles[0].typed and judge(cell) >= 1 and any(letter > 57 for letter in cell)
        alike = (
            sparse
            or _foreign(cell, profiles)
            or not (strange or len(cell) > 2 * longest + 8 or (not profiles[0].typed and _apart(rows, place)))
        )
        if alike and SIGNS.match(cell.decode("utf-8", "replace")) is None:
            break
        first = place
    found = sum(not row.blank for row in rows[first:])
    return rows[first].begin if 0 < found <= MOST else -1


def _text(row: Row, charset: Charset) -> bytes:
    """Return the one cell of a row as UTF-8, or the whole row when it has more."""
    return to_utf8([row.values[0] if row.filled == 1 else row.raw], charset)[0][0]


def _foreign(cell: bytes, profiles: Sequence[Profile]) -> bool:
    """Whether a cell is a row with a delimiter of its own: as many fields, and values where the columns have them."""
    for mark in OTHERS:
        parts = cell.split(mark)
        if len(parts) == len(profiles) and any(
            one.typed and part.strip() and gauge(one)(part) < 1 for one, part in zip(profiles, parts, strict=True)
        ):
            return True
    return False


def _apart(rows: Sequence[Row], place: int) -> bool:
    """Whether a blank row stands above a row, or above the rows without a gap that it is the last of."""
    while place and not rows[place - 1].blank and rows[place - 1].filled == 1:
        place -= 1
    return place > 0 and rows[place - 1].blank


def _alone(row: Row, width: int) -> bool:
    """Whether a row has one cell, the first; or fewer cells than the table and begins as notes do."""
    if not row.values[0].strip():
        return False
    if row.filled == 1:
        return True
    return len(row.values) < width and SIGNS.match(row.values[0].decode("utf-8", "replace")) is not None
