"""How good predictions are: a value with a 95 % interval for each metric, the same for training and for live traffic.

An interval comes from the bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13,
percentile method): draw as many rows as there are, with replacement, measure again, and take the middle 95 % of the
results. Drawing rows is drawing how often each row counts, a vector of multinomial counts, so nothing is copied: the
scores are ranked once, and every resample is a cumulative sum of counts along that ranking. ROC AUC is the
Mann-Whitney statistic with ties counted half (Hanley and McNeil, Radiology 143, 1982); average precision is the sum of
precision times the step in recall, as in scikit-learn, with tied scores entering together. 54,000 rows and 200
resamples of four metrics take a tenth to a quarter of a second on one core, by how many scores are tied.

`compare` measures two models on the same resamples: what both find hard cancels, so its interval is that of the
difference and much narrower than two separate intervals suggest. Differences are signed so that positive is better.

Rejected: DeLong's closed form (one metric only, the interval still needs a normal approximation) and Poisson counts
(the number of rows then varies between resamples, which buys nothing when all rows are in memory).

Rows are resampled as if independent. Where they are not (many rows of one day, one customer), intervals are too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenon.errors import InputError, nearest, quoted, sentence

Task = Literal["binary", "regression"]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

# task -> its metrics, the one that decides first
METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "brier", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
HIGHER_IS_BETTER: dict[str, bool] = {
    "roc_auc": True,
    "average_precision": True,
    "brier": False,
    "log_loss": False,
    "rmse": False,
    "mae": False,
    "r2": True,
}
# How the field writes them.
NAMES: dict[str, str] = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "log_loss": "log loss",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
}
RANKED = ("roc_auc", "average_precision")  # need both classes
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the estimate as plain data: value, low, high."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Estimate:
        """Read an estimate back from plain data; other fields are skipped."""
        return cls(value=float(body["value"]), low=float(body["low"]), high=float(body["high"]))

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


# ── the public questions ─────────────────────────────────────────────────────────────────────────────────────────────


def evaluate(
    task: str,
    y: ArrayLike,
    p: ArrayLike,
    *,
    seed: int = 0,
    samples: int = 200,
    names: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """Measure predictions `p` of truths `y` with every metric of the task, or those in `names`, with intervals.

    `p` is the probability of the positive class (binary, `y` 0 or 1) or the value (regression). The same seed gives
    the same interval; with `samples` 0 there is none, and both its ends are the value. One pass over the rows for each
    resample; memory is a few columns of the rows.
    """
    wanted = _names(task, names)
    truth, score = _checked(task, y, p, wanted)
    model = _Scored.of(truth, score, wanted)
    values = np.array(model.measure(np.ones(len(truth), np.int64)))
    drawn = np.empty((samples, len(wanted)))
    for i, counts in enumerate(_resamples(len(truth), seed, samples)):
        drawn[i] = model.measure(counts)
    return _estimates(wanted, values, drawn)


def compare(
    task: str,
    y: ArrayLike,
    p: ArrayLike,
    base: ArrayLike,
    *,
    seed: int = 0,
    samples: int = 200,
    names: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """Measure by how much `p` is better than `base` on the same rows: positive is better, whatever the metric.

    Both are measured on the same resamples, so the interval is that of the difference. An interval that lies above
    zero is a lift beyond noise.
    """
    wanted = _names(task, names)
    truth, score = _checked(task, y, p, wanted)
    _, base_score = _checked(task, y, base, wanted)
    model, other = _Scored.of(truth, score, wanted), _Scored.of(truth, base_score, wanted)
    sign = np.array([1.0 if HIGHER_IS_BETTER[name] else -1.0 for name in wanted])
    once = np.ones(len(truth), np.int64)
    values = sign * (np.array(model.measure(once)) - np.array(other.measure(once)))
    drawn = np.empty((samples, len(wanted)))
    for i, counts in enumerate(_resamples(len(truth), seed, samples)):
        drawn[i] = np.array(model.measure(counts)) - np.array(other.measure(counts))
    return _estimates(wanted, values, drawn * sign)


def calibration(y: ArrayLike, p: ArrayLike, bins: int = 10, *, task: str = "binary") -> list[dict[str, float]]:
    """Compare what was predicted with what was observed, in at most `bins` groups of equally many rows by prediction.

    Rows with the same prediction stay in one group, so a constant model gives one. `low` and `high` bound `observed`
    at 95 %: Wilson's interval (JASA 22, 1927) for a rate, the normal one for the mean of a regression.
    """
    truth, score = _checked(task, y, p, ("brier",) if task == "binary" else _names(task, None))
    order = np.argsort(score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # the last row of each run of equal predictions
    wanted = np.ceil(np.arange(1, bins + 1) * len(score) / bins).astype(np.int64) - 1
    ends = np.unique(last[np.searchsorted(last, wanted)]) + 1
    groups = []
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        observed = truth[start:end]
        low, high = wilson(float(observed.sum()), len(observed)) if task == "binary" else _mean_interval(observed)
        groups.append(
            {
                "predicted": float(score[start:end].mean()),
                "observed": float(observed.mean()),
                "rows": int(end - start),
                "low": low,
                "high": high,
            }
        )
    return groups


def rank_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Return ROC AUC alone, without an interval: the chance that a positive row outranks another, ties counted half."""
    truth, score = _checked("binary", y, p, ("roc_auc",))
    return _Scored.of(truth, score, ("roc_auc",)).measure(np.ones(len(truth), np.int64))[0]


