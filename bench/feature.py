"""Features against what else joins points in time: 100,000 rows look back on 200,000 facts, and one request at a time.

Run ``python bench/feature.py``; ``--record`` appends the tables to bench/RESULTS.md. Every candidate computes the same
features and the answers are compared before anything is timed. "per row in Python" is what a service without a feature
store does: a list of facts for each key, walked for each row.
"""

from __future__ import annotations

import datetime as dt
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from sys import path
from typing import Any

import duckdb
import numpy as np
import polars as pl

path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]

import measure  # noqa: E402

from tenon.contract import Column, Source  # noqa: E402
from tenon.feature import Feature, FeatureSet, Label  # noqa: E402

ROWS, FACTS, USERS = 100_000, 200_000, 5_000
EVENTS = Source(
    "events",
    key=["user"],
    time="at",
    columns=[Column("user"), Column("at", "timestamp"), *(Column(f"v{n}", "float") for n in range(10))],
)
ASKS = Source(
    "asks",
    key=["user"],
    time="at",
    columns=[Column("user"), Column("at", "timestamp"), Column("y", "bool", late=True)],
)
AS_OF = tuple(Feature(f"f{n}", f"v{n}", of=EVENTS, within="30d") for n in range(10))
WINDOWS = (
    Feature("n7", "count(*)", of=EVENTS, over="user", window="7d"),
    Feature("sum7", "sum(v0)", of=EVENTS, over="user", window="7d"),
    Feature("avg7", "avg(v1)", of=EVENTS, over="user", window="7d"),
    Feature("share7", "avg(v2 > 10)", of=EVENTS, over="user", window="7d"),
    Feature("max7", "max(v3)", of=EVENTS, over="user", window="7d"),
    Feature("n30", "count(*)", of=EVENTS, over="user", window="30d"),
    Feature("sum30", "sum(v0)", of=EVENTS, over="user", window="30d"),
    Feature("avg30", "avg(v1)", of=EVENTS, over="user", window="30d"),
    Feature("share30", "avg(v2 > 10)", of=EVENTS, over="user", window="30d"),
    Feature("min30", "min(v4)", of=EVENTS, over="user", window="30d"),
)
SINCE = {"7": dt.timedelta(days=7), "30": dt.timedelta(days=30)}


def data() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return facts and rows of one year, in no order."""
    rng = np.random.default_rng(7)

    def moments(count: int) -> Any:
        return np.datetime64("2023-01-01", "us") + rng.integers(0, 365 * 86_400_000, count) * np.timedelta64(1, "ms")

    def users(count: int) -> list[str]:
        return [f"user {n}" for n in rng.integers(0, USERS, count)]

    values = {f"v{n}": rng.normal(10, 3, FACTS) for n in range(10)}
    facts = pl.DataFrame({"user": users(FACTS), "at": moments(FACTS), **values})
    return facts, pl.DataFrame({"user": users(ROWS), "at": moments(ROWS), "y": rng.random(ROWS) < 0.5})


# ── as of ────────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = [f"v{n}" for n in range(10)]


def polars_asof(facts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    ordered = rows.with_row_index("row").sort("at")
    found = ordered.join_asof(facts.sort("at"), on="at", by="user", tolerance="30d", check_sortedness=False)
    return found.sort("row").select(VALUES)


def duckdb_asof(tables: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Ask DuckDB, with both tables in its memory, for the last fact of 30 days."""
    chosen = ", ".join(f"CASE WHEN f.at >= r.at - INTERVAL 30 DAY THEN f.{name} END AS {name}" for name in VALUES)
    sql = f"SELECT {chosen} FROM rows r ASOF LEFT JOIN facts f ON r.user = f.user AND r.at >= f.at ORDER BY row"
    return pl.DataFrame(plain(tables.execute(sql).fetchnumpy()))


def plain(columns: dict[str, Any]) -> dict[str, Any]:
    """Return NumPy columns with nulls as NaN."""
    return {name: np.ma.filled(np.ma.asarray(c, dtype=np.float64), np.nan) for name, c in columns.items()}


