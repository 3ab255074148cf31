"""CSV to Parquet: tenon beside DuckDB, Polars and Python's csv module, on a clean file and on one with broken rows.

    python bench/ingest.py [--record] [--rows N]

Both files come from mess.py, with the truth beside them. The peers are told to go on after what they cannot read, as a
person would; none of them keeps what it leaves out. The naive baseline is csv.reader with every cell left as text.
After the times, what each made of the broken file: rows whose break was undone exactly, rows withheld, and rows that
came out wrong without a word. `tenon ingest` also infers, repairs, and accounts for every byte in that time.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import measure
import mess
import polars as pl

from tenon.ingest import Job, ingest

Loader = Callable[[Path, Path], None]


def tenon(source: Path, target: Path) -> None:
    """Ingest without any hint."""
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as folder:
        done = ingest(Job(paths=(source,), out=Path(folder)), lambda _done, _total, _said: None)
        pl.scan_parquet(list(done.files)).sink_parquet(target) if len(done.files) > 1 else done.files[0].replace(target)


def duckdb(source: Path, target: Path) -> None:
    """Copy with DuckDB, leaving out what it cannot read."""
    import duckdb as peer

    options = "ignore_errors = true, strict_mode = false"
    peer.sql(f"COPY (SELECT * FROM read_csv('{source}', {options})) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def polars(source: Path, target: Path) -> None:
    """Stream through Polars, leaving cells it cannot read empty."""
    frame = pl.scan_csv(
        source, ignore_errors=True, truncate_ragged_lines=True, try_parse_dates=True, encoding="utf8-lossy"
    )
    frame.sink_parquet(target, compression_level=1)


def naive(source: Path, target: Path) -> None:
    """Read rows with Python's csv module, keep those of the header's width, all as text."""
    with source.open(encoding="utf-8", errors="replace", newline="") as file:
        # NUL ends what csv reads of a row, and some of the broken rows hold one.
        rows = csv.reader(line.replace("\0", "") for line in file)
        header = next(rows)
        kept = [row for row in rows if len(row) == len(header)]
    pl.DataFrame(kept, schema=dict.fromkeys(header, pl.String), orient="row").write_parquet(target)


def refusal(loader: Loader, source: Path, target: Path) -> str:
    """Return why a loader refuses a file, "" when it takes it: one odd row makes some refuse all."""
    try:
        loader(source, target)
    except Exception as error:  # each library raises its own
        return (str(error).splitlines() or [""])[0][:60] or type(error).__name__
    return ""


def judged(loader: Loader, made: mess.Mess, folder: Path, name: str) -> list[str]:
    """Return a row of the table of what a loader made of a broken file."""
    target = folder / "judged.parquet"
    if why := refusal(loader, made.path, target):
        return [name, f"refuses the file: {why}", "", "", ""]
    loaded = pl.read_parquet(target)
    if not set(mess.NAMES) <= set(loaded.columns):
        return [name, "no columns of these names", "", "", ""]
    score = mess.judge(made.truth, loaded)
    counts = (score.withheld, score.wrong_rows, score.clean_lost)
    return [name, f"{score.recovered:,} ({score.recovered_pct:.1f} %)", *(f"{count:,}" for count in counts)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="append to bench/RESULTS.md")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of each file")
    options = parser.parse_args()
    loaders: dict[str, Loader] = {"tenon": tenon, "Polars": polars, "csv.reader, all text (naive)": naive}
    if measure.has("duckdb"):
        loaders["DuckDB"] = duckdb
    parts = []
    with tempfile.TemporaryDirectory(prefix="tenon-bench-") as scratch:
        folder = Path(scratch)
        for title, broken in (("a clean file", 0.0), ("5 % of the rows broken", 0.05)):
            made = mess.make(folder / f"{broken:g}", options.rows, broken=broken, framing=False)
            target = folder / "out.parquet"
            runs = {
                name: partial(load, made.path, target)
                for name, load in loaders.items()
                if not refusal(load, made.path, target)
            }
            megabytes = made.path.stat().st_size / 1e6
            seconds = measure.turns(runs, repeats=3)
            heading = f"CSV to Parquet, {title}: {options.rows:,} rows, {megabytes:.0f} MB"
            parts.append(measure.table(heading, seconds, work=megabytes, unit="MB"))
        rows = [judged(load, made, folder, name) for name, load in loaders.items()]
    header = [
        "loader",
        "recovered exactly (of those that can be)",
        "withheld",
        "wrong without a word",
        "clean rows lost",
    ]
    parts.append(measure.rows(f"What became of {sum(made.faults.values()):,} broken rows", header, rows))
    measure.show(*parts, measure.machine("polars", "duckdb", "numpy"))


if __name__ == "__main__":
    main()
