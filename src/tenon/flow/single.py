"""Ingest on its own: files in, files out, no project and no store; `check` beside it does the same for contracts.

`tenon ingest`, `tenon check` and `tenon quarantine` are for a team that uses nothing else of tenon. What a person gave
is never changed, and what is written is named before work begins and replaced in one step.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tenon import contract, ingest
from tenon.contract.column import Source
from tenon.errors import InputError, UsageError, nearest, quoted, sentence
from tenon.finding import Finding
from tenon.ingest import quarantine as waiting
from tenon.ingest.clean import clean
from tenon.ingest.glance import Glance, glance
from tenon.ingest.job import Progress, silent, uncounted
from tenon.ingest.stream import STDIN, files_of, spelt

BATCH_ROWS = 8_192
DRAFT_ROWS, DRAFT_BYTES = 1_000_000, 128 << 20  # a contract is drafted from at most so many rows, and bytes of them
LOOK_ROWS = 64  # rows that tell how large one is
FORMATS = (".parquet", ".csv", ".jsonl")


# ── tenon ingest ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What to read and where to write it."""

    paths: Sequence[Path]
    out: Path
    name: str = ""
    text: bool = False
    csv: Path | None = None
    policy: ingest.Policy = "row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What reading came to, what was repaired and what waits with examples, and every file that was written."""

    ingested: ingest.Ingested
    glance: Glance
    written: Sequence[Path]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data; examples of what was repaired and what waits are under `glance`."""
        written = [str(path) for path in self.written]
        return {**self.ingested.to_dict(), "glance": self.glance.to_dict(), "written": written}


def read(asked: Read, progress: Progress = silent, counted: Callable[[int], None] = uncounted) -> Done:
    """Read messy files into typed Parquet, quarantine and a contract to review; or, with `csv`, into clean CSV.

    `counted` is told how many rows were read, each time before `progress` is told how many bytes.
    """
    name = asked.name or name_of(asked.paths)
    if asked.csv is not None:
        with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
            job = ingest.Job(
                paths=tuple(asked.paths), out=Path(folder), name=name, policy=asked.policy, counted=counted
            )
            done = clean(job, asked.csv, progress)
            return Done(ingested=done, glance=glance(done), written=[asked.csv])
    job = ingest.Job(
        paths=tuple(asked.paths), out=asked.out, name=name, policy=asked.policy, text=asked.text, counted=counted
    )
    done = ingest.ingest(job, progress=progress)
    written = [*done.files, *(path for path in (done.quarantine, done.repairs, done.summary) if path is not None)]
    if done.files:
        first = _first_rows(done.files)
        inferred = contract.infer(first, name)
        units = {column.name: column.unit for column in done.columns}
        columns = (replace(column, unit=units.get(column.name, "")) for column in inferred.columns)
        null = {word for column in done.columns for word in column.null_words if word}
        inferred = replace(inferred, columns=tuple(columns), null=tuple(sorted(null)))
        file = asked.out / f"{name}.contract.yaml"
        replace_text(
            file, inferred.to_odcs(_notes(done, first.height, [spelt(Path(path.name)) for path in asked.paths]))
        )
        written.append(file)
    return Done(ingested=done, glance=glance(done), written=written)


def _first_rows(files: Sequence[Path]) -> pl.DataFrame:
    """Return the rows that a contract is drafted from: few where they are large, so that memory stays flat."""
    rows = pl.scan_parquet(list(files))
    look = rows.head(LOOK_ROWS).collect()
    # Reading takes memory for each piece of a column beside its values, which counts where columns are many.
    fit = int(DRAFT_BYTES * look.height / max(1.0, look.estimated_size()) / (1 + look.width / 1_000))
    return rows.head(max(LOOK_ROWS, min(DRAFT_ROWS, fit))).collect()


def _notes(done: ingest.Ingested, drafted: int, names: Sequence[str]) -> dict[str, list[str]]:
    """Say beside the draft of a contract what a person should look at: words read as missing, formats, doubts."""
    rows = f"{done.rows:,} rows" if drafted == done.rows else f"the first {drafted:,} of {done.rows:,} rows"
    about = f"A draft from {rows} of {', '.join(names)}; what was seen once is no law."
    notes = {"": [about, "Mend what is wrong, then write `status: active` and take `inferred` away."]}
    told = {finding.place: finding for finding in done.findings}
    for column in done.columns:
        finding = told.get(column.name)
        said = [f"{finding.said}: {finding.hint}" if finding.hint else finding.said] if finding else []
        said += [f"written as {column.format}"] if column.format else []
        told_words = finding is not None and all(word in finding.said for word in column.null_words)
        if column.null_words and not told_words:
            said.append(f"read as missing: {quoted(column.null_words)}")
        notes[column.name] = said
    return notes


def name_of(paths: Sequence[Path]) -> str:
    """Name what is written after the first path: `dump` for dump.csv.gz, the folder's name for a folder.

    Standard input is `stdin`, a pattern is named after the first file that it finds.
    """
    first = paths[0]
    if first == STDIN:
        return "stdin"
    if not first.exists() and any(mark in str(first) for mark in "*?["):
        first = files_of((first,))[0]
    name = first.name.split(".")[0] or first.resolve().name
    return os.fsencode(name).decode("utf-8", "replace").replace("\ufffd", "_")


def replace_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it there."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(sentence("a file that can be written", str(error.strerror), at=str(path))) from error


def place(source: Path, target: Path) -> None:
    """Copy a file beside its place and rename it there, so that nobody opens half of it."""
    beside = target.with_name(f".{target.name}.new")
    try:
        shutil.copyfile(source, beside)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(sentence("room to write", str(error.strerror), at=str(target))) from error


# ── tables for other stages ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A file's rows in batches, how many there are, what reading it found, and where what could not be read waits."""

    frames: Iterator[pl.DataFrame]
    rows: int
    findings: Sequence[Finding]
    quarantined: int = 0
    quarantine: Path | None = None


