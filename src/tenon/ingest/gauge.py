"""What speaks against a cell in a column: a profile compiled to a plain function of the cell's bytes, `gauge(profile)`.

Broken rows come a few in a hundred, and each is held against its columns in several ways, a cell at a time, most of
which end after two or three cells. A Polars call costs as much as a hundred such cells; a closure over a few tables
costs 0.2-0.5 us. Three things make it quick:

- Nearly all of what a typed column says of a cell follows from the cell's shape, the cell with every digit made a 1: it
  is worked out once for each shape and kept. What depends on the digits (the days of a month, zeros in front) is not.
- Free text is judged by its length and first letter, each a small table.
- Plain numbers and the usual dates are recognised by a pattern that is no kinder than the cast; only what no pattern
  knows (a month in words, groups of thousands, words for yes and no) is asked of `values.fits`, once for each cell.

Costs are those of `profile`: 0 nothing speaks against it, MISFIT it is no value of the type. Every table here forgets
when it is full, so memory stays bounded; nothing but speed depends on them. A gauge may be used by several threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import date
from functools import lru_cache

import polars as pl

from tenon.ingest import values
from tenon.ingest.profile import MISFIT, Profile
from tenon.ingest.values import Reading

Gauge = Callable[[bytes], float]
Fits = Callable[[bytes], bool]

ONES = bytes.maketrans(b"023456789", b"1" * 9)
KEPT = 1 << 10  # shapes or cells a table holds before it forgets
LONG = 40  # a longer cell is not kept
# Unicode's white space, which is what Polars strips; Python's own idea of it has four control characters more.
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
INT = re.compile(rb"[+-]?(?:0|[1-9][0-9]*)")  # 007 is a code
FLOAT = re.compile(rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity|nan))")
INT_LEAST, INT_MOST = -(1 << 63), (1 << 63) - 1
LETTERS = bytes(byte for byte in range(128) if bytes((byte,)).isalpha())
NO_DIGITS = bytes(byte for byte in range(256) if not 0x30 <= byte <= 0x39)
SURE = 18  # digits that fit an integer whatever they are
# What stands for a part of a date, as strict as can be: what matches is one, if the month has the day.
PARTS = {
    "Y": rb"(?P<Y>[1-9][0-9]{3})",
    "m": rb"(?P<m>0?[1-9]|1[0-2])",
    "d": rb"(?P<d>0?[1-9]|[12][0-9]|3[01])",
    "H": rb"(?:[01]?[0-9]|2[0-3])",
    "M": rb"[0-5]?[0-9]",
    "S": rb"[0-5]?[0-9]",
}


@lru_cache(maxsize=256)
def gauge(profile: Profile) -> Gauge:
    """Return the function that says what speaks against a cell (UTF-8) in this column."""
    null = frozenset((b"", *(word.encode() for word in profile.reading.null)))
    if profile.typed:
        return _typed(profile, null)
    return _words(profile, null) if profile.words and profile.missing < 1 else _text(profile, null)


def stripped(cell: bytes) -> bytes:
    """Return a cell without white space at its ends."""
    bare = cell.strip()
    if bare and (bare[0] > 0x7F or bare[-1] > 0x7F):
        return _str(bare).strip(WHITE).encode()
    return bare


def _str(cell: bytes) -> str:
    return cell.decode("utf-8", "replace")


# ── columns with a type ──────────────────────────────────────────────────────────────────────────────────────────────


def _typed(profile: Profile, null: frozenset[bytes]) -> Gauge:
    """Judge by the cast, and plain numbers by their digits as well."""
    empty, digits = profile.empty_cost, profile.decimals >= 0 and profile.reading.type in ("int", "float")
    zeros = digits or profile.reading.type == "int"
    fits, sure, settled = _fits(profile.reading)
    if any(sure(word) for word in null):
        sure = _never
    marked = {word.translate(ONES) for word in null if word.translate(ONES) != word or b"1" in word}
    seen: dict[bytes, float] = {}

    def exact(cell: bytes) -> float:
        bare = stripped(cell)
        if bare in null:
            return empty
        cost = 0.0 if fits(cell) or (bare != cell and fits(bare)) else MISFIT
        return cost + _digits(cell, profile) if digits else cost

    def judge(cell: bytes) -> float:
        shape = cell.translate(ONES)
        known = seen.get(shape)
        # Zeros in front are no part of the shape: few cells begin with a sign or a zero.
        if known is not None and not (zeros and cell[:1] <= b"0" and cell.lstrip(b" +-")[:1] == b"0"):
            return known
        if sure(cell):
            return 0.0
        cost = exact(cell)
        # Blanks around it are no part of what fits, but they are part of the shape.
        if len(cell) <= LONG and shape not in marked and settled(shape) and settled(stripped(shape)):
            if len(seen) >= KEPT:
                seen.clear()
            seen[shape] = exact(shape)
        return cost

    return judge


def _digits(cell: bytes, profile: Profile) -> float:
    """Hold a plain number against the digits seen: more or fewer before the point, more after it, zeros in front."""
    bare = cell.strip(b" +-")
    size = len(bare)
    point = bare.find(b".")
    whole = size if point < 0 else point
    after = max(size - whole - 1, 0)
    cost = 1.5 * max(0, whole - profile.longest) + 1.0 * max(0, profile.shortest - whole)
    cost = min(4.0, cost + 1.5 * max(0, after - profile.decimals))
    if bare[:1] == b"0" and _str(bare[1:5])[:1].isdecimal():
        cost += 3.0
    return cost + 1.0 if bare.endswith(b".") else cost


def _never(_: bytes) -> bool:
    return False


def _always(_: bytes) -> bool:
    return True


def _fits(reading: Reading) -> tuple[Fits, Fits, Fits]:
    """Return what says whether a cell is a value; which cells surely are; which shapes tell it of all their cells."""
    if reading.type == "int" and reading.plain:
        return _whole, _never, lambda shape: len(shape) <= SURE or not INT.fullmatch(shape)
    if reading.type == "float" and reading.plain:
        return lambda cell: FLOAT.fullmatch(cell) is not None, _never, _always
    asked = _asked(reading)
    if reading.type == "bool":
        return asked, _never, _never
    if reading.type in ("int", "float"):
        number = re.compile(values.number_pattern(reading).removeprefix("^").removesuffix("$")).fullmatch
        return lambda cell: number(_str(cell)) is not None and asked(cell), _never, lambda shape: len(shape) <= SURE
    named = re.search("%[aAbBhpPZ]", "".join(reading.formats))
    fits = _hopeful(asked, None if named else re.sub(r"%(\.f|.)", "", "".join(reading.formats)))
    if "%a" in "".join(reading.formats) or "%A" in "".join(reading.formats):
        return fits, _dated(reading.formats), _never
    # Of a shape that is no date with ones, no other digits make one; but for a signed year of more than four.
    return fits, _dated(reading.formats), lambda shape: not re.match(rb"[+-]1{5}", shape) and not fits(shape)


def _hopeful(asked: Fits, letters: str | None) -> Fits:
    """Do not ask about cells without a digit, or with other letters than these (None: with any)."""
    strange = b"" if letters is None else bytes(set(LETTERS) - set((letters.lower() + letters.upper()).encode()))

    def fits(cell: bytes) -> bool:
        if cell.isascii() and (not cell.translate(None, NO_DIGITS) or len(cell.translate(None, strange)) < len(cell)):
            return False
        return asked(cell)

    return fits


def _whole(cell: bytes) -> bool:
    if not INT.fullmatch(cell):
        return False
    return len(cell) <= SURE or (len(cell) < 400 and INT_LEAST <= int(cell) <= INT_MOST)


def _asked(reading: Reading) -> Fits:
    """Ask the cast itself, once for each cell."""
    told: dict[bytes, bool] = {}

    def fits(cell: bytes) -> bool:
        known = told.get(cell)
        if known is None:
            (known,) = values.fits(pl.Series([_str(cell)], dtype=pl.String), reading)
            if len(cell) <= LONG:
                if len(told) >= KEPT:
                    told.clear()
                told[cell] = known
        return known

    return fits


def _dated(formats: tuple[str, ...]) -> Fits:
    """Return what recognises dates beyond doubt: those of the first format that has a year, month and day in digits."""
    for pattern in formats:
        parts = re.findall(r"%(\.f|.)|(.)", pattern, re.DOTALL)
        signs = [sign for sign, _ in parts if sign]
        apart = not re.search(r"%.%|%.[0-9]", pattern)
        if apart and len(set(signs)) == len(signs) and {"Y", "m", "d"} <= set(signs) <= set(PARTS):
            whole = b"".join(PARTS[sign] if sign else re.escape(literal.encode()) for sign, literal in parts)
            return _calendar(re.compile(whole).fullmatch)
    return _never


def _calendar(match: Callable[[bytes], re.Match[bytes] | None]) -> Fits:
    def sure(cell: bytes) -> bool:
        found = match(cell)
        if found is None:
            return False
        day = int(found["d"])
        if day <= 28:
            return True
        try:
            date(int(found["Y"]), int(found["m"]), day)
        except ValueError:
            return False
        return True

    return sure


# ── columns of text ──────────────────────────────────────────────────────────────────────────────────────────────────


def _words(profile: Profile, null: frozenset[bytes]) -> Gauge:
    """Judge by a closed vocabulary."""
    empty, strange = profile.empty_cost, min(4.0, 1.0 + math.log10(profile.cells + 1))
    words = [word.encode() for word in profile.words]
    known = {word: empty if stripped(word) in null else 0.0 for word in words} | dict.fromkeys(null, empty)

    def judge(cell: bytes) -> float:
        cost = known.get(cell)
        if cost is not None:
            return cost
        return empty if stripped(cell) in null else strange

    return judge


def _text(profile: Profile, null: frozenset[bytes]) -> Gauge:
    """Judge by shapes or by how cells begin, by a common beginning, and by length."""
    empty, strange = profile.empty_cost, 3.0 if profile.missing >= 1 else -1.0
    shapes = re.compile(pattern(profile)).fullmatch if profile.shapes else None
    first = _first(profile) if profile.begins and not profile.shapes else None
    prefix = profile.prefix.encode()
    sized = bool(profile.longest)
    sizes: dict[int, float] = {}

    def judge(cell: bytes) -> float:
        if stripped(cell) in null:
            return empty
        if strange >= 0:
            return strange
        cost = 0.0
        if shapes is not None:
            cost = 0.0 if shapes(cell) else 4.0
        elif first is not None:
            cost = first(cell)
        if prefix and not cell.startswith(prefix):
            cost += 4.0
        if sized:
            size = len(cell) if cell.isascii() else len(_str(cell))
            known = sizes.get(size)
            if known is None:
                if len(sizes) >= KEPT:
                    sizes.clear()
                known = sizes[size] = _size(size, profile)
            cost += known
        return cost

    return judge


def _size(size: int, profile: Profile) -> float:
    short = max(0.0, math.log2((profile.shortest + 1) / (size + 1)) - 0.5)
    long = max(0.0, math.log2((size + 1) / (profile.longest + 1)) - 0.5)
    return min(3.0, 1.5 * (short + long))


def pattern(profile: Profile) -> bytes:
    """Return the shapes of a column as a pattern of bytes."""
    parts = []
    for drawn in profile.shapes:
        plus = b"" if profile.exact else b"+"
        runs = {"A": b"[A-Z]" + plus, "a": rb"[a-z\x80-\xff]+", "9": b"[0-9]" + plus}
        parts.append(b"".join(runs.get(sign, re.escape(sign.encode())) for sign in drawn))
    return b"(?:" + b"|".join(parts) + b")"


def _first(profile: Profile) -> Gauge:
    """Judge by the first letter; asks Polars, whose patterns know every script, once for each."""
    rare = min(3.0, 0.5 * math.log10(profile.cells + 1) + 0.5)
    told: dict[bytes, float] = {}

    def judge(cell: bytes) -> float:
        head = cell[:1] if cell[:1] < b"\x80" else _str(cell[:4])[:1].encode()
        cost = told.get(head)
        if cost is None:
            letter = pl.Series([_str(head)], dtype=pl.String)
            cost = 0.0 if letter.str.contains(f"^[{profile.begins}]").item() else rare
            if len(told) >= KEPT:
                told.clear()
            told[head] = cost
        return cost

    return judge
