"""From the parts of all ranges to the result: footnotes found, numbers made global, parts joined, the account closed.

Ranges count lines and rows from their own beginning; here they get their place in the whole. Rows refused after the
last row of a file, with next to nothing in them, are a footnote; one that ends without a line ending where the file
breaks off is a cut row. Then the account of every input is added up, and must close.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tenon.errors import InputError, sentence
from tenon.finding import Finding, Severity
from tenon.ingest import parquet
from tenon.ingest.account import put
from tenon.ingest.charset import to_utf8
from tenon.ingest.detect import TYPED, kind
from tenon.ingest.dialect import chomp, split
from tenon.ingest.gauge import gauge
from tenon.ingest.job import Balance, ColumnFacts, Ingested, Job
from tenon.ingest.joined import Joined
from tenon.ingest.plan import FilePlan, Plan
from tenon.ingest.typed import Facts
from tenon.ingest.values import POLARS, Reading

EXAMPLE_ROWS = 50
HELD = 1 << 25  # bytes of quarantine held at once while it is joined
FOOT_ROWS = 40  # more refused rows at the end than this are no footnote


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """One range that has been read: of which input, where its files are, what it told, how long the input is."""

    file: int
    out: Path
    told: dict[str, Any]
    size: int

    def companion(self, suffix: str) -> Path:
        """Return the path of one of the range's files."""
        return self.out.with_name(self.out.name + suffix)


@dataclass(frozen=True, slots=True)
class _Foot:
    """What the end of one input turned out to be: offsets of footnote rows, and of a row that was cut."""

    notes: frozenset[int]
    note_bytes: int
    cut: int


def finish(
    job: Job,
    name: str,
    plan: Plan,
    ranges: Sequence[Range],
    facts: Sequence[Facts],
    about: Sequence[dict[str, Any]],
    joined: Joined,
) -> Ingested:
    """Put the joined parts in place as the result and close the account; raises when it does not close."""
    work = joined.work
    feet = [
        _foot(file, [one for one in ranges if one.file == n], broken=bool(about[n]["cut"]))
        for n, file in enumerate(plan.files)
    ]
    balance = Balance(bytes=0, row_bytes=0, quarantine_bytes=0)
    for number, file in enumerate(plan.files):
        mine = [one for one in ranges if one.file == number]
        closed = _balance(file, mine, feet[number])
        if not closed.closes:
            got = f"{closed.row_bytes + closed.quarantine_bytes + closed.skipped_bytes:,}"
            raise InputError(
                sentence(f"{closed.bytes:,} bytes accounted for", got, at=file.label, hint="please report this")
            )
        balance += closed
    quarantine = _joined(job, name, "quarantine", ranges, feet, work)
    repairs = _joined(job, name, "repairs", ranges, feet, work)
    rows = sum(one.told["rows"] for one in ranges)
    quarantined = sum(one.told["quarantined"] for one in ranges) - sum(len(foot.notes) for foot in feet)
    columns = _columns(plan, ranges, facts)
    done = Ingested(
        files=_files(job, name, plan, joined),
        quarantine=quarantine,
        repairs=repairs,
        summary=job.out / f"{name}.summary.json",
        rows=rows,
        bytes=balance.bytes,
        quarantined=quarantined,
        repaired=sum(one.told["repaired"] for one in ranges),
        balance=balance,
        columns=columns,
        findings=(),
        seconds=0.0,
        dialects={file.label: _dialect(file) for file in plan.files},
    )
    done = replace(done, findings=tuple(_findings(job, plan, ranges, about, feet, done)))
    # The same bytes wherever and however often it is made: no times, and names instead of paths.
    body = {key: value for key, value in done.to_dict().items() if key != "seconds"}
    body["files"] = [file.name for file in done.files]
    body |= {"quarantine": quarantine.name if quarantine else "", "repairs": repairs.name if repairs else ""}
    temporary = work / "plan.json"
    temporary.write_text(json.dumps(plan.to_dict(), ensure_ascii=False), "utf-8")
    temporary.replace(job.out / f"{name}.plan.json")
    temporary = work / "summary.json"
    temporary.write_text(json.dumps(body, indent=1, ensure_ascii=False), "utf-8")
    temporary.replace(done.summary)
    return done


