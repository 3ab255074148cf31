"""Broken rows of a chunk in compiled code: `groups` finds where they end, `mend_rows` reads, repairs or refuses them.

`_repair.c` says what `rows`, `dialect`, `gauge` and `repair` say, a batch at a time and with the interpreter's lock
free: 1-2 us a row instead of 25, and no worker waits for another. This module tells it what the columns look like
(`prepared`), and turns what it tells into the values of the Python rooms. What it cannot say for sure (a month in
words, bytes that are no UTF-8, a row of more than 64 KiB) it hands back, row by row, and they are asked. Where it is
not compiled, or does not know the dialect, all is asked of them: the result is the same, and a test holds both
together.

Rejected: gauges as a table of cells seen, shared with Python (what a worker sees must not depend on another), and
processes instead of threads (each would hold the memory of all).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon.ingest import repair
from tenon.ingest.dialect import Dialect, split
from tenon.ingest.gauge import LETTERS, PARTS
from tenon.ingest.missing import WORDS, known
from tenon.ingest.profile import Profile
from tenon.ingest.repair import Mended, mend
from tenon.ingest.scan import Lines, Mask, Places

try:
    from tenon.ingest import _repair
except ImportError:  # no compiler at installation: Python does it all
    _repair = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from tenon.ingest._repair import Cell, Format, Gauge

LOOK, KNOWN, BARE = range(3)
ASK, READ, MENDED, REFUSED, BLANK = range(5)
SURE, NO_READING, NO_FIT, ALIKE = range(4)
CODES = ("", "quote", "missing-delimiter", "delimiter", "extra-delimiter", "unquoted-delimiter", "missing-end")
TOLD = np.dtype(
    {
        "names": [
            *("first", "last", "begin", "end", "text", "size", "column", "fields"),
            *("state", "note", "codes", "why", "way"),
        ],
        "formats": [*["i8"] * 6, "i4", "i4", "u1", "u1", ("u1", 4), "u1", "u1"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 52, 56, 57, 58, 62, 63],
        "itemsize": 64,
    }
)
KINDER = ("blanks", "groups", "decimals", "format", "")  # the last: a word that is known to mean missing
CELL = np.dtype([("first", "i8"), ("at", "i8"), ("size", "i8"), ("column", "i4"), ("kinder", "i4")])
HEADS = 2048  # characters that take one or two bytes
COSTS = (
    *(repair.ACCEPT, repair.MARGIN, repair.FAULT, repair.UNCLOSED, repair.LOOSE, repair.LITERAL, repair.INSERT),
    *(repair.FOREIGN, repair.DROP, repair.TAIL, repair.JOIN, repair.SPLIT, repair.EASY),
)
TIMES = {"Y", "y", "m", "d", "H", "M", "S", "I", ".f", "b", "B", "a", "A", "p", "z"}  # parts whose look is known
NONE = bytes(256)
SPELLINGS = (str, str.upper, str.capitalize, str.title)
MISSING = tuple(sorted({spell(word).encode() for word in WORDS for spell in SPELLINGS if word and known(spell(word))}))


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of some rows: `told` of each (see TOLD), those that read as clean text, and what others came near.

    `kinder` are the cells of clean rows that were read more kindly, and `spelt` how they stood in the source.
    """

    told: NDArray[Any]
    text: bytes
    shown: bytes
    kinder: NDArray[Any]
    spelt: bytes
    width: int

    @staticmethod
    def of(raw: tuple[bytes, bytes, bytes, bytes, bytes], width: int) -> Batch:
        """Take over what compiled code gives."""
        told, text, shown, kinder, spelt = raw
        return Batch(np.frombuffer(told, TOLD), text, shown, np.frombuffer(kinder, CELL), spelt, width)

    def asking(self) -> Batch:
        """Ask Python again about rows that fit no column: where all is text, some may stay as they stand."""
        told = self.told.copy()
        told["state"][(told["state"] == REFUSED) & (told["why"] == NO_FIT)] = ASK
        return replace(self, told=told)

    def code(self, row: int) -> str:
        """Name the repair of a row."""
        return code_of(0, self.told["codes"][row].tolist())

    def mended(self, row: int, dialect: Dialect) -> Mended:
        """Return what came of a row that was to be mended."""
        one = self.told[row]
        code, column, place = self.code(row), int(one["column"]), int(one["text"])
        if one["state"] == MENDED:
            clean = self.text[place : place + int(one["size"]) - 1]
            return Mended(values=split(clean, dialect).values, code=code, column=column, sure=True)
        values = [self.shown[place : place + int(one["size"])]] if one["why"] != NO_READING else []
        return Mended(values=values, code=code if values else "fields", column=column, sure=False, why=self.why(row))

    def why(self, row: int) -> str:
        """Say why a row was refused."""
        one = self.told[row]
        if one["why"] == NO_READING:
            return f"{one['fields']} fields for {self.width} columns"
        if one["why"] == NO_FIT:
            return repair.UNFIT
        codes = one["codes"].tolist()
        return f"'{code_of(0, codes)}' and '{code_of(0, codes[2:])}' fit alike"

    def said(self, row: int) -> str:
        """Say what would have fixed a row that was refused, as `chunk.said` does."""
        one, why = self.told[row], self.why(row)
        if one["why"] == NO_READING:
            return why
        shown = self.shown[one["text"] : one["text"] + one["size"]].decode("utf-8", "replace")
        return f"{why}; nearest ({self.code(row)}): {shown[:500]}"


