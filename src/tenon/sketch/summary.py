"""One column's summary: exact counts and moments, and sketches of its quantiles, distinct and frequent values.

Numbers, dates and timestamps (as seconds since 1970) keep moments and a KLL quantile sketch; text and true-or-false
values keep frequent values. Every summary merges: counts and extremes exactly, means and variances by the pairwise
formula of Chan, Golub and LeVeque (1983), sketches within their own bounds:

- KLL (Karnin, Lang, Liberty, 2016; Apache DataSketches) with k = 500: a rank is off by at most 0.6 % with 99 %
  confidence, in about 12 KB however many values it has seen.
- HyperLogLog with 2^11 registers: the number of distinct values within about 5 % (two standard errors), in 1-2 KB.
- Frequent items with 2^8 counters: exact while a column has at most 192 distinct values; beyond that every value that
  makes up more than 1/192 or so of the rows is there, its count within `slack`.

Rejected: equal-width histograms (they need the range beforehand and do not merge when it moves), t-digest (no bound on
its error). KLL chooses by chance which values to keep, so two builds of one column differ within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasketches as ds
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["number", "time", "category"]

KLL_K = 500
HLL_LG_K = 11
TOP_LG = 8
TEXT_CHARS = 40  # a longer value is kept by its beginning and its hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """One column: how many rows, what is missing, its moments and its sketches (as the bytes that are kept).

    `missing` counts nulls and NaN together. `low`, `high`, `mean` and `m2` (the sum of squared distances from the
    mean) are of finite values, and for text of its length in characters. `infinite` counts what is neither finite nor
    missing.
    """

    kind: Kind
    rows: int
    missing: int
    infinite: int = 0
    low: float = math.nan
    high: float = math.nan
    mean: float = math.nan
    m2: float = 0.0
    quantiles: bytes = b""
    distinct_values: bytes = b""
    frequent: bytes = b""

    # ── counts and moments ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def count(self) -> int:
        """Return how many values there are: rows that are not missing."""
        return self.rows - self.missing

    @property
    def missing_share(self) -> float:
        """Return the share of rows without a value, 0 to 1."""
        return self.missing / self.rows if self.rows else 0.0

    @property
    def variance(self) -> float:
        """Return the sample variance of finite values; NaN with fewer than two."""
        finite = self.count - self.infinite
        return self.m2 / (finite - 1) if finite > 1 else math.nan

    @property
    def distinct(self) -> float:
        """Estimate the number of distinct values, within about 5 %."""
        return float(ds.hll_sketch.deserialize(self.distinct_values).get_estimate()) if self.distinct_values else 0.0

    # ── quantiles ────────────────────────────────────────────────────────────────────────────────────────────────────

    def quantile(self, share: float | Sequence[float]) -> Any:
        """Return the value below which that share of values lies (or a list of them); NaN when there is none."""
        sketch = self._quantiles()
        if sketch is None or sketch.is_empty():
            return math.nan if isinstance(share, (int, float)) else [math.nan for _ in share]
        if isinstance(share, (int, float)):
            return float(sketch.get_quantile(share))
        return [float(value) for value in sketch.get_quantiles(np.asarray(share, np.float64))]

    def cdf(self, points: Sequence[float] | Floats) -> Floats:
        """Return the share of values at most each of the ascending points."""
        at = np.asarray(points, np.float64)
        sketch = self._quantiles()
        if sketch is None or sketch.is_empty() or not len(at):
            return np.zeros(len(at))
        return np.asarray(sketch.get_cdf(at, True)[:-1], np.float64)

    def histogram(self, bins: int = 20) -> tuple[list[float], list[float]]:
        """Return edges of bins of equal width and the number of values in each, for a picture."""
        if self.kind == "category" or self.count - self.infinite <= 0:
            return [], []
        if self.low == self.high:
            return [self.low, self.high], [float(self.count - self.infinite)]
        edges = np.linspace(self.low, self.high, bins + 1)
        shares = np.diff(np.concatenate([[0.0], self.cdf(edges[1:-1]), [1.0]]))
        return edges.tolist(), (shares * (self.count - self.infinite)).tolist()

    def _quantiles(self) -> Any:
        return ds.kll_doubles_sketch.deserialize(self.quantiles) if self.quantiles else None

    # ── frequent values ──────────────────────────────────────────────────────────────────────────────────────────────

    def top(self, count: int = 10) -> list[tuple[str, int]]:
        """Return the most frequent values of a category with their counts, most frequent first, then by name."""
        return sorted(self.levels().items(), key=lambda item: (-item[1], item[0]))[:count]

    def levels(self) -> dict[str, int]:
        """Return every value of a category that is kept, with its count (at most `slack` too high)."""
        if not self.frequent:
            return {}
        sketch = ds.frequent_strings_sketch.deserialize(self.frequent)
        found = sketch.get_frequent_items(ds.frequent_items_error_type.NO_FALSE_NEGATIVES, 0)
        return {item[0]: int(item[1]) for item in found}

    @property
    def slack(self) -> int:
        """Return by how much a count of `levels` may be off; 0 while every value is kept."""
        if not self.frequent:
            return 0
        sketch = ds.frequent_strings_sketch.deserialize(self.frequent)
        return int(sketch.total_weight * sketch.epsilon) if self.distinct > 192 else 0

    # ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def merge(self, other: ColumnProfile) -> ColumnProfile:
        """Return the summary of both columns' rows together; of two kinds, only the counts are kept."""
        kind: Kind = self.kind if self.kind == other.kind else "category"
        alike = self.kind == other.kind
        ours, theirs = self.count - self.infinite, other.count - other.infinite
        together = ours + theirs
        mean, m2 = self.mean, self.m2
        if alike and theirs:
            if ours:
                delta = other.mean - self.mean
                mean = self.mean + delta * theirs / together
                m2 = self.m2 + other.m2 + delta * delta * ours * theirs / together
            else:
                mean, m2 = other.mean, other.m2
        return ColumnProfile(
            kind=kind,
            rows=self.rows + other.rows,
            missing=self.missing + other.missing,
            infinite=self.infinite + other.infinite,
            low=_pick(min, self.low, other.low) if alike else math.nan,
            high=_pick(max, self.high, other.high) if alike else math.nan,
            mean=mean if alike else math.nan,
            m2=m2 if alike else 0.0,
            quantiles=_merge_kll(self.quantiles, other.quantiles) if alike else b"",
            distinct_values=_merge_hll(self.distinct_values, other.distinct_values) if alike else b"",
            frequent=_merge_frequent(self.frequent, other.frequent) if alike else b"",
        )

    # ── plain data ───────────────────────────────────────────────────────────────────────────────────────────────────

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain data with bytes, for msgpack."""
        return {name: getattr(self, name) for name in ColumnProfile.__slots__}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ColumnProfile:
        """Read a summary back; unknown fields are skipped."""
        return cls(**{name: body[name] for name in ColumnProfile.__slots__ if name in body})


def _pick(choose: Any, one: float, other: float) -> float:
    """Choose between two numbers, of which either may be NaN for nothing."""
    known = [value for value in (one, other) if value == value]
    return float(choose(known)) if known else math.nan


def _merge_kll(one: bytes, other: bytes) -> bytes:
    if not one or not other:
        return one or other
    sketch = ds.kll_doubles_sketch.deserialize(one)
    sketch.merge(ds.kll_doubles_sketch.deserialize(other))
    return bytes(sketch.serialize())


def _merge_hll(one: bytes, other: bytes) -> bytes:
    if not one or not other:
        return one or other
    union = ds.hll_union(HLL_LG_K)
    union.update(ds.hll_sketch.deserialize(one))
    union.update(ds.hll_sketch.deserialize(other))
    return bytes(union.get_result(ds.tgt_hll_type.HLL_8).serialize_compact())


def _merge_frequent(one: bytes, other: bytes) -> bytes:
    if not one or not other:
        return one or other
    sketch = ds.frequent_strings_sketch.deserialize(one)
    sketch.merge(ds.frequent_strings_sketch.deserialize(other))
    return bytes(sketch.serialize())
