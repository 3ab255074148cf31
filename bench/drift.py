"""Drift of 200,000 rows by 25 columns: from sketches, exactly from all rows, and by Evidently.

    python bench/drift.py [--record] [--evidently PYTHON]

Three questions: how quickly sketches are built (values a second, on one core), how long a comparison takes once they
exist, and how far a PSI from sketches is from the exact one. The naive baseline is what a person writes with NumPy:
quantiles of the reference, histograms of both, the sum. `--evidently` names a Python that has Evidently (a throw-away
environment); without it that peer is left out. The last table examines a year of weekly windows, the first time and
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import measure
import numpy as np
import polars as pl

from tenon import watch
from tenon.sketch import Profile, compare, profile
from tenon.store import Store
from tenon.watch.observation import encode, frame_of

ROWS = 200_000
NUMBERS, CATEGORIES = 20, 5
YEAR_ROWS_A_WEEK = 4_000

EVIDENTLY = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from evidently import Dataset, DataDefinition, Report
from evidently.presets import DataDriftPreset
a, b = pd.read_csv(sys.argv[1]), pd.read_csv(sys.argv[2])
numbers = [c for c in a.columns if c.startswith("n")]
definition = DataDefinition(numerical_columns=numbers, categorical_columns=[c for c in a.columns if c not in numbers])
times = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    current = Dataset.from_pandas(b, data_definition=definition)
    reference = Dataset.from_pandas(a, data_definition=definition)
    Report([DataDriftPreset(num_method="psi", cat_method="psi")]).run(current, reference).dict()
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def made(shift: float, seed: int) -> pl.DataFrame:
    """Make a frame of numbers and categories; every fifth number is shifted."""
    rng = np.random.default_rng(seed)
    columns: dict[str, object] = {}
    for i in range(NUMBERS):
        draw = rng.normal(0, 1, ROWS) if i % 2 else rng.gamma(2, 3, ROWS)
        columns[f"n{i}"] = draw + (shift if i % 5 == 0 else 0.0)
    for i in range(CATEGORIES):
        columns[f"c{i}"] = np.char.add("level", rng.zipf(1.6, ROWS).clip(1, 40).astype(str))
    return pl.DataFrame(columns)


def exact(reference: pl.DataFrame, other: pl.DataFrame) -> dict[str, float]:
    """Compute PSI from all rows: deciles for numbers, the 50 most frequent levels for categories."""
    found = {}
    for name in reference.columns:
        if reference.schema[name].is_numeric():
            a, b = reference[name].to_numpy(), other[name].to_numpy()
            edges = np.unique(np.quantile(a, np.arange(1, 10) / 10))
            p = np.bincount(np.searchsorted(edges, a), minlength=len(edges) + 1) / len(a)
            q = np.bincount(np.searchsorted(edges, b), minlength=len(edges) + 1) / len(b)
        else:
            left = dict(reference[name].value_counts(sort=True).iter_rows())
            right = dict(other[name].value_counts().iter_rows())
            kept = list(left)[:50]
            p = np.array([*(left[k] for k in kept), ROWS - sum(left[k] for k in kept)]) / ROWS
            q = np.array([*(right.get(k, 0) for k in kept), ROWS - sum(right.get(k, 0) for k in kept)]) / ROWS
        p, q = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
        found[name] = float(((p - q) * np.log(p / q)).sum())
    return found


def evidently(python: str, reference: pl.DataFrame, other: pl.DataFrame, repeats: int) -> list[float]:
    """Time Evidently's drift preset with PSI on the same rows, in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.csv", Path(folder) / "b.csv"
        reference.write_csv(a)
        other.write_csv(b)
        done = subprocess.run(
            [python, "-c", EVIDENTLY, str(a), str(b), str(repeats)], capture_output=True, text=True, check=True
        )
    return [float(one) for one in json.loads(done.stdout.strip().splitlines()[-1])]


def year() -> tuple[float, float, int]:
    """Examine 52 weekly windows, then again with summaries kept; return both times and the rows."""
    rng = np.random.default_rng(5)
    start = datetime(2024, 1, 1)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
        for week in range(52):
            count = YEAR_ROWS_A_WEEK
            times = [start + timedelta(days=7 * week, seconds=604_000 * i / count) for i in range(count)]
            ids = [f"{week}-{i}" for i in range(count)]
            score = rng.random(count)
            features = {f"f_n{i}": rng.normal(0, 1, count) for i in range(25)}
            frame = frame_of({"id": ids, "time": times, "score": score, **features})
            first, last = (
                (times[0] - datetime(1970, 1, 1)).total_seconds(),
                (times[-1] - datetime(1970, 1, 1)).total_seconds(),
            )
            store.append("observations", "m", encode(frame), rows=count, first=first, last=last)
            labels = pl.DataFrame({"id": ids, "label": (rng.random(count) < score) * 1.0, "known": times})
            store.append("labels", "m", encode(labels), rows=count, first=first, last=last)
        reference = profile(pl.DataFrame({f"n{i}": rng.normal(0, 1, 50_000) for i in range(25)}))
        taken = [watch.examine(store, "m", reference=reference, task="binary").seconds for _ in range(2)]
    return taken[0], taken[1], 52 * YEAR_ROWS_A_WEEK


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="append to bench/RESULTS.md")
    parser.add_argument("--evidently", default="", help="a Python that has Evidently")
    options = parser.parse_args()
    reference, other = made(0.0, 1), made(0.5, 2)
    built: list[Profile] = [profile(reference), profile(other)]
    seconds = measure.turns(
        {
            "tenon, sketches exist": lambda: compare(built[0], built[1]),
            "exact, NumPy and Polars over all rows": lambda: exact(reference, other),
            "tenon, sketch of one side built first": lambda: compare(built[0], profile(other)),
        },
        repeats=5,
    )
    if options.evidently:
        seconds["Evidently, data drift preset with PSI"] = evidently(options.evidently, reference, other, 3)
    building = measure.turns({"tenon, profile": lambda: profile(other)}, repeats=5)
    truth, sketched = exact(reference, other), compare(*built)
    errors = [abs(truth[name] - sketched[name].psi) for name in truth]
    sizes = [
        len(Profile(rows=built[0].rows, columns={name: column}).to_bytes()) for name, column in built[0].columns.items()
    ]
    begun = time.perf_counter()
    Profile.from_bytes(built[0].to_bytes())
    read_ms = 1000 * (time.perf_counter() - begun)
    first, again, rows = year()
    values = ROWS * (NUMBERS + CATEGORIES)
    measure.show(
        f"## bench/drift\n\n{measure.machine('polars', 'numpy')}",
        measure.table(f"Drift of {ROWS:,} rows x {NUMBERS + CATEGORIES} columns against a reference", seconds),
        measure.table("Building the sketches of one side", building, work=values, unit="values"),
        measure.rows(
            "What the sketches are",
            ["figure", "value"],
            [
                ["largest profile of a column, bytes", f"{max(sizes):,}"],
                ["median profile of a column, bytes", f"{statistics.median(sizes):,.0f}"],
                ["reading a profile of 25 columns, ms", f"{read_ms:.1f}"],
                ["largest difference of a PSI from the exact one", f"{max(errors):.4f}"],
                ["largest exact PSI", f"{max(truth.values()):.3f}"],
            ],
        ),
        measure.rows(
            f"Examining a year: 52 weekly windows, {rows:,} rows x 25 features, all labelled",
            ["pass", "s"],
            [["the first", f"{first:.2f}"], ["again, summaries kept", f"{again:.2f}"]],
        ),
    )


if __name__ == "__main__":
    main()