def wilson(hits: float, rows: float) -> tuple[float, float]:
    """Bound a rate of `hits` in `rows` at 95 % (Wilson 1927); no rows bound nothing: 0 to 1."""
    if rows <= 0:
        return 0.0, 1.0
    rate, z2 = hits / rows, Z95 * Z95
    middle = (rate + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z95 / (1 + z2 / rows) * ((rate * (1 - rate) + z2 / (4 * rows)) / rows) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


# ── one model's scores, prepared so that a resample is a few sums ────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Scored:
    """Truths and scores, ranked once; `measure` weighs them by counts."""

    names: tuple[str, ...]
    terms: dict[str, Floats]  # metric -> what each row adds to its mean
    truth: Floats
    order: Counts | None  # rows by ascending score, when a metric needs the ranking
    positive: Counts | None  # the truths in that order
    ends: Counts | None  # the last row of each run of equal scores, None when all differ

    @classmethod
    def of(cls, truth: Floats, score: Floats, names: tuple[str, ...]) -> _Scored:
        terms: dict[str, Floats] = {}
        if "brier" in names:
            terms["brier"] = (score - truth) ** 2
        if "log_loss" in names:
            eps = np.finfo(np.float64).eps
            sure = np.clip(score, eps, 1 - eps)
            terms["log_loss"] = -np.log(np.where(truth == 1, sure, 1 - sure))
        if "rmse" in names or "r2" in names:
            terms["square"] = (score - truth) ** 2
        if "mae" in names:
            terms["mae"] = np.abs(score - truth)
        order = positive = ends = None
        if any(name in RANKED for name in names):
            order = np.argsort(score, kind="stable")
            positive = truth[order].astype(np.int64)
            ranked = score[order]
            last = np.append(ranked[1:] != ranked[:-1], True)
            ends = None if last.all() else np.flatnonzero(last)
        # Around their mean, squares of truths lose no digits when r2 subtracts them.
        return cls(names, terms, truth - truth.mean() if "r2" in names else truth, order, positive, ends)

    def measure(self, counts: Counts) -> list[float]:
        """Measure every metric with row i counted `counts[i]` times."""
        weights = counts.astype(np.float64)
        total = weights.sum()
        means = {name: _dot(term, weights) / total for name, term in self.terms.items()}
        found: dict[str, float] = dict(means)
        if self.order is not None:
            found["roc_auc"], found["average_precision"] = self._ranked(counts)
        if "square" in means:
            found["rmse"] = means["square"] ** 0.5
        if "r2" in self.names:
            weighted = self.truth * weights
            spread = _dot(self.truth, weighted) / total - (float(weighted.sum()) / total) ** 2
            found["r2"] = 1 - means["square"] / spread if spread > 0 else float("nan")
        return [found[name] for name in self.names]

    def _ranked(self, counts: Counts) -> tuple[float, float]:
        """Return ROC AUC and average precision from two cumulative sums along the ranking."""
        assert self.order is not None and self.positive is not None
        ranked = counts[self.order]
        rows_to = np.cumsum(ranked)
        hits_to = np.cumsum(ranked * self.positive)
        if self.ends is not None:
            rows_to, hits_to = rows_to[self.ends], hits_to[self.ends]
        rows, hits = int(rows_to[-1]), int(hits_to[-1])
        if hits == 0 or hits == rows:
            return float("nan"), float("nan")
        hits_here = np.diff(hits_to, prepend=0)
        misses_to = rows_to - hits_to
        misses_before = np.concatenate(([0], misses_to[:-1]))
        # Each hit outranks the misses below it, and half of those tied with it.
        auc = float(hits_here @ (misses_before + misses_to)) / 2 / hits / (rows - hits)
        above = rows - rows_to + np.diff(rows_to, prepend=0)  # rows from this score upward
        hits_above = hits - hits_to + hits_here
        stepped = hits_here > 0
        precision = hits_above[stepped] / above[stepped]
        return auc, float(hits_here[stepped] @ precision) / hits


# ── checking and drawing ─────────────────────────────────────────────────────────────────────────────────────────────


def _resamples(rows: int, seed: int, samples: int) -> Any:
    """Yield `samples` vectors of how often each of `rows` rows was drawn."""
    rng = np.random.default_rng(seed)
    kind = np.uint32 if rows < 2**32 else np.uint64
    for _ in range(samples):
        yield np.bincount(rng.integers(0, rows, rows, dtype=kind).astype(np.int64), minlength=rows)


def _estimates(names: tuple[str, ...], values: Floats, drawn: Floats) -> dict[str, Estimate]:
    """Take the middle 95 % of what was drawn; resamples in which a metric is undefined are left out."""
    found = {}
    for i, name in enumerate(names):
        column = drawn[:, i]
        column = column[np.isfinite(column)]
        value = float(values[i])
        low, high = np.quantile(column, [0.025, 0.975]) if len(column) else (value, value)
        found[name] = Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
    return found


def _dot(a: Floats, b: Floats) -> float:
    """Sum products without BLAS, to the same bit on any machine.

    BLAS's threads cost a hundred times more than they save on vectors of this length when other work keeps the cores
    busy, and its sums depend on how many there are.
    """
    return float(np.einsum("i,i->", a, b))


def _names(task: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to measure, or say which the task has."""
    if task not in METRICS:
        raise InputError(sentence("a task", f"'{task}'", hint=nearest(task, METRICS)))
    if names is None:
        return METRICS[task]
    for name in names:
        if name not in METRICS[task]:
            raise InputError(sentence(f"a metric of a {task} task", f"'{name}'", hint=nearest(name, METRICS[task])))
    return tuple(names)


def _checked(task: str, y: ArrayLike, p: ArrayLike, names: Sequence[str]) -> tuple[Floats, Floats]:
    """Return truths and predictions as arrays of the same length, or say in words what cannot be measured."""
    truth, score = _column(y, "truths"), _column(p, "predictions")
    if len(truth) != len(score):
        raise InputError(sentence("one prediction for each truth", f"{len(score)} for {len(truth)}"))
    if len(truth) == 0:
        raise InputError(sentence("at least one row to measure", "none", hint="widen the window or the split"))
    for what, values in (("truths", truth), ("predictions", score)):
        bad = int((~np.isfinite(values)).sum())
        if bad:
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(
                sentence(
                    f"{what} that are numbers",
                    f"{bad:,} missing or infinite of {len(values):,}",
                    at=f"row {row}",
                    hint="leave those rows out and count them",
                )
            )
    if task == "binary":
        _check_classes(truth, score, names)
    return truth, score


def _check_classes(truth: Floats, score: Floats, names: Sequence[str]) -> None:
    """Refuse labels that are not 0 and 1, a single class where both are needed, and odds given as probabilities."""
    odd = truth[(truth != 0) & (truth != 1)]
    if len(odd):
        raise InputError(sentence("labels 0 and 1", f"{odd[0]:g}", hint="a number to predict is a regression task"))
    if any(name in RANKED for name in names) and truth.min() == truth.max():
        only = int(truth[0])
        rest = quoted(name for name in METRICS["binary"] if name not in RANKED)
        hint = f"take more rows, or ask only for names=[{rest}], which one class allows"
        raise InputError(
            sentence("both labels, 0 and 1, among the rows", f"{len(truth):,} rows that are all {only}", hint=hint)
        )
    if any(name not in RANKED for name in names) and (score.min() < 0 or score.max() > 1):
        worst = score.min() if score.min() < 0 else score.max()
        raise InputError(
            sentence("probabilities between 0 and 1", f"{worst:g}", hint="pass odds through the logistic function")
        )


def _column(values: ArrayLike, what: str) -> Floats:
    """Return one column of float64, or say what came instead."""
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(sentence(f"{what} that are numbers", f"values that are not ({error})")) from error
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1:
        raise InputError(sentence(f"one column of {what}", f"an array of shape {column.shape}"))
    return column


def _mean_interval(values: Floats) -> tuple[float, float]:
    half = Z95 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return float(values.mean()) - half, float(values.mean()) + half
