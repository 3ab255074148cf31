"""A contract and the columns that came become a list of tests: Polars expressions that are true for each row at fault.

`plan` looks at names and types once. Columns that came as text are read as their declared type (a value that cannot
be read is a fault of its own, and the raw text stays in the bad row); wider types are narrowed where nothing is lost.
Every test then is one boolean expression, so that any number of them run in one pass over the frame. Most have a
`suspect` beside them: one value for the whole frame (from its smallest and largest value, its count of nulls, its sum)
that says whether any row can be at fault at all, at a tenth of the cost of looking at each.

What repeats is no expression of one row: whoever runs the tests adds a column `again(names)` that says so.

What null means: a missing value breaks `null` where the column is not nullable, and no other rule of the column. A row
rule that is null for a row (it compares with a missing value) is unknown: counted, and not broken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tenon.contract import sql
from tenon.contract.agreement import Contract, Rule
from tenon.contract.column import Column, Severity
from tenon.contract.frame import DTYPES, type_of
from tenon.contract.request import bounds
from tenon.contract.sql_columns import cast_column
from tenon.errors import ConfigError, quoted, sentence
from tenon.finding import Finding

RAW = "_tenon_raw_"
LEAST, MOST = -(2**63), 2**63 - 1
FEW = 8  # so many values are quicker compared one by one than looked up


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One rule as it runs: true where a row is at fault (null where it is unknown), and what that means.

    `suspect` is one value for all rows: when it is not true no row is at fault. `by_value` says that the answer hangs
    on the value of one column alone and is dear, so that few different values are better asked once each.
    """

    rule: str
    code: str
    severity: Severity
    threshold_pct: float
    expected: str
    broken: pl.Expr
    suspect: pl.Expr | None = None
    by_value: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do with frames of one schema: bring columns to their types, run the tests, keep these columns."""

    contract: Contract
    convert: tuple[pl.Expr, ...]
    tests: tuple[Test, ...]
    unique: tuple[tuple[str, ...], ...]
    keep: tuple[str, ...]
    findings: tuple[Finding, ...]

    def typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with every column in its declared type, and the raw ones beside those that changed."""
        return frame.with_columns(self.convert) if self.convert else frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How a column that came as text is read where more is known of how it was written than its contract says.

    `values` reads a text column as the declared type (null where it cannot), `null` are words that mean missing.
    """

    values: Callable[[pl.Series], pl.Series] | None = None
    null: tuple[str, ...] = ()


def again(names: Sequence[str]) -> str:
    """Name the column that says where the values of these columns occur more than once."""
    return "_tenon_again_" + "\x1f".join(names)


def plan(contract: Contract, schema: Mapping[str, Any], readers: Mapping[str, Reader] | None = None) -> Plan:
    """Prepare the tests of a contract for frames of this schema; `unique` lists the `again` columns they need."""
    unique: list[tuple[str, ...]] = []

    def repeats(names: tuple[str, ...]) -> pl.Expr:
        unique.append(names)
        return pl.col(again(names))

    findings: list[Finding] = []
    convert: list[pl.Expr] = []
    tests: list[Test] = []
    types = {name: kind for name, dtype in schema.items() if (kind := type_of(dtype)) is not None}
    for column in contract.columns:
        types[column.name] = column.type
        if column.name not in schema:
            convert.append(pl.lit(None, DTYPES[column.type]).alias(column.name))
            if column.nullable:
                findings.append(_missing(contract, column, schema))
            else:
                tests.append(_test(column, "missing", "the column", pl.lit(True)))
            continue
        reader = (readers or {}).get(column.name) or Reader(null=contract.null)
        unreadable = _conversion(column, schema[column.name], reader, convert)
        if unreadable is not None:
            lost = pl.col(column.name).null_count() > pl.col(RAW + column.name).null_count()
            tests.append(_test(column, "type", f"values of type {column.type}", unreadable, lost))
        tests += _column_tests(column, unreadable, repeats)
    tests += _key_tests(contract, schema, repeats)
    for number, rule in enumerate(contract.rules):
        before = sum(each.label == rule.label for each in contract.rules[:number])
        tests.append(_row_test(contract, rule, f"{rule.label} ({before + 1})" if before else rule.label, types))
    declared = {column.name for column in contract.columns} | set(contract.identity) | {contract.known}
    extra = [name for name in schema if name not in declared]
    if contract.strict and extra:
        findings.append(_unknown(contract, extra))
    keep = tuple(name for name in schema if not contract.strict or name in declared)
    absent = tuple(column.name for column in contract.columns if column.name not in schema)
    return Plan(
        contract=contract,
        convert=tuple(convert),
        tests=tuple(tests),
        unique=tuple(unique),
        keep=keep + absent,
        findings=tuple(findings),
    )


# ── reading a column as its declared type ────────────────────────────────────────────────────────────────────────────


def _conversion(column: Column, dtype: Any, reader: Reader, convert: list[pl.Expr]) -> pl.Expr | None:
    """Add the conversion a column needs; return what is true where a value cannot be read as its type."""
    kind, name = type_of(dtype), column.name
    raw, at = pl.col(name), pl.col(RAW + name)
    absent: pl.Expr | None = None
    if kind == "text":
        words = [*reader.null, *([] if column.type == "text" else [""])]
        if words:
            absent = at.is_in(words)
            raw = pl.when(~raw.is_in(words)).then(raw)
    if kind == column.type:
        if absent is not None:
            convert += [pl.col(name).alias(RAW + name), raw.alias(name)]
        return None
    exact = _EXACT.get((kind or "", column.type))
    if kind == "text" and reader.values is not None:
        typed = raw.map_batches(reader.values, return_dtype=DTYPES[column.type])
    elif kind == "text":
        typed = cast_column(raw, "text", column.type)
    elif exact is not None:
        typed = exact(raw)
    else:
        typed = pl.lit(None, DTYPES[column.type])
    convert += [pl.col(name).alias(RAW + name), typed.alias(name)]
    if (kind, column.type) in (("int", "float"), ("date", "timestamp")):
        return None
    lost = at.is_not_null() & pl.col(name).is_null()
    return lost & ~absent if absent is not None else lost


_EXACT: dict[tuple[str, str], Callable[[pl.Expr], pl.Expr]] = {
    ("int", "float"): lambda x: x.cast(pl.Float64),
    ("float", "int"): lambda x: pl.when(x == x.floor()).then(x.cast(pl.Int64, strict=False)),
    ("date", "timestamp"): lambda x: x.cast(pl.Datetime("us")),
    ("timestamp", "date"): lambda x: pl.when(x == x.dt.truncate("1d")).then(x.cast(pl.Date)),
}

# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _test(
    column: Column, kind: str, expected: str, broken: pl.Expr, suspect: pl.Expr | None = None, *, by_value: bool = False
) -> Test:
    return Test(
        rule=f"{column.name}/{kind}",
        code=f"contract/{_CODES.get(kind, kind)}",
        severity=column.severity,
        threshold_pct=column.threshold_pct,
        expected=expected,
        broken=broken,
        suspect=suspect,
        by_value=by_value,
        columns=(column.name,),
    )


_CODES = {"missing": "missing-column", "one_of": "one-of"}


def _column_tests(
    column: Column, unreadable: pl.Expr | None, repeats: Callable[[tuple[str, ...]], pl.Expr]
) -> list[Test]:
    value, found = pl.col(column.name), []
    if not column.nullable:
        absent = value.is_null() if unreadable is None else value.is_null() & ~unreadable
        found.append(_test(column, "null", "a value in every row", absent, value.null_count() > 0))
    if column.type == "float":
        found.append(_test(column, "finite", "finite numbers", ~value.is_finite(), ~value.sum().is_finite()))
    if column.between is not None:
        # A bound of 0.5 must not be cut to 0, nor one beyond 64 bits be refused.
        kind = None if column.type == "int" else DTYPES[column.type]
        low, high = (pl.lit(_whole(bound) if kind is None else bound, kind) for bound in bounds(column))
        outside = (value < low) | (value > high)
        outside = outside & value.is_finite() if column.type == "float" else outside
        expected = f"values from {column.between[0]} to {column.between[1]}"
        # The smallest of many texts costs more than to compare each.
        suspect = None if column.type == "text" else (value.min() < low) | (value.max() > high)
        found.append(_test(column, "between", expected, outside, suspect))
    if column.one_of is not None:
        expected, many = f"one of {quoted(map(str, column.one_of))}", len(column.one_of) > FEW
        found.append(_test(column, "one_of", expected, ~_among(value, column), by_value=many))
    if column.pattern:
        fits = value.str.contains(_regex(column))
        found.append(_test(column, "pattern", f"text like {column.pattern}", ~fits, by_value=True))
    if column.unique:
        repeated = repeats((column.name,))
        found.append(_test(column, "unique", "no value twice", repeated, repeated.any()))
    return found


def _regex(column: Column) -> str:
    """Return the column's pattern for the whole of a text, or say that Polars cannot run it."""
    pattern = f"^(?:{column.pattern})$"
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.PolarsError as error:
        got, hint = f"'{column.pattern}'", "look-around and back references are not among them"
        place = f"column '{column.name}'"
        raise ConfigError(sentence("a pattern Polars can run", got, at=place, hint=hint)) from error
    return pattern