@contextmanager
def batches(path: Path, source: Source | None, progress: Progress) -> Iterator[Batches]:
    """Read any file ingest reads and give its rows in batches; what is held at once does not grow with the file."""
    with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
        job = ingest.Job(paths=(path,), out=Path(folder), name="rows", source=source)
        done = ingest.ingest(job, progress=progress)

        def frames() -> Iterator[pl.DataFrame]:
            for file in done.files:
                rows = pl.scan_parquet(file).select(pl.len()).collect().item()
                for start in range(0, rows, BATCH_ROWS):
                    yield pl.scan_parquet(file).slice(start, BATCH_ROWS).collect()

        yield Batches(
            frames=frames(),
            rows=done.rows,
            findings=done.findings,
            quarantined=done.quarantined,
            quarantine=done.quarantine if done.quarantined else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file's rows as one frame, and how many could not be read as what they should be."""

    rows: pl.DataFrame
    unread: int


def table(path: Path, source: Source | None = None) -> Table:
    """Read any file ingest reads as one frame, as the source's columns when one is given."""
    with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
        done = ingest.ingest(ingest.Job(paths=(path,), out=Path(folder), name="rows", source=source))
        rows = pl.concat([pl.read_parquet(file) for file in done.files]) if done.files else pl.DataFrame()
        return Table(rows=rows, unread=done.quarantined)


@contextmanager
def writer(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Yield a function that appends frames to a .parquet, .csv or .jsonl file, put in place when the block ends."""
    if path.suffix not in FORMATS:
        raise UsageError(
            sentence(
                "a file to write named .parquet, .csv or .jsonl", f"'{path.name}'", hint=nearest(path.suffix, FORMATS)
            )
        )
    beside = path.with_name(f".{path.name}.new")
    started = False
    try:
        with tempfile.TemporaryDirectory(prefix="tenon-") as folder, beside.open("wb") as out:
            parts: list[Path] = []

            def write(rows: pl.DataFrame) -> None:
                nonlocal started
                if path.suffix == ".csv":
                    rows.write_csv(out, include_header=not started)
                elif path.suffix == ".jsonl":
                    rows.write_ndjson(out)
                else:
                    parts.append(Path(folder) / f"{len(parts):06}.parquet")
                    rows.write_parquet(parts[-1])
                started = True

            yield write
            if parts:
                pl.scan_parquet(parts).sink_parquet(beside)
        beside.replace(path)
    except OSError as error:
        raise InputError(sentence("room to write the scores", str(error.strerror or error), at=str(path))) from error
    finally:
        beside.unlink(missing_ok=True)


# ── tenon quarantine ─────────────────────────────────────────────────────────────────────────────────────────────────


def quarantined(file: Path, limit: int) -> list[dict[str, Any]]:
    """Return the first records of a quarantine file, raw bytes as text that is safe to show."""
    return waiting.show(_quarantine(file), limit)


def quarantine_summary(file: Path) -> list[dict[str, Any]]:
    """Count the records of a quarantine file by reason and column, most first, with one example each."""
    return waiting.summary(_quarantine(file))


def quarantine_replay(file: Path, policy: ingest.Policy, progress: Progress = silent) -> waiting.Replayed:
    """Read the rows of a quarantine file again by another policy; what can be read now is written beside the data."""
    name = _quarantine(file).name.removesuffix(".quarantine.parquet")
    job = ingest.Job(paths=(file,), out=file.parent, name=name, policy=policy)
    return waiting.replay(job, progress)


def _quarantine(file: Path) -> Path:
    """Return the path when it is a quarantine file, or say in words that it is none."""
    wanted = {"file", "line", "raw", "column", "reason", "fix"}
    try:
        missing = wanted - set(pl.scan_parquet(file).collect_schema().names())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(sentence("a quarantine file", str(error).splitlines()[0], at=str(file))) from error
    if missing:
        got, hint = f"Parquet without '{sorted(missing)[0]}'", "`tenon ingest` writes it as NAME.quarantine.parquet"
        raise InputError(sentence("a quarantine file", got, at=str(file), hint=hint))
    return file
