"""A frame's summary: built column by column in one pass, merged, written to bytes and read back.

Values go into the sketches in arrays or, for text, as distinct values with their counts, so that building runs at
millions of values a second. The bytes are msgpack with a format number; the sketches inside are Apache DataSketches'
own documented form, which other languages read. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasketches as ds
import msgspec
import numpy as np
import polars as pl

from tenon.errors import CorruptError, InputError, sentence
from tenon.sketch.summary import HLL_LG_K, KLL_K, TEXT_CHARS, TOP_LG, ColumnProfile, Floats

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The summary of a frame: its rows and a ColumnProfile for each column, in order."""

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def merge(self, other: Profile) -> Profile:
        """Return the summary of both frames' rows; a column that one of them lacks is missing in its rows."""
        merged: dict[str, ColumnProfile] = {}
        for name in [*self.columns, *(name for name in other.columns if name not in self.columns)]:
            one, two = self.columns.get(name), other.columns.get(name)
            if one is not None and two is not None:
                merged[name] = one.merge(two)
            else:
                present, absent = (one, other.rows) if one is not None else (two, self.rows)
                assert present is not None, name
                merged[name] = present.merge(ColumnProfile(kind=present.kind, rows=absent, missing=absent))
        return Profile(rows=self.rows + other.rows, columns=merged)

    def to_bytes(self) -> bytes:
        """Return the profile as msgpack, some kilobytes for each column."""
        body = {
            "format": FORMAT,
            "rows": self.rows,
            "columns": [[name, column.to_dict()] for name, column in self.columns.items()],
        }
        return msgspec.msgpack.encode(body)

    @staticmethod
    def from_bytes(body: bytes) -> Profile:
        """Read back what `to_bytes` gave; CorruptError when it is none, InputError when it is newer."""
        try:
            found = msgspec.msgpack.decode(body)
            number = int(found["format"])
            columns = {str(name): ColumnProfile.from_dict(column) for name, column in found["columns"]}
            rows = int(found["rows"])
        except (msgspec.DecodeError, TypeError, KeyError, ValueError) as error:
            raise CorruptError(
                sentence(
                    "a profile", str(error) or type(error).__name__, at="sketch", hint="make it again from the data"
                )
            ) from error
        if number > FORMAT:
            raise InputError(sentence(f"a profile of format {FORMAT}", f"format {number}", hint="use a newer tenon"))
        return Profile(rows=rows, columns=columns)


def profile(frame: pl.DataFrame | pl.LazyFrame) -> Profile:
    """Summarise every column of a frame; a LazyFrame is collected. Reads only.

    Raises InputError for a column of a type that has no summary (a list, a struct).
    """
    rows = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    return Profile(rows=rows.height, columns={name: _column(rows[name]) for name in rows.columns})


def _column(values: pl.Series) -> ColumnProfile:
    kind = values.dtype
    if kind == pl.Boolean:
        return _category(values.cast(pl.String))
    if kind in (pl.String, pl.Categorical, pl.Enum):
        return _category(values.cast(pl.String))
    if kind.is_numeric():
        return _number(values, "number")
    if kind == pl.Null:
        return ColumnProfile(kind="category", rows=values.len(), missing=values.len())
    if kind in (pl.Date, pl.Datetime):
        return _number(values.cast(pl.Datetime("us")).cast(pl.Int64) / 1e6, "time")
    if kind in (pl.Duration, pl.Time):
        return _number(values.cast(pl.Int64), "number")
    raise InputError(
        sentence("a column of numbers, text, dates or true and false", str(kind), at=f"column '{values.name}'")
    )


def _number(values: pl.Series, kind: Any) -> ColumnProfile:
    present = values.cast(pl.Float64).drop_nulls()
    array: Floats = present.to_numpy()
    nan = np.isnan(array)
    finite = array[np.isfinite(array)]
    missing = values.len() - present.len() + int(nan.sum())
    sketch = ds.kll_doubles_sketch(KLL_K)
    distinct = ds.hll_sketch(HLL_LG_K, ds.tgt_hll_type.HLL_8)
    mean = m2 = math.nan
    if len(finite):
        sketch.update(finite)
        # One zero: 0.0 and -0.0 are one value to a person.
        for value in pl.Series(finite + 0.0).unique().to_list():
            distinct.update(value)
        mean = float(finite.mean())
        m2 = float(((finite - mean) ** 2).sum())
    return ColumnProfile(
        kind=kind,
        rows=values.len(),
        missing=missing,
        infinite=values.len() - missing - len(finite),
        low=float(finite.min()) if len(finite) else math.nan,
        high=float(finite.max()) if len(finite) else math.nan,
        mean=mean,
        m2=m2 if len(finite) else 0.0,
        quantiles=bytes(sketch.serialize()) if len(finite) else b"",
        distinct_values=bytes(distinct.serialize_compact()) if len(finite) else b"",
    )


def _category(values: pl.Series) -> ColumnProfile:
    present = values.drop_nulls()
    sketch = ds.frequent_strings_sketch(TOP_LG)
    distinct = ds.hll_sketch(HLL_LG_K, ds.tgt_hll_type.HLL_8)
    if not present.len():
        return ColumnProfile(kind="category", rows=values.len(), missing=values.len())
    counts = present.alias("value").value_counts(sort=True)
    # Frequent values go in first: the sketch then gives up the rare ones, whatever the order of the rows was.
    for value, count in zip(counts["value"].to_list(), counts["count"].to_list(), strict=True):
        kept = short(value)
        sketch.update(kept, count)
        distinct.update(kept)
    chars = present.str.len_chars().cast(pl.Float64).to_numpy()
    mean = float(chars.mean())
    return ColumnProfile(
        kind="category",
        rows=values.len(),
        missing=values.len() - present.len(),
        low=float(chars.min()),
        high=float(chars.max()),
        mean=mean,
        m2=float(((chars - mean) ** 2).sum()),
        frequent=bytes(sketch.serialize()),
        distinct_values=bytes(distinct.serialize_compact()),
    )


def short(value: str) -> str:
    """Return a value as it is kept: a long one by its beginning and its hash, so that two long ones stay apart."""
    if len(value) <= TEXT_CHARS:
        return value
    name = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{value[: TEXT_CHARS - 13]}…{name}"
