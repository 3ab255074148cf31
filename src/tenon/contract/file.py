"""Checking files larger than memory: the same rules over batches, good and bad rows written as they come.

The rows are read in batches (Parquet as it is, CSV as raw text that is read as the declared types, so that a value that
cannot be read is a fault of its row). Each batch is judged by the same `verdict.part` as a frame; only counts stay in
memory. Good and bad rows go to a file each, written beside the check by threads of their own (a queue of one batch
between them), and the two results appear whole or not at all. Writing a part for each batch and putting the parts
together at the end took twice as long.

Uniqueness needs all rows, so it takes a first pass over the key columns alone (`repeats.in_file`).

A batch holds as many rows as fit into some megabytes, judged by the first of them, so that wide rows are no danger.

CSV here means clean CSV: one header row, commas (tabs for .tsv), quotes doubled. Anything messier goes through
`ingest`.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from polars.io.plugins import register_io_source

from tenon.contract import repeats
from tenon.contract.agreement import Contract
from tenon.contract.frame import normal
from tenon.contract.rules import RAW, Plan, Reader, plan
from tenon.contract.verdict import Count, Tally, conclude, junit, part, passed, summary
from tenon.errors import InputError, MissingError, StoreError, sentence
from tenon.finding import Finding

Progress = Callable[[float, float, str], None]
Write = Callable[[pl.DataFrame], None]
BATCH_ROWS = 250_000
BATCH_BYTES = 16 * 1024 * 1024
SCRATCH = ".check-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVerdict:
    """Where the good and the bad rows are (None: not written, or no bad rows), findings, and counts."""

    contract: Contract
    good: Path | None
    bad: Path | None
    rows: int
    bad_rows: int
    findings: tuple[Finding, ...]
    counts: Mapping[str, Count]

    @property
    def passed(self) -> bool:
        """Say whether the contract holds: no finding is an error."""
        return passed(self.findings)

    def to_junit(self) -> str:
        """Write the verdict as JUnit XML for a CI."""
        return junit(self.contract.name, self.counts.values(), self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and findings as plain data."""
        return summary(self.contract, self.rows - self.bad_rows, self.bad_rows, self.findings, self.counts)


def check_file(
    path: Path | Sequence[Path],
    contract: Contract,
    out: Path | None = None,
    *,
    now: float | None = None,
    batch_rows: int = 0,
    readers: Mapping[str, Reader] | None = None,
    progress: Progress = lambda done, total, said: None,
) -> FileVerdict:
    """Check a Parquet or CSV file, or several of one schema, in batches.

    With `out`, a folder, good rows are written to `<name>.good.parquet` there and bad ones to `<name>.bad.parquet`,
    named after the first file; a result of an earlier check is replaced when this one is complete. Memory does not grow
    with the rows. `batch_rows` is chosen by how wide they are when it is 0. `readers` say of columns that come as text
    how they are written, where that is known.
    """
    paths = [path] if isinstance(path, Path) else [Path(each) for each in path]
    lazy, place = _scan(paths), str(paths[0])
    schema = normal(lazy).collect_schema()
    prepared = plan(contract, schema, readers)
    total, rows = _size(lazy, place)
    rows = batch_rows or rows
    scratch = _scratch(Path(tempfile.gettempdir()) if out is None else Path(out))
    try:
        found = _repeated(prepared, schema, lambda names: _batches(lazy.select(names), total, rows, place), scratch)
        tallies: list[Tally] = []
        done, bad_rows = 0, 0
        with ExitStack() as stack:
            # An empty batch first: a file without rows has its columns and its (unbroken) rules too.
            empty = pl.DataFrame(schema=schema)
            judged = part(empty, prepared.typed(empty), prepared, dict.fromkeys(prepared.unique))
            tallies.append(judged.tally)
            good: Write = _no_write
            bad: Write = _no_write
            if out is not None:
                good = stack.enter_context(_writing(scratch / "good.parquet", judged.good.schema))
                bad = stack.enter_context(_writing(scratch / "bad.parquet", judged.bad.schema))
            for raw in _batches(lazy, total, rows, place):
                batch = normal(raw)
                again = {
                    names: None if folder is None else repeats.rows_at(folder, done, batch.height)
                    for names, folder in found.items()
                }
                judged = part(batch, prepared.typed(batch), prepared, again)
                tallies.append(judged.tally)
                good(judged.good)
                # A few rows of text would keep all the text of their batch alive until they are written.
                bad(judged.bad.with_columns(pl.col(pl.String) + ""))
                done, bad_rows = done + batch.height, bad_rows + judged.bad.height
                progress(done, total, "checking rows")
        written = (
            _publish(scratch, Path(out) / paths[0].name.split(".")[0], bad_rows) if out is not None else (None, None)
        )
    except OSError as error:
        wanted = f"room and leave to write in {out or scratch.parent}"
        raise StoreError(sentence(wanted, str(error), at=place, hint="free some space")) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    findings, counts = conclude(prepared, tallies, now)
    return FileVerdict(
        contract=contract,
        good=written[0],
        bad=written[1],
        rows=done,
        bad_rows=bad_rows,
        findings=findings,
        counts=counts,
    )


