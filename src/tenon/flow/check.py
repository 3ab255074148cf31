"""Check files against a contract on their own: any data ingest can read, good rows and bad rows, a report for CI.

What is no Parquet is read as text first, every value spelt as in the source, so that rules see what was written and a
fault shows it. A contract says that a column is a number; the file says how numbers are written there. Where the plain
SQL spelling does not read a sample of the column, `written` learns the file's own with ingest's words (a decimal comma,
a currency, day before month) and takes it when it reads more of the sample. Faulty values are part of the sample, so
small parts of it are learnt from as well, and the reading with the fewest misfits wins. What means missing is what the
contract lists under `null`, where `tenon ingest` puts the words it read so for a person to review, and plain spellings
of null; any other word in a column of numbers is a fault, shown as it stands.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tenon import contract, ingest
from tenon.contract import sql, sql_columns
from tenon.contract.column import Column, Source
from tenon.contract.frame import DTYPES
from tenon.contract.rules import plan
from tenon.errors import ConfigError, InputError, sentence
from tenon.finding import Finding
from tenon.flow.single import place, replace_text
from tenon.flow.work import Progress, quiet
from tenon.ingest import values
from tenon.ingest.missing import STRONG, known
from tenon.ingest.plan import reading_for

SAMPLE = 2_000  # values of a column that its spelling is learnt from
PARTS, PART = 8, 24  # so many small parts of them, of so many different values each


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to check against which contract, and where good rows, bad rows and the JUnit report go, if anywhere."""

    data: Sequence[Path]
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
            "not_checked": list(self.verdict.contract.unread),
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": self.seconds,
            "written": [str(path) for path in self.written],
        }


def check(asked: Ask, progress: Progress = quiet) -> Checked:
    """Check files against a contract in ODCS YAML: good rows, bad rows, and which rule each bad row broke.

    Rows that cannot be read at all are told as ingest's findings beside the contract's.
    """
    started = time.perf_counter()
    agreed = read_contract(asked.contract)
    with tempfile.TemporaryDirectory(prefix="tenon-") as folder:
        out, data, unread, said = Path(folder), list(asked.data), 0, list[Finding]()
        readers: dict[str, contract.Reader] = {}
        if len(data) > 1 or data[0].suffix != ".parquet" or not data[0].is_file():
            source = _named(agreed)
            job = ingest.Job(paths=tuple(data), out=out / "read", name=agreed.name, text=True, source=source)
            done = ingest.ingest(job, progress=progress)
            if not done.files:
                hint = "see what ingest says of it"
                raise InputError(sentence("rows to check", "none", at=str(asked.data[0]), hint=hint))
            data, unread, said = list(done.files), done.quarantined, list(done.findings)
            readers = written(data, agreed)
        wanted = out / "checked" if asked.good is not None or asked.bad is not None else None
        verdict = contract.check_file(data, agreed, wanted, now=time.time(), readers=readers, progress=progress)
        files = []
        for made, target in ((verdict.good, asked.good), (verdict.bad, asked.bad)):
            if target is not None and made is not None:
                place(made, target)
                files.append(target)
        if asked.junit is not None:
            replace_text(asked.junit, verdict.to_junit())
            files.append(asked.junit)
    findings = [*verdict.findings, *said]
    return Checked(
        verdict=verdict, unread=unread, findings=findings, seconds=time.perf_counter() - started, written=files
    )


def read_contract(file: Path) -> contract.Contract:
    """Read a contract in ODCS YAML and look at its patterns and rules, before any data is read."""
    try:
        agreed = contract.Contract.from_odcs(file.read_text("utf-8"))
        plan(replace(agreed, rules=()), {column.name: DTYPES[column.type] for column in agreed.columns})
        for rule in agreed.rules:
            sql.parse(rule.sql, f"rule '{rule.label}'")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        hint = "`tenon ingest` writes one beside the data"
        raise InputError(sentence("a contract in YAML", str(error), at=str(file), hint=hint)) from error
    return agreed


