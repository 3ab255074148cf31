"""Find the dialect of a file from its first lines: line ending, delimiter, quote, escape.

Every punctuation character (and every run of two or three) that stands in most lines is tried as a delimiter. A
candidate is scored by how many rows have the same number of fields, times how much its cells look like something people
put in cells (numbers, dates, money, addresses, words), times a bonus for explaining more columns. The cells decide what
counts of separators cannot: a decimal comma, the slashes of dates and the colons of times are as regular as any
delimiter, but what they leave over is junk. This is the idea of van den Burg, Nazábal and Sutton, "Wrangling messy CSV
files by detecting row and type patterns" (Data Mining and Knowledge Discovery 33, 2019), with the patterns and the
weights measured anew on generated files (bench/mess.py).

The quote is not searched for: it is the character that opens fields (after a delimiter) as often as it closes them
(before one). The escape is what stands before quotes inside quoted fields. Both are exact once the delimiter is known.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

from tenon.ingest.dialect import Dialect, split

LINES = 400
USUAL = {b",": 1.0, b"\t": 1.0, b";": 1.0, b"|": 1.0, b"\x1f": 1.0, b"\x01": 1.0, b" ": 0.8, b":": 0.75}
UNUSUAL = 0.85
SURE = frozenset((b",", b"\t", b";", b"|"))
NEVER = set(b"\"'\r\n\\")  # quotes, line endings and the usual escape delimit nothing
RARELY = dict.fromkeys((b"-", b"/", b"_", b"$", b"%", b"@", b"=", b"+"), 0.5) | {b".": 0.4, b"(": 0.1, b")": 0.1}
MONTH = rb"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,9}"
DATE = (
    rb"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})"
    rb"|\d{1,2}[- ]%b[- ,]+\d{2,4}|%b \d{1,2},? \d{4})"
)
DATE = DATE.replace(b"%b", MONTH)
TIME = rb"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?: ?[ap]m)?"
ZONE = rb"(?:z| ?[+-]\d{2}:?\d{2}| utc| gmt)?"
# Blanks that group digits: no-break, narrow no-break and thin, in UTF-8 and CP1252; apostrophes straight and typeset.
GROUP = rb"(?:[ ,.'\xa0]|\xc2\xa0|\xe2\x80(?:\xaf|\x89|\x99))"
SIGN = (
    rb"(?:(?:us|ca|au|nz|r|a)?\$|\x80|\xe2\x82[\xa0-\xbf]|\xc2?[\xa3\xa5]|usd|eur|gbp|chf|jpy|rub|pln|sek|nok|dkk|czk"
    rb"|kr\.?|k\xc4\x8d|z\xc5\x82|\xd1\x80\xd1\x83\xd0\xb1\.?|\xd1\x80\.|\xf0\xf3\xe1\.?)"
)
BLANK = rb"(?: |\xa0|\xc2\xa0|\xe2\x80[\xaf\x89])?"
AMOUNT = rb"(?:\d|" + GROUP + rb")*\d"
MONEY = rb"\(?[+-]?%s%s[+-]?%s\)?|\(?[+-]?%s%s%s\)?|\(%s\)" % (SIGN, BLANK, AMOUNT, AMOUNT, BLANK, SIGN, AMOUNT)
KINDS = (
    ("int", rb"[+-]?\d+"),
    ("float", rb"[+-]?(?:\d+[.,]\d*|[.,]\d+)(?:e[+-]?\d+)?|[+-]?\d+e[+-]?\d+|nan|inf"),
    ("number", rb"[+-]?\d{1,3}(?:" + GROUP + rb"\d{3})+(?:[.,]\d+)?"),
    ("money", MONEY),
    ("percent", rb"[+-]?\d+(?:[.,]\d+)?" + BLANK + rb"%"),
    ("date", DATE),
    ("time", TIME),
    ("stamp", DATE + rb"[T ]+" + TIME + ZONE),
    ("url", rb"(?:[a-z]+://|www\.)\S+"),
    ("email", rb"[^@\s,;|]+@[^@\s,;|]+\.[a-z]+"),
    ("null", rb"n/?a|null|none|-+|\?|#n/a|\\n|\."),
    ("sign", rb"[!-/:-@\[-`{-~]+"),
    ("word", rb"[^\s,;|\t\"]+"),
    ("text", rb"[^,;|\t\"]+"),
    ("prose", rb"[^;|\t\"]*[^;|\t\",](?:, [^;|\t\"]*)?"),
)
KIND = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in KINDS]
WORTH = {"empty": 0.6, "sign": 0.5, "word": 0.9, "text": 0.85, "prose": 0.4, "junk": 0.05}
TYPED = frozenset(("int", "float", "number", "money", "percent", "date", "time", "stamp"))
# What looks like a delimiter inside these is none. A run of letters or digits is tried from its beginning only: tried
# from each of its signs, a long one would take the square of its length.
INSIDE = re.compile(
    rb"(?:(?<![a-z])[a-z]+://|www\.)[^\s,;|\"]+|%b(?:[T ]+%b%b)?|%b|(?<!\d)\d+\.\d+" % (DATE, TIME, ZONE, TIME), re.I
)


@lru_cache(maxsize=1 << 14)
def kind(cell: bytes) -> str:
    """Name what one cell looks like, by spelling alone."""
    cell = cell.strip()
    if not cell:
        return "empty"
    if len(cell) > 200:
        return "prose" if b";" not in cell and b"|" not in cell else "junk"
    for name, pattern in KIND:
        if pattern.fullmatch(cell):
            return name
    return "junk"


def shape(cell: bytes) -> bytes:
    """Return the cell with runs of capitals, small letters and digits each drawn as one sign."""
    cell = re.sub(rb"[A-Z]+", b"A", cell)
    cell = re.sub(rb"[a-z\x80-\xff]+", b"a", cell)
    return re.sub(rb"\d+", b"9", cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A dialect with its score, and the runner-up with another delimiter."""

    dialect: Dialect
    score: float
    rival: Dialect | None = None
    rival_score: float = 0.0

    @property
    def close(self) -> bool:
        """Whether the runner-up explains the file nearly as well."""
        return self.rival is not None and self.rival_score > 0.93 * self.score