def _repeated(
    prepared: Plan, schema: pl.Schema, read: Callable[[list[str]], Iterator[pl.DataFrame]], scratch: Path
) -> dict[tuple[str, ...], Path | None]:
    """Find what repeats in a first pass over the columns that may not, for `repeats.rows_at`."""
    found: dict[tuple[str, ...], Path | None] = {}
    for names in prepared.unique:
        convert = [each for each in prepared.convert if each.meta.output_name().removeprefix(RAW) in names]

        def batches(names: tuple[str, ...] = names, convert: Sequence[pl.Expr] = convert) -> Iterator[pl.DataFrame]:
            return (normal(batch).with_columns(convert) for batch in read(list(names)))

        there = all(name in schema for name in names)
        found[names] = repeats.in_file(batches, names, scratch) if there else None
    return found


def _publish(scratch: Path, stem: Path, bad_rows: int) -> tuple[Path, Path | None]:
    """Put both files in place, down to the disk; return the good one and the bad one if there are bad rows.

    The good file of an earlier check goes first and the new one comes last, so that whoever sees a good file sees the
    bad one of the same check.
    """
    good, bad = (stem.with_name(f"{stem.name}.{kind}.parquet") for kind in ("good", "bad"))
    for kind in ("good", "bad"):
        with (scratch / f"{kind}.parquet").open("rb") as file:
            os.fsync(file.fileno())
    good.unlink(missing_ok=True)
    if bad_rows:
        (scratch / "bad.parquet").replace(bad)
    else:
        bad.unlink(missing_ok=True)
    (scratch / "good.parquet").replace(good)
    return good, bad if bad_rows else None


def _scratch(out: Path) -> Path:
    """Make a folder for parts beside the result; what a killed check left there is cleared away."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{SCRATCH}*"):
            pid = left.name.removeprefix(SCRATCH).split("-")[0]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=out))
    except OSError as error:
        wanted = f"a folder to write in at {out}"
        raise StoreError(sentence(wanted, str(error), hint="choose another or free some space")) from error


# ── reading and writing ──────────────────────────────────────────────────────────────────────────────────────────────


def _scan(paths: Sequence[Path]) -> pl.LazyFrame:
    for path in paths:
        if not path.is_file():
            raise MissingError(sentence("a file", "nothing", at=str(path), hint="look at the path"))
    suffix, first = paths[0].suffix.lower(), paths[0]
    try:
        if suffix == ".parquet":
            lazy = pl.scan_parquet(list(paths))
        elif suffix in (".csv", ".tsv"):
            lazy = pl.scan_csv(list(paths), infer_schema=False, separator="\t" if suffix == ".tsv" else ",")
        else:
            wanted = "a .parquet, .csv or .tsv file"
            raise InputError(sentence(wanted, f"'{first.name}'", at=str(first), hint="ingest it first"))
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(str(first), error) from error
    return lazy


def _batches(lazy: pl.LazyFrame, total: int, batch_rows: int, place: str) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, a batch at a time; Parquet is read by ranges of rows, which holds least at once."""
    try:
        if place.lower().endswith(".parquet"):
            for start in range(0, total, batch_rows):
                yield lazy.slice(start, batch_rows).collect()
        else:
            yield from lazy.collect_batches(chunk_size=batch_rows, maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise _unreadable(place, error) from error


def _size(lazy: pl.LazyFrame, place: str) -> tuple[int, int]:
    """Count the rows, and choose how many to hold at once by the size of the first."""
    try:
        some = lazy.head(1_000).collect()
        total = int(lazy.select(pl.len()).collect(engine="streaming").item())
    except pl.exceptions.PolarsError as error:
        raise _unreadable(place, error) from error
    row_bytes = max(1.0, some.estimated_size() / max(1, some.height))
    return total, max(1_000, min(BATCH_ROWS, int(BATCH_BYTES / row_bytes)))


def _unreadable(place: str, error: Exception) -> InputError:
    kind = "Parquet" if place.lower().endswith(".parquet") else "clean CSV"
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(sentence(kind, said, at=place, hint=f"tenon ingest {Path(place).name} reads what is messy"))


def _no_write(frame: pl.DataFrame) -> None:
    """Take rows that nobody asked to keep."""


@contextmanager
def _writing(path: Path, schema: pl.Schema) -> Iterator[Write]:
    """Yield a function that takes frames, which a thread appends to one Parquet file; whole when the block ends."""
    waiting: queue.Queue[pl.DataFrame | None] = queue.Queue(maxsize=1)
    failed: list[Exception] = []

    def frames(*_: Any) -> Iterator[pl.DataFrame]:
        while (frame := waiting.get()) is not None:
            yield frame

    def run() -> None:
        try:
            source = register_io_source(frames, schema=schema)
            source.sink_parquet(path, compression="zstd", compression_level=1)
        except Exception as error:  # noqa: BLE001  # the edge of a thread: handed to the one that waits
            failed.append(error)

    thread = threading.Thread(target=run, name=f"tenon-{path.stem}", daemon=True)
    thread.start()

    def put(frame: pl.DataFrame | None) -> None:
        while thread.is_alive():
            try:
                waiting.put(frame, timeout=0.2)
            except queue.Full:
                continue
            return

    def write(frame: pl.DataFrame) -> None:
        if failed:
            raise OSError(str(failed[0]).splitlines()[0]) from failed[0]  # Polars says so of a full disk
        if frame.height:
            put(frame)

    try:
        yield write
    finally:
        put(None)
        thread.join()
    if failed:
        raise OSError(str(failed[0]).splitlines()[0]) from failed[0]
