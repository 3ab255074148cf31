"""The words of a contract: a Column with what its values may be, and a Source with its two times.

They are data: a contract is inferred, reviewed, written as YAML and read back (`contract.odcs`) without code. A column
is either read from the file or derived from other columns in SQL; both are under contract alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tenon.errors import ConfigError, nearest, sentence

ColumnType = Literal["int", "float", "text", "bool", "date", "timestamp"]
TYPES: tuple[str, ...] = get_args(ColumnType)
Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, type and what its values may be.

    `type` is one of int, float, text, bool, date, timestamp (timestamps are UTC without a zone, microseconds).
    `derive` is SQL over the other columns of the same row; with `of` and `on` it is read over the row of another
    source whose key equals column `on` here (a lookup: the time zone of an airport, say).
    `late=True` says the value is known only at the source's `known` time, so no feature of the same row may use it.
    `threshold_pct` is the share of rows, in percent, that may break the column's rules before a check fails.
    """

    name: str
    type: ColumnType = "text"
    unit: str = ""
    nullable: bool = False
    between: tuple[float, float] | tuple[str, str] | None = None
    one_of: tuple[str | int | float, ...] | None = None
    pattern: str = ""
    unique: bool = False
    derive: str = ""
    of: str = ""
    on: str = ""
    late: bool = False
    severity: Severity = "error"
    threshold_pct: float = 0.0
    description: str = ""

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ConfigError(
                sentence("a column type", f"'{self.type}'", at=f"column '{self.name}'", hint=nearest(self.type, TYPES))
            )
        if bool(self.of) != bool(self.on):
            raise ConfigError(
                sentence("both of= and on= for a lookup", "one of them", at=f"column '{self.name}'", hint="name both")
            )
        if self.of and not self.derive:
            raise ConfigError(
                sentence("derive= with the looked-up value", "nothing", at=f"column '{self.name}'", hint="name its SQL")
            )


@dataclass(frozen=True, slots=True)
class Source:
    """One stream of rows: where the raw files are, what identifies a row, and its two times.

    `path` is a file, folder or glob, relative to the project folder. `key` names the columns that identify the thing a
    row is about. `time` is the column that says when the row happened, `known` the column that says when its late
    columns became known (default: `time`). A source without `time` is a lookup table: one row for each key.
    `rules` are SQL conditions every row must meet. `null` adds words to read as missing. `strict=False` keeps columns
    the files have beyond those declared.
    """

    name: str
    path: str | Path = ""
    key: tuple[str, ...] | list[str] = ()
    time: str = ""
    known: str = ""
    columns: tuple[Column, ...] | list[Column] = ()
    rules: tuple[str, ...] | list[str] = ()
    null: tuple[str, ...] | list[str] = ()
    strict: bool = False
    freshness: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        for field in ("key", "columns", "rules", "null"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                sentence("each column once", f"'{twice[0]}' twice", at=f"source '{self.name}'", hint="remove one")
            )

    @property
    def known_at(self) -> str:
        """Name the column that says when a row's late columns are known; empty for a lookup table."""
        return self.known or self.time

    def column(self, name: str) -> Column | None:
        """Return the declared column of that name, or None when the files alone define it."""
        return next((column for column in self.columns if column.name == name), None)