def code_of(note: int, codes: Sequence[int]) -> str:
    """Name a repair by its parts: zero bytes taken out, what was done to a quote or delimiter, and to the fields."""
    return "+".join([*(["nul"] if note else []), *(CODES[part] for part in codes[:2] if part)]) or "none"


def groups(data: bytes, table: object, starts: Places, ends: Places, good: Mask, quoted: Mask) -> Places:
    """Gather the lines that are not good into rows, as `scan.groups_of` does: pairs of first and last line."""
    pairs = _repair.groups(table, data, starts, ends, good, quoted)
    return np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)


def mend_rows(data: bytes, table: object, lines: Lines, good: Mask, width: int, kind: bool) -> Batch:
    """Read, repair or refuse the rows of a chunk: good lines as they stand, groups as `repair` reads them.

    With `kind`, cells that are no values as they stand are read more kindly, as `typed.soften` does, where that leaves
    a row whose every cell is a plain value.
    """
    numbers, rows = np.flatnonzero(good), lines.groups
    firsts = np.concatenate([numbers, rows[:, 0]])
    order = np.argsort(firsts, kind="stable")
    lasts = np.concatenate([numbers, rows[:, 1]])[order]
    ways = np.where(order < len(numbers), np.uint8(KNOWN), np.uint8(LOOK))
    return Batch.of(_repair.mend(table, data, lines.starts, lines.ends, firsts[order], lasts, ways, kind), width)


def mended(rows: Sequence[bytes], dialect: Dialect, profiles: Sequence[Profile], table: object | None) -> list[Mended]:
    """Repair rows as `repair.mend` does; of a row that is refused, the values are one text that shows them."""
    if table is None or not rows:
        return mend(rows, dialect, profiles)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    numbers, ways = np.arange(len(rows), dtype=np.int64), np.full(len(rows), BARE, dtype=np.uint8)
    raw = _repair.mend(table, b"".join(rows), starts, ends, numbers, numbers, ways, False)
    batch = Batch.of(raw, len(profiles))
    asked = np.flatnonzero(batch.told["state"] == ASK).tolist()
    answers = iter(mend([rows[row] for row in asked], dialect, profiles))
    return [
        next(answers) if state == ASK else batch.mended(row, dialect)
        for row, state in enumerate(batch.told["state"].tolist())
    ]


# ── a table in the words of the compiled code ────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4)
def prepared(dialect: Dialect, profiles: tuple[Profile, ...], reach: int) -> object | None:
    """Return a table ready to judge; None where it is not compiled, or the dialect is another than the kernel knows."""
    signs = dialect.delimiter + dialect.quote
    usual = len(dialect.delimiter) == 1 and len(dialect.quote) < 2 and dialect.delimiter != dialect.quote
    usual = usual and not re.search(rb"[\w\x0b\x0c\r\n\x1a\x00\x80-\xff]", signs)
    if _repair is None or not usual or dialect.mixed or dialect.spaced or dialect.escape or dialect.doubled:
        return None
    cells = _cells(dialect)
    if cells is None or (cells and len(cells) != len(profiles)):
        return None
    tails = repair.columns_of(dialect, profiles).tails
    gauges = tuple(_gauge(one) for one in profiles)
    return _repair.prepare(
        (
            dialect.delimiter[0],
            dialect.quote[0] if dialect.quote else -1,
            dialect.newline[0],
            reach,
            COSTS,
            gauges,
            bytes(one.open for one in profiles),
            struct.pack(f"={len(tails)}d", *tails),
            b"".join(other for other in repair.OTHERS if other not in signs),
            cells,
            MISSING,
        )
    )


def _gauge(profile: Profile) -> Gauge:
    """Say what speaks against a cell of a column, as `gauge.gauge`."""
    reading = profile.reading
    null = tuple(dict.fromkeys((b"", *(word.encode() for word in reading.null))))
    kind, strange, rare = "t", 3.0 if profile.missing >= 1 else -1.0, 0.0
    words: tuple[bytes, ...] = ()
    heads, letters = b"", NONE
    formats: tuple[Format, ...] = ()
    if profile.typed:
        kind = {"int": "i", "float": "f", "bool": "b"}.get(reading.type, "d")
        if kind in "if" and not reading.plain:
            kind, letters = "n", _unlike_numbers(profile)
        if kind == "d":
            letters, formats = _unlike_times(profile), tuple(_format(one) for one in reading.formats)
        words = tuple(word.encode() for word in (*reading.true, *reading.false)) if kind == "b" else ()
    elif profile.words and profile.missing < 1:
        kind, strange = "w", min(4.0, 1.0 + math.log10(profile.cells + 1))
        words = tuple(word.encode() for word in profile.words)
    elif profile.begins and not profile.shapes:
        rare, heads = min(3.0, 0.5 * math.log10(profile.cells + 1) + 0.5), _heads(profile.begins)
    shapes = tuple(one.encode() for one in profile.shapes)
    if not profile.exact and any(re.search(rb"AA|99|aa", one) for one in shapes):
        kind = "?"  # runs beside runs of the same kind are for patterns
    return (
        *(kind, profile.empty_cost, strange, rare, null, words, shapes, profile.exact, profile.prefix.encode(), heads),
        *(bool(profile.longest), profile.decimals >= 0 and reading.type in ("int", "float")),
        *(profile.shortest, profile.longest, profile.decimals, letters),
        *(_sign(reading.group), _sign(reading.decimal) if reading.type == "float" else -1),
        *(reading.type == "date", formats),
    )