def _named(agreed: contract.Contract) -> Source:
    """Return the contract's columns as text: their names decide what is a header, their types are checked later."""
    columns = [Column(column.name, "text", nullable=True) for column in agreed.columns if not column.derive]
    return Source(agreed.name, columns=columns, null=agreed.null)


# ── how the columns of a file are written ────────────────────────────────────────────────────────────────────────────


def written(files: Sequence[Path], agreed: contract.Contract) -> dict[str, contract.Reader]:
    """Learn from a sample how each column of text is written, for those that the contract gives a type."""
    lazy = pl.scan_parquet(list(files))
    there = set(lazy.collect_schema().names())
    rows = int(lazy.select(pl.len()).collect().item())
    step = max(1, rows // 10)
    sample = pl.concat([lazy.slice(at, SAMPLE // 5).collect() for at in range(0, rows, step)]) if rows else None
    cells = {
        column.name: _cells(sample[column.name]) if sample is not None else []
        for column in agreed.columns
        if column.name in there
    }
    learnt = [values.learn(each) for each in cells.values()]
    decimal, group = (any(getattr(one, mark) == "," for one in learnt) for mark in ("decimal", "group"))
    comma = "decimal" if decimal and not group else "group" if group and not decimal else ""
    found = {}
    for column in agreed.columns:
        if column.name not in cells:
            continue
        null = tuple(sorted({*agreed.null, *(word for word in STRONG if word and word not in (column.one_of or ()))}))
        read = None if column.type == "text" else _spelling(cells[column.name], column, comma)
        found[column.name] = contract.Reader(values=read, null=null)
    return found


def _cells(text: pl.Series) -> list[str]:
    return [cell for cell in text.unique(maintain_order=True).head(SAMPLE).to_list() if cell and not known(cell)]


def _spelling(cells: Sequence[str], column: Column, comma: str) -> Callable[[pl.Series], pl.Series] | None:
    """Return how to read the column where the plain spelling reads less of these cells; None where nothing does."""
    text = pl.Series("", cells, dtype=pl.String)
    best = _misfits(text, lambda cells: _plain(cells, column))
    found = None
    for reading in _readings(cells, column, comma) if best else ():
        read = _reading(reading, column)
        misfits = _misfits(text, read)
        if misfits < best:
            best, found = misfits, read
    return found


def _readings(cells: Sequence[str], column: Column, comma: str) -> Iterator[values.Reading]:
    """Yield what learning from all cells, those of the commonest shape, and small parts of these proposes."""
    shapes = Counter(_shape(cell) for cell in cells)
    common = [cell for cell in cells if _shape(cell) == shapes.most_common(1)[0][0]]
    parts = [
        cells,
        common,
        *(common[n::PARTS][:PART] for n in range(PARTS)),
        *(cells[n::PARTS][:PART] for n in range(PARTS)),
    ]
    numbers = ("int", "float")
    if column.type == "bool":
        yield from (values.Reading(type="bool", true=(yes,), false=(no,), plain=False) for yes, no in values.BOOLS)
    for part in parts:
        natural = values.learn(part, comma=comma)
        fits = natural.type == column.type or (natural.type in numbers and column.type in numbers)
        if fits or (natural.type == "date" and column.type == "timestamp"):
            yield reading_for(natural, column.type, declared=True)


def _shape(cell: str) -> str:
    return "".join("9" if sign.isdigit() else sign for sign in cell)


def _reading(reading: values.Reading, column: Column) -> Callable[[pl.Series], pl.Series]:
    """Return what reads a column so; a date in ISO order or a plain word is understood beside it, never a number."""

    def read(text: pl.Series) -> pl.Series:
        found = values.cast(text, reading).values
        if column.type in ("int", "float"):
            return found
        plain = _plain(text, column)
        return pl.select(pl.coalesce(plain, found)).to_series()

    return read


def _plain(text: pl.Series, column: Column) -> pl.Series:
    return pl.select(sql_columns.cast_column(pl.lit(text), "text", column.type)).to_series()


def _misfits(text: pl.Series, read: Callable[[pl.Series], pl.Series]) -> int:
    return read(text).null_count() if len(text) else 0


__all__ = ["Ask", "Checked", "check", "read_contract", "written"]
