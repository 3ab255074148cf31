"""Whether a feature had the same value when served as the same row has offline: a fault in plumbing, not in the world.

The newest served rows are joined with the offline matrix by key and time and compared value by value: numbers up to
rounding (one part in a million), categories exactly, missing with missing.
"""

from __future__ import annotations

import math

import polars as pl

from tenon.finding import Finding
from tenon.metric import wilson
from tenon.store import Store
from tenon.watch.case import percent, shown
from tenon.watch.observation import FEATURE, KEY, STREAM, TIME, decode, moment, settled, stack
from tenon.watch.stream import spans

ROWS = 50_000  # newest rows looked at
TOLERANCE = 1e-6
ALLOWED = 0.002  # of rows: facts corrected after they were served
GRAVE = 0.05


def skew(store: Store, model: str, offline: pl.DataFrame, units: str, until: float = math.inf) -> list[Finding]:
    """Compare served features with offline ones on rows in both; one finding for all that differ. Reads only."""
    both = _both(_served(store, model, until), offline)
    if not both.height:
        return []
    found = []
    for name in [column for column in both.columns if column.startswith(FEATURE)]:
        bare = name[len(FEATURE) :]
        if f"_offline_{bare}" not in both.columns:
            continue
        differs = both.filter(_differs(both, name, f"_offline_{bare}"))
        if differs.height and wilson(differs.height, both.height)[0] > ALLOWED:
            found.append((differs.height, bare, differs.row(0, named=True)))
    if not found:
        return []
    count, worst, example = max(found, key=lambda item: (item[0], item[1]))
    also = sorted(name for _, name, _ in found if name != worst)
    others = f" Also {', '.join(also[:5])}{' and others' if len(also) > 5 else ''}." if also else ""
    served, computed = example[f"{FEATURE}{worst}"], example[f"_offline_{worst}"]
    return [
        Finding(
            code="watch/train-serve-skew",
            severity="error" if count / both.height > GRAVE else "warning",
            place=f"{model}/features/{worst}",
            said=f"{worst} differed in {count:,} of {both.height:,} {units} that were both served and computed offline "
            f"({percent(count / both.height)}): for example {shown(served)} served, {shown(computed)} offline.{others}",
            hint="Follow one row by hand: facts that reached the online store late, or in another unit, are the usual "
            "cause.",
            numbers={"rows": both.height, "features": len(found)} | {f"differ_{name}": n for n, name, _ in found[:10]},
        )
    ]


def _served(store: Store, model: str, until: float) -> pl.DataFrame:
    """Read the newest served rows, by the numbers of their batches."""
    held = [span for span in spans(store, model) if span.first <= until]
    rows, after = 0, 0
    for span in reversed(held):
        rows += span.rows
        if rows >= ROWS:
            after = span.seq - 1
            break
    frames = [
        settled(decode(batch.body, f"{STREAM}/{model}/{batch.seq}")) for batch in store.read(STREAM, model, after=after)
    ]
    every = stack(frames).filter(pl.col("error").fill_null("") == "")
    return every.filter(pl.col("time") <= moment(until)) if math.isfinite(until) else every


def _both(served: pl.DataFrame, offline: pl.DataFrame) -> pl.DataFrame:
    """Join served and offline rows by key and time, each row once."""
    keys = [name for name in served.columns if name.startswith(KEY) and f"_{name}" in offline.columns]
    if not keys or "_time" not in offline.columns:
        return pl.DataFrame()
    features = [name for name in offline.columns if not name.startswith("_")]
    left = served.sort("at").unique([*keys, "time"], keep="last").with_columns(pl.col(keys).cast(pl.String))
    right = offline.select(
        *[pl.col(f"_{name}").cast(pl.String).alias(name) for name in keys],
        pl.col("_time").cast(TIME).alias("time"),
        *[pl.col(name).alias(f"_offline_{name}") for name in features],
    ).unique([*keys, "time"], keep="last")
    return left.join(right, on=[*keys, "time"], how="inner")


def _differs(frame: pl.DataFrame, one: str, other: str) -> pl.Expr:
    """Say where two columns differ; missing equals missing, and not a number counts as missing."""
    a, b = pl.col(one), pl.col(other)
    if frame.schema[one].is_numeric() and (frame.schema[other].is_numeric() or frame.schema[other] == pl.Boolean):
        a, b = a.fill_nan(None), b.cast(pl.Float64).fill_nan(None)
        apart = (a - b).abs() > TOLERANCE * pl.max_horizontal(a.abs(), b.abs(), pl.lit(1.0))
    else:
        apart = a.cast(pl.String) != b.cast(pl.String)
    return apart.fill_null(False) | (a.is_null() != b.is_null())
