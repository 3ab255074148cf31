"""Text becomes typed columns: cast, mend single cells, look again at rows that do not fit, and part what remains.

A cell that does not fit its column is first read more kindly (blanks, a stray quote, invisible characters, groups of
thousands, a date in another unmistakable format). If that fails, the whole row is read again as a broken one
(`repair`): fields that fell into wrong columns show as cells that do not fit. What still does not fit is decided by
the policy: the row goes to quarantine, or the cell becomes null. Every change is recorded with what it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tenon.ingest import values
from tenon.ingest.chunk import Refused, Repaired, said
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.repair import Mended
from tenon.ingest.values import POLARS, Reading

MANY = 0.2  # above this share of misfits in a chunk, ask for a vote before looking at every row
FEW = 50
WORDS_SEEN = 2_000  # misfits of a chunk whose words are counted for the summary
DECIMAL = r"^\s*[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?\s*$"
KIND_DATES = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y/%m/%d",
    "%d %b %Y",
    "%d-%b-%Y",
    "%B %d, %Y",
)

# Reads rows, by number, as broken ones: gives back their bytes, and what came of each (None: it is no row of CSV).
Again = Callable[[Sequence[int]], tuple[list[bytes], Sequence[Mended | None]]]
Where = Callable[[], tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]


@dataclass(slots=True)
class Facts:
    """What was found out about one output column in a piece, a range or the whole input; to be added up and voted on.

    `rows` and `null` are those of the result; `cells` counts cells that fit, and `misfits` those that do not, also in
    rows that are quarantined or repaired for another reason.
    """

    rows: int = 0
    null: int = 0
    cells: int = 0
    misfits: int = 0
    repaired: int = 0
    quarantined: int = 0
    decimals: int = 0
    padded: int = 0
    words: Counter[str] = field(default_factory=Counter)

    def add(self, other: Facts) -> None:
        """Add what another piece or range found out."""
        self.rows += other.rows
        self.null += other.null
        self.cells += other.cells
        self.misfits += other.misfits
        self.repaired += other.repaired
        self.quarantined += other.quarantined
        self.decimals += other.decimals
        self.padded += other.padded
        self.words.update(other.words)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {
            "rows": self.rows,
            "null": self.null,
            "cells": self.cells,
            "misfits": self.misfits,
            "repaired": self.repaired,
            "quarantined": self.quarantined,
            "decimals": self.decimals,
            "padded": self.padded,
            "words": dict(self.words.most_common(values.WORDS)),
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Facts:
        """Rebuild the facts from plain data."""
        return Facts(**{**body, "words": Counter(body["words"])})


@dataclass(frozen=True, slots=True)
class Aside:
    """What was read of a chunk already: how many rows, and how many cells more kindly, by the column of the file."""

    rows: int = 0
    soft: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Typed:
    """A chunk as typed columns; `rows` says which text row each came from, None when every one did.

    `kept` are text rows that stay although a cell does not fit: as text, or with a null by policy.
    """

    frame: pl.DataFrame
    rows: NDArray[np.int64] | None
    repaired: list[Repaired]
    refused: list[Refused]
    kept: tuple[int, ...] = ()
    bailed: bool = False


def typed(
    text: pl.DataFrame,
    plan: Plan,
    file: FilePlan,
    facts: Sequence[Facts],
    again: Again,
    where: Where,
    aside: Aside | None = None,
) -> Typed:
    """Turn a frame of text into output columns; `again` reads rows as broken ones, `where` gives the places of all.

    `aside` counts what of the same chunk fits and is not in the frame.
    """
    columns, misfits = _cast(text, plan, file, facts)
    for target, column in columns.items():
        facts[target].cells += len(column) - column.null_count()
    aside = aside or Aside()
    if not misfits and not aside.soft:
        return Typed(framed(columns, plan, text.height), None, [], [])
    # What is counted for the vote must not depend on how the input is cut, so it is counted before anything is decided.
    many = not plan.patient and _too_many(misfits, file, text.height, aside)
    repaired = _soften(text, columns, misfits, plan, file, facts)
    _count(text, misfits, file, facts)
    if many or not misfits:
        return Typed(framed(columns, plan, text.height), None, [] if many else repaired, [], bailed=many)
    bad = np.zeros(text.height, dtype=bool)
    for mask in misfits.values():
        bad |= mask
    if not bad.any():
        return Typed(framed(columns, plan, text.height), None, repaired, [])
    numbers = np.flatnonzero(bad)
    mended, refused, kept = _again(numbers, misfits, plan, file, again, where)
    whole = framed(columns, plan, text.height)
    drop = np.zeros(text.height, dtype=bool)
    drop[[row for row in numbers.tolist() if row not in kept]] = True
    repaired += _nulled(text, misfits, kept, plan, file, facts)
    rows = np.flatnonzero(~drop)
    frame = whole.filter(pl.Series(~drop))
    if mended:
        extra, extra_rows, more, told = _reread(mended, plan, file, facts, where)
        refused += told
        repaired += more
        merged = np.concatenate([rows, extra_rows])
        order = np.argsort(merged, kind="stable")
        frame, rows = pl.concat([frame, extra])[order], merged[order]
    return Typed(frame, rows, repaired, sorted(refused, key=lambda one: one.begin), tuple(sorted(kept)))


def _cast(
    text: pl.DataFrame, plan: Plan, file: FilePlan, facts: Sequence[Facts]
) -> tuple[dict[int, pl.Series], dict[int, NDArray[np.bool_]]]:
    """Read every column; returns the values by output, and the misfits by column of the file."""
    columns: dict[int, pl.Series] = {}
    misfits: dict[int, NDArray[np.bool_]] = {}
    for number, target in enumerate(file.targets):
        if target < 0:
            continue
        cells = text[str(number)]
        reading = file.readings[number]
        done = values.cast(cells, reading)
        if plan.text:
            blank = cells == ""
            columns[target] = cells.set(blank, None) if blank.any() else cells
        else:
            columns[target] = done.values
            facts[target].words.update(done.words)
            if reading.null and done.values.null_count():
                facts[target].words.update(values.null_words(cells, reading))
        if done.misfit is not None:
            misfits[number] = done.misfit.to_numpy().copy()
    return columns, misfits


def framed(columns: dict[int, pl.Series], plan: Plan, height: int) -> pl.DataFrame:
    """Put the output columns in order, with nulls for those that this input does not have."""
    out = []
    for number, output in enumerate(plan.outputs):
        type_ = pl.String if plan.text else POLARS[output.type]
        column = columns.get(number)
        out.append(
            pl.Series(output.name, [None] * height, dtype=type_)
            if column is None
            else column.alias(output.name).cast(type_)
        )
    return pl.DataFrame(out)


def _too_many(misfits: Mapping[int, NDArray[np.bool_]], file: FilePlan, height: int, aside: Aside) -> bool:
    counts = Counter({number: int(mask.sum()) for number, mask in misfits.items()}) + Counter(aside.soft)
    most = max(FEW, MANY * (height + aside.rows))
    return any(count > most and not file.readings[number].declared for number, count in counts.items())


def _count(
    text: pl.DataFrame,
    misfits: dict[int, NDArray[np.bool_]],
    file: FilePlan,
    facts: Sequence[Facts],
) -> None:
    """Count misfits by what they look like."""
    for number, mask in misfits.items():
        fact = facts[file.targets[number]]
        cells = text[str(number)].filter(pl.Series(mask))
        fact.misfits += len(cells)
        fact.decimals += int(cells.str.contains(DECIMAL).sum())
        fact.padded += int(values.padded(cells).sum())
        for cell, count in cells.head(WORDS_SEEN).value_counts(sort=True).head(values.WORDS).iter_rows():
            fact.words[cell] += count


# ── single cells ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _soften(
    text: pl.DataFrame,
    columns: dict[int, pl.Series],
    misfits: dict[int, NDArray[np.bool_]],
    plan: Plan,
    file: FilePlan,
    facts: Sequence[Facts],
) -> list[Repaired]:
    """Read misfits more kindly; what then fits is put in its column, taken out of the misfits, and recorded."""
    out: list[Repaired] = []
    for number in list(misfits):
        mask, target = misfits[number], file.targets[number]
        rows = np.flatnonzero(mask)
        cells = text[str(number)].filter(pl.Series(mask))
        read, codes = soften(cells, file.readings[number])
        fits = read.is_not_null().to_numpy()
        if not fits.any():
            continue
        if not plan.text:
            columns[target] = columns[target].clone().scatter(rows[fits].tolist(), read.filter(pl.Series(fits)))
            facts[target].repaired += int(fits.sum())
            facts[target].cells += int(fits.sum())
            for row, cell, code, fit in zip(rows.tolist(), cells.to_list(), codes, fits.tolist(), strict=True):
                if fit:
                    out.append(Repaired(row, number, code, cell))
        mask[rows[fits]] = False
        if not mask.any():
            del misfits[number]
    return out


def soften(cells: pl.Series, reading: Reading) -> tuple[pl.Series, list[str]]:
    """Read cells more kindly; returns values, null where nothing helps, and the name of what helped."""
    tidy = cells.str.replace_all(r"[\p{C}\u00a0\u2007\u202f\u200b\ufeff]", "").str.strip_chars().str.strip_chars("\"'`")
    tidy = tidy.str.strip_chars()
    out = values.cast(tidy, replace(reading, null=())).values
    codes = ["blanks"] * len(cells)
    left = _left(tidy, out)
    tried: set[str] = set()
    for code, other in _kinder(reading):
        # Looking first is cheaper than asking Polars: a reading helps no cell that lacks its marks. One with groups is
        # tried all the same, because it reads brackets, and signs behind a number, as well.
        if not left or ((code in tried or code == "format") and not _helps(code, other, left)):
            continue
        tried.add(code)
        found = values.cast(tidy, other).values
        if reading.type == "int" and found.dtype == pl.Float64:
            whole = (found.floor() == found) & (reading.declared or ~values.padded(tidy))
            found = pl.select(pl.when(whole).then(found)).to_series()
        found = found.cast(out.dtype, strict=False)
        helped = np.flatnonzero((out.is_null() & found.is_not_null()).to_numpy()).tolist()
        if helped:
            for row in helped:
                codes[row] = code
            out = pl.select(pl.coalesce(out, found)).to_series()
            left = _left(tidy, out)
    return out.alias(cells.name), codes


def _left(cells: pl.Series, read: pl.Series) -> str:
    """Return the cells that are not read yet, one after the other."""
    return "\n".join(cells.filter(read.is_null()).to_list())


def _helps(code: str, reading: Reading, left: str) -> bool:
    """Whether the marks of a reading occur in any of these cells."""
    if code == "format":
        return all(mark in left for mark in re.sub(r"%(\.f|.)|\s", "", reading.formats[0]))
    return (reading.unit if code == "unit" else reading.group) in left


def _kinder(reading: Reading) -> list[tuple[str, Reading]]:
    """List other readings whose meaning cannot be mistaken."""
    bare = Reading(type=reading.type, plain=False, decimal=reading.decimal, unit=reading.unit)
    if reading.type == "int":
        zeros = Reading(type="float")
        return [("groups", replace(bare, group=mark)) for mark in (",", " ", "'") if mark != reading.group] + [
            ("decimals", zeros)
        ]
    if reading.type == "float":
        marks = (",", " ", "'") if reading.decimal == "." else (".", " ", "'")
        units = [
            ("unit", replace(bare, unit=unit, group=marks[0]))
            for unit in ("$", "€", "£", "%")
            if not reading.unit and unit != "%"
        ]
        return [("groups", replace(bare, group=mark)) for mark in marks if mark != reading.group] + units
    if reading.type in ("date", "timestamp"):
        return [
            ("format", replace(reading, formats=(pattern,), null=()))
            for pattern in KIND_DATES
            if pattern not in reading.formats
        ]
    if reading.type == "bool":
        more = [
            ("word", Reading(type="bool", true=(true,), false=(false,), plain=False)) for true, false in values.BOOLS
        ]
        return [*more, ("word", Reading(type="bool", true=("1",), false=("0",), plain=False))]
    return []


# ── whole rows ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _again(
    numbers: NDArray[np.int64],
    misfits: dict[int, NDArray[np.bool_]],
    plan: Plan,
    file: FilePlan,
    again: Again,
    where: Where,
) -> tuple[dict[int, tuple[list[bytes], int, str, str]], list[Refused], set[int]]:
    """Read misfit rows as broken ones; returns those that were repaired, those refused, and those kept as they are."""
    mended: dict[int, tuple[list[bytes], int, str, str]] = {}
    refused: list[Refused] = []
    kept: set[int] = set()
    rows, answers = again(numbers.tolist())
    for number, row, answer in zip(numbers.tolist(), rows, answers, strict=True):
        if answer is not None and answer.sure and answer.code != "none":
            mended[number] = (answer.values, answer.column, answer.code, row.decode("utf-8", "replace"))
        elif plan.text or plan.policy == "cell":
            kept.add(number)
        else:
            begins, ends, lines = where()
            column = next(column for column, mask in misfits.items() if mask[number])
            reading = file.readings[column]
            fix = f"a value of type {reading.type} in this column, its word among the null words, or type text"
            if answer is not None and answer.values and answer.code != "none":
                fix = said(answer)
            refused.append(Refused(int(begins[number]), int(ends[number]), int(lines[number]), column, "type", fix))
    return mended, refused, kept


def _nulled(
    text: pl.DataFrame,
    misfits: dict[int, NDArray[np.bool_]],
    kept: set[int],
    plan: Plan,
    file: FilePlan,
    facts: Sequence[Facts],
) -> list[Repaired]:
    """Record the cells that become null by policy."""
    out: list[Repaired] = []
    if plan.text or not kept:
        return out
    for number, mask in misfits.items():
        rows = [row for row in np.flatnonzero(mask).tolist() if row in kept]
        cells = text[str(number)].gather(rows).to_list()
        facts[file.targets[number]].repaired += len(rows)
        out.extend(Repaired(row, number, "type", cell) for row, cell in zip(rows, cells, strict=True))
    return out


def _reread(
    again: dict[int, tuple[list[bytes], int, str, str]],
    plan: Plan,
    file: FilePlan,
    facts: Sequence[Facts],
    where: Where,
) -> tuple[pl.DataFrame, NDArray[np.int64], list[Repaired], list[Refused]]:
    """Cast the rows that were repaired; one that still does not fit is refused after all."""
    numbers = np.array(sorted(again), dtype=np.int64)
    width = len(file.targets)
    text = pl.DataFrame(
        {
            str(column): pl.Series(
                [again[n][0][column].decode("utf-8", "replace") for n in numbers.tolist()], dtype=pl.String
            )
            for column in range(width)
        }
    )
    columns, misfits = _cast(text, plan, file, facts)
    soft = _soften(text, columns, misfits, plan, file, facts) if misfits else []
    bad = np.zeros(len(numbers), dtype=bool)
    for mask in misfits.values() if not plan.text else ():
        bad |= mask
    begins, ends, lines = where()
    refused = [
        Refused(
            int(begins[n]),
            int(ends[n]),
            int(lines[n]),
            again[n][1],
            "type",
            f"a repair ({again[n][2]}) left cells that do not fit",
        )
        for n in numbers[bad].tolist()
    ]
    good = ~bad
    repaired = [Repaired(n, again[n][1], again[n][2], again[n][3]) for n in numbers[good].tolist()]
    repaired += [Repaired(int(numbers[one.row]), one.column, one.code, one.was) for one in soft if good[one.row]]
    frame = framed(columns, plan, len(numbers)).filter(pl.Series(good))
    return frame, numbers[good], repaired, refused
