"""What was repaired and what waits, kind by kind with one example each, to be read at a glance: `glance(done)`.

The records lie in the repairs and the quarantine file. Here they are counted by kind and by column, and the first of
each kind is fetched with what stood in the source and what became of it. Only counts and one record a kind are held, so
it costs the same memory however many records there are: the raw bytes of a quarantine are read only where an example
lies.

A repair of one cell keeps that cell, one of a whole row keeps the row as it stood; what became of a row is written with
the delimiter of its source, so that the two can be laid beside each other. Values are given as they are: whoever shows
them makes them harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tenon.ingest.charset import Charset, decode
from tenon.ingest.job import Ingested

KINDS = 50  # kinds of repair, and of reason and column, that are told; the rest is counted
LONG = 2_000  # characters of an example
CELL = {
    "blanks": "blanks around a value",
    "groups": "marks between thousands",
    "unit": "a unit beside a number",
    "format": "a date written another way",
    "word": "another word for yes or no",
    "type": "a value that does not fit its column, left empty",
}
ROW = {
    "nul": "NUL bytes left out",
    "quote": "a stray or unclosed quote",
    "delimiter": "a row with another delimiter",
    "extra-delimiter": "a delimiter too many",
    "missing-delimiter": "a delimiter too few",
    "line-break": "a line break without quotes",
    "missing-end": "cells missing at the end",
    "unquoted-delimiter": "a delimiter in text without quotes",
}
REASON = {
    "fields": "the fields do not fit the columns",
    "type": "a value does not fit its column",
    "truncated": "the file breaks off in this row",
    "too-long": "the line is longer than a row may be",
    "json": "the line is no JSON object",
    "no-table": "no table begins here",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """Kinds of repair and of quarantine, most frequent first, each with an example, and their counts by column.

    `repairs` counts every repair; a row with two of them is one repaired row. `kinds` are how many there are in all.
    """

    repairs: int = 0
    repaired: Sequence[Mapping[str, Any]] = ()
    waiting: Sequence[Mapping[str, Any]] = ()
    repaired_kinds: int = 0
    waiting_kinds: int = 0
    columns: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the glance as plain data."""
        return {
            "repairs": self.repairs,
            "repaired": [dict(one) for one in self.repaired],
            "repaired_kinds": self.repaired_kinds,
            "waiting": [dict(one) for one in self.waiting],
            "waiting_kinds": self.waiting_kinds,
            "columns": {name: dict(counts) for name, counts in self.columns.items()},
        }


def glance(done: Ingested) -> Glance:
    """Look at what an ingest repaired and quarantined; reads its files, in one pass over their narrow columns each."""
    columns: dict[str, dict[str, int]] = {}
    repaired = _kinds(done.repairs, ["repair"], "repaired", columns)
    waiting = _kinds(done.quarantine, ["reason", "column"], "waiting", columns)
    return Glance(
        repairs=sum(one["count"] for one in repaired),
        repaired=[_repair(one, done) for one in repaired[:KINDS]],
        repaired_kinds=len(repaired),
        waiting=[_waiting(one, done) for one in waiting[:KINDS]],
        waiting_kinds=len(waiting),
        columns=columns,
    )


def _kinds(path: Path | None, by: list[str], name: str, columns: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Count records by kind, most first, with the place of the first of each; adds their counts by column."""
    if path is None:
        return []
    records = pl.scan_parquet(path)
    for column, count in records.group_by("column").len().sort("len", descending=True).collect().iter_rows():
        if column:
            columns.setdefault(column, {"repaired": 0, "waiting": 0})[name] = count
    found = (
        records.select(by)
        .with_row_index("first")
        .group_by(by)
        .agg(pl.len().alias("count"), pl.col("first").min())
        .sort("count", "first", descending=[True, False])
        .collect()
    )
    return found.to_dicts()


def _record(path: Path | None, row: int) -> dict[str, Any]:
    assert path is not None, row
    return pl.scan_parquet(path).slice(row, 1).collect().row(0, named=True)


def _repair(kind: dict[str, Any], done: Ingested) -> dict[str, Any]:
    record = _record(done.repairs, kind["first"])
    codes = record["repair"].split("+")
    became: str | None = None
    if done.files:
        values = pl.scan_parquet(list(done.files)).slice(record["row"], 1).collect().row(0, named=True)
        if codes[0] in CELL:
            value = values.get(record["column"])
            became = None if value is None else str(value)
        else:
            mark = str(done.dialects.get(record["file"], {}).get("delimiter", ","))
            became = mark.join("" if value is None else str(value) for value in values.values())
    return {
        "repair": record["repair"],
        "said": " and ".join(CELL.get(code) or ROW.get(code) or code for code in codes),
        "count": kind["count"],
        "file": record["file"],
        "line": record["line"],
        "row": record["row"],
        "column": record["column"],
        "was": record["was"][:LONG],
        "became": became if became is None else became[:LONG],
    }


def _waiting(kind: dict[str, Any], done: Ingested) -> dict[str, Any]:
    record = _record(done.quarantine, kind["first"])
    raw, _ = decode(record["raw"][: 4 * LONG], Charset())
    return {
        "reason": record["reason"],
        "said": REASON.get(record["reason"], record["reason"]),
        "count": kind["count"],
        "file": record["file"],
        "line": record["line"],
        "column": record["column"],
        "raw": raw[:LONG].rstrip("\r\n"),
        "fix": record["fix"][:LONG],
    }
