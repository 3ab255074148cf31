"""Ingest and check on their own: files in, files out, no project and no store.

`tenon ingest` and `tenon check` are for a team that uses nothing else of tenon. What a person gave is never changed,
and what is written is named before work begins and replaced in one step.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tenon import contract, ingest
from tenon.contract.column import Source
from tenon.errors import InputError, UsageError, nearest, sentence
from tenon.finding import Finding
from tenon.flow.work import Progress, quiet
from tenon.ingest import quarantine as waiting
from tenon.ingest.clean import clean

BATCH_ROWS = 8_192
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
    """What reading came to, and every file that was written."""

    ingested: ingest.Ingested
    written: Sequence[Path]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {**self.ingested.to_dict(), "written": [str(path) for path in self.written]}


def read(asked: Read, progress: Progress = quiet) -> Done:
    """Read messy files into typed Parquet, quarantine and a contract to review; or, with `csv`, into clean CSV."""
    name = asked.name or name_of(asked.paths)
    if asked.csv is not None:
        with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
            job = ingest.Job(paths=tuple(asked.paths), out=Path(folder), name=name, policy=asked.policy)
            done = clean(job, asked.csv, progress)
        return Done(ingested=done, written=[asked.csv])
    job = ingest.Job(paths=tuple(asked.paths), out=asked.out, name=name, policy=asked.policy, text=asked.text)
    done = ingest.ingest(job, progress=progress)
    written = [*done.files, *(path for path in (done.quarantine, done.repairs, done.summary) if path is not None)]
    if done.files:
        inferred = contract.infer(pl.scan_parquet(list(done.files)).head(1_000_000).collect(), name)
        file = asked.out / f"{name}.contract.yaml"
        replace_text(file, inferred.to_odcs())
        written.append(file)
    return Done(ingested=done, written=written)


def name_of(paths: Sequence[Path]) -> str:
    """Name what is written after the first path: `dump` for dump.csv.gz, the folder's name for a folder."""
    first = paths[0]
    return first.name.split(".")[0] or first.resolve().name


def replace_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it there."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(sentence("a file that can be written", str(error.strerror), at=str(path))) from error


# ── tables for other stages ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A file's rows in batches, how many there are, and what reading it found."""

    frames: Iterator[pl.DataFrame]
    rows: int
    findings: Sequence[Finding]


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

        yield Batches(frames=frames(), rows=done.rows, findings=done.findings)


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


# ── tenon check ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to check against which contract, and where good rows, bad rows and the JUnit report go, if anywhere."""

    data: Path
    contract: Path
    good: Path | None = None
    bad: Path | None = None
    junit: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check found: the verdict, the rows that could not even be read, and every file that was written."""

    verdict: contract.FileVerdict
    unread: int
    findings: Sequence[Finding]
    seconds: float
    written: Sequence[Path]

    @property
    def passed(self) -> bool:
        """Say whether the contract holds: no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            **self.verdict.to_dict(),
            "passed": self.passed,
            "unread": self.unread,
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": self.seconds,
            "written": [str(path) for path in self.written],
        }


def check(asked: Ask, progress: Progress = quiet) -> Checked:
    """Check a file against a contract in ODCS YAML: good rows, bad rows, and which rule each bad row broke.

    What is no Parquet is read as text, so that rules see what was written. Rows that cannot be read at all are told
    as ingest's findings beside the contract's.
    """
    started = time.perf_counter()
    try:
        agreed = contract.Contract.from_odcs(asked.contract.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = "`tenon ingest` writes one beside the data"
        raise InputError(sentence("a contract in YAML", str(error), at=str(asked.contract), hint=hint)) from error
    if not asked.data.exists():
        raise InputError(sentence("a file to check", "nothing", at=str(asked.data), hint="check the path"))
    with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
        out, data, unread, said = Path(folder), [asked.data], 0, list[Finding]()
        if asked.data.suffix != ".parquet":
            job = ingest.Job(paths=(asked.data,), out=out / "read", name=agreed.name, text=True, source=_named(agreed))
            done = ingest.ingest(job, progress=progress)
            if not done.files:
                raise InputError(
                    sentence("rows to check", "none", at=str(asked.data), hint="see what ingest says of it")
                )
            data, unread, said = list(done.files), done.quarantined, list(done.findings)
        wanted = out / "checked" if asked.good is not None or asked.bad is not None else None
        verdict = contract.check_file(data, agreed, wanted, progress=progress)
        written = []
        for source, target in ((verdict.good, asked.good), (verdict.bad, asked.bad)):
            if target is not None and source is not None:
                place(source, target)
                written.append(target)
        if asked.junit is not None:
            replace_text(asked.junit, verdict.to_junit())
            written.append(asked.junit)
    findings = [*verdict.findings, *said]
    return Checked(
        verdict=verdict, unread=unread, findings=findings, seconds=time.perf_counter() - started, written=written
    )


def _named(agreed: contract.Contract) -> Source:
    """Return the contract's columns as text: their names decide what is a header, their types are checked later."""
    columns = [contract.Column(column.name, "text", nullable=True) for column in agreed.columns if not column.derive]
    return Source(agreed.name, columns=columns, null=agreed.null)


def place(source: Path, target: Path) -> None:
    """Copy a file beside its place and rename it there, so that nobody opens half of it."""
    beside = target.with_name(f".{target.name}.new")
    try:
        shutil.copyfile(source, beside)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(sentence("room to write", str(error.strerror), at=str(target))) from error


# ── tenon quarantine ─────────────────────────────────────────────────────────────────────────────────────────────────


def quarantined(file: Path, limit: int) -> list[dict[str, Any]]:
    """Return the first records of a quarantine file, raw bytes as text that is safe to show."""
    return waiting.show(_quarantine(file), limit)


def quarantine_summary(file: Path) -> list[dict[str, Any]]:
    """Count the records of a quarantine file by reason and column, most first, with one example each."""
    return waiting.summary(_quarantine(file))


def quarantine_replay(file: Path, policy: ingest.Policy, progress: Progress = quiet) -> waiting.Replayed:
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
