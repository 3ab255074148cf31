"""A small trained model of each kind, with the data it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tenon.model import Compiled, compile
from tenon.store import Store
from tenon.training import Data, Outcome, Part, Run, experiment


def make_data(rows: int = 3_000, task: str = "binary", *, seed: int = 0) -> Data:
    """Rows with missing numbers, a category with rare and missing levels, and a truth that trees can follow."""
    rng = np.random.default_rng(seed)
    wind = rng.normal(10, 4, rows)
    carrier = rng.choice(["AA", "B6", "UA", "WN", "ZZ"], rows, p=[0.3, 0.3, 0.2, 0.198, 0.002])
    score = np.abs(wind - 10) / 3 + (carrier == "UA") - 2
    y = (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(np.float64)
    if task == "regression":
        y = 100 * score + rng.normal(0, 10, rows)
    x = pl.DataFrame({"wind": wind, "hour": rng.integers(0, 24, rows), "carrier": carrier})
    gone = pl.int_range(pl.len()) % 11 == 0
    x = x.with_columns(
        wind=pl.when(gone).then(None).otherwise("wind"),
        carrier=pl.when(pl.int_range(pl.len()) % 13 == 0).then(None).otherwise("carrier"),
    )
    cut = (0, int(rows * 0.6), int(rows * 0.8), rows)
    parts = [Part(x[a:b], y[a:b]) for a, b in pairwise(cut)]
    kinds = {"wind": "number", "hour": "number", "carrier": "category"}
    return Data(
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        names=tuple(kinds),
        kinds=kinds,
        task="binary" if task == "binary" else "regression",
    )


@dataclass(frozen=True, slots=True)
class Made:
    """A trained and compiled model."""

    data: Data
    outcome: Outcome
    compiled: Compiled

    @property
    def columns(self) -> dict[str, list[Any]]:
        return self.data.test.x.to_dict(as_series=False)


def train(folder: Path, trainer: Any, task: str = "binary") -> Made:
    data = make_data(task=task)
    with Store.open(folder) as store, Run.start(store, "abc123", "late") as run:
        outcome = experiment(data, trainer, run)
    return Made(data, outcome, compile(outcome.fitted, data))


@pytest.fixture(scope="session")
def late(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A boosted binary model."""
    return train(tmp_path_factory.mktemp("late"), "lightgbm")


@pytest.fixture(scope="session")
def delay(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A boosted regression."""
    return train(tmp_path_factory.mktemp("delay"), "lightgbm", "regression")


@pytest.fixture
def make() -> Callable[..., Data]:
    return make_data


@pytest.fixture
def made_by(tmp_path: Path) -> Callable[..., Made]:
    """Train with a trainer for a task, and compile."""

    def body(trainer: Any, task: str = "binary") -> Made:
        return train(tmp_path, trainer, task)

    return body
