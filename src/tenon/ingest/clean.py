"""The table as clean CSV, every value spelt as in the source: `clean(job, target)`.

Comma-separated UTF-8, quotes doubled inside quotes, the names first where the input has a header and no line of names
where it has none, an empty cell for nothing. It is ingest with every column kept as text; the Parquet it makes is in
`job.out` as well. Rows in quarantine are not in it.
"""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import polars as pl

from tenon.ingest.job import Ingested, Job, Progress, silent
from tenon.ingest.read import ingest


def clean(job: Job, target: Path, progress: Progress = silent) -> Ingested:
    """Ingest a job as text and write its rows to `target` as CSV, whole or not at all; memory does not grow with it."""
    done = ingest(replace(job, text=True), progress)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as out:
            header: list[str] = next((about["header"] for about in done.dialects.values() if about["header"]), [])
            if header:
                # csv writes names as bytes later: an only name that is empty must still be a line.
                out.write(_line(header + [c.name for c in done.columns[len(header) :]]))
            for file in done.files:
                for frame in _slices(file):
                    frame.write_csv(out, include_header=False, quote_style="necessary")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return done


def _slices(file: Path) -> list[pl.DataFrame]:
    """Yield a file's rows a bounded number at a time."""
    height = int(pl.scan_parquet(file).select(pl.len()).collect().item())
    step = 1 << 17
    return (pl.scan_parquet(file).slice(begin, step).collect() for begin in range(0, height, step))  # type: ignore[return-value]


def _line(names: list[str]) -> bytes:
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(names)
    return text.getvalue().encode("utf-8")
