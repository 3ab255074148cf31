"""Profile 200,000 rows of 25 columns and compare two such profiles, beside exact statistics and a peer's drift report.

Three questions: how many values a second go into the profiles (the issue asks for 1M a core), how many bytes a column
takes (20 KB at most), and how long it takes to compare once the profiles exist (0.1 s at most). The naive candidate
keeps the rows and computes the same figures exactly with NumPy and Polars. datasketches is the usual package for such
sketches; its builder here does as much as ours. Evidently draws its report from the rows. Run as `python
bench/sketch.py`; peers that are not installed are left out.
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

from tenon.sketch import Profile, compare, profile

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


def exact(reference: pl.DataFrame, other: pl.DataFrame) -> dict[str, float]:
    """Compute PSI and the distance of every column from the rows themselves."""
    found = {}
    for name in reference.columns:
        a, b = reference[name].drop_nulls(), other[name].drop_nulls()
        if a.dtype in (pl.String, pl.Boolean):
            p, q = (dict(each.value_counts().iter_rows()) for each in (a, b))
            shares = [np.array([each.get(key, 0) for key in {**p, **q}]) + 0.5 for each in (p, q)]
        else:
            x, y = (np.sort(each.cast(pl.Float64).to_numpy()) for each in (a, b))
            borders = np.quantile(x, np.arange(1, 10) / 10)
            shares = [np.bincount(np.searchsorted(borders, each), minlength=10) + 0.5 for each in (x, y)]
            both = np.concatenate([x, y])
            gap = np.searchsorted(x, both, "right") / len(x) - np.searchsorted(y, both, "right") / len(y)
            found[f"{name} distance"] = float(np.abs(gap).max())
        one, two = (each / each.sum() for each in shares)
        found[name] = float(((one - two) * np.log(one / two)).sum())
    return found


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


def evidently(reference: pl.DataFrame, other: pl.DataFrame) -> Callable[[], Any] | None:
    """Return Evidently's drift report of the same rows."""
    try:
        from evidently import Report
        from evidently.presets import DataDriftPreset
    except ImportError:
        return None
    frames = reference.drop("at").to_pandas(), other.drop("at").to_pandas()
    return lambda: Report([DataDriftPreset()]).run(frames[1], frames[0])


def main() -> None:
    """Print the tables."""
    reference, other = table(0), table(1, 0.1)
    builders: dict[str, Callable[[], Any]] = {"tenon profile": lambda: profile(reference)}
    try:
        datasketches(reference.head(10))
        builders["datasketches"] = lambda: datasketches(reference)
    except ImportError:
        pass
    built = measure.turns(builders)
    one, two = profile(reference), profile(other)
    compared = measure.turns(
        {"tenon compare": lambda: compare(one, two), "exact, from rows": lambda: exact(reference, other)}
    )
    report = evidently(reference, other)
    if report is not None:
        start = time.perf_counter()
        report()
        compared["Evidently, from rows (once)"] = [time.perf_counter() - start]
    sizes = {name: len(Profile(rows=ROWS, columns={name: column}).to_bytes()) for name, column in one.columns.items()}
    merged = profile(reference.head(1_000))
    for at in range(1_000, ROWS, 4_975):
        merged = merged.merge(profile(reference.slice(at, 4_975)))
    grown = {
        name: len(Profile(rows=ROWS, columns={name: column}).to_bytes()) for name, column in merged.columns.items()
    }
    figures, known = compare(one, two), exact(reference, other)
    numbers = [name for name in known if name.startswith(("float", "int")) and " " not in name]
    worst = max(abs(figures[name].psi - known[name]) for name in numbers)
    gap = max(abs(figures[name].distance - known[f"{name} distance"]) for name in numbers)
    values = ROWS * reference.width
    measure.show(
        measure.table(
            f"Building profiles, {ROWS:,} rows of {reference.width} columns", built, work=values, unit="values"
        ),
        measure.table("Comparing two", compared),
        measure.rows(
            "Bytes and errors",
            ["figure", "value"],
            [
                [
                    "bytes a column, mean and most, built at once",
                    f"{sum(sizes.values()) / len(sizes):,.0f}, {max(sizes.values()):,}",
                ],
                [
                    "bytes a column, mean and most, merged of 41 parts",
                    f"{sum(grown.values()) / len(grown):,.0f}, {max(grown.values()):,}",
                ],
                ["largest error of a PSI against the rows", f"{worst:.5f}"],
                ["largest error of a distance against the rows", f"{gap:.5f}"],
            ],
        ),
        measure.machine("polars", "numpy", "datasketches", "evidently"),
    )


if __name__ == "__main__":
    main()
