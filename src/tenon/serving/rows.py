"""Request bytes become rows of plain values, checked against the request columns before anything else sees them.

Two paths, one meaning. The quick path decodes the JSON straight into a struct that msgspec builds once for each
service: types, missing columns, unknown columns, ranges and sets are checked in C while parsing, in well under a
microsecond a row. Whatever it does not take as it stands goes the slow way: decoded as any JSON, walked row by row, and
either put right (an instant with an offset becomes UTC, 5.0 becomes 5) or refused with the path of every fault. The
quick path takes only what the slow one takes, with the same values; a property test holds that.

Rows may carry an `id` of the caller's own; it is not a column unless the contract says so. An unknown column is a fault
and not ignored: a misspelt optional column would be served as missing for ever, and nobody would know.
"""

from __future__ import annotations

import datetime as dt
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from tenon.contract.column import Column
from tenon.errors import nearest, quoted
from tenon.serving.refusal import Fault, Refused, faulty, shown

INT_LOW, INT_HIGH = -(2**63), 2**63 - 1
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "text": "text",
    "bool": "true or false",
    "date": "a date such as 2013-11-01",
    "timestamp": "an instant such as 2013-11-01T05:15:00",
}


@dataclass(frozen=True, slots=True)
class Rows:
    """Checked rows: a dict of every request column for each row (absent is None), and the callers' own ids."""

    rows: list[dict[str, Any]]
    ids: list[str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Reads and checks the rows of one service; built once by `row_reader`."""

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    depth: int
    _one: msgspec.json.Decoder[Any]
    _many: msgspec.json.Decoder[Any]
    _row: type[Any]
    _values: Callable[[Any], tuple[Any, ...]]

    def read(self, body: bytes, change: Callable[[Any], Any] | None = None) -> Rows | Refused:
        """Read ``{"rows": [...]}`` or one bare row object; a Refused says what is wrong with it.

        With `change`, rows that are not right as they came are changed by it and tried again.
        """
        try:
            if b'"rows"' in body[:32]:
                found = self._many.decode(body).rows
                if not found:
                    return self._slowly(body, change)
            else:
                found = (self._one.decode(body),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._slowly(body, change)
        return self._plain(found)

    def convert(self, rows: Sequence[Mapping[str, Any]]) -> Rows | Refused:
        """Check rows that are Python values already (tensors, a file)."""
        try:
            return self._plain([msgspec.convert(row, self._row) for row in rows])
        except msgspec.ValidationError:
            return self.check(list(rows))

    def check(self, rows: Sequence[Any], place: str = "$.rows") -> Rows | Refused:
        """Check any values as rows, the slow way, and name every fault."""
        faults: list[Fault] = []
        good: list[dict[str, Any]] = []
        ids: list[str | None] = []
        for number, row in enumerate(rows):
            at = f"{place}[{number}]" if place != "$" else "$"
            good.append(_check_row(row, at, self.columns, faults))
            ids.append(_own_id(row, at, self.names, faults))
        return faulty(faults) if faults else Rows(good, ids)

    def _plain(self, found: Sequence[Any]) -> Rows:
        names, values = self.names, self._values
        taken = [values(row) for row in found]
        return Rows(
            [dict(zip(names, row, strict=False)) for row in taken],  # the last value is the id
            [row[-1] if row[-1].__class__ is not int else str(row[-1]) for row in taken],
        )

    def _slowly(self, body: bytes, change: Callable[[Any], Any] | None) -> Rows | Refused:
        found = decode(body, self.depth)
        if isinstance(found, Refused):
            return found
        if not isinstance(found, dict):
            return Refused(status=400, said=f'expected {{"rows": [...]}} or one row object, got {shown(found)}')
        if "rows" not in found or (set(found) - {"rows"} and "rows" in self.names):
            return self.check([change(found) if change else found], "$")
        faults = [
            Fault(path=f"$.{name}", expected="only 'rows'", got=f"'{name}'") for name in sorted(found) if name != "rows"
        ]
        rows = found["rows"]
        if not isinstance(rows, list) or not rows:
            faults.append(Fault(path="$.rows", expected="a list of at least one row", got=shown(rows)))
        return faulty(faults) if faults else self.check([change(row) for row in rows] if change else rows)


def decode(body: bytes, depth: int) -> Any | Refused:
    """Decode any JSON, refusing what is not JSON (400) or is nested deeper than `depth`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refused(
            status=400, said=f"expected JSON in UTF-8, got {shown(body[:80].decode('utf-8', 'replace'))}: {error}"
        )
    except RecursionError:
        return Refused(status=400, said=f"expected JSON nested at most {depth} deep, got deeper")
    level: list[Any] = [found]
    for _ in range(depth):
        level = [child for value in level for child in _children(value)]
        if not level:
            return found
    return Refused(status=400, said=f"expected JSON nested at most {depth} deep, got deeper")


def _children(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return [child for child in value.values() if isinstance(child, dict | list)]
    if isinstance(value, list):
        return [child for child in value if isinstance(child, dict | list)]
    return ()


# ── the quick path: built once ───────────────────────────────────────────────────────────────────────────────────────


def row_reader(columns: Sequence[Column], depth: int = 32) -> RowReader:
    """Build the reader of rows with these columns."""
    names = tuple(column.name for column in columns)
    fields: list[Any] = []
    for number, column in enumerate(columns):
        kind = _kind(column)
        fields.append((f"c{number}", kind | None, None) if column.nullable else (f"c{number}", kind))
    rename = {f"c{number}": name for number, name in enumerate(names)}
    if "id" in names:
        getter = operator.attrgetter(*rename, f"c{names.index('id')}")
    else:
        fields.append(("own_id", str | int | None, None))
        rename["own_id"] = "id"
        getter = operator.attrgetter(*rename)
    fields.sort(key=len)  # those with a default come last
    row = msgspec.defstruct("Row", fields, rename=rename, forbid_unknown_fields=True, gc=False)
    many = msgspec.defstruct("Rows", [("rows", list[row])], forbid_unknown_fields=True, gc=False)  # type: ignore[valid-type]
    return RowReader(
        columns=tuple(columns),
        names=names,
        depth=depth,
        _one=msgspec.json.Decoder(row),
        _many=msgspec.json.Decoder(many),
        _row=row,
        _values=getter,
    )


def _kind(column: Column) -> Any:
    """Return the msgspec type of a column that is not null."""
    rules = column.severity == "error"
    if column.type == "int":
        low, high = _bounds(column, INT_LOW, INT_HIGH)
        low, high = max(math.ceil(low), INT_LOW), min(math.floor(high), INT_HIGH)
        if rules and column.one_of and all(type(value) is int for value in column.one_of):
            return Literal[column.one_of]
        return Annotated[int, msgspec.Meta(ge=low, le=high)]
    if column.type == "float":
        low, high = _bounds(column, -math.inf, math.inf)
        return float if low == -math.inf and high == math.inf else Annotated[float, msgspec.Meta(ge=low, le=high)]
    if column.type == "text":
        if rules and column.one_of and all(isinstance(value, str) for value in column.one_of):
            return Literal[column.one_of]
        return Annotated[str, msgspec.Meta(pattern=rf"\A(?:{column.pattern})\Z")] if rules and column.pattern else str
    if column.type == "timestamp":
        return Annotated[dt.datetime, msgspec.Meta(tz=False)]
    return dt.date if column.type == "date" else bool


def _bounds(column: Column, low: float, high: float) -> tuple[float, float]:
    if column.severity == "error" and column.between is not None and not isinstance(column.between[0], str):
        return float(column.between[0]), float(column.between[1])
    return low, high


# ── the slow path: words for every fault ─────────────────────────────────────────────────────────────────────────────


def _check_row(row: Any, at: str, columns: Sequence[Column], faults: list[Fault]) -> dict[str, Any]:
    """Return the row with every column in its type, adding a fault for each that cannot be."""
    if not isinstance(row, Mapping):
        faults.append(Fault(path=at, expected="an object with the request columns", got=shown(row)))
        return {}
    good: dict[str, Any] = {}
    for column in columns:
        good[column.name] = _check_value(
            row.get(column.name), column, f"{at}.{column.name}", column.name in row, faults
        )
    names = [column.name for column in columns]
    for name in row:
        if name not in good and name != "id":
            expected = f"only the request columns ({nearest(str(name), [*names, 'id'])})"
            faults.append(Fault(path=f"{at}.{name}", expected=expected, got=f"'{name}'"))
    return good


def _own_id(row: Any, at: str, names: Sequence[str], faults: list[Fault]) -> str | None:
    value = row.get("id") if isinstance(row, Mapping) else None
    if value is None or isinstance(value, str):
        return value
    if "id" in names or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    faults.append(Fault(path=f"{at}.id", expected="text or a whole number", got=shown(value)))
    return None


def _check_value(value: Any, column: Column, at: str, there: bool, faults: list[Fault]) -> Any:
    """Return the value in the column's type, or None and a fault."""
    if value is None or value != value:
        if not column.nullable:
            faults.append(Fault(path=at, expected=EXPECTED[column.type], got="null" if there else "nothing"))
        return None
    found = TYPED[column.type](value)
    if found is None:
        faults.append(Fault(path=at, expected=EXPECTED[column.type], got=shown(value)))
        return None
    if column.severity == "error":
        expected = _broken(found, column)
        if expected:
            faults.append(Fault(path=at, expected=expected, got=shown(value)))
    return found


def _broken(value: Any, column: Column) -> str:
    """Say what the column's rules expect of a value of the right type when it breaks one, else nothing."""
    if column.between is not None:
        low, high = column.between
        if isinstance(low, str) and column.type in ("date", "timestamp"):
            low, high = TYPED[column.type](low), TYPED[column.type](high)
        if not low <= value <= high:
            return f"{EXPECTED[column.type]} between {column.between[0]} and {column.between[1]}"
    if column.one_of is not None and value not in column.one_of:
        return f"one of {quoted(map(str, column.one_of))}"
    if column.pattern and column.type == "text" and re.fullmatch(column.pattern, value) is None:
        return f"text like {column.pattern}"
    return ""


def _int(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and INT_LOW <= value <= INT_HIGH else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _date(value: Any) -> dt.date | None:
    if isinstance(value, dt.datetime):
        return None
    return value if isinstance(value, dt.date) else _parsed(value, dt.date)


def _timestamp(value: Any) -> dt.datetime | None:
    """Read an instant; one with an offset is turned to UTC, a date alone is its midnight."""
    if isinstance(value, str):
        value = _parsed(value, dt.datetime) or _parsed(f"{value}T00:00:00", dt.datetime)
    if not isinstance(value, dt.datetime):
        return None
    try:
        return value if value.tzinfo is None else value.astimezone(dt.UTC).replace(tzinfo=None)
    except OverflowError:
        return None


def _parsed(value: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(value, kind) if isinstance(value, str) else None
    except msgspec.ValidationError:
        return None


TYPED: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "text": lambda value: value if isinstance(value, str) else None,
    "bool": lambda value: value if isinstance(value, bool) else None,
    "date": _date,
    "timestamp": _timestamp,
}
