"""How the text of a column becomes values: Reading, learnt from a sample, applied to every chunk, voted on at the end.

A reading is data: the type, the marks of its numbers, the formats of its dates in order of preference, the words of
its booleans, and the words that mean missing. `learn` proposes the narrowest reading that fits what is not missing;
`cast` applies it with Polars expressions, and gives back what does not fit instead of guessing. Formats of dates vote
(`date`); when two read everything and differ, the column stays text and says why. The same goes for a comma that could
be a decimal or a thousands mark.

Numbers keep what they were: a code with leading zeros is text, more digits than an integer holds are text. Timestamps
with a zone become UTC, without one they stay as written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tenon.contract.column import ColumnType
from tenon.ingest import date
from tenon.ingest.detect import kind
from tenon.ingest.missing import known

POLARS: dict[str, Any] = {
    "int": pl.Int64,
    "float": pl.Float64,
    "text": pl.String,
    "bool": pl.Boolean,
    "date": pl.Date,
    "timestamp": pl.Datetime("us"),
}
SIGNS = ("US$", "USD", "EUR", "GBP", "CHF", "JPY", "RUB", "Kč", "kr", "zł", "руб", "р.", "%", *"$€£¥₽₹₩₺₴")
BOOLS = (
    ("true", "false"),
    ("yes", "no"),
    ("y", "n"),
    ("t", "f"),
    ("да", "нет"),
    ("ja", "nein"),
    ("j", "n"),
    ("oui", "non"),
    ("si", "no"),
    ("sí", "no"),
    ("sim", "não"),
    ("on", "off"),
    ("wahr", "falsch"),
    ("vrai", "faux"),
    ("истина", "ложь"),
)
GAP = r"[ \u00a0\u202f\u2009]"
SIGNED = r"[+\-\u2212]"
GROUPED = r"[+-]?[1-9]\d{0,2}(\.\d{3})+"
DECIMALS = r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
CODE = r"\d+[eE]\d+"  # numbers are written 1e+05 or 1.0E5
TICKS = frozenset(("x", "*", "#", "/"))
FIRST_DAY, LAST_DAY = -354_285, 2_932_896  # days from 1970 to 1000-01-01 and 9999-12-31
DAY_US = 86_400_000_000
DISTINCT = 2_000  # different values of a column looked at when learning
WORDS = 40  # different values that do not fit which are told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one column is read. `rivals` are formats that fit as well and mean another day: the column stays text."""

    type: ColumnType = "text"
    decimal: str = "."
    group: str = ""
    unit: str = ""
    plain: bool = True
    formats: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    declared: bool = False
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the reading as plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Reading:
        """Rebuild the reading from plain data."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in body.items()
        }
        return Reading(**plain)

    @property
    def said(self) -> str:
        """Say how values are read, for the summary."""
        if self.formats:
            return " or ".join(self.formats)
        if self.type in ("int", "float") and not self.plain:
            marks = [f"'{self.group}' groups"] if self.group else []
            marks += [f"'{self.decimal}' decimals"] if self.type == "float" else []
            marks += [f"unit {self.unit}"] if self.unit else []
            return ", ".join(marks)
        return "/".join((*self.true, *self.false)) if self.type == "bool" else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A column after reading: values, and where text that is not missing did not become one (None: nowhere)."""

    values: pl.Series
    misfit: pl.Series | None = None
    words: Mapping[str, int] = field(default_factory=dict)


# ── applying ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def cast(text: pl.Series, reading: Reading) -> Cast:
    """Read a column of text; nothing is guessed, and the misfits are told. One pass for a column without surprises."""
    if reading.type == "text":
        missing = text.is_in(list(reading.null)) if reading.null else text == ""
        values = pl.select(pl.when(~missing).then(text).alias(text.name)).to_series() if missing.any() else text
        return Cast(values=values)
    values = _convert(text, reading)
    if reading.type == "float" and reading.plain:
        values = _finite(values)
    if not values.null_count() and not _numeric_null(reading):
        return Cast(values=values)
    missing = text.is_in(["", *reading.null])
    if _numeric_null(reading):
        values = pl.select(pl.when(~missing).then(values).alias(text.name)).to_series()
    misfit = values.is_null() & ~missing
    if not misfit.any():
        return Cast(values=values)
    words = {word: count for word, count in _counts(text.filter(misfit)).items() if known(word)}
    if words:
        misfit = misfit & ~text.is_in(list(words))
    return Cast(values=values, misfit=misfit if misfit.any() else None, words=words)