def _sign(mark: str) -> int:
    return ord(mark) if len(mark) == 1 and mark.isascii() else -1


def _flags(signs: set[int]) -> bytes:
    return bytes(byte in signs for byte in range(256))


@lru_cache(maxsize=64)
def _heads(begins: str) -> bytes:
    """Flag the characters that cells do not begin with."""
    letters = pl.Series([chr(code) for code in range(HEADS)], dtype=pl.String)
    return bytes((~letters.str.contains(f"^[{begins}]")).to_list())


def _unlike_numbers(profile: Profile) -> bytes:
    """Flag the ASCII signs that no number of a column with marks has."""
    reading = profile.reading
    some = "0123456789 +-()" + reading.group + reading.unit
    if reading.type == "float":
        some += reading.decimal + "eE"
    return _flags(set(range(128)) - set(some.encode()))


def _unlike_times(profile: Profile) -> bytes:
    """Flag the letters that no date of a column has, as `gauge._hopeful` does."""
    joined = "".join(profile.reading.formats)
    if re.search("%[aAbBhpPZ]", joined):
        return NONE
    letters = re.sub(r"%(\.f|.)", "", joined)
    return _flags(set(LETTERS) - set((letters.lower() + letters.upper()).encode()))


def _format(pattern: str) -> Format:
    """Say how a format looks: as a program where it is beyond doubt, its literals, and what may stand between them."""
    parts = re.findall(r"%(\.f|.)|(.)", pattern, re.DOTALL)
    signs = [sign for sign, _ in parts if sign]
    program = b""
    apart = not re.search(r"%.%|%.[0-9]", pattern)
    if apart and len(set(signs)) == len(signs) and {"Y", "m", "d"} <= set(signs) <= set(PARTS):
        spelt = ((sign, literal.encode()) for sign, literal in parts)
        program = b"".join(
            sign.encode() if sign else b"".join(b"\\" + bytes((byte,)) for byte in literal) for sign, literal in spelt
        )
    literals = "".join(literal for _, literal in parts if not literal.isspace())
    if not set(signs) <= TIMES or not literals.isascii():
        return program, b"", b""
    between = set(b"+-") | (set(b".") if ".f" in signs else set())
    if set(signs) & {"b", "B", "a", "A", "p", "z"}:
        between |= set(LETTERS) | set(b":.")
    return program, literals.encode(), _flags(between)


def _cells(dialect: Dialect) -> tuple[Cell, ...] | None:
    """Take the pattern of a line that is surely a row apart (see `plan`); None when it is not made as it is there."""
    stop = re.escape(dialect.delimiter + dialect.quote) + rb"\r\n"
    text = rb"[^" + stop + rb"]*+"
    kinds = {
        "n": rb"[ ]?[-+(]?[^\w\s" + stop + rb"]?\d[^a-zA-Z" + stop + rb"]*",
        "d": rb"[^" + stop + rb"]*\d[^" + stop + rb"]*",
        "w": b"",
    }
    left, mark = dialect.row, re.escape(dialect.delimiter)
    out: list[Cell] = []
    while left and left != rb"(?=[\r\n])":
        if out:
            if not left.startswith(mark):
                return None
            left = left[len(mark) :]
        if left.startswith(text):
            out.append(("t", ()))
            left = left[len(text) :]
            continue
        if not left.startswith(rb"(?>(?i:"):
            return None
        left = left[len(rb"(?>(?i:") :]
        kind = next(kind for kind, look in kinds.items() if left.startswith(look))
        left = left[len(kinds[kind]) :]
        # What is left is words between bars: signs that mean something in a pattern have a backslash before them.
        found = re.match(rb"((?:[^\\|()\[\]{}.*+?^$]|\\[^a-zA-Z0-9]|\|)*)\)\)", left)
        if found is None:
            return None
        words = re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL) if b"\\|" not in found[1] else None
        if words is None or (kind != "w" and words and words[:1] != b"|"):
            return None
        spelt = words.split(b"|")[kind != "w" :]
        out.append((kind, tuple(spelt)))
        left = left[found.end() :]
    return tuple(out)
