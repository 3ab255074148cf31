"""What waits in quarantine: shown safely, summed up, and read again after a rule was mended.

`replay` reads only the quarantined rows, under the plan they were refused by and whatever the job declares now: other
types, more null words, the other policy. Rows that can be read become `NAME.replayed.parquet` with the columns of the
result; the quarantine keeps the rest, each with the place it had in the source. The result itself is not touched, and
nothing is read from the source, which may be gone.

Bytes of strangers are shown only through `safe`: control characters, which a terminal would obey, are spelt out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tenon.errors import MissingError, sentence
from tenon.ingest import plan as planning
from tenon.ingest import unit
from tenon.ingest.account import put
from tenon.ingest.charset import Charset, decode
from tenon.ingest.job import Job, Progress, silent
from tenon.ingest.plan import FilePlan, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a replay: rows that could be read now and where they are, and how many still wait."""

    file: Path | None
    rows: int
    waiting: int
    seconds: float


def safe(raw: bytes, size: int = 200) -> str:
    """Return bytes as one line of text that is harmless in a terminal; cut at `size` characters."""
    text, _ = decode(raw, Charset())
    out = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text[: size + 1]
    )
    return out[:size] + "…" if len(out) > size else out


def summary(path: Path) -> list[dict[str, Any]]:
    """Count the records by file, reason and column, the most frequent first, each with one example shown safely."""
    found = (
        pl.scan_parquet(_known(path))
        .group_by("file", "reason", "column")
        .agg(pl.len().alias("rows"), pl.col("raw").first(), pl.col("line").first(), pl.col("fix").first())
        .sort(["rows", "file", "reason", "column"], descending=[True, False, False, False])
        .collect()
    )
    return [{**one, "raw": safe(one["raw"]), "fix": safe(one["fix"].encode(), 400)} for one in found.to_dicts()]


def show(path: Path, limit: int = 20, reason: str = "") -> list[dict[str, Any]]:
    """Return the first records, with their bytes shown safely."""
    records = pl.scan_parquet(_known(path))
    if reason:
        records = records.filter(pl.col("reason") == reason)
    found = records.head(limit).collect().to_dicts()
    return [{**one, "raw": safe(one["raw"]), "fix": safe(one["fix"].encode(), 400)} for one in found]


def _known(path: Path) -> Path:
    if not path.is_file():
        raise MissingError(sentence("a quarantine file", "none", at=str(path), hint="nothing waits when there is none"))
    return path


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def replay(job: Job, progress: Progress = silent) -> Replayed:
    """Read the quarantined rows of an earlier ingest again; `job` has its `out` and `name`, and what holds now."""
    begun = time.perf_counter()
    path = _known(job.out / f"{job.name}.quarantine.parquet")
    kept = job.out / f"{job.name}.plan.json"
    if not kept.is_file():
        raise MissingError(sentence("the plan of the ingest", "none", at=str(kept), hint="ingest the source again"))
    plan = _mended(Plan.load(kept), job)
    work = job.out / f".{job.name}.replay"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        records = pl.read_parquet(path)
        done: list[pl.DataFrame] = []
        waiting: list[pl.DataFrame] = []
        for number, file in enumerate(plan.files):
            mine = records.filter((pl.col("file") == file.label) & (pl.col("offset") >= 0))
            waiting.append(records.filter((pl.col("file") == file.label) & (pl.col("offset") < 0)))
            if mine.height and file.format != "parquet":
                good, bad = _again(mine, plan, number)
                done.append(good)
                waiting.append(bad)
            progress(number + 1, len(plan.files), "reading quarantined rows")
        good = pl.concat([one for one in done if one.height]) if any(one.height for one in done) else pl.DataFrame()
        bad = pl.concat(waiting).sort("file", "offset")
        target = _written(good, bad, path, job, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Replayed(file=target, rows=good.height, waiting=bad.height, seconds=time.perf_counter() - begun)


def _mended(plan: Plan, job: Job) -> Plan:
    """Return the plan with what the job declares now: types, null words, policy."""
    declared = {c.name: c for c in job.source.columns if not c.derive} if job.source else {}
    extra = tuple(job.source.null) if job.source else ()
    outputs = tuple(
        replace(one, type=declared[one.name].type, declared=True) if one.name in declared else one
        for one in plan.outputs
    )
    files = []
    for file in plan.files:
        readings = tuple(
            planning.reading_for(
                reading, outputs[target].type, declared=reading.declared or outputs[target].declared, extra=extra
            )
            if target >= 0
            else reading
            for reading, target in zip(file.readings, file.targets, strict=True)
        )
        profiles = tuple(
            replace(one, reading=replace(reading if reading.type != "text" else one.reading, null=reading.null))
            for one, reading in zip(file.profiles, readings, strict=True)
        )
        files.append(replace(file, readings=readings, profiles=profiles))
    return replace(plan, outputs=outputs, files=tuple(files), policy=job.policy, patient=True)


def _again(mine: pl.DataFrame, plan: Plan, number: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the raw rows of one file again; return rows, and records that still wait, with what is wrong now."""
    # Pieces of a line that is too long are no rows.
    whole = mine.filter(pl.col("reason") != "too-long")
    raws: Sequence[bytes] = [raw if raw.endswith((b"\n", b"\r")) else raw + b"\n" for raw in whole["raw"].to_list()]
    file: FilePlan = replace(plan.files[number], begin=0, preamble=0, stop=-1, header_raw=b"")
    if not raws or not file.profiles:
        return pl.DataFrame(), mine
    ends = np.cumsum([len(raw) for raw in raws])
    begins = ends - np.array([len(raw) for raw in raws])
    good, read, done = unit.again(b"".join(raws), begins.astype(np.int64), plan, file)
    taken = set(read)
    names = [plan.outputs[target].name if target >= 0 else "" for target in file.targets]
    now = {
        one.begin: (one.code, one.fix, names[one.column] if 0 <= one.column < len(names) else "")
        for one in done.refused
    }
    left = [row for row, begin in enumerate(begins.tolist()) if begin not in taken]
    records = whole.to_dicts()
    bad = []
    for row in left:
        record = records[row]
        reason, fix, column = now.get(int(begins[row]), (record["reason"], record["fix"], record["column"]))
        bad.append({**record, "reason": reason, "fix": fix, "column": column})
    waiting = pl.concat([mine.filter(pl.col("reason") == "too-long"), pl.DataFrame(bad, schema=mine.schema)])
    return good, waiting


def _written(good: pl.DataFrame, bad: pl.DataFrame, path: Path, job: Job, work: Path) -> Path | None:
    """Write what could be read beside the result, then what still waits in place of the old quarantine."""
    target = job.out / f"{job.name}.replayed.parquet" if good.height else None
    if target is not None:
        before = [pl.read_parquet(target)] if target.exists() else []
        put(pl.concat([*before, good]) if before and before[0].schema == good.schema else good, work / "replayed")
    if bad.height:
        put(bad, work / "quarantine")
    if target is not None:
        (work / "replayed").replace(target)
    if bad.height:
        (work / "quarantine").replace(path)
    else:
        path.unlink()
    return target
