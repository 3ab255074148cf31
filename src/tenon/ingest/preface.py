"""What stands before a table and is no row: a line that tells the delimiter, and comments. `preface(head)`.

Excel reads and writes a first line ``sep=;`` that names the delimiter. Comments are the first lines of a file when they
begin with one mark (``#``, ``//``, ``%`` ...) and the lines after them do not. Neither may take part in finding the
dialect: ten comments with a comma in each look more like a table than the table does. The last comment may be the
header (``#station,year``), which only the table can tell, so its place is told apart.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tenon.ingest.detect import TYPED, detect, kind
from tenon.ingest.dialect import SPACES, split

SEP = re.compile(rb"[ \t]*\"?sep=(\\t|[^\"\r\n]{1,3}?)\"?[,;\t ]*(?:\r\n|\n|\r)", re.IGNORECASE)
MARKS = (b"#", b"//", b"%", b"--", b"*", b"!")
PAGE = 60  # lines in which a page of text above the table is looked for
LEAST = 4  # fewer lines than this are titles
MOST = 1_000  # more lines than this with one mark are no comments


@dataclass(frozen=True, slots=True, kw_only=True)
class Preface:
    """Where the table may begin: after `end`, or at `last`, where the last comment begins; the delimiter told."""

    end: int = 0
    last: int = 0
    delimiter: bytes = b""


def preface(head: bytes) -> Preface:
    """Find the lines that are no rows by their own mark, at the beginning of a file."""
    found = SEP.match(head)
    if found is not None:
        mark = b"\t" if found[1] == b"\\t" else found[1]
        return Preface(end=found.end(), last=found.end(), delimiter=mark)
    start = head[:64].lstrip(b"\r\n" + SPACES)[:2]
    mark = next((mark for mark in MARKS if start.startswith(mark)), b"")
    if not mark:
        return Preface()
    newline = b"\n" if b"\n" in head else b"\r"
    end = last = 0
    for number, line in enumerate(_lines(head, newline)):
        text = line.strip(b"\r\n" + SPACES)
        if text and not text.startswith(mark):
            break
        if number >= MOST:
            return Preface()
        end += len(line)
        last = end - len(line) if text else last
    after = [line for line in head[end : end + (1 << 16)].split(newline) if line.strip(SPACES)][:100]
    if not after or sum(line.lstrip(SPACES).startswith(mark) for line in after) > 0.2 * len(after):
        return Preface()
    return Preface(end=end, last=last)


def page(head: bytes, *, whole: bool) -> int:
    """Return where the table begins below a page of text that ends in a blank line; 0 where there is no such page.

    Lines of text have delimiters here and there, never as many as a row of the table, and hold few numbers.
    """
    newline = b"\n" if b"\n" in head else b"\r"
    lines = head[: 1 << 16].split(newline)[: 2 * PAGE]
    while lines and not lines[-1].strip():
        lines.pop()
    blank = max((n for n, line in enumerate(lines[:PAGE]) if not line.strip()), default=0)
    if blank < LEAST:
        return 0
    text = [line for line in lines[:blank] if line.strip()]
    end = sum(len(line) + len(newline) for line in lines[: blank + 1])
    below = [line.rstrip(b"\r") for line in lines[blank + 1 :] if line.strip()]
    if len(text) < LEAST or len(below) < 2:
        return 0
    dialect = detect(head[end:], whole=whole).dialect
    sizes = Counter(len(split(line, dialect).values) for line in below)
    width, count = sizes.most_common(1)[0]
    rows = [split(line.rstrip(b"\r"), dialect).values for line in text]
    cells = [cell for row in rows for cell in row]
    apart = width > 1 and count >= 0.8 * len(below) and all(len(row) < width for row in rows)
    mixed = len({len(row) for row in rows}) > 1 or len(rows[0]) == 1  # rows of one size are another table
    return end if apart and mixed and sum(kind(cell) in TYPED for cell in cells) <= 0.2 * len(cells) else 0


def _lines(head: bytes, newline: bytes) -> list[bytes]:
    return [line + newline for line in head.split(newline, MOST + 1)]