def lines_of(sample: bytes, newline: bytes, *, mixed: bool = False) -> list[bytes]:
    """Cut a sample into lines without their endings."""
    if mixed:
        sample = sample.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = sample.split(newline)
    if newline == b"\n":
        return [line[:-1] if line.endswith(b"\r") else line for line in lines]
    return lines


def detect(sample: bytes, *, whole: bool, told: bytes = b"") -> Guess:
    """Find the dialect of a sample of a file's first bytes; `whole` says that it is the whole file.

    A delimiter that the file itself has `told` is taken when lines hold it.
    """
    newline, mixed = _newline(sample)
    lines = lines_of(sample, newline, mixed=mixed)
    if not whole and len(lines) > 1:
        lines.pop()
    lines = [line for line in lines if line.strip(b" \t\x00")][:LINES]
    bare = Dialect(delimiter=b"", quote=b"", newline=newline, mixed=mixed)
    guesses = [(_score(lines, bare), bare)]
    for delimiter in [told] if told and any(told in line for line in lines) else _delimiters(lines):
        dialect = _complete(lines, Dialect(delimiter=delimiter, quote=b"", newline=newline, mixed=mixed))
        guesses.append((_score(lines, dialect), dialect))
    guesses.sort(key=lambda guess: -guess[0])
    score, best = guesses[0] if not told else next(((s, d) for s, d in guesses if d.delimiter), guesses[0])
    if not best.delimiter:
        best = _complete(lines, best)
    rival_score, rival = next(
        ((s, d) for s, d in guesses[1:] if d.delimiter.strip() != best.delimiter.strip()), (0.0, None)
    )
    return Guess(dialect=best, score=score, rival=rival, rival_score=rival_score)


