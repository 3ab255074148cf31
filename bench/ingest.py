"""Ingest beside DuckDB's COPY and Polars' sink_parquet, in turns: a clean file, and one with 5 % of its rows broken.

    python bench/ingest.py [--rows 1000000] [--record]

All write Parquet with zstd level 1. On the broken file DuckDB is given the dialect, the types and where rows begin,
because without them it refuses the file; it stores its rejects. What each recovered, withheld and got wrong is held
against the truth that mess.py keeps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import measure
import mess
import polars as pl

from tenon.ingest import Job, ingest
from tenon.ingest.quick import keep_memory

TYPES = (*["BIGINT"] * 3, *["DOUBLE"] * 3, "TIMESTAMP", "DATE", *["VARCHAR"] * 4)
COPY = "(format parquet, compression zstd, compression_level 1)"


def with_duckdb(path: Path, target: Path, options: str = "") -> None:
    """Copy a CSV file to Parquet with DuckDB."""
    with duckdb.connect() as connection:
        connection.execute(f"copy (select * from read_csv('{path}'{options})) to '{target}' {COPY}")


def with_polars(path: Path, target: Path) -> None:
    """Stream a CSV file to Parquet with Polars."""
    pl.scan_csv(path, try_parse_dates=True).sink_parquet(target, compression="zstd", compression_level=1)


def with_tenon(path: Path, folder: Path) -> Path:
    """Ingest a CSV file as the command does."""
    keep_memory()
    return ingest(Job(paths=(path,), out=folder, name="bench")).files[0]


def scored(name: str, truth: Path, loaded: Path) -> list[Any]:
    """Return a row of the table of what a loader made of the broken file."""
    score = mess.judge(truth, pl.read_parquet(loaded))
    return [name, f"{score.recovered_pct:.1f}", score.withheld, score.clean_lost, score.wrong_cells]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as name:
        folder = Path(name)
        clean = mess.make(folder / "clean", args.rows, broken=0.0, framing=False)
        broken = mess.make(folder / "broken", args.rows, broken=0.05)
        columns = ", ".join(f"'{column}': '{type_}'" for column, type_ in zip(mess.NAMES, TYPES, strict=True))
        given = "store_rejects=true, strict_mode=false, auto_detect=false, skip=4, delim=',', quote='\"', escape='\"'"
        options = f", {given}, columns={{{columns}}}"
        duck, ours = folder / "duckdb.parquet", folder / "tenon"
        size = clean.path.stat().st_size / 1e6
        quick = measure.turns(
            {
                "DuckDB COPY": lambda: with_duckdb(clean.path, duck),
                "Polars sink_parquet": lambda: with_polars(clean.path, folder / "polars.parquet"),
                "tenon ingest": lambda: with_tenon(clean.path, ours),
            },
            repeats=args.repeats,
        )
        rough = measure.turns(
            {
                "DuckDB COPY, told the dialect": lambda: with_duckdb(broken.path, duck, options),
                "tenon ingest, told nothing": lambda: with_tenon(broken.path, ours),
            },
            repeats=args.repeats,
        )
        found = [scored("DuckDB", broken.truth, duck), scored("tenon", broken.truth, with_tenon(broken.path, ours))]
        measure.show(
            measure.machine("duckdb", "polars"),
            measure.table(f"Clean CSV to Parquet, {size:.0f} MB", quick, work=size, unit="MB"),
            measure.table(f"The same with 5 % broken rows, {size:.0f} MB", rough, work=size, unit="MB"),
            measure.rows(
                "Broken rows against the truth",
                ["loader", "recovered exactly %", "broken rows withheld", "clean rows lost", "wrong cells"],
                found,
            ),
        )


if __name__ == "__main__":
    main()
