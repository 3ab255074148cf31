"""Which characters the bytes stand for: byte order marks, UTF-16/32 without one, UTF-8, other text line by line.

UTF-16 and UTF-32 are turned into UTF-8 while the file is opened (`stream`), because their rows cannot be cut on single
bytes. Everything else is cut as it is: in UTF-8 and in every 8-bit encoding the delimiter, the quote and the line
ending are ASCII bytes. Only then is text decoded: a line that is valid UTF-8 is UTF-8 (other text is so by accident
about once in a million lines), any other is single-byte text, read in the alphabet its own words look like. So a file
that mixes encodings, as files concatenated over years do, comes out right line by line.

Latin or Cyrillic is decided by words: in a Cyrillic word nearly all letters are above 0x7F, in a Latin one few are.
Among Cyrillic tables the one wins in which words are written in lower case or with one capital, as people write.

Rejected: chardet and its kin (one answer for a whole file, no account of why, and a dependency).
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Longest first: the mark of UTF-32-LE begins with that of UTF-16-LE.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CYRILLIC = ("cp1251", "koi8-r", "cp866")
WORD = re.compile(rb"[A-Za-z\x80-\xff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Charset:
    """How a file's bytes are text: `name` of the whole, bytes of its mark, and what other lines are read as.

    `latin` and `cyrillic` name the single-byte tables for lines that are not UTF-8; `rather` is the one for lines
    without words to judge by. `odd` counts lines of the sample that are not UTF-8.
    """

    name: str = "utf-8"
    mark: int = 0
    latin: str = "cp1252"
    cyrillic: str = "cp1251"
    rather: str = "cp1252"
    odd: int = 0

    @property
    def wide(self) -> bool:
        """Whether characters take two or four bytes, so that the file is turned into UTF-8 while it is opened."""
        return self.name.startswith(("utf-16", "utf-32"))


def detect(head: bytes) -> Charset:
    """Find the encoding from the first bytes of a file; reads nothing else."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return _single(head[len(mark) :], len(mark)) if name == "utf-8" else Charset(name=name, mark=len(mark))
    wide = _unmarked(head)
    return Charset(name=wide) if wide else _single(head, 0)


def _unmarked(head: bytes) -> str:
    """Recognise UTF-16/32 without a mark by where its zero bytes stand; empty when it is neither."""
    sample = head[: min(len(head), 4096) // 4 * 4]
    if len(sample) < 8 or not sample.count(0):
        return ""
    zeros = [sample[place::4].count(0) * 4 / len(sample) for place in range(4)]
    high, low = 0.7, 0.1
    if zeros[2] > high and zeros[3] > high and zeros[0] < low:
        return "utf-32-le"
    if zeros[0] > high and zeros[1] > high and zeros[3] < low:
        return "utf-32-be"
    # The high halves of UTF-16 are few different bytes: that of the alphabet, and zero for digits and punctuation.
    for name, highs, lows in (("utf-16-le", sample[1::2], sample[0::2]), ("utf-16-be", sample[0::2], sample[1::2])):
        common = sum(count for _, count in Counter(highs).most_common(3))
        few = common > 0.9 * len(highs) and highs.count(0) > 0.05 * len(highs) and lows.count(0) < 0.03 * len(lows)
        if few and len(set(lows)) > 3 and (0x0A in lows or len(lows) < 64):
            return name
    return ""


def _single(head: bytes, mark: int) -> Charset:
    """Look at the lines that are not UTF-8, and choose the tables to read them by."""
    # Zero bytes that slipped in between the bytes of a character are taken out of rows as well.
    lines = [line for line in head.replace(b"\x00", b"").split(b"\n") if line and not line.isascii()]
    odd = [line for line in lines if not utf8(line)]
    if odd and lines[-1] == odd[-1] and head.endswith(odd[-1]) and _cut(odd[-1]):
        odd.pop()
    if not odd:
        return Charset(mark=mark)
    words = [word for line in odd for word in WORD.findall(line) if not word.isascii()]
    cyrillic = [word for word in words if _all_high(word)]
    table = _table(cyrillic)
    # Bytes that cp1252 leaves undefined mean that it is not cp1252; latin-1 reads anything.
    latin = "latin-1" if any(byte in line for line in odd for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)) else "cp1252"
    rather = table if 2 * len(cyrillic) > len(words) else latin
    name = "utf-8" if len(odd) < len(lines) else rather
    return Charset(name=name, mark=mark, latin=latin, cyrillic=table, rather=rather, odd=len(odd))


def utf8(line: bytes) -> bool:
    """Whether the bytes are valid UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _cut(line: bytes) -> bool:
    """Whether the line is UTF-8 but for a character cut off at its end."""
    return any(utf8(line[:-count]) for count in (1, 2, 3))


def _all_high(word: bytes) -> bool:
    """Whether a word is written in an alphabet that has no ASCII letters: two letters or more, all above 0x7F."""
    return len(word) > 1 and all(byte > 0x7F for byte in word)


def _table(words: list[bytes]) -> str:
    """Return the Cyrillic table in which most words are written as people write: small letters after the first."""

    def natural(table: str) -> int:
        count = 0
        for word in words:
            text = word.decode(table, "replace")
            letters = sum("а" <= letter <= "я" or letter == "ё" for letter in text[1:])
            first = text[:1].lower()
            count += letters == len(text) - 1 and ("а" <= first <= "я" or first == "ё")
        return count

    return max(CYRILLIC, key=natural) if words else "cp1251"


def table_of(line: bytes, charset: Charset) -> str:
    """Return the table that one line of single-byte text is read by."""
    words = [word for word in WORD.findall(line) if not word.isascii()]
    high = sum(_all_high(word) for word in words)
    # One accented letter by itself says little; a whole word of high bytes says a lot.
    if high and 2 * high > len([word for word in words if len(word) > 1]):
        return charset.cyrillic
    if any(len(word) > 1 for word in words):
        return charset.latin
    return charset.rather


def decode(line: bytes, charset: Charset) -> tuple[str, str]:
    """Return the line as text and the encoding it was read in; never fails."""
    try:
        return line.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        table = table_of(line, charset)
    try:
        return line.decode(table), table
    except UnicodeDecodeError:
        return line.decode("latin-1"), "latin-1"


def to_utf8(lines: Iterable[bytes], charset: Charset) -> tuple[list[bytes], dict[str, int]]:
    """Return the lines as UTF-8, and how many were read in each other encoding."""
    out: list[bytes] = []
    counts: dict[str, int] = {}
    for line in lines:
        if line.isascii():
            out.append(line)
            continue
        text, name = decode(line, charset)
        if name == "utf-8":
            out.append(line)
            continue
        counts[name] = counts.get(name, 0) + 1
        out.append(text.encode("utf-8"))
    return out, counts