def fits(text: pl.Series, reading: Reading) -> list[bool]:
    """Say of every cell whether it is a value of the reading's type; words for missing are none."""
    return _convert(text, reading).is_not_null().to_list()


def _finite(values: pl.Series) -> pl.Series:
    return values.fill_nan(None) if values.is_nan().any() else values


def _numeric_null(reading: Reading) -> bool:
    """Whether a word that means missing would also read as a value: a declared -999, or nan."""
    return reading.declared and any(_number_like(word) for word in reading.null)


def _number_like(word: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d+(\.\d+)?", word))


def _counts(text: pl.Series) -> dict[str, int]:
    found = text.value_counts()
    return dict(zip(found.to_series(0).to_list(), found.to_series(1).to_list(), strict=True))


def null_words(text: pl.Series, reading: Reading) -> dict[str, int]:
    """Count the cells of a column that hold a word for missing, by word."""
    return _counts(text.filter(text.is_in(list(reading.null))))


def _convert(text: pl.Series, reading: Reading) -> pl.Series:
    """Turn text into values of the reading's type; null where it is none."""
    if reading.type == "int":
        text = text if reading.plain else _plain_number(text, reading)
        whole = text.cast(pl.Int64, strict=False)
        # 007 is a code: as a number it would lose its zeros without a word. A declared integer may have them.
        return whole if reading.declared or not (codes := padded(text)).any() else _without(whole, codes)
    if reading.type == "float":
        return (text if reading.plain else _plain_number(text, reading)).cast(pl.Float64, strict=False)
    if reading.type == "bool":
        low = text.str.to_lowercase()
        told = pl.when(low.is_in(list(reading.true))).then(True).when(low.is_in(list(reading.false))).then(False)
        return pl.select(told.alias(text.name)).to_series()
    out: pl.Series | None = None
    for pattern in reading.formats:
        found = parse(text, pattern, reading.type)
        out = found if out is None else pl.select(pl.coalesce(out, found).alias(text.name)).to_series()
        if not out.null_count():
            break
    return out if out is not None else pl.Series(text.name, [None] * len(text), POLARS[reading.type])


def padded(text: pl.Series) -> pl.Series:
    """Mark the cells that begin with a zero and another digit, as codes do."""
    return text.str.contains(PADDED).fill_null(False)


def _without(values: pl.Series, mask: pl.Series) -> pl.Series:
    return pl.select(pl.when(~mask).then(values).alias(values.name)).to_series()


def parse(text: pl.Series, pattern: str, type_: ColumnType) -> pl.Series:
    """Read dates or timestamps of one format; null where it does not fit, or the year has not four digits."""
    return parsed(text, [pattern], type_)[pattern]


def parsed(text: pl.Series, patterns: Sequence[str], type_: ColumnType) -> dict[str, pl.Series]:
    """Read dates or timestamps of each of some formats, all in one call of the engine."""
    found = {}
    read = text.to_frame().select(_parsed(pl.first(), one, type_).alias(f"{i}") for i, one in enumerate(patterns))
    day = 1 if type_ == "date" else DAY_US
    least, most = FIRST_DAY * day, (LAST_DAY + 1) * day - 1
    for pattern, column in zip(patterns, read.iter_columns(), strict=True):
        raw, values = column.to_physical(), column.alias(text.name)
        low, high = raw.min(), raw.max()
        if low is not None and (low < least or high > most):  # type: ignore[operator]
            # "13" read as the year 13 is two digits misread.
            values = pl.select(pl.when(raw.is_between(least, most)).then(values).alias(text.name)).to_series()
        found[pattern] = values
    return found


def _parsed(text: pl.Expr, pattern: str, type_: ColumnType) -> pl.Expr:
    if type_ == "date":
        return text.str.to_date(pattern, strict=False, cache=False)
    found = text.str.to_datetime(pattern, strict=False, cache=False, time_unit="us")
    return found.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if "%z" in pattern else found


def number_pattern(reading: Reading) -> str:
    """Return the pattern that numbers of this reading match, so that no mark is dropped that means something else."""
    sign = "".join(rf"(?:{re.escape(reading.unit)})?") if reading.unit else ""
    group = re.escape(reading.group) if reading.group else ""
    lakh = r"\d{1,2}(?:,\d{2})+,\d{3}|" if reading.group == "," else ""  # 12,34,567 as India writes it
    whole = rf"(?:{lakh}\d{{1,3}}(?:{group}\d{{3}})+|\d+)" if group else r"\d+"
    decimal = rf"(?:{re.escape(reading.decimal)}\d*)?" if reading.type == "float" else ""
    spare = rf"|{re.escape(reading.decimal)}\d+" if reading.type == "float" else ""
    body = rf"(?:{whole}{decimal}{spare})"
    exponent = r"(?:[eE][+-]?\d+)?" if reading.type == "float" else ""
    inner = rf"{sign}{GAP}?{SIGNED}?{sign}{GAP}?{body}{exponent}{GAP}?{sign}"
    owed = rf"\({inner}\)|{sign}{GAP}?\({body}\)" if sign else rf"\({inner}\)"
    return rf"^{GAP}*(?:{SIGNED}?{inner}-?|{owed}){GAP}*$"


def _plain_number(text: pl.Series, reading: Reading) -> pl.Series:
    """Rewrite numbers with groups, units, brackets or a decimal comma plainly; null where the pattern fails."""
    column = pl.lit(text)
    clean = column
    for mark in (reading.unit, reading.group, "\u00a0", "\u202f", "\u2009", " ", "(", ")"):
        if mark:
            clean = clean.str.replace_all(mark, "", literal=True)
    clean = clean.str.replace_all("\u2212", "-", literal=True)
    if reading.decimal != ".":
        clean = clean.str.replace_all(reading.decimal, ".", literal=True)
    negative = column.str.contains("(", literal=True) | column.str.contains(r"-\s*$")
    clean = pl.when(negative).then(pl.lit("-") + clean.str.strip_chars("-")).otherwise(clean)
    fits = column.str.contains(number_pattern(reading))
    return pl.select(pl.when(fits).then(clean).alias(text.name)).to_series()


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def learn(cells: Sequence[str], *, comma: str = "") -> Reading:
    """Propose the narrowest reading of a column from its cells; `comma` is what a comma means elsewhere in the file."""
    counts = Counter(cell for cell in cells if cell.strip())
    kept = {cell: count for cell, count in counts.items() if not known(cell)}
    words = tuple(sorted(cell for cell in counts if known(cell)))
    if not kept:
        # A cross beside empty cells is a tick in a box: it says yes, not that nothing is known.
        ticks = {word for word in words if word.strip().lower() in TICKS}
        return Reading(null=tuple(word for word in words if word not in ticks))
    some = dict(Counter(kept).most_common(DISTINCT))
    reading = _bool(dict(counts))
    for attempt in (_whole, _decimal, _dated, _marked):
        reading = reading or attempt(some, comma)
    return _with_null(reading, counts) if reading else Reading()


def _with_null(reading: Reading, counts: Mapping[str, int]) -> Reading:
    """Add to a reading the words that mean missing here: known ones, and one that keeps coming back."""
    from dataclasses import replace

    if reading.type == "text":
        return reading
    series = pl.Series("", list(counts), dtype=pl.String)
    fits = _convert(series, reading).is_not_null().to_list()
    strange = {cell: counts[cell] for cell, fit in zip(counts, fits, strict=True) if not fit}
    words = {cell for cell in strange if known(cell)}
    others = {cell: count for cell, count in strange.items() if cell not in words}
    total = sum(others.values())
    whole = sum(counts.values())
    for cell, count in others.items():
        # One word that stands where values should, so often that it is no accident of a small sample.
        alone = count == total and count >= 5 and count >= 0.05 * whole
        often = count >= 10 and count >= 0.95 * total
        if (alone or often) and not any(letter.isdigit() for letter in cell):
            words.add(cell)
    return replace(reading, null=tuple(sorted(words)))


def _share(fit: Mapping[str, bool], counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    return sum(count for cell, count in counts.items() if fit[cell]) / total if total else 0.0


def _matches(counts: Mapping[str, int], pattern: str) -> dict[str, bool]:
    compiled = re.compile(pattern, re.ASCII)
    return {cell: compiled.fullmatch(cell.strip()) is not None for cell in counts}


PADDED = r"^\s*[+-]?0[0-9]"
MOST = 0.88  # the share of values that must fit a type for it to be the column's


def _bool(counts: Mapping[str, int]) -> Reading | None:
    low = Counter[str]()
    for cell, count in counts.items():
        low[cell.strip().lower()] += count
    total = sum(low.values())
    for true, false in BOOLS:
        both = low[true] + low[false]
        sure = (low[true] and low[false]) or (true == "true" and both)
        if sure and both >= MOST * (total - sum(c for w, c in low.items() if known(w) and w != false)) and both:
            rest = [word for word in low if word not in (true, false)]
            if len(rest) <= 3 or both >= 0.95 * total:
                return Reading(type="bool", true=(true,), false=(false,), plain=False)
    return None


def _whole(counts: Mapping[str, int], comma: str) -> Reading | None:
    fit = _matches(counts, r"[+-]?\d{1,18}")
    if _share(fit, counts) < MOST:
        return None
    # Codes: leading zeros mean something, so the column is text.
    if any(fit[cell] and re.match(r"[+-]?0\d", cell.strip()) for cell in counts):
        return Reading(why="leading zeros")
    if any(fit[cell] and re.match(r"\+\d{9}", cell.strip()) for cell in counts):
        return Reading(why="telephone numbers")
    rest = [cell for cell in counts if not fit[cell]]
    if any(re.fullmatch(CODE, cell.strip()) for cell in rest):
        return Reading(why="codes such as 1e5")
    decimals = [cell.strip() for cell in rest if re.fullmatch(DECIMALS, cell.strip())]
    if decimals:
        whole = [cell.strip() for cell in counts if fit[cell]]
        return _pointed(whole + decimals, comma) or Reading(type="float")
    if any(re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", cell.strip()) for cell in rest):
        return Reading(type="int", group=",", plain=False)
    if any(re.fullmatch(r"[+-]?\d{19,}", cell.strip()) for cell in rest):
        return Reading(why="more digits than an integer holds")
    return Reading(type="int")


def _decimal(counts: Mapping[str, int], comma: str) -> Reading | None:
    fit = _matches(counts, r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?|nan")
    if _share(fit, counts) < MOST:
        return None
    if any(fit[cell] and re.match(r"[+-]?0\d", cell.strip()) for cell in counts):
        return Reading(why="leading zeros")
    if any(re.fullmatch(r"[+-]?\d{19,}", cell.strip()) for cell in counts):
        return Reading(why="more digits than an integer holds")
    pointed = any("." in cell for cell in counts if fit[cell])
    if not pointed and any(re.fullmatch(CODE, cell.strip()) for cell in counts):
        return Reading(why="codes such as 1e5")
    # 1.234 and 12.345 and nothing else: thousands in some countries, decimals in others.
    dotted = [cell for cell in counts if fit[cell] and "." in cell]
    if comma == "decimal" and dotted and all(re.fullmatch(GROUPED, cell.strip()) for cell in dotted):
        return Reading(type="int", group=".", decimal=",", plain=False)
    return _pointed([cell.strip() for cell in counts if fit[cell]], comma) or Reading(type="float")


def _pointed(numbers: Sequence[str], comma: str) -> Reading | None:
    """Read 1.234 beside 56 as thousands, or as a number that may mean two things; None where points are decimals.

    Who writes decimals with as many digits as they need would write 1.5 and 2.25 as well, and never 1.230.
    """
    dotted = [number for number in numbers if "." in number]
    plain = [number.lstrip("+-") for number in numbers if "." not in number]
    if not dotted or not plain or comma == "group" or not all(re.fullmatch(GROUPED, number) for number in dotted):
        return None
    if comma == "decimal":
        return Reading(type="int", group=".", decimal=",", plain=False)
    if max(map(len, plain)) > 3:
        return None
    if any(number.endswith("0") for number in dotted):
        return Reading(type="int", group=".", decimal=",", plain=False)
    return Reading(why="a point that may mean decimals or thousands", rivals=("decimal", "group"))


GROUPS = (" ", "\u00a0", "\u202f", "\u2009", "'", "\u2019")
NUMBER = re.compile(
    r"\(?[+\-\u2212]?(?P<u1>[^\d\s.,()+\-\u2212'\u2019]{1,3})?\s?[+\-\u2212]?\(?"
    rf"(?P<n>[0-9][0-9.,{''.join(GROUPS)}]*|[.,][0-9]+)\s?(?P<u2>[^\d\s.,()+\-'\u2019]{{1,4}}\.?)?\)?-?"
)


def _marked(counts: Mapping[str, int], comma: str) -> Reading | None:
    """Learn numbers with thousands, a decimal comma, currency, percent or accounting brackets."""
    found = {cell: NUMBER.fullmatch(cell.strip()) for cell in counts}
    good = {cell: match for cell, match in found.items() if match}
    if not good or sum(counts[cell] for cell in good) < MOST * sum(counts.values()):
        return None
    units = Counter[str]()
    for cell, match in good.items():
        unit = match["u1"] or match["u2"] or ""
        if unit and unit not in SIGNS:
            return None
        units[unit] += counts[cell]
    signs = [unit for unit in units if unit]
    if len(signs) > 1:
        return Reading(why=f"several units: {', '.join(sorted(signs))}")
    if signs == ["%"] and _fractions(good):
        return Reading(why="percent beside fractions")
    digits = [match["n"].strip() for match in good.values()]
    if any(re.match(r"0\d", number) for number in digits):
        return Reading(why="leading zeros")
    marks = _marks(digits, comma)
    if marks is None:
        return Reading(why="a comma that may mean decimals or thousands", rivals=("decimal", "group"))
    group, decimal, whole = marks
    unit = signs[0] if signs else ""
    reading = Reading(
        type="int" if whole and not unit else "float", group=group, decimal=decimal, unit=unit, plain=False
    )
    series = pl.Series("", list(counts), dtype=pl.String)
    fits = _convert(series, reading).is_not_null().to_list()
    return reading if _share(dict(zip(counts, fits, strict=True)), counts) >= MOST else None


def _fractions(good: Mapping[str, re.Match[str]]) -> bool:
    """Whether numbers without a percent sign are fractions of one beside percents above it: another scale."""
    bare = [match["n"].replace(",", ".") for cell, match in good.items() if "%" not in cell]
    signed = [match["n"].replace(",", ".") for cell, match in good.items() if "%" in cell]
    small = [re.fullmatch(r"0?\.[0-9]+|[01]", number) is not None for number in bare]
    return (
        bool(small)
        and all(small)
        and any("." in number for number in bare)
        and any(re.match("[1-9]", number) for number in signed)
    )


def _marks(numbers: Sequence[str], comma: str) -> tuple[str, str, bool] | None:
    """Return the group mark, the decimal mark and whether all are whole; None when it cannot be told."""
    spaced = next((mark for mark in GROUPS if any(mark in number for number in numbers)), "")
    commas = [number for number in numbers if "," in number]
    dots = [number for number in numbers if "." in number]
    if commas and dots:
        both = [number for number in numbers if "," in number and "." in number]
        if both:
            last = [number.rfind(",") > number.rfind(".") for number in both]
            if all(last):
                return ".", ",", False
            return (",", ".", False) if not any(last) else None
        if all(re.fullmatch(r"\d{1,3}(,\d{3})+|\d{1,2}(,\d{2})+,\d{3}", number) for number in commas):
            return ",", ".", False
        if all(re.fullmatch(r"\d{1,3}(\.\d{3})+", number) for number in dots):
            return ".", ",", False
        return None
    if dots:
        several = any(number.count(".") > 1 for number in dots)
        return (".", ",", True) if several else (spaced, ".", False)
    if not commas:
        return spaced, ".", True
    if any(number.count(",") > 1 for number in commas):
        return ",", ".", True
    grouped = all(re.fullmatch(r"[1-9]\d{0,2},\d{3}", number) for number in commas)
    if spaced or not grouped:
        return spaced, ",", False
    plain = [number for number in numbers if "," not in number]
    if comma:
        return (",", ".", True) if comma == "group" else ("", ",", False)
    # Small numbers without a comma, and none above 999 without one: the comma groups.
    if plain and max(len(number) for number in plain) <= 3 and any(len(number) < 3 for number in plain):
        return ",", ".", True
    return None


def _dated(counts: Mapping[str, int], _: str) -> Reading | None:
    """Learn dates and timestamps: the formats that read most values, by vote; rivals make the column text."""
    some = list(counts)[:60]
    looks = sum(kind(cell.encode()) in ("date", "stamp") or bool(re.search(r"\d{4}", cell)) for cell in some)
    if looks < 0.6 * len(some):
        return None
    series = pl.Series("", list(counts), dtype=pl.String)
    weight = pl.Series("", list(counts.values()), dtype=pl.Int64)
    probe = series.head(60)
    for type_, patterns in (("date", date.DATES), ("timestamp", date.stamps(some))):
        tried = parsed(probe, date.possible(patterns, probe.to_list()), type_)  # type: ignore[arg-type]
        fits = [pattern for pattern, values in tried.items() if values.null_count() < len(probe)]
        found = date.vote(parsed(series, fits, type_), weight, MOST)  # type: ignore[arg-type]
        if found is not None and found.rivals:
            return Reading(rivals=found.rivals, why="day and month cannot be told apart")
        if found is not None:
            return Reading(type=type_, formats=found.formats, plain=False)  # type: ignore[arg-type]
    return None
