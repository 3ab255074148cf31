"""The Contract: what a stream of rows may be, as one value that can be kept, compared, reviewed and named by its
digest.

A contract is data. It is made from a declared Source, inferred from a frame (`draft`), or read from a file of the Open
Data Contract Standard (`odcs`) or Frictionless Table Schema (`frictionless`); all of them hold the same fields, and a
contract read back from what it wrote has the same digest. Checking a frame against it is `verdict`'s work.

What identifies a row: the key, together with the time for a source that has one. A rule says in SQL what every row must
meet; a row for which it is unknown (null) has not broken it. `threshold_pct` is the share of rows, in percent, that may
break a rule before the check as a whole fails; rows that break a rule of severity "error" are set aside either way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from tenon.contract.column import Column, Severity, Source
from tenon.contract.request import bounds
from tenon.errors import ConfigError, quoted, sentence

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One condition every row must meet: SQL over the row, what breaking it means, and a name (default: the SQL)."""

    sql: str
    name: str = ""
    severity: Severity = "error"
    threshold_pct: float = 0.0
    description: str = ""

    @property
    def label(self) -> str:
        """Return what the rule is called where it is told: its name, or its SQL on one line."""
        return self.name or " ".join(self.sql.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What the rows of one source may be. `inferred` says that no person has reviewed it yet.

    `key` and `time` identify a row; they need not be among `columns`. `null` adds words that text columns use for
    missing. `strict` makes columns the contract does not name a fault. `freshness` ("24h") is how old the newest row
    may be. `key_severity` and `key_threshold_pct` say what a missing or repeated key means. `unread` lists what a
    foreign file said beyond this; it is not part of the contract's identity.
    """

    name: str
    columns: tuple[Column, ...] = ()
    key: tuple[str, ...] = ()
    time: str = ""
    known: str = ""
    rules: tuple[Rule, ...] = ()
    null: tuple[str, ...] = ()
    strict: bool = False
    freshness: str = ""
    key_severity: Severity = "error"
    key_threshold_pct: float = 0.0
    inferred: bool = False
    version: str = "1.0.0"
    description: str = ""
    unread: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        for column in self.columns:
            _check_column(column, f"contract '{self.name}', column '{column.name}'")
            if names.count(column.name) > 1:
                raise ConfigError(
                    sentence(
                        "each column once", f"'{column.name}' twice", at=f"contract '{self.name}'", hint="remove one"
                    )
                )
        if self.freshness:
            self.freshness_s  # noqa: B018  # an impossible duration is found here

    @classmethod
    def of(cls, source: Source) -> Contract:
        """Return the contract that a declared source is under."""
        return cls(
            name=source.name,
            columns=tuple(source.columns),
            key=tuple(source.key),
            time=source.time,
            known=source.known,
            rules=tuple(Rule(sql=rule) for rule in source.rules),
            null=tuple(source.null),
            strict=source.strict,
            freshness=source.freshness,
            description=source.description,
        )

    def source(self, path: str = "") -> Source:
        """Return the source this contract describes, to be read from `path`."""
        return Source(
            self.name,
            path,
            key=self.key,
            time=self.time,
            known=self.known,
            columns=self.columns,
            rules=tuple(rule.sql for rule in self.rules),
            null=self.null,
            strict=self.strict,
            freshness=self.freshness,
            description=self.description,
        )

    def column(self, name: str) -> Column | None:
        """Return the column of that name, or None when the contract does not speak of it."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def identity(self) -> tuple[str, ...]:
        """Name the columns that together may not repeat: the key, and the time where there is one."""
        return (*self.key, *((self.time,) if self.time and self.time not in self.key else ())) if self.key else ()

    @property
    def freshness_s(self) -> float:
        """Return how old the newest row may be, in seconds; infinite when the contract does not say."""
        if not self.freshness:
            return float("inf")
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*", self.freshness)
        if found is None:
            raise ConfigError(
                sentence(
                    "a number and one of s, m, h, d, w",
                    f"'{self.freshness}'",
                    at=f"contract '{self.name}', freshness",
                    hint="write 24h or 7d",
                )
            )
        return float(found[1]) * _UNITS_S[found[2]]

    @property
    def digest(self) -> str:
        """Name the contract by the first 12 hex digits of the SHA-256 of all it says."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain data; what is at its default is left out."""
        body = _plain(self)
        body.pop("unread", None)
        body["columns"] = [_plain(column) for column in self.columns]
        if self.rules:
            body["rules"] = [_plain(rule) for rule in self.rules]
        return body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Contract:
        """Build the contract from plain data; fields it does not know are skipped."""
        values = _known(cls, body)
        values["columns"] = tuple(column_from(column) for column in body.get("columns", ()))
        values["rules"] = tuple(Rule(**_known(Rule, rule)) for rule in body.get("rules", ()))
        return cls(**values)

    def to_odcs(self, notes: Mapping[str, Sequence[str]] | None = None) -> str:
        """Write the contract as YAML of the Open Data Contract Standard 3.1, with notes by column as comments."""
        from tenon.contract.odcs import to_odcs

        return to_odcs(self, notes)

    @classmethod
    def from_odcs(cls, text: str, schema: str = "") -> Contract:
        """Read YAML of the Open Data Contract Standard 3; `schema` picks one when the file describes several tables."""
        from tenon.contract.odcs import from_odcs

        return from_odcs(text, schema)

    def to_frictionless(self) -> dict[str, Any]:
        """Write the contract as a Frictionless Table Schema."""
        from tenon.contract.frictionless import to_frictionless

        return to_frictionless(self)

    @classmethod
    def from_frictionless(cls, body: Mapping[str, Any], name: str) -> Contract:
        """Read a Frictionless Table Schema as the contract of `name`."""
        from tenon.contract.frictionless import from_frictionless

        return from_frictionless(body, name)


def column_from(body: Mapping[str, Any]) -> Column:
    """Build a column from plain data; fields it does not know are skipped."""
    return Column(**_known(Column, body))


def _check_column(column: Column, place: str) -> None:
    """Refuse what no value could ever be held to."""
    if column.between is not None:
        wanted: Any = {"int": int | float, "float": int | float, "bool": ()}.get(column.type, str)
        low, high = bounds(column) if len(column.between) == 2 else (None, None)
        typed = all(isinstance(each, wanted) for each in column.between) and None not in (low, high)
        if not typed or not low <= high:
            expected = f"between= with two values of type {column.type}, smaller first"
            raise ConfigError(sentence(expected, f"{column.between}", at=place))
    if column.pattern:
        try:
            re.compile(column.pattern)
        except re.error as error:
            raise ConfigError(
                sentence(
                    "a regular expression", f"'{column.pattern}' ({error})", at=place, hint="escape it with a backslash"
                )
            ) from error
        if column.type != "text":
            raise ConfigError(
                sentence("pattern= on text", f"on {column.type}", at=place, hint="use between= or one_of=")
            )
    if column.one_of is not None:
        allowed: Any = {"text": str, "int": int, "float": int | float}.get(column.type, ())
        wrong = [value for value in column.one_of if not isinstance(value, allowed)]
        if wrong or not column.one_of:
            got = quoted(map(str, wrong)) if wrong else "nothing"
            raise ConfigError(sentence(f"one_of= with values of type {column.type}", got, at=place))


# ── plain data ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _plain(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields that differ from their defaults, tuples as lists."""
    body = {}
    for each in fields(value):
        found = getattr(value, each.name)
        found = float(found) if isinstance(each.default, float) else found  # 5 and 5.0 percent are one contract
        if each.default is MISSING or found != each.default or type(found) is not type(each.default):
            body[each.name] = list(found) if isinstance(found, tuple) else found
    return body


def _known(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are fields of a dataclass, lists as tuples."""
    names = {each.name for each in fields(kind)}
    return {key: _tuple(value) for key, value in body.items() if key in names}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def types(columns: Iterable[Column]) -> dict[str, str]:
    """Return column name -> type, for `sql.parse`."""
    return {column.name: column.type for column in columns}
