"""How many metric points a second are kept durably, what one `run.log` costs, and whether a step ever waits for it.

    python bench/tracking.py [--record] [--mlflow PYTHON]

Every candidate writes the same kind of points to a new folder on the same disk, in turns, and its clock runs until the
last of them is durable. The naive baseline is what a person writes first: an INSERT and a commit for each point.
`--mlflow` names a Python that has MLflow (a throw-away environment); without it that peer is left out.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np

from tenon.limits import TrackLimits
from tenon.store import Store
from tenon.training.track import Run, curves

POINTS = 400_000
NAIVE = 2_000
STEPS = 3_000
ROUNDS = 3

MLFLOW = """
import sys, time, json, pathlib, logging
logging.disable(logging.CRITICAL)
import mlflow
from mlflow.entities import Metric
folder, kind, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment("bench")
client = mlflow.MlflowClient()
with mlflow.start_run() as run:
    mlflow.log_metric("warm", 1.0, step=0)
    start = time.perf_counter()
    if kind == "point":
        for step in range(count):
            mlflow.log_metric("loss", 0.5, step=step)
    else:
        for first in range(0, count, 1000):
            batch = [Metric("loss", 0.5, int(time.time() * 1000), step) for step in range(first, first + 1000)]
            client.log_batch(run.info.run_id, metrics=batch)
    print(json.dumps(time.perf_counter() - start))
"""


def tenon_log(folder: Path, metrics: int) -> float:
    """Log from Python, call by call, with so many metrics a call; return seconds until all is durable."""
    with Store.open(folder) as store:
        run = Run.start(store, "r", "m")
        values = {f"metric_{i}": 0.5 for i in range(metrics)}
        start = time.perf_counter()
        for step in range(POINTS // metrics):
            run.log(step, **values)
        run.flush()
        seconds = time.perf_counter() - start
        run.finish()
        assert sum(len(kept) for kept, _ in curves(store, "r").values()) == POINTS
    return seconds


def tenon_columns(folder: Path) -> float:
    """Log whole columns of a thousand."""
    with Store.open(folder) as store:
        run = Run.start(store, "r", "m")
        steps, values = np.arange(1000), np.full(1000, 0.5)
        start = time.perf_counter()
        for first in range(0, POINTS, 1000):
            run.log_many("loss", steps + first, values)
        run.flush()
        seconds = time.perf_counter() - start
        run.finish()
    return seconds


def sqlite_points(folder: Path, batch: int, count: int) -> float:
    """INSERT into SQLite with the same durability, `batch` points to a commit."""
    connection = sqlite3.connect(folder / "naive.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE metric (run TEXT, name TEXT, step INTEGER, at REAL, value REAL)")
    start = time.perf_counter()
    for first in range(0, count, batch):
        connection.execute("BEGIN IMMEDIATE")
        rows = [("r", "loss", step, time.time(), 0.5) for step in range(first, first + batch)]
        connection.executemany("INSERT INTO metric VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - start
    connection.close()
    return seconds


def mlflow(python: str, folder: Path, kind: str, count: int) -> float:
    done = subprocess.run(
        [python, "-c", MLFLOW, str(folder), kind, str(count)], capture_output=True, text=True, check=True, cwd=folder
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def rates(python: str | None) -> str:
    candidates: dict[str, tuple[int, Callable[[Path], float]]] = {
        "SQLite, one INSERT and commit a point (naive)": (NAIVE, lambda f: sqlite_points(f, 1, NAIVE)),
        "SQLite, 1,000 points a commit": (POINTS, lambda f: sqlite_points(f, 1000, POINTS)),
        "tenon run.log, 1 metric a call": (POINTS, lambda f: tenon_log(f, 1)),
        "tenon run.log, 8 metrics a call": (POINTS, lambda f: tenon_log(f, 8)),
        "tenon run.log_many, columns of 1,000": (POINTS, tenon_columns),
    }
    if python:
        candidates["MLflow log_metric (SQLite)"] = (300, lambda f: mlflow(python, f, "point", 300))
        candidates["MLflow log_batch of 1,000 (SQLite)"] = (20_000, lambda f: mlflow(python, f, "batch", 20_000))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, (count, run) in candidates.items():
            folder = Path(tempfile.mkdtemp(prefix="tenon-bench-"))
            try:
                found[name].append(count / run(folder))
            finally:
                shutil.rmtree(folder)
    first = statistics.median(next(iter(found.values())))
    rows = []
    for name, values in found.items():
        median = statistics.median(values)
        rows.append([name, f"{median:,.0f}", f"{median / first:,.1f}", f"{(max(values) - min(values)) / median:.0%}"])
    return measure.rows("Metric points a second, durable", ["candidate", "points/s", "times the naive", "spread"], rows)


def stalls() -> str:
    """Time every call of `log` inside a loop of steps that compute for half a millisecond, logging 10 metrics each."""
    values = {f"metric_{i}": 0.5 for i in range(10)}
    vector = np.random.default_rng(1).normal(size=50_000)
    rows = []
    for name in ("a step without logging", "run.log, 10 metrics a step"):
        folder = Path(tempfile.mkdtemp(prefix="tenon-bench-"))
        with Store.open(folder) as store:
            run = Run.start(store, "r", "m", limits=TrackLimits(flush_s=0.05))
            run.flush()
            time.sleep(0.5)  # packages and git state are gathered meanwhile
            calls, steps = [], []
            for step in range(STEPS):
                start = time.perf_counter()
                vector = np.sin(vector)  # on one core: BLAS threads would be measured instead
                before = time.perf_counter()
                if "run.log" in name:
                    run.log(step, **values)
                end = time.perf_counter()
                calls.append(end - before)
                steps.append(end - start)
            run.finish()
        shutil.rmtree(folder)
        calls.sort()
        rows.append(
            [
                name,
                f"{statistics.median(steps) * 1e6:,.0f}",
                f"{sorted(steps)[int(STEPS * 0.999)] * 1e6:,.0f}",
                f"{statistics.median(calls) * 1e6:.2f}",
                f"{calls[int(STEPS * 0.999)] * 1e6:.1f}",
                f"{calls[-1] * 1e6:,.0f}",
            ]
        )
    header = ["loop", "step median µs", "step p99.9 µs", "call median µs", "call p99.9 µs", "longest call µs"]
    return measure.rows("What a step pays for logging (flush every 0.05 s)", header, rows)


def main() -> None:
    """Print the tables."""
    parser = measure.options(__doc__)
    parser.add_argument("--mlflow", help="a Python that has MLflow installed")
    arguments = parser.parse_args()
    if not arguments.mlflow:
        print("left out: MLflow (name a Python that has it with --mlflow)", file=sys.stderr)
    measure.show("## Tracking", measure.machine("numpy", "msgspec"), rates(arguments.mlflow), stalls())


if __name__ == "__main__":
    sys.exit(main())
