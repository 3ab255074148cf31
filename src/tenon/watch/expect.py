"""What a model was expected to do: the figures that promoted it, and how much its world usually varies.

`Expected` is read from the run record: performance on the test split, the best baseline there, the share of positives
in training, how far predictions were off on average, and what each feature is worth.

`Usual` is how much single windows of the training data differ from the training data as a whole. A week in July is
unlike the year: temperature "drifts" every week by PSI 1 and more, and nothing is wrong. So the training matrix is cut
into the same windows, each is compared with the whole, and a live window is called drifted only when it is further off
than any window of training was. It is computed once when a model is trained, is a few kilobytes of JSON, and carries
the weekly rates of the label as well. Rejected: comparing with the same week of last year, which few teams have, and
with last week, which a slow drift never trips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from tenon import metric
from tenon.metric import Estimate
from tenon.sketch import Profile, compare, profile
from tenon.watch.window import start_of, width_of

_FEW_ROWS = 200  # a training window with fewer rows says more about chance than about the season


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the run that made the model measured; every field may be unknown."""

    metric: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    baseline: str = ""
    baseline_value: float = math.nan
    rate: float = math.nan  # the mean label in training
    rate_rows: int = 0
    bias: float = math.nan  # mean prediction less mean label, on test
    importance: Mapping[str, float] = field(default_factory=dict)  # feature -> share of all gain

    @classmethod
    def of_run(cls, run: Mapping[str, Any] | None, task: str, name: str = "") -> Expected:
        """Read the expectation from a `run` record; `name` is the metric to judge by (default: the task's first)."""
        chosen = name if name in metric.METRICS.get(task, ()) else metric.METRICS[task][0]
        if not run:
            return cls(metric=chosen)
        test = (run.get("metrics") or {}).get("test") or {}
        metrics = {key: Estimate.from_dict(value) for key, value in test.items() if key in metric.HIGHER_IS_BETTER}
        baseline, baseline_value = _best(run.get("baselines") or {}, chosen)
        train = (run.get("split") or {}).get("train") or {}
        groups = run.get("calibration") or []
        rows = sum(float(group["rows"]) for group in groups)
        bias = (
            sum((float(group["predicted"]) - float(group["observed"])) * float(group["rows"]) for group in groups)
            / rows
            if rows
            else math.nan
        )
        gains = {str(item["name"]): max(0.0, float(item["gain"])) for item in run.get("importance") or []}
        total = sum(gains.values())
        return cls(
            metric=chosen,
            metrics=metrics,
            baseline=baseline,
            baseline_value=baseline_value,
            rate=float(train["rate"]) if train.get("rate") is not None else math.nan,
            rate_rows=int(train.get("rows") or 0),
            bias=bias,
            importance={key: gain / total for key, gain in gains.items()} if total else {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """How far single windows of the training data were from all of it: PSI and missing share by column, label rates."""

    window: str
    windows: int
    psi: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    missing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rates: tuple[float, ...] = ()

    def highest_psi(self, column: str) -> float:
        """Return the PSI that no window of training exceeded; 0 when none was measured."""
        return max(self.psi.get(column, ()), default=0.0)

    def highest_missing(self, column: str) -> float:
        """Return the share of missing values that no window of training exceeded."""
        return max(self.missing.get(column, ()), default=0.0)

    def holds_rate(self, rate: float) -> bool:
        """Whether some stretch of training had label rates on both sides of this one."""
        return bool(self.rates) and min(self.rates) <= rate <= max(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Return the variation as plain data, to keep with the run or version."""
        return {
            "window": self.window,
            "windows": self.windows,
            "psi": {name: list(values) for name, values in self.psi.items()},
            "missing": {name: list(values) for name, values in self.missing.items()},
            "rates": list(self.rates),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Usual:
        """Read back what `to_dict` gave; other fields are skipped."""
        return cls(
            window=str(body["window"]),
            windows=int(body["windows"]),
            psi={name: tuple(values) for name, values in (body.get("psi") or {}).items()},
            missing={name: tuple(values) for name, values in (body.get("missing") or {}).items()},
            rates=tuple(body.get("rates") or ()),
        )


def usual(matrix: pl.DataFrame, window: str = "7d", *, reference: Profile | None = None) -> Usual:
    """Measure how much windows of the training matrix vary; `matrix` has the features, `_time` and perhaps `_label`.

    One pass to profile each window, and one for the whole unless its profile is given. Read-only.
    """
    features = [name for name in matrix.columns if not name.startswith("_")]
    whole = reference or profile(matrix.select(features))
    width = width_of(window)
    starts = matrix["_time"].cast(pl.Datetime("us")).dt.epoch("s").to_list()
    cut = matrix.with_columns(pl.Series("_window", [None if at is None else start_of(at, width) for at in starts]))
    psi: dict[str, list[float]] = {name: [] for name in features}
    missing: dict[str, list[float]] = {name: [] for name in features}
    rates: list[float] = []
    windows = 0
    for _, part in sorted(cut.drop_nulls("_window").group_by("_window"), key=lambda item: item[0][0]):
        if part.height < _FEW_ROWS:
            continue
        windows += 1
        for name, found in compare(whole, profile(part.select(features))).items():
            psi[name].append(found.psi)
            missing[name].append(found.missing)
        if "_label" in part.columns and part["_label"].null_count() < part.height:
            rates.append(float(np.nanmean(part["_label"].cast(pl.Float64).drop_nulls().to_numpy())))
    return Usual(
        window=window,
        windows=windows,
        psi={name: tuple(round(value, 6) for value in values) for name, values in psi.items()},
        missing={name: tuple(round(value, 6) for value in values) for name, values in missing.items()},
        rates=tuple(round(value, 6) for value in rates),
    )


def _best(baselines: Mapping[str, Any], name: str) -> tuple[str, float]:
    """Return the baseline that did best on test by this metric, and its value."""
    values = {key: float(value[name]["value"]) for key, value in baselines.items() if name in value}
    if not values:
        return "", math.nan
    pick = max if metric.HIGHER_IS_BETTER[name] else min
    best = pick(values, key=values.__getitem__)
    return best, values[best]
