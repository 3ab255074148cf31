"""Profile 200,000 rows of 25 columns: how quickly, and how many bytes a column takes (drift.py compares profiles).

    python bench/sketch.py [--record]

Two figures to hold: 1M values a second on a core, 20 KB a column at most, also when merged of many parts. datasketches
is the usual package for such sketches, used as a person would for the same figures; numbers of a builder of one are
beside ours because both make quantiles, counts of distinct values and of the most frequent ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from tenon.sketch import Profile, profile

ROWS = 200_000


def table(seed: int, shift: float = 0.0) -> pl.DataFrame:
    """Make 12 float, 6 integer and 5 text columns (one of them all different), a flag and a timestamp."""
    rng = np.random.default_rng(seed)
    start = np.datetime64("2013-01-01", "ms")
    columns: dict[str, Any] = {f"float_{i}": rng.normal(i + shift, 1 + i, ROWS) for i in range(12)}
    columns |= {f"int_{i}": rng.integers(0, 10 ** (i + 1), ROWS) for i in range(6)}
    columns |= {f"text_{i}": rng.choice([f"v{j}" for j in range(10 * (i + 1) ** 3)], ROWS) for i in range(4)}
    columns["identifier"] = [f"{value:x}" for value in rng.integers(0, 2**60, ROWS)]
    columns["flag"] = rng.random(ROWS) > 0.3
    columns["at"] = start + rng.integers(0, 365 * 86_400_000, ROWS).astype("timedelta64[ms]")
    return pl.DataFrame(columns)


def datasketches(frame: pl.DataFrame) -> int:
    """Build the usual package's sketches of the same figures; return their bytes."""
    import datasketches as ds

    size = 0
    for series in frame.get_columns():
        distinct = ds.hll_sketch(12, ds.tgt_hll_type.HLL_8)
        if series.dtype in (pl.String, pl.Boolean):
            top = ds.frequent_strings_sketch(8)
            counts = series.cast(pl.String).alias("value").value_counts(sort=True)
            for value, count in counts.iter_rows():
                top.update(value, count)
                distinct.update(value)
            size += len(top.serialize())
        else:
            values = series.cast(pl.Float64).to_numpy(writable=True)
            quantiles = ds.kll_doubles_sketch(512)
            quantiles.update(values)
            values.mean(), values.var(), values.min(), values.max()
            for value in np.unique(values).tolist():
                distinct.update(value)
            size += len(quantiles.serialize())
        size += len(distinct.serialize_compact())
    return size


def main() -> None:
    """Print the tables."""
    measure.options(__doc__).parse_args()
    frame = table(0)
    builders: dict[str, Callable[[], Any]] = {"tenon profile": lambda: profile(frame)}
    if measure.has("datasketches"):
        builders["datasketches"] = lambda: datasketches(frame)
    built = measure.turns(builders)
    whole = profile(frame)
    merged = profile(frame.head(1_000))
    for at in range(1_000, ROWS, 4_975):
        merged = merged.merge(profile(frame.slice(at, 4_975)))
    body = whole.to_bytes()
    start = time.perf_counter()
    Profile.from_bytes(body)
    read_ms = 1000 * (time.perf_counter() - start)
    figures = [
        ["bytes a column, mean and most, built at once", bytes_a_column(whole)],
        ["bytes a column, mean and most, merged of 41 parts", bytes_a_column(merged)],
        [f"ms to read a profile of {frame.width} columns", f"{read_ms:.1f}"],
    ]
    title = f"Building profiles, {ROWS:,} rows of {frame.width} columns"
    measure.show(
        measure.table(title, built, work=ROWS * frame.width, unit="values"),
        measure.rows("What profiles take", ["figure", "value"], figures),
        measure.machine("polars", "numpy", "datasketches"),
    )


def bytes_a_column(found: Profile) -> str:
    """Word the bytes that columns take: their mean and the most."""
    sizes = [len(Profile(rows=found.rows, columns={name: one}).to_bytes()) for name, one in found.columns.items()]
    return f"{sum(sizes) / len(sizes):,.0f}, {max(sizes):,}"


if __name__ == "__main__":
    main()
