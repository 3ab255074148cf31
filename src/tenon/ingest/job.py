"""The words of ingest: what is asked (Job), what is found (Ingested), and the account of every byte (Balance).

All are plain frozen values. `Balance` is arithmetic over the decoded input (decompressed, and UTF-16/32 turned into
UTF-8): bytes that became rows, bytes in quarantine, bytes skipped under a name (preamble, blank, header, repeated
header, footnote, another table). It closes when the three add up to what was read; `ingest` refuses to finish when it
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tenon.contract.column import ColumnType, Source
from tenon.finding import Finding
from tenon.limits import IngestLimits

Policy = Literal["row", "cell"]
Progress = Callable[[float, float, str], None]


def silent(done: float, total: float, said: str) -> None:
    """Report no progress."""


def uncounted(rows: int) -> None:
    """Count no rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to ingest and where to.

    `paths` are files, folders or globs; `out` is a folder. A `source` declares column names, types and null words;
    without one they are found. `policy` says what a cell that does not fit its column costs: its whole row goes to
    quarantine ("row"), or the cell becomes null and is flagged ("cell"). `text` keeps every column as text, spelt as
    in the source. `engine` is where ranges are read (None: on threads of this process), `ranges` into how many each
    input is cut (0: by size), `compiled` whether compiled code reads and writes what it can; none changes a value.
    `counted` is told the rows read so far, each time before progress is told the bytes.
    """

    paths: tuple[Path, ...]
    out: Path
    name: str = ""
    source: Source | None = None
    policy: Policy = "row"
    text: bool = False
    limits: IngestLimits = IngestLimits()
    engine: Any = None
    ranges: int = 0
    compiled: bool = True
    counted: Callable[[int], None] = uncounted


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where every byte of the decoded input went; `skipped` counts bytes by the name of the skip."""

    bytes: int
    row_bytes: int
    quarantine_bytes: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def skipped_bytes(self) -> int:
        """Return the bytes of all named skips together."""
        return sum(self.skipped.values())

    @property
    def closes(self) -> bool:
        """Whether rows, quarantine and skips add up to exactly what was read."""
        return self.bytes == self.row_bytes + self.quarantine_bytes + self.skipped_bytes

    def __add__(self, other: Balance) -> Balance:
        names = [*self.skipped, *(name for name in other.skipped if name not in self.skipped)]
        return Balance(
            bytes=self.bytes + other.bytes,
            row_bytes=self.row_bytes + other.row_bytes,
            quarantine_bytes=self.quarantine_bytes + other.quarantine_bytes,
            skipped={name: self.skipped.get(name, 0) + other.skipped.get(name, 0) for name in names},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the balance as plain data, as kept with the dataset."""
        return {
            "bytes": self.bytes,
            "row_bytes": self.row_bytes,
            "quarantine_bytes": self.quarantine_bytes,
            "skipped_bytes": self.skipped_bytes,
            "skipped": dict(self.skipped),
            "closes": self.closes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """What was found in one column: its type and how it was read, missing values, and the words read as missing."""

    name: str
    type: ColumnType
    unit: str = ""
    format: str = ""
    rows: int = 0
    null: int = 0
    null_words: tuple[str, ...] = ()
    repaired: int = 0
    quarantined: int = 0
    examples: tuple[str, ...] = ()

    @property
    def null_pct(self) -> float:
        """Return the share of missing values, in percent."""
        return 100.0 * self.null / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {**asdict(self), "null_pct": self.null_pct}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What came of a job: the Parquet files, the account of every byte, and what a person should know.

    `quarantine` and `repairs` are Parquet files, None when there was nothing to put in them. `dialects` says for each
    input how it was read. `bytes` are those of the decoded input.
    """

    files: tuple[Path, ...]
    quarantine: Path | None
    repairs: Path | None
    summary: Path
    rows: int
    bytes: int
    quarantined: int
    repaired: int
    balance: Balance
    columns: tuple[ColumnFacts, ...]
    findings: tuple[Finding, ...]
    seconds: float
    dialects: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain data, as written to the summary."""
        return {
            "files": [str(file) for file in self.files],
            "quarantine": str(self.quarantine) if self.quarantine else "",
            "repairs": str(self.repairs) if self.repairs else "",
            "rows": self.rows,
            "bytes": self.bytes,
            "quarantined": self.quarantined,
            "repaired": self.repaired,
            "balance": self.balance.to_dict(),
            "columns": [column.to_dict() for column in self.columns],
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": self.seconds,
            "dialects": {name: dict(dialect) for name, dialect in self.dialects.items()},
        }