def _whole(bound: float) -> float:
    """Return the bound, the nearest one of 64 bits if it is a whole number beyond them."""
    return bound if isinstance(bound, float) else max(LEAST, min(MOST, bound))


def _among(value: pl.Expr, column: Column) -> pl.Expr:
    """Say whether a value is one of those allowed."""
    assert column.one_of is not None, column.name
    dtype = DTYPES[column.type]
    if column.type == "int":
        return value.is_in([each for each in column.one_of if LEAST <= each <= MOST])  # type: ignore[operator]
    if len(column.one_of) <= FEW:
        return pl.any_horizontal(*(value == pl.lit(each, dtype) for each in column.one_of))
    return value.is_in(pl.Series(values=list(column.one_of), dtype=dtype, strict=False).implode())


def _key_tests(
    contract: Contract, schema: Mapping[str, Any], repeats: Callable[[tuple[str, ...]], pl.Expr]
) -> list[Test]:
    """A key must be whole, and with the time it must not repeat; every row of a repeated key is at fault."""
    names = contract.identity
    if not names:
        return []
    declared = {column.name for column in contract.columns}
    lost = [name for name in names if name not in schema and name not in declared]
    suspect = None
    if lost:
        broken, expected = pl.lit(True), f"the key columns {quoted(lost)}"
    else:
        repeated, expected = repeats(names), f"one row for each {', '.join(names)}, none of them missing"
        broken = pl.any_horizontal(*(pl.col(name).is_null() for name in names), repeated)
        suspect = pl.any_horizontal(*(pl.col(name).null_count() > 0 for name in names), repeated.any())
    return [
        Test(
            rule="key",
            code="contract/key",
            severity=contract.key_severity,
            threshold_pct=contract.key_threshold_pct,
            expected=expected,
            broken=broken,
            suspect=suspect,
            columns=() if lost else names,
        )
    ]


