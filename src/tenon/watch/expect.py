"""What a model was expected to do: the figures that promoted it, and how much its world usually varies.

`Expected` is read from the run record: performance on the test split, the best baseline there, the share of positives
in training, how far predictions were off on average, and what each feature is worth.

`Usual` is how much single windows of the training data differ from the training data as a whole. A week in July is
unlike the year: temperature "drifts" every week by PSI 1 and more, and nothing is wrong. So the training matrix is cut
into the same windows, each is compared with the whole, and a live window is called drifted only when it is further off
than any window of training was. The same for performance: on rows held out (validation and test) it is measured window
by window, because weeks differ in how hard they are. It is computed once when a model is trained and is a few kilobytes
of JSON. Rejected: comparing with the same week of last year, which few teams have, and with last week, which a slow
drift never trips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tenon import metric
from tenon.metric import Estimate
from tenon.sketch import Profile, compare, profile
from tenon.watch.window import Window, start_of, width_of

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
    """How far single windows of the training data were from all of it, and how performance varied on those held out."""

    window: str
    windows: int
    psi: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    missing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bias: tuple[float, ...] = ()  # mean prediction less mean label

    def highest_psi(self, column: str) -> float:
        """Return the PSI that no window of training exceeded; 0 when none was measured."""
        return max(self.psi.get(column, ()), default=0.0)

    def highest_missing(self, column: str) -> float:
        """Return the share of missing values that no window of training exceeded."""
        return max(self.missing.get(column, ()), default=0.0)

    def holds_rate(self, rate: float, margin: float) -> bool:
        """Whether the label rate, give or take the margin of chance, lies among those of windows of training."""
        return bool(self.rates) and min(self.rates) - margin <= rate <= max(self.rates) + margin

    def to_dict(self) -> dict[str, Any]:
        """Return the variation as plain data, to keep with the run or version."""
        return {
            "window": self.window,
            "windows": self.windows,
            "psi": {name: list(values) for name, values in self.psi.items()},
            "missing": {name: list(values) for name, values in self.missing.items()},
            "rates": list(self.rates),
            "metrics": {name: list(values) for name, values in self.metrics.items()},
            "bias": list(self.bias),
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
            metrics={name: tuple(values) for name, values in (body.get("metrics") or {}).items()},
            bias=tuple(body.get("bias") or ()),
        )


def usual(
    matrix: pl.DataFrame,
    window: str = "7d",
    *,
    reference: Profile | None = None,
    held_out: pl.DataFrame | None = None,
    task: str = "binary",
) -> Usual:
    """Measure how much windows of the training matrix vary; `matrix` has the features, `_time` and perhaps `_label`.

    `held_out` has `_time`, `_label` and `_score` of rows the model was not fitted on (validation and test). One pass to
    profile each window, and one for the whole unless its profile is given. Read-only.
    """
    features = [name for name in matrix.columns if not name.startswith("_")]
    whole = reference or profile(matrix.select(features))
    psi: dict[str, list[float]] = {name: [] for name in features}
    missing: dict[str, list[float]] = {name: [] for name in features}
    rates: list[float] = []
    windows = 0
    for part in _cut(matrix, window):
        windows += 1
        for name, found in compare(whole, profile(part.select(features))).items():
            if math.isfinite(found.psi):
                psi[name].append(round(found.psi, 6))
            missing[name].append(round(found.missing, 6))
        labels = part["_label"].cast(pl.Float64).drop_nulls() if "_label" in part.columns else pl.Series([])
        if labels.len():
            rates.append(round(float(labels.to_numpy().mean()), 6))
    metrics, bias = _held_out(held_out, window, task) if held_out is not None else ({}, ())
    return Usual(
        window=window,
        windows=windows,
        psi={name: tuple(values) for name, values in psi.items()},
        missing={name: tuple(values) for name, values in missing.items()},
        rates=tuple(rates),
        metrics=metrics,
        bias=bias,
    )


def _cut(frame: pl.DataFrame, window: str) -> list[pl.DataFrame]:
    """Cut rows into windows by `_time`, oldest first; those with few rows, or covered in part, are left out."""
    width = width_of(window)
    times = frame["_time"].cast(pl.Datetime("us")).dt.epoch("us")
    starts = [None if at is None else start_of(at / 1e6, width) for at in times]
    cut = frame.with_columns(pl.Series("_window", starts, dtype=pl.Float64)).drop_nulls("_window")
    found = []
    for part in cut.sort("_window", maintain_order=True).partition_by("_window", maintain_order=True):
        start = float(part["_window"][0])
        moments = part["_time"].cast(pl.Datetime("us")).dt.epoch("us").to_numpy() / 1e6
        first, last = float(moments.min()), float(moments.max())
        covered = Window(start=start, end=start + width, rows=part.height, first=first, last=last)
        if part.height >= _FEW_ROWS and not covered.partial:
            found.append(part)
    return found


def _held_out(rows: pl.DataFrame, window: str, task: str) -> tuple[dict[str, tuple[float, ...]], tuple[float, ...]]:
    """Measure every metric on each window of held-out rows, and how far predictions were off on average."""
    values: dict[str, list[float]] = {}
    bias = []
    labelled = rows.with_columns(pl.col("_label").cast(pl.Float64)).filter(
        pl.col("_label").is_finite() & pl.col("_score").is_finite()
    )
    for part in _cut(labelled, window):
        truth, score = part["_label"].to_numpy(), part["_score"].to_numpy()
        names = [n for n in metric.METRICS[task] if n not in metric.RANKED or truth.min() != truth.max()]
        for name, found in metric.evaluate(task, truth, score, samples=1, names=names).items():
            values.setdefault(name, []).append(round(found.value, 6))
        bias.append(round(float(score.mean() - truth.mean()), 6))
    return {name: tuple(found) for name, found in values.items()}, tuple(bias)


def _best(baselines: Mapping[str, Any], name: str) -> tuple[str, float]:
    """Return the baseline that did best on test by this metric, and its value."""
    values = {key: float(value[name]["value"]) for key, value in baselines.items() if name in value}
    if not values:
        return "", math.nan
    pick = max if metric.HIGHER_IS_BETTER[name] else min
    best = pick(values, key=values.__getitem__)
    return best, values[best]
