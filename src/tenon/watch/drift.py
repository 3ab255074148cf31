"""Columns of a window against the training reference, from their sketches, and from where on that is worth a word.

PSI comes from `sketch.compare`: deciles of the reference for numbers, its most frequent levels for categories. A column
of a window has drifted when its PSI exceeds three things at once: `psi_warning` of the configuration (large enough to
matter), what chance alone exceeds once in 100 examinations over all columns and windows (`noise.psi_noise`, with the
rows of that window), and the highest PSI of any window of the training data (`expect.Usual`).

The sketches add an error of their own: a share between two quantiles is off by up to about 1 %, which moves a PSI over
ten bins by less than 0.005, far below any limit used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenon.config import WatchConfig
from tenon.sketch import Comparison, Profile, compare
from tenon.watch import noise
from tenon.watch.expect import Expected, Usual
from tenon.watch.window import Window, iso

SCORE = "score"
Drifts = Sequence[Mapping[str, Comparison]]
Limits = Mapping[tuple[float, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDrift:
    """One column over all windows: its PSI in the newest and the worst window, and beyond what it is spoken of."""

    name: str
    kind: str
    psi: float  # in the newest window with enough rows
    worst: float
    worst_start: float
    limit: float  # of the newest window
    usual: float
    missing: float
    reference_missing: float
    unseen: float
    importance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the column as plain data for the `watch` record; what is unknown is None."""
        figures = ("psi", "worst", "limit", "usual", "missing", "reference_missing", "unseen", "importance")
        return {
            "name": self.name,
            "kind": self.kind,
            "worst_start": iso(self.worst_start) if math.isfinite(self.worst_start) else None,
            **{name: _known(getattr(self, name)) for name in figures},
        }


def with_score(reference: Profile, scores: Profile | None) -> Profile:
    """Return the reference with the column `score` of another profile beside its own, where it has none."""
    if scores is None or SCORE in reference.columns or SCORE not in scores.columns:
        return reference
    return Profile(rows=reference.rows, columns={**reference.columns, SCORE: scores.columns[SCORE]})


def found(reference: Profile, window: Profile | None) -> dict[str, Comparison]:
    """Compare a window with the reference, column by column; nothing without rows. Milliseconds for 25 columns."""
    return compare(reference, window) if window is not None and window.rows else {}


def kinds(reference: Profile) -> dict[str, str]:
    """Tell which features there are: number, time, category, or flag for a category of nothing but true and false."""
    return {
        name: "flag"
        if column.kind == "category" and {value for value, _ in column.top(3)} <= {"true", "false"}
        else column.kind
        for name, column in reference.columns.items()
        if name != SCORE
    }


def limits(
    windows: Sequence[Window], drifts: Drifts, config: WatchConfig, usual: Usual | None
) -> dict[tuple[float, str], float]:
    """Return for each window and column the PSI beyond which it is spoken of."""
    looks = sum(1 for every in drifts for one in every.values() if math.isfinite(one.psi))
    alpha = noise.ALPHA / max(looks, 1)
    return {
        (window.start, name): _limit(
            config.psi_warning,
            noise.psi_noise(
                one.rows_reference * (1 - one.missing_reference), window.distinct * (1 - one.missing), one.bins, alpha
            ),
            usual.highest_psi(name) if usual is not None else 0.0,
        )
        for window, every in zip(windows, drifts, strict=True)
        for name, one in every.items()
    }


def _limit(warning: float, chance: float, usual: float) -> float:
    """Return the largest of what matters, what chance does, and what training did with chance on top.

    PSI is close to the square of a distance, so chance adds to its root and not to itself.
    """
    return max(warning, chance, (math.sqrt(max(usual, 0.0)) + math.sqrt(chance)) ** 2 if usual > 0 else 0.0)


def unseen(windows: Sequence[Window], drifts: Drifts) -> dict[tuple[float, str], tuple[float, Sequence[str]]]:
    """Return for each window and column the share of values training never saw, with examples, where there are any."""
    return {
        (window.start, name): (one.unseen * (1 - one.missing), one.unseen_levels)
        for window, every in zip(windows, drifts, strict=True)
        for name, one in every.items()
        if one.unseen > 0
    }


def reference_missing(reference: Profile) -> dict[str, float]:
    """Return the share of missing values of each feature in training."""
    return {name: column.missing_share for name, column in reference.columns.items() if name != SCORE}


def columns(
    windows: Sequence[Window],
    drifts: Drifts,
    beyond: Limits,
    config: WatchConfig,
    expected: Expected,
    usual: Usual | None,
) -> tuple[ColumnDrift, ...]:
    """Sum up each column over the windows that can be judged (or else all), the one furthest beyond its limit first."""
    every_pair = list(zip(windows, drifts, strict=True))
    pairs = [
        (window, every)
        for window, every in every_pair
        if window.rows >= config.min_rows and not window.open and not window.partial
    ] or every_pair
    rows = []
    for name in dict.fromkeys(name for _, every in pairs for name in every):
        seen = [(window, every[name]) for window, every in pairs if name in every]
        newest_window, newest = seen[-1]
        worst_window, worst = max(seen, key=lambda pair: pair[1].psi if math.isfinite(pair[1].psi) else -1.0)
        rows.append(
            ColumnDrift(
                name=name,
                kind=newest.kind,
                psi=newest.psi,
                worst=worst.psi,
                worst_start=worst_window.start,
                limit=beyond[newest_window.start, name],
                usual=usual.highest_psi(name) if usual is not None else math.nan,
                missing=newest.missing,
                reference_missing=newest.missing_reference,
                unseen=newest.unseen,
                importance=expected.importance.get(name, math.nan),
            )
        )
    return tuple(
        sorted(rows, key=lambda row: (-(row.worst / row.limit) if math.isfinite(row.worst) else 1.0, row.name))
    )


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
