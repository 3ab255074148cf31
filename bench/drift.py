"""Drift of 200,000 rows by 25 columns: from sketches, exactly from all rows, and by Evidently.

    python bench/drift.py [--record] [--evidently PYTHON]

Two questions: how long a comparison takes once the sketches exist (sketch.py times their building), and how far their
figures are from those of all rows. The naive baseline is what a person writes with NumPy: quantiles of the reference,
histograms of both, the sum. `--evidently` names a Python that has Evidently (a throw-away environment); without it
that peer is left out. The last table examines a year of weekly windows, the first time and again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import measure
import numpy as np
import polars as pl

from sketch import ROWS, table
from tenon import watch
from tenon.sketch import compare, profile
from tenon.store import Store
from tenon.watch.observation import encode, frame_of

YEAR_ROWS_A_WEEK = 4_000

EVIDENTLY = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from evidently import Dataset, DataDefinition, Report
from evidently.presets import DataDriftPreset
a, b = pd.read_csv(sys.argv[1]), pd.read_csv(sys.argv[2])
numbers = [c for c in a.columns if c.startswith(("float", "int"))]
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


def exact(reference: pl.DataFrame, other: pl.DataFrame) -> dict[str, tuple[float, float]]:
    """Compute PSI and distance of every column from all rows, by the formulas of `tenon.sketch`."""
    found = {}
    for name in reference.columns:
        a, b = reference[name], other[name]
        if a.dtype in (pl.String, pl.Boolean):
            left, right = (dict(each.value_counts(sort=True).iter_rows()) for each in (a, b))
            kept = list(left)[:50]
            counts = [
                np.array([*(c.get(k, 0) for k in kept), ROWS - sum(c.get(k, 0) for k in kept)]) for c in (left, right)
            ]
            gap = sum(abs(left.get(k, 0) - right.get(k, 0)) for k in {**left, **right}) / ROWS / 2
            counts = [each[:-1] for each in counts] if not any(each[-1] for each in counts) else counts
        else:
            x, y = (np.sort(each.cast(pl.Float64).to_numpy()) for each in (a, b))
            borders = np.unique(np.quantile(x, np.arange(1, 10) / 10, method="inverted_cdf"))
            borders = borders[borders < x[-1]]
            counts = [np.bincount(np.searchsorted(borders, each), minlength=len(borders) + 1) for each in (x, y)]
            both = np.concatenate([x, y])
            gap = np.abs(np.searchsorted(x, both, "right") - np.searchsorted(y, both, "right")).max() / ROWS
        p, q = ((each + 0.5) / (each + 0.5).sum() for each in counts)
        found[name] = (float(((p - q) * np.log(p / q)).sum()), float(gap))
    return found


def evidently(python: str, reference: pl.DataFrame, other: pl.DataFrame, repeats: int) -> list[float]:
    """Time Evidently's drift preset with PSI on the same rows, in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a.csv", Path(folder) / "b.csv"
        reference.drop("at").write_csv(a)
        other.drop("at").write_csv(b)
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
    parser = measure.options(__doc__)
    parser.add_argument("--evidently", default="", help="a Python that has Evidently")
    options = parser.parse_args()
    reference, other = table(0), table(1, 0.5)
    one, two = profile(reference), profile(other)
    seconds = measure.turns(
        {
            "tenon, sketches exist": lambda: compare(one, two),
            "exact, NumPy and Polars over all rows": lambda: exact(reference, other),
            "tenon, sketch of one side built first": lambda: compare(one, profile(other)),
        },
        repeats=5,
    )
    if options.evidently:
        seconds["Evidently, data drift preset with PSI"] = evidently(options.evidently, reference, other, 3)
    else:
        print("left out: Evidently (name a Python that has it with --evidently)", file=sys.stderr)
    truth, sketched = exact(reference, other), compare(one, two)
    numbers = [name for name in truth if not name.startswith(("text", "identifier"))]
    first, again, rows = year()
    measure.show(
        f"## bench/drift\n\n{measure.machine('polars', 'numpy')}",
        measure.table(f"Drift of {ROWS:,} rows x {reference.width} columns against a reference", seconds),
        measure.rows(
            "How far the sketches' figures are from those of all rows",
            ["figure", "largest error", "largest value"],
            [
                [
                    figure,
                    f"{max(abs(truth[name][i] - getattr(sketched[name], figure)) for name in numbers):.4f}",
                    f"{max(truth[name][i] for name in numbers):.3f}",
                ]
                for i, figure in enumerate(("psi", "distance"))
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