def _newline(sample: bytes) -> tuple[bytes, bool]:
    """Return the line ending, and whether lone carriage returns end lines as well."""
    feeds, both = sample.count(b"\n"), sample.count(b"\r\n")
    lone = sample.count(b"\r") - both - (sample[-1:] == b"\r")
    if not feeds:
        return (b"\r", False) if lone else (b"\n", False)
    # A few lone ones are part of values; many are the work of different writers.
    return b"\n", lone > 1 and lone > 0.02 * feeds


def _delimiters(lines: list[bytes]) -> list[bytes]:
    """List what may separate fields: punctuation that stands in most lines, alone or in runs of two or three."""
    text = [re.sub(rb'"[^"\n]*"', b'""', line) for line in lines]
    masked = [INSIDE.sub(b"0", line) for line in text]
    found: list[bytes] = []
    runs: Counter[bytes] = Counter()
    for line in text:
        runs.update(set(re.findall(rb"[!#$%&*+,/:;<=>?@\[\]^_`{|}~]{2,3}|[ \t]?[|;,~^] ?", line)))
    for run, count in runs.items():
        core = run.strip()
        if len(run) == 1 or not core or count < 0.6 * len(lines):
            continue
        where = text if core in USUAL else masked
        alone = sum(line.count(core[:1]) for line in where)
        together = sum(line.count(run) for line in where) * run.count(core[:1])
        if together >= 0.9 * alone or (run in (b", ", b"; ", b"| ") and together >= 0.5 * alone):
            found.append(run)
    # Signs that are written twice each time are one delimiter, not two with nothing between.
    twice = {run[:1] for run in found if len(run) == 2 and run[:1] == run[1:] and run[:1] not in (b",", b";", b"\t")}
    for byte in range(1, 256):
        mark = bytes((byte,))
        if byte in NEVER or mark.isalnum() or byte > 126 or mark in twice:
            continue
        where = text if mark in USUAL and mark not in (b" ", b":") else masked
        present = sum(mark in line for line in where)
        if present >= 0.4 * len(lines):
            found.append(mark)
    twos = (b"\xc2\xa6", b"\xc2\xa7")
    return found + [two for two in twos if sum(two in line for line in text) >= 0.4 * len(lines)]


def _complete(lines: list[bytes], dialect: Dialect) -> Dialect:
    """Add the quote and the escape to a dialect whose delimiter is known."""
    delimiter = dialect.delimiter
    if len(delimiter) == 2 and delimiter[1:] == b" " and delimiter[:1] in (b",", b";", b"|"):
        dialect = replace(dialect, delimiter=delimiter[:1], spaced=True)
    quote = _quote(lines, dialect)
    if not quote:
        # That no field was quoted so far does not say that none will be.
        escaped = sum(line.count(b"\\" + delimiter) for line in lines) if delimiter else 0
        return replace(dialect, quote=b'"', escape=b"\\" if escaped > 1 else b"")
    dialect = replace(dialect, quote=quote)
    escape, doubled = _escape(lines, dialect)
    return replace(dialect, escape=escape, doubled=doubled)


def _quote(lines: list[bytes], dialect: Dialect) -> bytes:
    """Return the character that opens fields as often as it closes them; empty when there is none."""
    best, most = b"", 0
    edge = re.escape(dialect.delimiter) if dialect.delimiter else b"$^"
    space = rb" ?" if dialect.spaced else b""
    text = b"\n".join(lines)
    for mark in (b'"', b"'", b"`", b"|", b"~", b"^", b"*", b"$", b"%", b"#", b"@", b"/"):
        if mark in dialect.delimiter or mark not in text:
            continue
        q = re.escape(mark)
        opens = re.compile(rb"(?:^|" + edge + rb")" + space + q)
        shuts = re.compile(q + rb"(?:$|" + edge + rb")")
        opened = sum(len(opens.findall(line)) for line in lines)
        shut = sum(len(shuts.findall(line)) for line in lines)
        pairs = min(opened, shut)
        usual = mark in (b'"', b"'", b"`")
        if not usual and pairs:
            # What quotes fields does so all through the file, and on both sides.
            begun = sum(opens.search(line) is not None for line in lines)
            if begun < max(2, 0.03 * len(lines)) or _half(lines, dialect.delimiter, mark):
                continue
        if mark == b'"' and pairs:
            pairs *= 3
        elif (
            (not usual and pairs < max(3, 0.5 * len(lines)))
            or pairs * 2 < max(opened, shut)
            or (mark != b'"' and pairs < 2)
        ):
            continue
        if pairs > most:
            best, most = mark, pairs
    return best


