"""The way through ingest: find the files, read each, type the columns, write Parquet, close the balance."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tenon.errors import InputError, MissingError, sentence
from tenon.finding import Finding
from tenon.ingest.job import Balance, ColumnFacts, Ingested, Job, Progress, silent

NULLS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "-")
STAMPS = ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%d %H:%M:%S%.f")


def ingest(job: Job, progress: Progress = silent) -> Ingested:
    """Read every file of the job into typed Parquet under `job.out`; what cannot be read goes to quarantine."""
    begun = time.perf_counter()
    paths = files_of(job.paths)
    job.out.mkdir(parents=True, exist_ok=True)
    name = job.name or paths[0].name.split(".")[0]
    frames, size, findings, dialects = [], 0, [], {}
    for number, path in enumerate(paths):
        progress(number, len(paths), f"reading {path.name}")
        data = decoded(path)
        size += len(data)
        if not data.strip():
            findings.append(Finding(code="ingest/empty", severity="warning", place=str(path), said="the file is empty"))
            continue
        frame, dialect = _text(path, data)
        dialects[str(path)] = dialect
        frames.append(frame)
    if not frames:
        raise InputError(sentence("rows", "only empty files", at=str(paths[0]), hint="check what wrote them"))
    table = pl.concat(frames, how="diagonal")
    declared = {c.name: c for c in job.source.columns if not c.derive} if job.source else {}
    missing = [c for c in declared if c not in table.columns]
    if missing:
        found = ", ".join(table.columns)
        raise InputError(sentence(f"column '{missing[0]}'", f"columns {found}", at=str(paths[0]), hint="mend the names"))
    nulls = (*NULLS, *(job.source.null if job.source else ()))
    out, facts = [], []
    for column in table.get_columns():
        want = declared[column.name].type if column.name in declared else ""
        typed, kind = (column, "text") if job.text else _typed(column, want, nulls)
        out.append(typed)
        facts.append(ColumnFacts(name=column.name, type=kind, rows=typed.len(), null=typed.null_count()))
    frame = pl.DataFrame(out)
    file = job.out / f"{name}.parquet"
    frame.write_parquet(file, compression="zstd", compression_level=1)
    balance = Balance(bytes=size, row_bytes=size, quarantine_bytes=0)
    done = Ingested(
        files=(file,),
        quarantine=None,
        repairs=None,
        summary=job.out / f"{name}.summary.json",
        rows=frame.height,
        bytes=size,
        quarantined=0,
        repaired=0,
        balance=balance,
        columns=tuple(facts),
        findings=tuple(findings),
        seconds=time.perf_counter() - begun,
        dialects=dialects,
    )
    done.summary.write_text(json.dumps(done.to_dict(), indent=1), "utf-8")
    return done


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """Resolve files, folders and globs to files, sorted; none is an error."""
    found = [file for path in paths for file in _files(path)]
    if not found:
        raise MissingError(sentence("files to read", "none", at=", ".join(map(str, paths)), hint="check the path"))
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    elif path.exists():
        yield path
    else:
        anchor = Path(path.anchor)
        yield from sorted(file for file in anchor.glob(str(path.relative_to(anchor))) if file.is_file())


def decoded(path: Path) -> bytes:
    """Return the file's bytes, decompressed."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        return gzip.decompress(raw)
    if raw[:3] == b"BZh":
        return bz2.decompress(raw)
    if raw[:6] == b"\xfd7zXZ\x00":
        return lzma.decompress(raw)
    if raw[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(raw)) as pack:
            return pack.read(pack.namelist()[0])
    return raw


def _text(path: Path, data: bytes) -> tuple[pl.DataFrame, dict[str, str]]:
    if data[:4] == b"PAR1":
        return pl.read_parquet(io.BytesIO(data)).cast(pl.String), {"format": "parquet"}
    if data.lstrip()[:1] == b"{":
        return pl.read_ndjson(io.BytesIO(data)).cast(pl.String), {"format": "jsonl"}
    try:
        text = data[: 1 << 16].decode("utf-8", "ignore")
        delimiter = csv.Sniffer().sniff(text.rsplit("\n", 1)[0], ",;\t|").delimiter
    except csv.Error:
        delimiter = ","
    try:
        frame = pl.read_csv(data, separator=delimiter, infer_schema=False, empty_string_is_null=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(sentence("rows of text", str(error).splitlines()[0], at=str(path))) from error
    return frame, {"format": "csv", "delimiter": delimiter}


def _typed(column: pl.Series, want: str, nulls: tuple[str, ...]) -> tuple[pl.Series, str]:
    clean = pl.select(pl.when(column.is_in(nulls)).then(None).otherwise(column).alias(column.name)).to_series()
    missing = clean.null_count()
    for kind in [want] if want else ["int", "float", "timestamp", "date", "bool"]:
        for cast in _casts(clean, kind):
            if cast.null_count() == missing and (want or missing < len(cast)):
                return cast, kind
    return clean, "text"


def _casts(clean: pl.Series, kind: str) -> Iterator[pl.Series]:
    if kind == "int":
        yield clean.cast(pl.Int64, strict=False)
    elif kind == "float":
        yield clean.cast(pl.Float64, strict=False)
    elif kind == "bool":
        low = clean.str.to_lowercase()
        frame = pl.select(pl.when(low == "true").then(True).when(low == "false").then(False).alias(clean.name))
        yield frame.to_series()
    elif kind == "date":
        yield clean.str.to_date("%Y-%m-%d", strict=False)
    elif kind == "timestamp":
        for pattern in STAMPS:
            stamp = clean.str.to_datetime(pattern, strict=False, time_unit="us")
            yield stamp.dt.replace_time_zone(None)
