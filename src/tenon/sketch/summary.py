"""The profile of a frame: for each column what was there, in kilobytes, built in one pass and mergeable.

A column is a `number`, a `time` (instants and dates as Unix seconds), a `category` (text and true-or-false) or
`other` (lists and the like, of which only what is missing is counted). Numbers and times keep moments, a quantile
sketch and a count of different values; categories their most frequent values, the count of different ones and text
lengths. Missing is null or NaN; infinite numbers are counted and kept out of everything else. Moments merge by the
formula of Chan, Golub and LeVeque (1979), so a merged mean and variance are those of the whole up to rounding.

The same rows give the same bytes on the same kind of processor (sums of floats depend on how wide it adds), so a
profile can be named by its digest. Bytes are msgpack with a version; nothing is pickled.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from tenon.errors import CorruptError, InputError, sentence
from tenon.sketch.distinct import REGISTERS, Distinct
from tenon.sketch.levels import KEEP, Levels
from tenon.sketch.quantiles import Quantiles

Kind = Literal["number", "time", "category", "other"]
Floats = npt.NDArray[np.float64]
VERSION = 1
BATCH_ROWS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean, sum of squared deviations from it, smallest and largest of some finite numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = float("nan")
    max: float = float("nan")

    @classmethod
    def of(cls, values: Floats) -> Moments:
        """Summarise finite values, in two passes."""
        if not len(values):
            return cls()
        with np.errstate(over="ignore", invalid="ignore"):  # beyond 1e154 a square is infinite, and says so
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
        return cls(count=len(values), mean=mean, squares=squares, min=float(values.min()), max=float(values.max()))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both together (Chan, Golub, LeVeque 1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * other.count / count,
            squares=self.squares + other.squares + delta * delta * self.count * other.count / count,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
        )

    @property
    def variance(self) -> float:
        """Return the sample variance; NaN for fewer than two values."""
        return self.squares / (self.count - 1) if self.count > 1 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """What one column held. `count` values were there, `missing` were null or NaN, `infinite` were infinite."""

    kind: Kind
    rows: int
    missing: int = 0
    infinite: int = 0
    moments: Moments = Moments()
    quantiles: Quantiles = field(default_factory=lambda: Quantiles(rows=0, levels=()))
    different: Distinct | None = None
    top_levels: Levels = field(default_factory=lambda: Levels(counts={}))
    lengths: Moments = Moments()

    @property
    def count(self) -> int:
        """Return how many values were neither missing nor infinite."""
        return self.rows - self.missing - self.infinite

    @property
    def missing_share(self) -> float:
        """Return the share of rows with null or NaN; 0 without rows."""
        return self.missing / self.rows if self.rows else 0.0

    @property
    def mean(self) -> float:
        """Return the mean of a number or time; NaN where there is none."""
        return self.moments.mean if self.moments.count else float("nan")

    @property
    def std(self) -> float:
        """Return the sample standard deviation of a number or time; NaN where there is none."""
        return float(np.sqrt(self.moments.variance))

    @property
    def min(self) -> float:
        """Return the smallest number or time, exact; NaN where there is none."""
        return self.moments.min

    @property
    def max(self) -> float:
        """Return the largest number or time, exact; NaN where there is none."""
        return self.moments.max

    @property
    def distinct(self) -> int:
        """Estimate how many different values there were (within 1.6 %, exact for few categories)."""
        if self.kind == "category" and not self.top_levels.bound:
            return len(self.top_levels.counts)
        return round(self.different.estimate()) if self.different is not None else 0

    def levels(self) -> dict[str, int]:
        """Return the categories kept with their counts, most frequent first; true and false are 'true' and 'false'."""
        return dict(self.top_levels.counts)

    def top(self, k: int = 10) -> list[tuple[str, int]]:
        """Return the k most frequent categories with their counts."""
        return list(self.top_levels.counts.items())[:k]

    def quantile(self, q: float) -> float:
        """Return the value that a share q of the numbers (or times, Unix seconds) is at most; 0 and 1 are exact."""
        if q <= 0 or q >= 1:
            return self.min if q <= 0 else self.max
        return float(self.quantiles.quantile([q])[0])

    def cdf(self, points: Sequence[float]) -> list[float]:
        """Return for each point the share of numbers (or times) at most it."""
        where = np.asarray(points, dtype=np.float64)
        shares = self.quantiles.cdf(where)
        return [float(share) for share in np.where(where >= self.max, 1.0, np.where(where < self.min, 0.0, shares))]

    def histogram(self, bins: int = 20) -> tuple[list[float], list[int]]:
        """Return bins + 1 edges of equal width from smallest to largest, and the counts between; they add up to all."""
        if not self.moments.count:
            return [], []
        if self.min == self.max or not np.isfinite(self.max - self.min):
            return [self.min, self.max], [self.moments.count]
        edges = np.linspace(self.min, self.max, bins + 1)
        below = np.rint(np.array(self.cdf(edges[1:].tolist())) * self.moments.count).astype(int)
        return edges.tolist(), np.diff(below, prepend=0).tolist()

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """Return the profile of both columns together; a column without values takes the other's kind."""
        if self.kind != other.kind:
            for one, empty in ((self, other), (other, self)):
                if not empty.count:
                    rows, missing = one.rows + empty.rows, one.missing + empty.missing
                    return replace(one, rows=rows, missing=missing, infinite=one.infinite + empty.infinite)
            raise InputError(sentence(f"a column of kind {self.kind}", other.kind, hint="profile columns of one type"))
        both = (self.different, other.different)
        return ColumnProfile(
            kind=self.kind,
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            infinite=self.infinite + other.infinite,
            moments=self.moments.merge(other.moments),
            quantiles=self.quantiles.merge(other.quantiles),
            different=both[0].merge(both[1]) if both[0] and both[1] else both[0] or both[1],
            top_levels=self.top_levels.merge(other.top_levels),
            lengths=self.lengths.merge(other.lengths),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The profile of a frame: its rows, and each column by name."""

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def merge(self, other: Profile) -> Profile:
        """Return the profile of both frames together; a column only one has is missing in the rows of the other."""
        columns = {}
        for name in dict.fromkeys((*self.columns, *other.columns)):
            mine, theirs = self.columns.get(name), other.columns.get(name)
            kind = (mine or theirs or _EMPTY).kind
            mine = mine or ColumnProfile(kind=kind, rows=self.rows, missing=self.rows)
            theirs = theirs or ColumnProfile(kind=kind, rows=other.rows, missing=other.rows)
            columns[name] = mine.merge(theirs)
        return Profile(rows=self.rows + other.rows, columns=columns)

    def to_bytes(self) -> bytes:
        """Write the profile as msgpack; equal profiles give equal bytes."""
        body = {
            "version": VERSION,
            "rows": self.rows,
            "columns": {name: _packed(column) for name, column in self.columns.items()},
        }
        return msgspec.msgpack.encode(body)

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """Read a profile back; CorruptError when the bytes are none, InputError when a newer tenon wrote them."""
        try:
            body = msgspec.msgpack.decode(data)
            if body["version"] <= VERSION:
                columns = {name: _unpacked(column) for name, column in body["columns"].items()}
                return cls(rows=body["rows"], columns=columns)
            newer = sentence(f"a profile of version {VERSION}", f"{body['version']}", hint="use a newer tenon")
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
            wanted = "the bytes of a profile"
            raise CorruptError(
                sentence(wanted, f"something else ({error})", hint="make it again from the data")
            ) from error
        raise InputError(newer)


_EMPTY = ColumnProfile(kind="other", rows=0)


def profile(frame: pl.DataFrame | pl.LazyFrame) -> Profile:
    """Profile every column of a frame; a lazy frame is read in batches, with memory for one batch."""
    if isinstance(frame, pl.DataFrame):
        return Profile(rows=frame.height, columns={series.name: _column(series) for series in frame.get_columns()})
    whole: Profile | None = None
    for batch in frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
        part = profile(batch)
        whole = part if whole is None else whole.merge(part)
    return whole or profile(frame.head(0).collect())


# ── one column ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _column(series: pl.Series) -> ColumnProfile:
    dtype = series.dtype
    if dtype.is_numeric():
        return _numbers("number", series.cast(pl.Float64, strict=False))
    if dtype in (pl.Datetime, pl.Date):
        moments = series.cast(pl.Datetime("us")).cast(pl.Int64)
        return _numbers("time", moments.cast(pl.Float64) / pl.Series([1e6]))
    if dtype in (pl.Duration, pl.Time):
        return _numbers("number", series.cast(pl.Int64).cast(pl.Float64))
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
        return _texts(series)
    return ColumnProfile(kind="other", rows=len(series), missing=series.null_count())


def _numbers(kind: Kind, series: pl.Series) -> ColumnProfile:
    there = series.drop_nulls().to_numpy()
    finite = there if np.isfinite(there).all() else there[np.isfinite(there)]
    nan = int(np.isnan(there).sum()) if finite is not there else 0
    ordered = Quantiles.of(finite)
    return ColumnProfile(
        kind=kind,
        rows=len(series),
        missing=series.null_count() + nan,
        infinite=len(there) - nan - len(finite),
        moments=Moments.of(finite),
        quantiles=ordered,
        different=Distinct.of_numbers(finite),
    )


def _texts(series: pl.Series) -> ColumnProfile:
    """Count the different values first, and work on those."""
    flags = series.dtype == pl.Boolean
    there = series.drop_nulls().alias("value")
    found = there.value_counts().with_columns(pl.col("value").cast(pl.String))
    most = found.top_k(KEEP + 1, by=["count", "value"], reverse=[False, True])  # ties by name: always the same ones
    left_out = int(most["count"][KEEP]) if most.height > KEEP else 0
    top = most.head(KEEP)
    return ColumnProfile(
        kind="category",
        rows=len(series),
        missing=series.null_count(),
        different=Distinct.of_texts(found["value"].cast(pl.Binary).to_list()),
        top_levels=Levels.of(dict(zip(top["value"].to_list(), top["count"].to_list(), strict=True)), left_out),
        lengths=Moments() if flags else _lengths(found),
    )


def _lengths(found: pl.DataFrame) -> Moments:
    """Return the moments of the texts' lengths, in whole numbers until the end, so that order cannot matter."""
    size, times = pl.col("value").str.len_chars().cast(pl.Int64), pl.col("count").cast(pl.Int64)
    count, total, squared, low, high = found.select(
        times.sum().alias("n"),
        (size * times).sum().alias("s"),
        (size * size * times).sum().alias("q"),
        size.min().alias("a"),
        size.max().alias("b"),
    ).row(0)
    if not count:
        return Moments()
    squares = (count * squared - total * total) / count
    return Moments(count=count, mean=total / count, squares=squares, min=float(low), max=float(high))


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _packed(column: ColumnProfile) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": column.kind, "rows": column.rows, "missing": column.missing}
    if column.infinite:
        body["infinite"] = column.infinite
    for name, moments in (("moments", column.moments), ("lengths", column.lengths)):
        if moments.count:
            body[name] = [moments.count, moments.mean, moments.squares, moments.min, moments.max]
    if column.quantiles.rows:
        levels = [level.astype("<f8").tobytes() for level in column.quantiles.levels]
        body["quantiles"] = [column.quantiles.rows, levels]
    if column.different is not None:
        body["distinct"] = zlib.compress(column.different.registers.tobytes(), 6)
    if column.kind == "category":
        body["levels"] = [dict(column.top_levels.counts), column.top_levels.bound]
    return body


def _unpacked(body: Mapping[str, Any]) -> ColumnProfile:
    rows, levels = body.get("quantiles", (0, []))
    counts, bound = body.get("levels", ({}, 0))
    different = None
    if "distinct" in body:
        registers = np.frombuffer(zlib.decompressobj().decompress(body["distinct"], REGISTERS), dtype=np.uint8)
        if len(registers) != REGISTERS:
            raise ValueError(f"{len(registers)} registers")
        different = Distinct(registers=registers)
    if body["kind"] not in ("number", "time", "category", "other"):
        raise ValueError(f"kind {body['kind']}")
    return ColumnProfile(
        kind=body["kind"],
        rows=body["rows"],
        missing=body["missing"],
        infinite=body.get("infinite", 0),
        moments=Moments(**dict(zip(_MOMENTS, body["moments"], strict=True))) if "moments" in body else Moments(),
        quantiles=Quantiles(rows=rows, levels=tuple(np.frombuffer(level, dtype="<f8") for level in levels)),
        different=different,
        top_levels=Levels(counts=counts, bound=bound),
        lengths=Moments(**dict(zip(_MOMENTS, body["lengths"], strict=True))) if "lengths" in body else Moments(),
    )


_MOMENTS = ("count", "mean", "squares", "min", "max")
