"""The account of a range: what is gathered over its pieces, whether its bytes add up, and the files it is written to.

Files are written beside their names and renamed; the account is written last, so that a part with an account is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from tenon.errors import InputError, sentence
from tenon.ingest import pages, parquet
from tenon.ingest.look import Looked
from tenon.ingest.plan import FilePlan
from tenon.ingest.quick import Quick
from tenon.ingest.typed import Facts

SPILL = 1 << 25  # bytes of one giant row held before they are written
QUARANTINE = {
    "file": pl.String,
    "offset": pl.Int64,
    "line": pl.Int64,
    "raw": pl.Binary,
    "column": pl.String,
    "reason": pl.String,
    "fix": pl.String,
}
REPAIRS = {
    "row": pl.Int64,
    "file": pl.String,
    "offset": pl.Int64,
    "line": pl.Int64,
    "column": pl.String,
    "repair": pl.String,
    "was": pl.String,
}


@dataclass(slots=True)
class Account:
    """What is gathered over the pieces of one range."""

    facts: list[Facts]
    compiled: bool = False
    frames: list[pl.DataFrame] = field(default_factory=list)
    quarantine: list[tuple[Any, ...]] = field(default_factory=list)
    repairs: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in REPAIRS})
    skipped: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    lines: int = 0
    row_bytes: int = 0
    quarantine_bytes: int = 0
    last_row_end: int = -1
    stop: int = -1
    bailed: bool = False
    unknown: dict[str, list[str]] = field(default_factory=dict)
    spilled: list[Path] = field(default_factory=list)
    spilled_rows: int = 0
    spilled_bytes: int = 0

    def skip(self, name: str, size: int) -> None:
        if size:
            self.skipped[name] = self.skipped.get(name, 0) + size

    def spill(self, out: str, least: int = SPILL) -> None:
        """Write what is in quarantine to a file of its own when it is that many bytes, to hold them no longer."""
        if self.quarantine_bytes - self.spilled_bytes < least:
            return
        path = Path(f"{out}.spill-{len(self.spilled):06d}")
        put(_records(self.quarantine, QUARANTINE), path)
        self.spilled.append(path)
        self.spilled_rows += len(self.quarantine)
        self.spilled_bytes = self.quarantine_bytes
        self.quarantine.clear()

    def soften(self, looked: Looked, file: FilePlan) -> None:
        """Count the cells that were read more kindly, and the words that were known to mean missing."""
        for number, count in looked.soft.items():
            self.facts[file.targets[number]].repaired += count
        for number, words in looked.words.items():
            self.facts[file.targets[number]].words.update(words)

    def take(self, fast: Quick) -> None:
        """Add what rows read at once say about their columns: words for missing that were seen, cells that fit."""
        for target, counts in fast.words.items():
            self.facts[target].words.update(counts)
        for target, column in fast.columns.items():
            self.facts[target].cells += len(column) - column.null_count()

    def told(self, begin: int, end: int) -> dict[str, Any]:
        """Return the account as plain data; raises when its bytes do not add up, which would be a fault of ours."""
        total = self.row_bytes + self.quarantine_bytes + sum(self.skipped.values())
        if total != end - begin and not self.bailed:
            hint = "please report this, with the range"
            raise InputError(
                sentence(f"{end - begin:,} bytes accounted for", f"{total:,}", at=f"bytes {begin} to {end}", hint=hint)
            )
        return {
            "begin": begin,
            "end": end,
            "rows": self.rows,
            "lines": self.lines,
            "row_bytes": self.row_bytes,
            "quarantine_bytes": self.quarantine_bytes,
            "skipped": self.skipped,
            "quarantined": self.spilled_rows + len(self.quarantine),
            "repaired": len(set(self.repairs["row"])),
            "repairs": len(self.repairs["row"]),
            "encodings": self.encodings,
            "last_row_end": self.last_row_end,
            "stop": self.stop,
            "bailed": self.bailed,
            "unknown": self.unknown,
            "columns": [fact.to_dict() for fact in self.facts],
        }

    def write(self, out: str, told: Mapping[str, Any]) -> None:
        """Write the part, its quarantine and its repairs, then its account."""
        if self.bailed:
            return
        if self.frames:
            frame = self.frames[0] if len(self.frames) == 1 else pl.concat(self.frames)
            if frame.height:
                put(frame, Path(out + ".parquet"), compiled_bytes=self.row_bytes if self.compiled else 0)
        if self.quarantine or self.spilled:
            target = Path(out + ".quarantine.parquet")
            if self.spilled:
                self.spill(out, least=1)
                whole = target.with_name(target.name + ".new")
                parquet.join(self.spilled, whole)
                whole.replace(target)
                for path in self.spilled:
                    path.unlink()
            else:
                put(_records(self.quarantine, QUARANTINE), target)
        if self.repairs["row"]:
            put(pl.DataFrame(self.repairs, schema=REPAIRS), Path(out + ".repairs.parquet"))
        done = Path(out + ".json")
        temporary = done.with_name(done.name + ".new")
        temporary.write_text(json.dumps(told), "utf-8")
        temporary.replace(done)


def _records(rows: Sequence[tuple[Any, ...]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Build a frame of records, a column at a time."""
    columns = zip(*rows, strict=True)
    return pl.DataFrame([pl.Series(name, one, dtype=schema[name]) for name, one in zip(schema, columns, strict=True)])


def put(frame: pl.DataFrame, path: Path, *, compiled_bytes: int = 0) -> None:
    """Write a frame as Parquet under its name at once; compiled code does it where it is told how large about it is."""
    temporary = path.with_name(path.name + ".new")
    if not (compiled_bytes and pages.write(frame, temporary, size=compiled_bytes)):
        frame.write_parquet(temporary, compression="zstd", compression_level=1)
    temporary.replace(path)
