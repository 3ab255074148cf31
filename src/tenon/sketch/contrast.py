"""Two summaries side by side: how far a column has moved, in figures with known formulas. Others judge them.

- PSI, the population stability index: sum over bins of (p - q) ln(p / q), p of the reference and q of the other. It is
  the symmetric Kullback-Leibler divergence (Kullback and Leibler, 1951). Bins of numbers are the reference's deciles
  (values that repeat much make fewer, wider bins); of categories its most frequent levels and all others together.
  Shares are smoothed by half a row in each bin (Jeffreys), so that an empty bin does not make it infinite.
- KS, for numbers: the largest distance between the two cumulative distributions, from the sketches' quantiles.
- Total variation, for categories: half the sum of |p - q| over all levels kept.
- Unseen: the share of the other's values whose level the reference does not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenon.sketch.build import Profile
from tenon.sketch.summary import ColumnProfile, Floats

BINS = 10
LEVELS = 50
POINTS = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far one column has moved from its reference. NaN where there is nothing to compare.

    `distance` is KS for numbers and times, total variation for categories, both 0 to 1. `bins` is how many PSI has
    (its noise depends on it), `missing` and `missing_reference` are shares of rows, `mean_delta` is in standard
    deviations of the reference, `unseen` the share of values of levels the reference lacks, with examples.
    """

    kind: str
    psi: float
    bins: int
    distance: float
    missing: float
    missing_reference: float
    mean_delta: float
    rows: int
    rows_reference: int
    unseen: float = 0.0
    unseen_levels: tuple[str, ...] = ()

    @property
    def missing_delta(self) -> float:
        """Return by how much the share of missing rows has grown."""
        return self.missing - self.missing_reference

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data; NaN becomes None."""
        body = {**asdict(self), "unseen_levels": list(self.unseen_levels)}
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in body.items()}


def compare(reference: Profile, other: Profile) -> dict[str, Comparison]:
    """Compare every column that both profiles have, in the reference's order; milliseconds for 25 columns."""
    return {
        name: _compare(column, other.columns[name])
        for name, column in reference.columns.items()
        if name in other.columns
    }


def _compare(reference: ColumnProfile, other: ColumnProfile) -> Comparison:
    alike = reference.kind == other.kind
    psi, bins, distance = math.nan, 0, math.nan
    unseen = 0.0
    levels: tuple[str, ...] = ()
    if alike and reference.count and other.count:
        if reference.kind == "category":
            psi, bins, distance = _categories(reference, other)
            unseen, levels = _unseen(reference, other)
        else:
            psi, bins, distance = _numbers(reference, other)
    spread = math.sqrt(reference.variance) if reference.variance > 0 else math.nan
    return Comparison(
        kind=reference.kind if alike else f"{reference.kind} then, {other.kind} now",
        psi=psi,
        bins=bins,
        distance=distance,
        missing=other.missing_share,
        missing_reference=reference.missing_share,
        mean_delta=(other.mean - reference.mean) / spread if alike and reference.kind != "category" else math.nan,
        rows=other.rows,
        rows_reference=reference.rows,
        unseen=unseen,
        unseen_levels=levels,
    )


def _numbers(reference: ColumnProfile, other: ColumnProfile) -> tuple[float, int, float]:
    edges = np.unique(reference.quantile([i / BINS for i in range(1, BINS)]))
    shares = [np.diff(np.concatenate([[0.0], column.cdf(edges), [1.0]])) for column in (reference, other)]
    # The last edge may be the highest value there is: its bin is then empty on both sides, and is no bin.
    used = (shares[0] > 0) | (shares[1] > 0)
    psi = _psi(shares[0][used], shares[1][used], reference.count, other.count)
    points = np.unique(np.concatenate([column.quantile(np.linspace(0, 1, POINTS).tolist()) for column in (reference, other)]))
    distance = float(np.abs(reference.cdf(points) - other.cdf(points)).max())
    return psi, int(used.sum()), distance


def _categories(reference: ColumnProfile, other: ColumnProfile) -> tuple[float, int, float]:
    ours, theirs = reference.levels(), other.levels()
    kept = [level for level, _ in reference.top(LEVELS)]
    shares = []
    for levels, count in ((ours, reference.count), (theirs, other.count)):
        named = [min(levels.get(level, 0) / count, 1.0) for level in kept]
        shares.append(np.array([*named, max(0.0, 1.0 - sum(named))]))
    used = (shares[0] > 0) | (shares[1] > 0)
    psi = _psi(shares[0][used], shares[1][used], reference.count, other.count)
    every = sorted(set(ours) | set(theirs))
    gaps = [abs(ours.get(level, 0) / reference.count - theirs.get(level, 0) / other.count) for level in every]
    rest = abs(sum(ours.values()) / reference.count - sum(theirs.values()) / other.count)
    return psi, int(used.sum()), min(1.0, (sum(gaps) + rest) / 2)


def _psi(p: Floats, q: Floats, p_count: int, q_count: int) -> float:
    bins = len(p)
    smooth_p = (p * p_count + 0.5) / (p_count + 0.5 * bins)
    smooth_q = (q * q_count + 0.5) / (q_count + 0.5 * bins)
    return float(np.sum((smooth_p - smooth_q) * np.log(smooth_p / smooth_q)))


def _unseen(reference: ColumnProfile, other: ColumnProfile) -> tuple[float, tuple[str, ...]]:
    """Return the share and examples of levels the reference lacks; nothing where the reference does not keep all."""
    if reference.slack:
        return 0.0, ()
    ours = reference.levels()
    new = {level: count for level, count in other.levels().items() if level not in ours}
    shown = sorted(new, key=lambda level: (-new[level], level))[:5]
    return min(1.0, sum(new.values()) / other.count), tuple(shown)


# ── versions of a dataset ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What changed between two versions of a dataset: rows, columns that came, went or changed kind, and how far."""

    rows: tuple[int, int]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    retyped: tuple[str, ...]
    moved: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as plain data."""
        return {
            "rows": list(self.rows),
            "added": list(self.added),
            "removed": list(self.removed),
            "retyped": list(self.retyped),
            "moved": {name: comparison.to_dict() for name, comparison in self.moved.items()},
        }


def diff(before: Profile, after: Profile) -> Difference:
    """Return what changed from one profile to another, the columns that moved most first."""
    moved = compare(before, after)
    same = [name for name in moved if before.columns[name].kind == after.columns[name].kind]
    return Difference(
        rows=(before.rows, after.rows),
        added=_only(after, before),
        removed=_only(before, after),
        retyped=tuple(name for name in moved if name not in same),
        moved={name: moved[name] for name in sorted(same, key=lambda name: -(moved[name].psi or 0.0))},
    )


def _only(one: Profile, other: Profile) -> tuple[str, ...]:
    names: Sequence[str] = [name for name in one.columns if name not in other.columns]
    return tuple(names)