def _row_test(contract: Contract, rule: Rule, label: str, types: Mapping[str, str]) -> Test:
    place = f"contract '{contract.name}', rule"
    expr = sql.parse(rule.sql, place, types)
    if expr.type not in ("bool", "null", ""):
        got = f"a value of type {expr.type}"
        raise ConfigError(sentence("a condition", got, at=f"{place}: {rule.sql}", hint="compare it: x > 0"))
    met = sql.to_polars(expr)
    return Test(
        rule=f"rule/{label}",
        code="contract/rule",
        severity=rule.severity,
        threshold_pct=rule.threshold_pct,
        expected=rule.description or rule.label,
        broken=~met,
        columns=tuple(sorted(sql.columns(expr))),
    )


# ── what is wrong before any row is looked at ────────────────────────────────────────────────────────────────────────


def _missing(contract: Contract, column: Column, schema: Mapping[str, Any]) -> Finding:
    return Finding(
        code="contract/missing-column",
        severity="warning",
        place=f"{contract.name}/{column.name}",
        said=f"The column '{column.name}' did not come; it may be missing, so every row has null in it.",
        hint=f"The columns that came: {', '.join(schema)}.",
    )


def _unknown(contract: Contract, extra: list[str]) -> Finding:
    return Finding(
        code="contract/unknown-column",
        severity="error",
        place=f"{contract.name}/{extra[0]}",
        said=f"{len(extra)} columns came that the contract does not name: {quoted(extra)}. They are left out.",
        hint="Add them to the contract, or say strict=False to keep what comes.",
        numbers={"columns": len(extra)},
    )
