"""Plain rows of a request against the columns they should have: values in the right types out, and faults with paths.

Rows come from JSON, a file or another program. `row_checker` prepares one closure for each column, so that a row
costs about a microsecond a column; `check_rows` is the same in one call. Where JSON has no type the text of the type
is read: ``"2013-11-01T05:15:00Z"`` becomes a datetime in UTC without a zone. 5.0 is a whole number where one is
wanted; a bool is never a number; NaN and infinity are no numbers.

Only rules of severity "error" refuse a row. A column that is nullable may be left out; then its value is None. A name
that is no column is a fault unless `allow` has it: a misspelt optional column would otherwise be missing for ever.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenon.contract.column import Column
from tenon.contract.sql_tree import read_date, read_timestamp
from tenon.errors import nearest, quoted

Fault = dict[str, str]
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "text": "text",
    "bool": "true or false",
    "date": "a date such as 2013-11-01",
    "timestamp": "a timestamp such as 2013-11-01T05:15:00",
}
_REFUSED = object()
OPEN_REPEATS = 2  # in one pattern, that Python's matcher is trusted with
_LOW, _HIGH = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Rows with every column in its type (None where a fault says why not), and the faults, in row order.

    A fault is ``{"path": "$.rows[0].hour", "expected": "a whole number", "got": "'five'"}``.
    """

    rows: list[dict[str, Any]]
    faults: list[Fault]


def check_rows(rows: Sequence[Any], columns: Sequence[Column], allow: Collection[str] = ("id",)) -> Checked:
    """Check rows against columns, in one call; keep a `row_checker` where this is hot."""
    return row_checker(columns, allow)(rows)


def row_checker(columns: Sequence[Column], allow: Collection[str] = ("id",)) -> Callable[[Sequence[Any]], Checked]:
    """Prepare the check of rows with these columns; names in `allow` pass through unchecked and are left out."""
    readers = [(column.name, column.nullable, _reader(column), _rule(column), column) for column in columns]
    names = frozenset(column.name for column in columns)
    fine = names | frozenset(allow)

    def check(rows: Sequence[Any]) -> Checked:
        out: list[dict[str, Any]] = []
        faults: list[Fault] = []
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                faults.append(_fault(number, "", "an object with the columns by name", row))
                out.append(dict.fromkeys(names))
                continue
            whole: dict[str, Any] = {}
            for name, nullable, read, broken, column in readers:
                value = row.get(name)
                if value is None:
                    whole[name] = None
                    if not nullable:
                        got = "null" if name in row else "nothing"
                        faults.append(_fault(number, name, EXPECTED[column.type], got, plain=True))
                    continue
                found = read(value)
                if found is _REFUSED:
                    faults.append(_fault(number, name, EXPECTED[column.type], value))
                    found = None
                elif broken is not None and broken(found):
                    faults.append(_fault(number, name, _allowed(column), value))
                whole[name] = found
            if not row.keys() <= fine:
                for name in row.keys() - fine:
                    hint = f"a column of this request ({nearest(str(name), names)})"
                    faults.append(_fault(number, str(name), hint, "a column it does not have", plain=True))
            out.append(whole)
        return Checked(rows=out, faults=faults)

    return check


def _fault(number: int, name: str, expected: str, got: Any, plain: bool = False) -> Fault:
    path = f"$.rows[{number}]" + (f".{name}" if name else "")
    said = got if plain else repr(got)
    return {"path": path, "expected": expected, "got": said if len(said) <= 80 else said[:77] + "..."}


# ── one value ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _reader(column: Column) -> Callable[[Any], Any]:
    return _READERS[column.type]


def _int(value: Any) -> Any:
    kind = type(value)
    if kind is int:
        return value if _LOW <= value <= _HIGH else _REFUSED
    if kind is float and value.is_integer() and _LOW <= value <= _HIGH:
        return int(value)
    return _REFUSED


def _float(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else _REFUSED
    return float(value) if kind is int and _LOW <= value <= _HIGH else _REFUSED


def _date(value: Any) -> Any:
    if type(value) is str:
        return read_date(value) or _REFUSED
    return value if type(value) is dt.date else _REFUSED


def _timestamp(value: Any) -> Any:
    if type(value) is str:
        found = read_timestamp(value)
        if found is not None:
            return found
        try:
            value = dt.datetime.fromisoformat(value)  # one with an offset
        except ValueError:
            return _REFUSED
    if not isinstance(value, dt.datetime):
        return _REFUSED
    if value.tzinfo is None:
        return value
    try:
        return value.astimezone(dt.UTC).replace(tzinfo=None)
    except OverflowError:
        return _REFUSED


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "text": lambda value: value if type(value) is str else _REFUSED,
    "bool": lambda value: value if type(value) is bool else _REFUSED,
    "date": _date,
    "timestamp": _timestamp,
}


def _rule(column: Column) -> Callable[[Any], bool] | None:
    """Return what says that a value of the right type breaks the column's rules; None when it has none that refuse."""
    if column.severity != "error":
        return None
    rules: list[Callable[[Any], bool]] = []
    if column.between is not None:
        low, high = bounds(column)
        rules.append(lambda value: not low <= value <= high)
    if column.one_of is not None:
        allowed = frozenset(column.one_of)
        rules.append(lambda value: value not in allowed)
    if column.pattern:
        rules.append(_unlike(column.pattern))
    if not rules:
        return None
    return rules[0] if len(rules) == 1 else lambda value: any(rule(value) for rule in rules)


def _unlike(pattern: str) -> Callable[[str], bool]:
    """Return what says that a text is not of this form, in time that a hostile text cannot stretch.

    Python's matcher tries one way after another; where a repeated group or many open repeats leave it many ways,
    thirty letters can take it hours. Such patterns are run by Polars, whose time is bound by pattern and text.
    """
    if not re.search(r"\)[*+?{]|\\[1-9]", pattern) and len(re.findall(r"[*+]|,\}", pattern)) <= OPEN_REPEATS:
        match = re.compile(pattern).fullmatch
        return lambda value: match(value) is None
    import polars as pl

    return lambda value: not pl.Series([value]).str.contains(f"^(?:{pattern})$")[0]


def bounds(column: Column) -> tuple[Any, Any]:
    """Return the column's `between` in the type of its values."""
    assert column.between is not None, column.name
    low, high = column.between
    read = {"date": read_date, "timestamp": read_timestamp}.get(column.type)
    return (read(str(low)), read(str(high))) if read else (low, high)


def _allowed(column: Column) -> str:
    said = EXPECTED[column.type]
    if column.between is not None:
        said += f" from {column.between[0]} to {column.between[1]}"
    if column.one_of is not None:
        said += f", one of {quoted(map(str, column.one_of))}"
    return said + (f" like {column.pattern}" if column.pattern else "")
