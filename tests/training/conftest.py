"""Small real data for training, and a real run in a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tenon.store import Store
from tenon.training import Data, Part, Run

Make = Callable[..., Data]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def run(store: Store) -> Iterator[Run]:
    begun = Run.start(store, "abc123", "late")
    yield begun
    begun.finish()


def make_data(
    rows: int = 3_000, *, task: str = "binary", signal: float = 1.0, bent: bool = True, seed: int = 0
) -> Data:
    """Rows in which wind and carrier matter by `signal`, and, when `bent`, wind in a way no line can follow."""
    rng = np.random.default_rng(seed)
    wind, rain = rng.normal(0, 1, rows), rng.exponential(1, rows)
    carrier = rng.choice(["AA", "B6", "UA"], rows)
    pull = {"AA": -0.5, "B6": 0.0, "UA": 0.8}
    score = signal * ((wind**2 - 1 if bent else wind) + 0.5 * rain + np.array([pull[one] for one in carrier])) - 1
    if task == "binary":
        y = (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(np.float64)
    else:
        y = score + rng.normal(0, 1, rows)
    x = pl.DataFrame({"wind": wind, "rain": rain, "carrier": carrier, "noise": rng.normal(0, 1, rows)})
    x = x.with_columns(rain=pl.when(pl.col("noise") > 1.5).then(None).otherwise("rain"))
    start = np.datetime64("2013-01-01T00:00:00", "us")
    time = pl.Series(start + np.arange(rows) * np.timedelta64(1, "h"))
    cut = (0, int(rows * 0.6), int(rows * 0.8), rows)
    parts = [Part(x[a:b], y[a:b], time[a:b]) for a, b in pairwise(cut)]
    kinds = {"wind": "number", "rain": "number", "carrier": "category", "noise": "number"}
    return Data(
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        names=tuple(kinds),
        kinds=kinds,
        task="binary" if task == "binary" else "regression",
    )


@pytest.fixture
def make() -> Make:
    return make_data