def python_asof(facts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    past = by_user(facts)
    found = []
    for user, at in rows.select("user", "at").iter_rows():
        last = None
        for fact in past[user]:
            if fact["at"] <= at and (last is None or fact["at"] >= last["at"]):
                last = fact
        fresh = last is not None and at - last["at"] <= SINCE["30"]
        found.append([last[name] for name in VALUES] if last is not None and fresh else [None] * 10)
    return pl.DataFrame(found, schema=VALUES, orient="row")


def by_user(facts: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    past = defaultdict(list)
    for fact in facts.iter_rows(named=True):
        past[fact["user"]].append(fact)
    return past


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def polars_windows(facts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Join every row with every fact of its user, filter, and aggregate: Polars has no as-of windows."""
    rows = rows.with_row_index("row").lazy()
    pairs = rows.join(facts.lazy().rename({"at": "known"}), on="user").filter(pl.col("known") <= pl.col("at"))
    inside = {days: pl.col("known") > pl.col("at") - span for days, span in SINCE.items()}
    chosen = []
    for days, here in inside.items():
        chosen += [
            here.sum().alias(f"n{days}"),
            pl.col("v0").filter(here).sum().alias(f"sum{days}"),
            pl.col("v1").filter(here).mean().alias(f"avg{days}"),
            (pl.col("v2") > 10).filter(here).mean().alias(f"share{days}"),
        ]
    chosen += [
        pl.col("v3").filter(inside["7"]).max().alias("max7"),
        pl.col("v4").filter(inside["30"]).min().alias("min30"),
    ]
    found = rows.join(pairs.group_by("row").agg(chosen), on="row", how="left").sort("row")
    return found.select(pl.col(feature.name) for feature in WINDOWS).collect()


def duckdb_windows(tables: duckdb.DuckDBPyConnection) -> pl.DataFrame:
    """Ask DuckDB, with both tables in its memory, for one join over 30 days and aggregates with FILTER."""
    parts = []
    for days in SINCE:
        here = f"FILTER (WHERE f.at > r.at - INTERVAL {days} DAY)"
        parts += [f"count(f.at) {here} AS n{days}", f"sum(v0) {here} AS sum{days}", f"avg(v1) {here} AS avg{days}"]
        parts += [f"avg((v2 > 10)::INT) {here} AS share{days}"]
    parts += ["max(v3) FILTER (WHERE f.at > r.at - INTERVAL 7 DAY) AS max7", "min(v4) AS min30"]
    join = "r.user = f.user AND f.at <= r.at AND f.at > r.at - INTERVAL 30 DAY"
    sql = f"SELECT {', '.join(parts)} FROM rows r LEFT JOIN facts f ON {join} GROUP BY row ORDER BY row"
    found = plain(tables.execute(sql).fetchnumpy())
    return pl.DataFrame([pl.Series(feature.name, found[feature.name]) for feature in WINDOWS])


def python_windows(facts: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    past = by_user(facts)
    found = [window_of(past[user], at) for user, at in rows.select("user", "at").iter_rows()]
    return pl.DataFrame(found, schema=[feature.name for feature in WINDOWS], orient="row")


def window_of(facts: list[dict[str, Any]], at: dt.datetime) -> list[Any]:
    out: list[Any] = []
    for span in SINCE.values():
        inside = [fact for fact in facts if at - span < fact["at"] <= at]
        n = len(inside)
        out += [n, sum(fact["v0"] for fact in inside) if n else None]
        out += [sum(fact["v1"] for fact in inside) / n if n else None]
        out += [sum(fact["v2"] > 10 for fact in inside) / n if n else None]
        if span == SINCE["7"]:
            out.append(max((fact["v3"] for fact in inside), default=None))
        else:
            out.append(min((fact["v4"] for fact in inside), default=None))
    return out


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def agree(ours: pl.DataFrame, others: dict[str, Callable[[], pl.DataFrame]]) -> None:
    """Stop when a candidate computes something else (null and zero counts aside)."""
    for name, candidate in others.items():
        theirs = candidate()
        for mine, other in zip(ours.iter_columns(), theirs.iter_columns(), strict=True):
            a, b = (column.cast(pl.Float64).fill_null(0).fill_nan(0).to_numpy() for column in (mine, other))
            assert np.allclose(a, b, rtol=1e-9), (name, mine.name)


def loaded(facts: pl.DataFrame, rows: pl.DataFrame) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB in memory that holds both tables; loading is not timed."""
    tables = duckdb.connect()
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in (("facts", facts), ("rows", rows.with_row_index("row"))):
            file = Path(folder) / f"{name}.parquet"
            frame.write_parquet(file)
            tables.execute(f"CREATE TABLE {name} AS SELECT * FROM '{file}'")
    return tables


def joins(facts: pl.DataFrame, rows: pl.DataFrame) -> list[str]:
    """Time the point-in-time joins of every candidate, once their answers agree."""
    frames = {"events": facts, "asks": rows}
    tables = []
    database = loaded(facts, rows)
    work: list[tuple[str, tuple[Feature, ...], tuple[Any, Any, Any]]] = [
        ("10 as-of features", AS_OF, (polars_asof, duckdb_asof, python_asof)),
        ("10 windowed features, 7 and 30 days", WINDOWS, (polars_windows, duckdb_windows, python_windows)),
    ]
    for title, features, others in work:
        compiled = FeatureSet.compile(features, Label("y"), ASKS, {"events": EVENTS})
        by_polars, by_duckdb, by_python = others
        peers = {
            "Polars": partial(by_polars, facts, rows),
            "DuckDB": partial(by_duckdb, database),
            "per row in Python": partial(by_python, facts, rows),
        }
        agree(compiled.matrix(frames).select(compiled.names), peers)
        seconds = measure.turns({"tenon": partial(compiled.matrix, frames), **peers}, repeats=5)
        text = f"Point in time: {title}, {ROWS:,} rows against {FACTS:,} facts of {USERS:,} users"
        tables.append(measure.table(text, seconds, work=ROWS, unit="rows"))
    return tables


def spread(read: Callable[[Any], Any], requests: list[Any]) -> list[str]:
    """Return median and 99th percentile of one call, in microseconds."""
    for request in requests[:2_000]:
        read(request)
    micros = []
    for request in requests:
        start = time.perf_counter_ns()
        read(request)
        micros.append((time.perf_counter_ns() - start) / 1_000)
    return [f"{statistics.median(micros):.1f}", f"{statistics.quantiles(micros, n=100)[-1]:.1f}"]


def online(facts: pl.DataFrame, rows: pl.DataFrame) -> list[str]:
    """Time one request at a time, in process."""
    frames = {"events": facts, "asks": rows}
    late = (dt.datetime(2023, 12, 31) - dt.timedelta(days=n % 30, hours=n % 24) for n in range(20_000))
    requests = [[{"user": user, "at": at}] for user, at in zip(rows["user"].head(20_000).to_list(), late, strict=True)]
    past = by_user(facts)
    lines = []
    for title, features in (("10 as-of features", AS_OF), ("10 windowed features", WINDOWS)):
        state = FeatureSet.compile(features, Label("y"), ASKS, {"events": EVENTS}).online(frames)
        state.warm()
        lines.append([title, "tenon", *spread(state.read, requests)])
    naive = spread(lambda request: window_of(past[request[0]["user"]], request[0]["at"]), requests)
    lines.append(["10 windowed features", "per row in Python", *naive])
    text = f"Online: one request in process, {FACTS:,} facts in memory"
    return [measure.rows(text, ["features", "candidate", "median µs", "p99 µs"], lines), state_table(frames)]


def state_table(frames: dict[str, pl.DataFrame]) -> str:
    """Time loading, applying and pruning the state of a million facts."""
    compiled = FeatureSet.compile((*AS_OF, *WINDOWS), Label("y"), ASKS, {"events": EVENTS})
    facts = frames["events"]
    million = pl.concat([facts.with_columns(pl.col("at") + dt.timedelta(days=365 * n)) for n in range(5)])
    state = compiled.online({**frames, "events": million})
    body = state.to_bytes()
    start = time.perf_counter()
    state = compiled.load(body)
    loaded = time.perf_counter() - start
    fresh = facts.sample(2_000, seed=1).with_columns(pl.col("at") + dt.timedelta(days=365 * 6))
    parts = [fresh[n] for n in range(2_000)]
    start = time.perf_counter()
    for part in parts:
        state.apply("events", part)
    applied = (time.perf_counter() - start) / 2_000
    start = time.perf_counter()
    forgotten = state.prune(dt.datetime(2028, 12, 1))
    pruned = time.perf_counter() - start
    lines = [
        ["load 1,000,000 facts", f"{loaded:.2f} s, {len(body) / 1e6:.0f} MB"],
        ["apply one fact", f"{applied * 1e6:.0f} µs"],
        [f"prune {forgotten:,} facts", f"{pruned:.2f} s"],
    ]
    return measure.rows("Online: the state of 20 features", ["what", "measured"], lines)


def main() -> None:
    """Print the tables."""
    measure.options(__doc__).parse_args()
    facts, rows = data()
    parts = [*joins(facts, rows), *online(facts, rows), measure.machine("tenon", "polars", "duckdb", "numpy")]
    measure.show(*parts)


if __name__ == "__main__":
    main()