def _half(lines: list[bytes], delimiter: bytes, mark: bytes) -> bool:
    """Whether a mark closes fields that it did not open: it is part of the delimiter then."""
    held = odd = 0
    for line in lines:
        if mark not in line:
            continue
        held += 1
        inside = wrong = False
        for field in line.split(delimiter) if delimiter else [line]:
            opens = not inside and field.startswith(mark)
            shuts = field.endswith(mark) and (len(field) > 1 or not opens)
            wrong = wrong or (shuts and not inside and not opens)
            inside = (inside or opens) and not shuts
        odd += wrong or inside
    return 2 * odd > held


def _escape(lines: list[bytes], dialect: Dialect) -> tuple[bytes, bytes]:
    """Return what stands before quotes inside quoted fields, and which other characters are always doubled there."""
    quote = dialect.quote
    edge = re.escape(dialect.delimiter) if dialect.delimiter else b"$"
    field = re.compile(
        rb"(?:^|" + edge + rb") ?" + re.escape(quote) + rb"(.*?)" + re.escape(quote) + rb"(?=$|" + edge + rb")"
    )
    before: Counter[bytes] = Counter()
    lone = pairs = 0
    other = b'"' if quote != b'"' else b""
    for line in lines:
        if quote not in line:
            continue
        for found in field.finditer(line):
            inner = found.group(1)
            stripped = inner.replace(quote + quote, b"")
            place = stripped.find(quote)
            while place >= 0:
                before[stripped[place - 1 : place]] += 1
                place = stripped.find(quote, place + 1)
            if stripped.endswith(b"\\") and not stripped.endswith(b"\\\\"):
                before[b"\\"] += 1
            if other and other in inner:
                lone += inner.replace(other + other, b"").count(other)
                pairs += inner.count(other + other)
    doubled = other if pairs and not lone else b""
    total = sum(before.values())
    for mark, count in before.most_common(1):
        if mark == b"\\" and 2 * count > total:
            return mark, doubled
        if (
            mark
            and not mark.isalnum()
            and mark not in b" \t.,:-)"
            and count >= 3
            and count == total
            and mark not in dialect.delimiter
        ):
            return mark, doubled
    return b"", doubled


def _score(lines: list[bytes], dialect: Dialect) -> float:
    """Score how well a dialect explains the lines, from 0 to 1."""
    if not lines:
        return 0.0
    rows = [split(line, dialect) for line in lines]
    counts = Counter(len(row.values) for row in rows)
    if not dialect.delimiter:
        cells = [WORTH.get(kind(row.values[0]), 1.0) for row in rows]
        return 0.42 * sum(cells) / len(cells)
    best = 0.0
    for width, count in counts.most_common(3):
        if width < 2:
            continue
        alike = [row for row in rows if len(row.values) == width]
        near = sum(counts[other] for other in counts if other >= 2 and abs(other - width) <= 1) - count
        share = (count + 0.3 * near) / len(rows)
        worth = total = 0.0
        for row in alike[:120]:
            for value, quoted in zip(row.values, row.quoted, strict=True):
                total += 1
                worth += 1.0 if quoted else WORTH.get(kind(value), 1.0)
        score = share**1.5 * (worth / total) * (1 - 0.7 / width)
        best = max(best, score)
    mark = dialect.delimiter.strip(b" ") or dialect.delimiter
    if mark not in SURE and len(rows) > 2 and len(rows[0].values) == 1 and counts[1] <= max(1, 0.2 * len(rows)):
        best *= 0.6  # one name over all rows: it stands inside the values of one column
    if len(dialect.delimiter) > 1 or dialect.spaced:
        return best * 1.02
    return best * USUAL.get(mark, RARELY.get(mark, UNUSUAL))
