"""A real store, and a small world whose truth is known: rows with features, a model that knows their odds, late labels.

In `World` the odds of a positive are those of a logistic model over two numbers and a category. A test bends one thing
(the inputs, the odds, the labels, the service) from some week on, and looks at what examination makes of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from tenon import metric, watch
from tenon.config import WatchConfig
from tenon.sketch import Profile, profile
from tenon.store import Store
from tenon.watch.observation import encode, frame_of

MONDAY = datetime(2013, 9, 30)
WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bend:
    """How a week differs from the world the model was trained in; the default differs in nothing."""

    shift: float = 0.0  # of the number `wind`, in its standard deviations
    logit: float = 0.0  # added to the odds, unknown to the model
    blur: float = 0.0  # noise in the odds, unknown to the model: ranking suffers
    gone: float = 0.0  # share of `gust` missing
    carrier: str = ""  # a carrier that takes a tenth of the rows
    latency_ms: float = 2.0
    errors: float = 0.0
    usd: float = 1e-6
    labelled: float = 1.0
    rows: int = 2000
    version: str = "1"


@dataclass
class World:
    """A store with observations and labels of a model whose truth is known."""

    store: Store
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    weeks: int = 0

    def draw(self, rows: int, bend: Bend = Bend()) -> pl.DataFrame:
        """Draw rows of the world: features, the score of the model, the label."""
        wind = self.rng.normal(bend.shift, 1, rows)
        gust = self.rng.gamma(2, 2, rows)
        carrier = self.rng.choice(["UA", "AA", "DL"], rows, p=[0.5, 0.3, 0.2])
        if bend.carrier:
            carrier = np.where(self.rng.random(rows) < 0.1, bend.carrier, carrier)
        known = -1.5 + 1.1 * wind + np.where(carrier == "DL", 0.5, 0.0)
        odds = known + bend.logit + self.rng.normal(0, 1, rows) * bend.blur
        label = (self.rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(float)
        missing = self.rng.random(rows) < bend.gone + 0.01
        return pl.DataFrame(
            {
                "wind": wind,
                "gust": pl.Series(np.where(missing, np.nan, gust)).fill_nan(None),
                "carrier": carrier,
                "score": 1 / (1 + np.exp(-known)),
                "label": label,
            }
        )

    def week(self, bend: Bend = Bend(), *, delay: timedelta = timedelta(hours=5), share: float = 1.0) -> None:
        """Live through a week (or the first `share` of one): observations, and labels `delay` after each row."""
        start = MONDAY + self.weeks * WEEK
        rows = round(bend.rows * share)
        drawn = self.draw(rows, bend)
        offsets = np.sort(self.rng.random(rows)) * WEEK.total_seconds() * share
        times = [start + timedelta(seconds=float(at)) for at in offsets]
        failed = self.rng.random(rows) < bend.errors
        ids = [f"{self.weeks}-{i}" for i in range(rows)]
        batch = {
            "id": ids,
            "time": times,
            "at": [at.replace(tzinfo=UTC).timestamp() for at in times],
            "model": ["late"] * rows,
            "version": [bend.version] * rows,
            "score": [None if bad else value for value, bad in zip(drawn["score"].to_list(), failed, strict=True)],
            "latency_ms": (self.rng.lognormal(np.log(bend.latency_ms), 0.3, rows)).tolist(),
            "error": ["timeout" if bad else None for bad in failed],
            "usd": [bend.usd] * rows,
            "key_flight": [f"F{i}" for i in range(rows)],
            **{f"f_{name}": drawn[name].to_list() for name in ("wind", "gust", "carrier")},
        }
        self.append("observations", frame_of(batch), "time")
        sent = np.flatnonzero(self.rng.random(rows) < bend.labelled)
        labels = pl.DataFrame(
            {
                "id": [ids[i] for i in sent],
                "label": [drawn["label"][int(i)] for i in sent],
                "known": [times[i] + delay for i in sent],
            },
            schema={"id": pl.String, "label": pl.Float64, "known": pl.Datetime("us")},
        )
        if labels.height:
            self.append("labels", labels, "known")
        self.weeks += 1

    def append(self, stream: str, frame: pl.DataFrame, time: str) -> None:
        """Append a frame to a stream in a few batches."""
        for part in frame.iter_slices(700):
            moments = part[time].dt.epoch("us").to_numpy() / 1e6
            self.store.append(
                stream, "late", encode(part), rows=part.height, first=float(moments.min()), last=float(moments.max())
            )

    def reference(self) -> Profile:
        """Profile training data of this world, scores included."""
        return profile(self.draw(20_000).select("wind", "gust", "carrier", "score"))

    def run(self) -> Mapping[str, Any]:
        """Return the run record that promoted the model."""
        test = self.draw(6_000)
        truth, score = test["label"].to_numpy(), test["score"].to_numpy()
        flat = np.full(len(truth), truth.mean()) + self.rng.normal(0, 1e-3, len(truth))
        return {
            "metrics": {"test": {k: v.to_dict() for k, v in metric.evaluate("binary", truth, score).items()}},
            "baselines": {"constant": {k: v.to_dict() for k, v in metric.evaluate("binary", truth, flat).items()}},
            "split": {"train": {"rate": float(truth.mean()), "rows": 20_000}},
            "calibration": metric.calibration(truth, score),
            "importance": [
                {"name": "wind", "gain": 80.0},
                {"name": "carrier", "gain": 15.0},
                {"name": "gust", "gain": 5},
            ],
        }

    def examine(self, **given: Any) -> watch.Watched:
        """Examine with everything known; `given` are fields of the Context, or as_of, config, reference."""
        top = {name: given.pop(name) for name in ("as_of", "config", "reference") if name in given}
        context = watch.Context(
            **{
                "version": "1",
                "run": promised()[1],
                "words": {"unit_plural": "flights", "positive_word": "late"},
                **given,
            }
        )
        top.setdefault("reference", promised()[0])
        top.setdefault("config", WatchConfig())
        return watch.examine(self.store, "late", task="binary", context=context, **top)


@functools.cache
def promised() -> tuple[Profile, Mapping[str, Any]]:
    """Return the reference and the run of one world, made once: they do not depend on what is lived through."""
    world = World(cast(Store, None), rng=np.random.default_rng(11))
    return world.reference(), world.run()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Open a store in a folder of its own."""
    with Store.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def world(store: Store) -> World:
    """Begin a world with an empty store."""
    return World(store)
