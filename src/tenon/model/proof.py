"""Two proofs before a version may serve: it answers as the trained model does, and it answers quickly.

`parity` scores real rows twice, by the library that trained and by the compiled graph from raw columns, so the encoding
is part of the proof. It holds when no score differs by more than TOLERANCE (of the largest score, for a regression) and
no more than one decision in FLIPS changes sides: a row whose score lies within rounding of the threshold may. `latency`
scores real rows one at a time, as a request would, and gives the median and the 99th percentile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tenon import metric
from tenon.errors import InputError, sentence
from tenon.finding import Finding
from tenon.model.build import Compiled
from tenon.model.predict import Predictor
from tenon.model.version import known

TOLERANCE = 1e-5
FLIPS = 10_000
WARM = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far the compiled model is from the trained one on real rows."""

    max_abs: float
    decision_flips: int
    rows: int
    metric_delta: float  # of the task's first metric, compiled minus trained; 0 when it could not be measured
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Say whether the compiled model may stand for the trained one."""
        return self.max_abs <= self.tolerance and self.decision_flips <= self.rows / FLIPS

    @property
    def said(self) -> str:
        """Return the proof in one sentence."""
        return (
            f"the compiled model differs from the trained one by at most {self.max_abs:.1e} on {self.rows:,} rows"
            f" ({self.tolerance:.0e} allowed), and {self.decision_flips} decisions change"
        )

    def findings(self, place: str = "model/parity") -> list[Finding]:
        """Return a finding when the proof fails."""
        if self.holds:
            return []
        numbers = {"max_abs": self.max_abs, "decision_flips": float(self.decision_flips), "rows": float(self.rows)}
        hint = "Do not serve it: serve an earlier version, or train with a model that compiles exactly."
        return [
            Finding(
                code="model/parity", severity="error", place=place, said=f"{self.said}.", hint=hint, numbers=numbers
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data."""
        return {**asdict(self), "holds": self.holds}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Parity:
        """Read a proof back from plain data; unknown fields are skipped."""
        return cls(**known(cls, body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long one row takes, in milliseconds, measured on `rows` real rows one at a time."""

    p50_ms: float
    p99_ms: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Latency:
        """Read a measurement back from plain data; unknown fields are skipped."""
        return cls(**known(cls, body))


def parity(fitted: Any, compiled: Compiled, x: Any, y: Any = None) -> Parity:
    """Compare the compiled model with the fitted one on the rows of a frame; labels give `metric_delta` too."""
    columns = x.to_dict() if hasattr(x, "to_dict") else dict(x)
    reference = np.asarray(fitted.predict(columns), np.float64)
    found = Predictor.load(compiled.onnx, compiled.manifest).score(columns)
    if not len(reference):
        raise InputError(sentence("rows to prove parity on", "none", hint="use the validation or test part"))
    threshold = compiled.manifest["threshold"]
    flips = 0 if threshold is None else int(((reference >= threshold) != (found >= threshold)).sum())
    size = 1.0 if compiled.manifest["task"] == "binary" else max(1.0, float(np.abs(reference).max()))
    return Parity(
        max_abs=float(np.abs(reference - found).max()),
        decision_flips=flips,
        rows=len(reference),
        metric_delta=_delta(compiled.manifest["task"], y, reference, found),
        tolerance=TOLERANCE * size,
    )


def latency(predictor: Predictor, x: Any, rows: int = 1_000) -> Latency:
    """Score up to `rows` rows of a frame one at a time and return the median and the 99th percentile."""
    columns = (
        x.to_dict(as_series=False) if hasattr(x, "to_dict") else {name: list(values) for name, values in x.items()}
    )
    count = len(next(iter(columns.values()), []))
    if not count:
        raise InputError(sentence("rows to measure latency on", "none", hint="use the validation or test part"))
    requests = [{name: [values[i]] for name, values in columns.items()} for i in spread(count, rows)]
    for request in requests[:WARM]:
        predictor.score(request)
    taken = np.empty(len(requests))
    for i, request in enumerate(requests):
        start = time.perf_counter_ns()
        predictor.score(request)
        taken[i] = time.perf_counter_ns() - start
    p50, p99 = np.quantile(taken, [0.5, 0.99]) / 1e6
    return Latency(p50_ms=float(p50), p99_ms=float(p99), rows=len(requests))


def spread(count: int, rows: int) -> list[int]:
    """Return `rows` row numbers spread evenly over all of them, from the start again when there are fewer."""
    return [int(i) % count for i in (np.linspace(0, count - 1, rows) if count >= rows else np.arange(rows))]


def _delta(task: str, y: Any, reference: Any, found: Any) -> float:
    """Return what compiling does to the task's first metric, or 0 when the labels cannot tell."""
    if y is None or len(np.unique(y)) < 2:
        return 0.0
    if task == "binary":
        return metric.rank_auc(y, found) - metric.rank_auc(y, reference)
    names = metric.METRICS[task][:1]
    one, other = (float(np.sqrt(np.mean((np.asarray(y) - p) ** 2))) for p in (found, reference))
    assert names == ("rmse",), names
    return one - other