def _balance(file: FilePlan, ranges: Sequence[Range], foot: _Foot) -> Balance:
    size = max((one.size for one in ranges), default=file.begin)
    skipped: Counter[str] = Counter()
    if file.format != "parquet":
        mark = min(file.charset.mark, file.preamble) if not file.charset.wide else 0
        skipped.update({"mark": mark, "preamble": file.preamble - mark, "header": file.begin - file.preamble})
    for one in ranges:
        skipped.update(one.told["skipped"])
    if ranges and ranges[-1].told["stop"] >= 0:
        skipped["other-table"] += size - ranges[-1].told["stop"]
    elif file.stop >= 0:
        skipped["footnote"] += size - file.stop
    skipped["footnote"] += foot.note_bytes
    return Balance(
        bytes=size,
        row_bytes=sum(one.told["row_bytes"] for one in ranges),
        quarantine_bytes=sum(one.told["quarantine_bytes"] for one in ranges) - foot.note_bytes,
        skipped={name: count for name, count in skipped.items() if count},
    )


# ── the end of an input ──────────────────────────────────────────────────────────────────────────────────────────────


def _foot(file: FilePlan, ranges: Sequence[Range], *, broken: bool) -> _Foot:
    """Look at the rows refused after the last row of an input; one whose compression is broken ends in no note."""
    last = max((one.told["last_row_end"] for one in ranges), default=-1)
    tail: list[dict[str, Any]] = []
    for one in reversed(ranges):
        if one.told["quarantined"]:
            found = pl.scan_parquet(one.companion(".quarantine.parquet")).filter(pl.col("offset") >= last)
            if found.select(pl.len()).collect().item() > FOOT_ROWS or one.told["quarantine_bytes"] > HELD:
                return _Foot(frozenset(), 0, -1)
            frame = found.collect()
            tail = frame.to_dicts() + tail
        if one.told["rows"] or len(tail) > FOOT_ROWS:
            break
    if file.format != "csv" or not tail or last < 0 or len(tail) > FOOT_ROWS:
        return _Foot(frozenset(), 0, -1)
    cut = -1
    end = ranges[-1].told["end"]
    final = tail[-1]
    if (
        final["offset"] + len(final["raw"]) == end
        and not final["raw"].endswith((b"\n", b"\r"))
        and (broken or not _note(file, final["raw"]))
    ):
        cut = final["offset"]
    notes = [one for one in tail if one["offset"] != cut]
    if not all(_note(file, one["raw"]) for one in notes):
        notes = []
    return _Foot(frozenset(one["offset"] for one in notes), sum(len(one["raw"]) for one in notes), cut)


