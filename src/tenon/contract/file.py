"""Checking a file larger than memory: the same rules over batches, good and bad rows written as they come.

The file is read in batches (Parquet as it is, CSV as raw text that is read as the declared types, so that a value that
cannot be read is a fault of its row). Each batch is judged by the same `verdict.part` as a frame; only counts stay in
memory. Parts are written to a folder beside the result and put together at the end; the two results appear whole or
not at all.

Uniqueness needs the whole file, so it takes a first pass over the key columns alone (`repeats.in_file`).

CSV here means clean CSV: one header row, commas (tabs for .tsv), quotes doubled. Anything messier goes through
`ingest`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from tenon.contract import repeats
from tenon.contract.agreement import Contract
from tenon.contract.frame import normal
from tenon.contract.rules import RAW, Plan, plan
from tenon.contract.verdict import Count, conclude, junit, part, passed, summary
from tenon.errors import InputError, MissingError, StoreError, sentence
from tenon.finding import Finding

Progress = Callable[[float, float, str], None]
BATCH_ROWS = 250_000
SCRATCH = ".check-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVerdict:
    """Where the good and the bad rows of a file are (`bad` is None when there are none), findings, and counts."""

    contract: Contract
    good: Path
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
    path: Path,
    contract: Contract,
    out: Path,
    *,
    now: float | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: Progress = lambda done, total, said: None,
) -> FileVerdict:
    """Check a Parquet or CSV file in batches; write `<name>.good.parquet` and `<name>.bad.parquet` into `out`.

    Memory does not grow with the file. A result of an earlier check is replaced when this one is complete.
    """
    path, out = Path(path), Path(out)
    lazy = _scan(path)
    schema = normal(lazy).collect_schema()
    scratch = _scratch(out)
    try:
        prepared = _prepare(contract, schema, lambda names: _batches(lazy.select(names), path, batch_rows), scratch)
        # An empty batch first: a file without rows has its columns and its (unbroken) rules too.
        judged = part(pl.DataFrame(schema=schema), prepared)
        tallies, parts = [judged.tally], {"good": [_write(judged.good, scratch / "good-0.parquet")], "bad": []}
        total, done = int(lazy.select(pl.len()).collect(engine="streaming").item()), 0
        for number, batch in enumerate(_batches(lazy, path, batch_rows), start=1):
            judged = part(normal(batch), prepared)
            tallies.append(judged.tally)
            for kind, frame in (("good", judged.good), ("bad", judged.bad)):
                if frame.height:
                    parts[kind].append(_write(frame, scratch / f"{kind}-{number}.parquet"))
            done += batch.height
            progress(done, total, "checking rows")
        good, bad, kept = _publish(parts, out / path.name.split(".")[0], scratch)
    except OSError as error:
        wanted = f"room and leave to write in {out}"
        raise StoreError(sentence(wanted, str(error), at=str(path), hint="free some space")) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    findings, counts = conclude(prepared, tallies, now)
    return FileVerdict(
        contract=contract, good=good, bad=bad, rows=done, bad_rows=done - kept, findings=findings, counts=counts
    )


def _prepare(
    contract: Contract, schema: pl.Schema, read: Callable[[list[str]], Iterator[pl.DataFrame]], scratch: Path
) -> Plan:
    """Plan the tests; those of uniqueness look up what a first pass over their columns found."""
    first = plan(contract, schema, lambda names: pl.lit(False))
    found: dict[tuple[str, ...], pl.Expr] = {}
    for names in first.unique:
        there = [name for name in names if name in schema]
        if len(there) < len(names):
            found[names] = pl.lit(False)
            continue
        convert = [each for each in first.convert if each.meta.output_name().removeprefix(RAW) in names]
        batches = (normal(batch).with_columns(convert) for batch in read(there))
        typed = first.typed(pl.DataFrame(schema=schema)).schema
        found[names] = repeats.as_found(typed, names, repeats.in_file(batches, names, scratch))
    return plan(contract, schema, found.__getitem__)


def _publish(parts: Mapping[str, Sequence[Path]], stem: Path, scratch: Path) -> tuple[Path, Path | None, int]:
    """Put the parts together and in place; return the good file, the bad one if there is any, and the good rows.

    The good file of an earlier check goes first and the new one comes last, so that whoever sees a good file sees the
    bad one of the same check.
    """
    good, bad = (stem.with_name(f"{stem.name}.{kind}.parquet") for kind in ("good", "bad"))
    made = {kind: _join(files, scratch / f"{kind}.parquet") for kind, files in parts.items() if files}
    good.unlink(missing_ok=True)
    if "bad" in made:
        made["bad"].replace(bad)
    else:
        bad.unlink(missing_ok=True)
    made["good"].replace(good)
    kept = int(pl.scan_parquet(good).select(pl.len()).collect().item())
    return good, bad if "bad" in made else None, kept


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


def _scan(path: Path) -> pl.LazyFrame:
    if not path.is_file():
        raise MissingError(sentence("a file", "nothing", at=str(path), hint="look at the path"))
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            lazy = pl.scan_parquet(path)
        elif suffix in (".csv", ".tsv"):
            lazy = pl.scan_csv(path, infer_schema=False, separator="\t" if suffix == ".tsv" else ",")
        else:
            wanted = "a .parquet, .csv or .tsv file"
            raise InputError(sentence(wanted, f"'{path.name}'", at=str(path), hint="ingest it first"))
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    return lazy


def _batches(lazy: pl.LazyFrame, path: Path, batch_rows: int) -> Iterator[pl.DataFrame]:
    """Yield the rows in order, a batch at a time."""
    try:
        yield from lazy.collect_batches(chunk_size=batch_rows, maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "clean CSV"
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(sentence(f"{kind}", said, at=str(path), hint=f"tenon ingest {path.name} reads what is messy"))


def _write(frame: pl.DataFrame, path: Path) -> Path:
    _parquet(frame.lazy(), path)
    return path


def _parquet(lazy: pl.LazyFrame, path: Path) -> None:
    try:
        lazy.sink_parquet(path, compression="zstd", compression_level=1)
    except pl.exceptions.PolarsError as error:  # Polars says so of a full disk
        raise OSError(str(error).splitlines()[0]) from error


def _join(parts: Sequence[Path], target: Path) -> Path:
    """Write one file of many parts, in order, down to the disk."""
    if len(parts) == 1:
        parts[0].replace(target)
    else:
        _parquet(pl.scan_parquet(list(parts)), target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return target
