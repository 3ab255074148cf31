"""The typed tree that SQL text becomes, and how its literals are read: the words the four `sql_*` modules share.

A `Node` is one operation with its operands; a tree of them is the whole of an expression, free of anything sqlglot
calls by a name of its own, hashable and comparable. `sql_parse` builds it (with `sql_types` for what operators mean
and `sql_functions` for what may be called), `sql_columns` runs it over a frame and `sql_rows` over one row.

The readers of dates, times and numbers are here because all sides must read text alike: the parser for literals, Polars
by the same patterns as regular expressions, the closures by these functions.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

UNKNOWN = ""
PARTS = {
    "year": "year",
    "quarter": "quarter",
    "month": "month",
    "week": "week",
    "day": "day",
    "hour": "hour",
    "minute": "minute",
    "second": "second",
    "dayofweek": "isodow",
    "day_of_week": "isodow",
    "isodow": "isodow",
    "dayofyear": "doy",
    "day_of_year": "doy",
    "doy": "doy",
}
UNITS_US = {
    "microsecond": 1,
    "millisecond": 1_000,
    "second": 1_000_000,
    "minute": 60_000_000,
    "hour": 3_600_000_000,
    "day": 86_400_000_000,
    "week": 604_800_000_000,
}
TRUNC = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
FIRST_US = -62_135_596_800_000_000  # 0001-01-01
LAST_US = 253_402_300_799_999_999  # 9999-12-31 23:59:59.999999
# what a cast may start from; a pair outside is a mistake when the type is known and null when it is not
CASTABLE = {
    "int": ("int", "float", "bool", "text"),
    "float": ("int", "float", "bool", "text"),
    "bool": ("bool", "int", "float", "text"),
    "text": ("text", "int", "float", "bool", "date", "timestamp"),
    "date": ("date", "timestamp", "text"),
    "timestamp": ("timestamp", "date", "text"),
}
# text that a cast to bool reads, in lower case
WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1", "on"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0", "off"), False),
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the language: its name, operands, constant (if any) and type ("" when unknown)."""

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None
    type: str = UNKNOWN

    def walk(self) -> Iterator[Node]:
        """Yield this node and every node below it."""
        yield self
        for arg in self.args:
            yield from arg.walk()

    def swap(self, change: Callable[[Node], Node | None]) -> Node:
        """Return the tree with every node for which `change` gives another replaced by it, from the root down."""
        other = change(self)
        if other is not None:
            return other
        if not self.args:
            return self
        return Node(self.op, tuple(arg.swap(change) for arg in self.args), self.value, self.type)


NULL = Node("literal", value=None, type="null")


# ── literals ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_DATE = r"(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-([0-9]{2})-([0-9]{2})"
DATE_PATTERN = rf"^{_DATE}$"
TIMESTAMP_PATTERN = rf"^{_DATE}(?:[T ]([0-9]{{2}}):([0-9]{{2}})(?::([0-9]{{2}})(?:\.([0-9]{{1,6}}))?)?)?Z?$"
INT_PATTERN = r"^[+-]?[0-9]+$"
FLOAT_PATTERN = r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_TIMESTAMP = re.compile(TIMESTAMP_PATTERN)
_DATE_ONLY = re.compile(DATE_PATTERN)


def read_date(text: str) -> dt.date | None:
    """Read ``2013-11-01``; None when it is anything else."""
    if not _DATE_ONLY.match(text) or text.endswith("\n"):
        return None
    try:
        return dt.date(int(text[:4]), int(text[5:7]), int(text[8:10]))
    except ValueError:
        return None


def read_timestamp(text: str) -> dt.datetime | None:
    """Read ``2013-11-01``, ``2013-11-01 05:15``, ``2013-11-01T05:15:00.25Z``; None when it is anything else."""
    found = _TIMESTAMP.match(text)
    if not found or text.endswith("\n"):
        return None
    year, month, day, hour, minute, second, fraction = found.groups()
    try:
        return dt.datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            int((fraction or "").ljust(6, "0")),
        )
    except ValueError:
        return None


def read_interval(text: str) -> int | None:
    """Read ``1 hour`` or ``1 hour 30 minutes`` as microseconds; None when it is no interval of fixed length."""
    pairs = re.findall(r"\s*([+-]?[0-9]+)\s*([A-Za-z]+)", text)
    if not pairs or re.sub(r"\s*([+-]?[0-9]+)\s*([A-Za-z]+)", "", text).strip():
        return None
    total = 0
    for number, unit in pairs:
        name = unit.lower().removesuffix("s")
        if name not in UNITS_US:
            return None
        total += int(number) * UNITS_US[name]
    return total


def like_regex(pattern: str) -> str:
    """Write a LIKE pattern as a regular expression, without its end, that Python and Rust read alike."""
    told = {"%": ".*", "_": "."}
    return "(?s)^" + "".join(told.get(char) or re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", char) for char in pattern)
