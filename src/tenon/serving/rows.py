"""Request bytes become rows of plain values, checked against the request columns before anything else sees them.

Two paths, one meaning. The quick path decodes the JSON straight into a struct that msgspec builds once for each
service: types, missing columns, unknown columns, ranges and sets are checked in C while parsing, in well under a
microsecond a row. Whatever it does not take as it stands goes the slow way: decoded as any JSON and checked by
`contract.row_checker`, which puts right what can be (an instant with an offset becomes UTC, 5.0 becomes 5) and names
every fault. The quick path takes only what the slow one takes, with the same values; a property test holds that.

Rows may carry an `id` of the caller's own; it is not a column unless the contract says so. An unknown column is a fault
and not ignored: a misspelt optional column would be served as missing for ever, and nobody would know.
"""

from __future__ import annotations

import datetime as dt
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from tenon.contract.column import Column
from tenon.contract.request import Checked, bounds, row_checker
from tenon.serving.refusal import Fault, Refused, faulty, shown

SLICE_ROWS = 256
MANY_FAULTS = 100  # more are not looked for: naming every fault of a large hostile request would cost seconds
UNKNOWN_NAMES = 8  # of one row; more are not looked at
NAME_CHARACTERS = 100
INT_LOW, INT_HIGH = -(2**63), 2**63 - 1


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
    _instants: tuple[int, ...]
    _tests: tuple[tuple[int, Callable[[Any], bool]], ...]
    _check: Callable[[Sequence[Any]], Checked]

    def read(self, body: bytes, change: Callable[[Any], Any] | None = None) -> Rows | Refused:
        """Read ``{"rows": [...]}`` or one bare row object; a Refused says what is wrong with it.

        With `change`, rows that are not right as they came are changed by it and tried again.
        """
        try:
            found = self._many.decode(body).rows if b'"rows"' in body[:32] else (self._one.decode(body),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = ()
        return self._plain(found) or self._slowly(body, change)

    def convert(self, rows: Sequence[Mapping[str, Any]]) -> Rows | Refused:
        """Check rows that are Python values already (tensors, a file)."""
        try:
            found = [msgspec.convert(row, self._row) for row in rows]
        except msgspec.ValidationError:
            return self.check(rows)
        return self._plain(found) or self.check(rows)

    def check(self, rows: Sequence[Any]) -> Rows | Refused:
        """Check any values as rows, the slow way, and name the faults: all, or the first hundred or so."""
        good: list[dict[str, Any]] = []
        ids: list[str | None] = []
        faults: list[Fault] = []
        known = frozenset((*self.names, "id"))
        for start in range(0, len(rows), SLICE_ROWS):
            part = [_trimmed(row, known) for row in rows[start : start + SLICE_ROWS]]
            checked = self._check(part)
            good += checked.rows
            for each in checked.faults:
                number, _, rest = each["path"].removeprefix("$.rows[").partition("]")
                faults.append({**each, "path": f"$.rows[{int(number) + start}]{rest}"})
            ids += [_own_id(row, number, self.names, faults) for number, row in enumerate(part, start)]
            if len(faults) > MANY_FAULTS:
                break
        return faulty(faults) if faults else Rows(good, ids)

    def _plain(self, found: Sequence[Any]) -> Rows | None:
        """Return decoded rows as plain values; None when there are none, or one breaks a rule msgspec cannot hold."""
        if not found:
            return None
        names, values = self.names, self._values
        taken = [values(row) for row in found]
        for place in self._instants:
            if any(row[place] is not None and row[place].tzinfo is not None for row in taken):
                try:
                    taken = [(*row[:place], _utc(row[place]), *row[place + 1 :]) for row in taken]
                except OverflowError:
                    return None
        for place, fine in self._tests:
            for row in taken:
                if row[place] is not None and not fine(row[place]):
                    return None
        return Rows(
            [dict(zip(names, row, strict=False)) for row in taken],  # the last value is the id
            [row[-1] if row[-1] is None or row[-1].__class__ is str else str(row[-1]) for row in taken],
        )

    def _slowly(self, body: bytes, change: Callable[[Any], Any] | None) -> Rows | Refused:
        found = decode(body, self.depth)
        if isinstance(found, Refused):
            return found
        if not isinstance(found, dict):
            return Refused(status=400, said=f'expected {{"rows": [...]}} or one row object, got {shown(found)}')
        if "rows" not in found or (set(found) - {"rows"} and "rows" in self.names):
            checked = self.check([change(found) if change else found])
            return moved(checked, "$.rows[0]", "$") if isinstance(checked, Refused) else checked
        faults = [fault(f"$.{name}", "only 'rows'", f"'{name}'") for name in sorted(found) if name != "rows"]
        rows = found["rows"]
        if not isinstance(rows, list) or not rows:
            faults.append(fault("$.rows", "a list of at least one row", shown(rows)))
        if faults:
            return faulty(faults)
        return self.check([change(row) for row in rows] if change else rows)


def fault(path: str, expected: str, got: str) -> Fault:
    """Return a fault as `contract` writes them."""
    return {"path": path, "expected": expected, "got": got}


def moved(refusal: Refused, old: str, new: str) -> Refused:
    """Return the refusal with the beginning of its paths replaced."""
    faults = [{**each, "path": new + each["path"].removeprefix(old)} for each in refusal.faults]
    return faulty(faults) if faults else refusal


def decode(body: bytes, depth: int) -> Any | Refused:
    """Decode any JSON, refusing what is not JSON (400) or is nested deeper than `depth`."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        came = shown(body[:80].decode("utf-8", "replace"))
        return Refused(status=400, said=f"expected JSON in UTF-8, got {came}: {error}")
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


def _trimmed(row: Any, known: frozenset[str]) -> Any:
    """Return a row as it is, or one with too many unknown names, or too long ones, cut down to what is worth naming."""
    if not isinstance(row, Mapping) or row.keys() <= known:
        return row
    unknown = [name for name in row if name not in known][:UNKNOWN_NAMES]
    kept = {name: value for name, value in row.items() if name in known}
    return {**kept, **{name[:NAME_CHARACTERS]: None for name in unknown}}


def _utc(value: dt.datetime | None) -> dt.datetime | None:
    if value is None or value.tzinfo is None:
        return value
    return value.astimezone(dt.UTC).replace(tzinfo=None)


def _own_id(row: Any, number: int, names: Sequence[str], faults: list[Fault]) -> str | None:
    value = row.get("id") if isinstance(row, Mapping) else None
    if value is None or isinstance(value, str):
        return value
    if "id" in names or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    faults.append(fault(f"$.rows[{number}].id", "text or a whole number", shown(value)))
    return None


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
    tests = ((number, _test(column)) for number, column in enumerate(columns))
    return RowReader(
        columns=tuple(columns),
        names=names,
        depth=depth,
        _one=msgspec.json.Decoder(row),
        _many=msgspec.json.Decoder(many),
        _row=row,
        _values=getter,
        _instants=tuple(number for number, column in enumerate(columns) if column.type == "timestamp"),
        _tests=tuple((number, fine) for number, fine in tests if fine is not None),
        _check=row_checker(columns),
    )


def _kind(column: Column) -> Any:
    """Return the msgspec type of a column that is not null, with the rules that msgspec can hold."""
    rules = column.severity == "error"
    if column.type in ("int", "text") and rules and column.one_of:
        wanted = int if column.type == "int" else str
        allowed = tuple(value for value in column.one_of if type(value) is wanted)
        if allowed:
            return Literal[allowed]
    if column.type == "int":
        low, high = bounds(column) if rules and column.between is not None else (INT_LOW, INT_HIGH)
        low, high = max(math.ceil(low), INT_LOW), min(math.floor(high), INT_HIGH)
        return Annotated[int, msgspec.Meta(ge=low, le=high)]
    if column.type == "float":
        if not rules or column.between is None:
            return float
        low, high = bounds(column)
        return Annotated[float, msgspec.Meta(ge=float(low), le=float(high))]
    if column.type == "text":
        return Annotated[str, msgspec.Meta(pattern=rf"\A(?:{column.pattern})\Z")] if rules and column.pattern else str
    if column.type == "timestamp":
        return dt.datetime
    return dt.date if column.type == "date" else bool


def _test(column: Column) -> Callable[[Any], bool] | None:
    """Return what a value of the right type must pass beside its msgspec type, from the contract's own check."""
    covered = {"int": ("between", "one_of"), "float": ("between",), "text": ("pattern", "one_of")}.get(column.type, ())
    given = [name for name in ("between", "one_of", "pattern") if getattr(column, name)]
    if column.severity != "error" or (len(given) <= 1 and set(given) <= set(covered)):
        return None
    check = row_checker((column,))
    return lambda value: not check(({column.name: value},)).faults