def _note(file: FilePlan, raw: bytes) -> bool:
    """Whether a row is a note and no data: few cells, and none that looks like its column."""
    (row,), _ = to_utf8([chomp(raw)], file.charset)
    cells = split(row, file.dialect).values
    filled = [n for n, cell in enumerate(cells) if cell.strip()]
    width = len(file.targets)
    if width < 2 or not filled or (len(filled) > max(1, width // 3) and len(cells) >= 0.8 * width):
        return False
    typed = [n for n in filled if n < width and file.profiles[n].typed]
    fits = [n for n in typed if kind(cells[n]) in TYPED or gauge(file.profiles[n])(cells[n]) < 1]
    return not fits and cells[0].strip() != b"" and (len(filled) == 1 or len(cells) < width)


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _joined(job: Job, name: str, what: str, ranges: Sequence[Range], feet: Sequence[_Foot], work: Path) -> Path | None:
    """Join the quarantine or the repairs of all ranges, with lines and rows counted from the beginning.

    What many small ranges have is gathered until it is a good deal, and written at once.
    """
    target = job.out / f"{name}.{what}.parquet"
    parts: list[Path] = []
    held: list[pl.DataFrame] = []
    folder = work / what
    folder.mkdir(exist_ok=True)
    rows = 0
    lines, file = 0, -1
    for one in ranges:
        if one.file != file:
            file, lines = one.file, one.told["first_line"]
        source = one.companion(f".{what}.parquet")
        count = one.told["quarantined" if what == "quarantine" else "repairs"]
        size = max(one.told["quarantine_bytes"], 1) if what == "quarantine" else 1
        step = max(1, count * HELD // size) if what == "quarantine" else count
        for begin in range(0, count, max(step, 1)):
            frame = pl.scan_parquet(source).slice(begin, step).with_columns(pl.col("line") + lines + 1)
            held.append((_noted(frame, feet[one.file]) if what == "quarantine" else _numbered(frame, rows)).collect())
            if sum(part.estimated_size() for part in held) >= HELD:
                _put_held(held, folder, parts)
        lines += one.told["lines"]
        rows += one.told["rows"]
    _put_held(held, folder, parts)
    if not parts:
        target.unlink(missing_ok=True)
        return None
    _replace(parts, target, work)
    return target


def _put_held(held: list[pl.DataFrame], folder: Path, parts: list[Path]) -> None:
    """Write what is held as one more part, and hold it no longer."""
    frame = pl.concat(held) if held else pl.DataFrame()
    held.clear()
    if frame.height:
        parts.append(folder / f"{len(parts):06d}")
        put(frame, parts[-1])


def _numbered(frame: pl.LazyFrame, rows: int) -> pl.LazyFrame:
    return frame.with_columns(pl.col("row") + rows)


def _noted(frame: pl.LazyFrame, foot: _Foot) -> pl.LazyFrame:
    """Leave out what is a footnote, and tell of the row in which the file ends."""
    cut = pl.col("offset") == foot.cut
    return frame.filter(~pl.col("offset").is_in(list(foot.notes))).with_columns(
        reason=pl.when(cut).then(pl.lit("truncated")).otherwise("reason"),
        fix=pl.when(cut).then(pl.lit("the rest of the file")).otherwise("fix"),
    )


def _replace(parts: Sequence[Path], target: Path, work: Path) -> None:
    temporary = work / (target.name + ".new")
    parquet.join(parts, temporary)
    temporary.replace(target)


def _files(job: Job, name: str, plan: Plan, joined: Joined) -> tuple[Path, ...]:
    """Put the result's files in place; an input without rows still gives a file with its columns."""
    if not plan.outputs:
        return ()
    made = joined.close()
    if not made:
        types: dict[str, Any] = {one.name: pl.String if plan.text else POLARS[one.type] for one in plan.outputs}
        made = [joined.work / "none.parquet"]
        put(pl.DataFrame(schema=types), made[0])
    names = [f"{name}.parquet"] if len(made) == 1 else [f"{name}-{n + 1:05d}.parquet" for n in range(len(made))]
    for path, target in zip(made, names, strict=True):
        path.replace(job.out / target)
    for old in job.out.glob(f"{name}*.parquet"):
        stem = old.name[len(name) : -len(".parquet")]
        if old.name not in names and (stem == "" or (stem.startswith("-") and stem[1:].isdigit() and len(stem) == 6)):
            old.unlink()
    return tuple(job.out / target for target in names)


# ── what a person should know ────────────────────────────────────────────────────────────────────────────────────────


def _columns(plan: Plan, ranges: Sequence[Range], facts: Sequence[Facts]) -> tuple[ColumnFacts, ...]:
    out = []
    examples = _examples(ranges)
    readings: list[list[Reading]] = [[] for _ in plan.outputs]
    for file in plan.files:
        for target, reading in zip(file.targets, file.readings, strict=True):
            if target >= 0:
                readings[target].append(reading)
    for output, fact, ways in zip(plan.outputs, facts, readings, strict=True):
        out.append(
            ColumnFacts(
                name=output.name,
                type="text" if plan.text else output.type,
                unit=next((reading.unit for reading in ways if reading.unit), ""),
                format="; ".join(dict.fromkeys(reading.said for reading in ways if reading.said)),
                rows=fact.rows,
                null=fact.null,
                null_words=tuple(sorted(word for word in fact.words if word)),
                repaired=fact.repaired,
                quarantined=fact.quarantined,
                examples=examples.get(output.name, ()),
            )
        )
    return tuple(out)


def _examples(ranges: Sequence[Range]) -> dict[str, tuple[str, ...]]:
    """Return the first few different values of every column, from the first rows."""
    heads: list[pl.DataFrame] = []
    for one in ranges:
        if one.told["rows"]:
            heads.append(pl.read_parquet(one.companion(".parquet"), n_rows=EXAMPLE_ROWS))
        if sum(head.height for head in heads) >= EXAMPLE_ROWS:
            break
    if not heads:
        return {}
    rows = pl.concat(heads).head(EXAMPLE_ROWS)
    return {
        column.name: tuple(str(value) for value in column.drop_nulls().unique(maintain_order=True).head(3).to_list())
        for column in rows.get_columns()
    }


def _dialect(file: FilePlan) -> dict[str, Any]:
    return {
        "format": file.format,
        "encoding": file.charset.name,
        **({"delimiter": file.dialect.delimiter.decode("latin-1")} if file.format == "csv" else {}),
        **({"quote": file.dialect.quote.decode("latin-1")} if file.format == "csv" else {}),
        **({"escape": file.dialect.escape.decode("latin-1")} if file.format == "csv" else {}),
        **({"spaced": file.dialect.spaced} if file.format == "csv" else {}),
        "header": list(file.header),
        "columns": len(file.targets),
        "rows_begin": file.begin,
    }


def _findings(
    job: Job,
    plan: Plan,
    ranges: Sequence[Range],
    about: Sequence[dict[str, Any]],
    feet: Sequence[_Foot],
    done: Ingested,
) -> Iterable[Finding]:
    for number, file in enumerate(plan.files):
        mine = [one for one in ranges if one.file == number]
        yield from _file_findings(plan, file, mine, about[number], feet[number])
    yield from _column_findings(plan, done.columns)
    if done.quarantine:
        said = f"{done.quarantined:,} {'row waits' if done.quarantined == 1 else 'rows wait'} in quarantine"
        yield _counted("ingest/quarantined", "warning", done.quarantine, "reason", said, job)
    if done.repairs:
        said = f"{done.repaired:,} {'row was' if done.repaired == 1 else 'rows were'} repaired, each repair recorded"
        yield _counted("ingest/repaired", "info", done.repairs, "repair", said, job)


def _file_findings(
    plan: Plan, file: FilePlan, ranges: Sequence[Range], about: dict[str, Any], foot: _Foot
) -> Iterable[Finding]:
    place = file.label
    if not sum(one.told["rows"] for one in ranges):
        yield Finding(
            code="ingest/empty", severity="warning", place=place, said="the file has no rows", hint="ask what wrote it"
        )
    if file.rival:
        said = f"read with {file.dialect.said} as delimiter; {file.rival} explains it nearly as well"
        yield Finding(code="ingest/dialect", severity="warning", place=place, said=said, hint="look at the first rows")
    odd: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for one in ranges:
        odd.update(one.told["encodings"])
        skipped.update(one.told["skipped"])
    if odd or file.charset.wide:
        told = (
            ", ".join(f"{count:,} lines as {name}" for name, count in odd.most_common())
            or f"all of it as {file.charset.name}"
        )
        numbers = {f"lines_{name}": float(count) for name, count in odd.items()}
        yield Finding(code="ingest/encoding", severity="info", place=place, said=f"not UTF-8: {told}", numbers=numbers)
    if about["cut"]:
        yield Finding(
            code="ingest/truncated",
            severity="error",
            place=place,
            said=f"the compression ends early: {about['cut']}",
            hint="fetch the file again",
        )
    if foot.cut >= 0:
        said = f"the last row, at byte {foot.cut:,}, breaks off"
        yield Finding(
            code="ingest/truncated",
            severity="error",
            place=f"{place}:{foot.cut}",
            said=said,
            hint="fetch the file again",
        )
    if file.preamble > file.charset.mark and file.format == "csv":
        skipped["preamble"] += file.preamble
    if foot.note_bytes:
        skipped["footnote"] += foot.note_bytes
    if ranges and ranges[-1].told["stop"] >= 0:
        skipped["other-table"] += ranges[-1].size - ranges[-1].told["stop"]
        place = f"{place}:{ranges[-1].told['stop']}"
    if skipped:
        told = ", ".join(f"{name} {size:,} bytes" for name, size in skipped.items())
        severity: Severity = "warning" if "other-table" in skipped else "info"
        hint = "cut the other table out to ingest it by itself" if "other-table" in skipped else ""
        numbers = {f"{name.replace('-', '_')}_bytes": float(size) for name, size in skipped.items()}
        yield Finding(
            code="ingest/skipped", severity=severity, place=place, said=f"skipped: {told}", hint=hint, numbers=numbers
        )
    lacking = [one.name for n, one in enumerate(plan.outputs) if n not in file.targets]
    if lacking and file.targets:
        said = f"has no column {', '.join(lacking[:5])}; its rows have null there"
        yield Finding(code="ingest/schema-change", severity="warning", place=file.label, said=said)


def _column_findings(plan: Plan, columns: Sequence[ColumnFacts]) -> Iterable[Finding]:
    if plan.text:
        return
    for number, fact in enumerate(columns):
        readings = [file.readings[file.targets.index(number)] for file in plan.files if number in file.targets]
        judged = [file.profiles[file.targets.index(number)].reading for file in plan.files if number in file.targets]
        rivals = next((one for one in judged if one.rivals), None)
        if rivals is not None and rivals.rivals == ("decimal", "group"):
            said = "its commas or points may mean decimals or thousands; kept as text"
            yield Finding(
                code="ingest/ambiguous-number",
                severity="warning",
                place=fact.name,
                said=said,
                hint="declare the type of the column",
            )
        elif rivals is not None:
            said = f"dates fit {' and '.join(rivals.rivals[:3])} and would mean other days; kept as text"
            yield Finding(
                code="ingest/ambiguous-date",
                severity="warning",
                place=fact.name,
                said=said,
                hint="declare how the dates are written",
            )
        if fact.null_words:
            said = f"read as missing: {', '.join(repr(word) for word in fact.null_words[:8])}"
            yield Finding(
                code="ingest/null-words", severity="info", place=fact.name, said=said, hint="review the words"
            )
        mixed = (
            fact.type == "text"
            and any(one.type != "text" for one in judged)
            and not any(one.declared for one in readings)
        )
        if fact.quarantined or mixed:
            said = (
                f"{fact.quarantined:,} value{' does' if fact.quarantined == 1 else 's do'} not fit type {fact.type}"
                if fact.quarantined
                else "values of several types; kept as text"
            )
            yield Finding(
                code="ingest/mixed-types",
                severity="warning",
                place=fact.name,
                said=said,
                numbers={"values": float(fact.quarantined)},
            )


def _counted(code: str, severity: Any, path: Path, column: str, said: str, job: Job) -> Finding:
    """Tell of what kinds the records of a file are, with the place of the first."""
    counts = pl.scan_parquet(path).group_by(column).len().sort("len", column, descending=[True, False]).collect()
    first = pl.scan_parquet(path).select("file", "line", "column").head(1).collect().to_dicts()[0]
    shown = counts.head(job.limits.examples_per_finding)
    told = ", ".join(f"{name} {count:,}" for name, count in shown.iter_rows())
    more = counts.height - shown.height
    told += f" and {more} more kind{'s' if more > 1 else ''}" if more else ""
    place = f"{first['file']}:{first['line']}" + (f":{first['column']}" if first["column"] else "")
    numbers = {str(name).replace("-", "_"): float(count) for name, count in counts.iter_rows()}
    return Finding(
        code=code, severity=severity, place=place, said=f"{said} ({told})", hint=f"open {path.name}", numbers=numbers
    )
