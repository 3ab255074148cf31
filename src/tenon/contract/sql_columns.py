"""A tree of `sql_tree` becomes one Polars expression: the execution of the language over whole columns.

Every operation is one entry of `_OPERATIONS`: a function from the node and its operands' expressions to an expression.
Where Polars and SQL (or plain Python) part ways the entry says so and settles it: division by zero is null, parts of a
date are 64-bit, rounding is half away from zero, and a cast that cannot be made is null. `sql_rows` holds the same
table for one row, and a property test keeps the two equal to the last bit.

Where a type is unknown and the work depends on it (casts), the choice is made on the column's own type when the
expression runs, once per batch. That is exact and only slightly slower.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import polars as pl

from tenon.contract.frame import DTYPES as COLUMN_DTYPES
from tenon.contract.frame import type_of
from tenon.contract.sql_tree import (
    FIRST_US,
    FLOAT_PATTERN,
    INT_PATTERN,
    LAST_US,
    TIMESTAMP_PATTERN,
    UNITS_US,
    WORDS,
    Node,
    like_regex,
)

DTYPES: dict[str, Any] = {**COLUMN_DTYPES, "duration": pl.Duration("us")}
_EVERY = {"second": "1s", "minute": "1m", "hour": "1h", "day": "1d", "week": "1w", "month": "1mo", "quarter": "1q"}


def build(node: Node) -> pl.Expr:
    """Return the Polars expression of a tree without aggregates."""
    return _OPERATIONS[node.op](node, *(build(arg) for arg in node.args))


# ── leaves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _column(node: Node) -> pl.Expr:
    return pl.col(node.value)


def _literal(node: Node) -> pl.Expr:
    return pl.lit(node.value, dtype=DTYPES.get(node.type))


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _add(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    return _in_years(node, a + b)


def _sub(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    return _in_years(node, a - b)


def _in_years(node: Node, result: pl.Expr) -> pl.Expr:
    """Null for a timestamp before year 1 or after 9999, which no row of plain values could hold."""
    if node.type != "timestamp":
        return result
    first, last = (pl.lit(bound, pl.Int64).cast(pl.Datetime("us")) for bound in (FIRST_US, LAST_US))
    return pl.when(result.is_between(first, last)).then(result)


def _mul(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    if node.value == "scale":
        micros = a.cast(pl.Int64).cast(pl.Float64) * b.cast(pl.Float64)
        return micros.cast(pl.Int64, strict=False).cast(pl.Duration("us"))
    return a * b


def _div(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    return _unless_zero(node, b, _quotient(a, b, node.args[1].op == "column"))


def _quotient(a: pl.Expr, b: pl.Expr | float, varies: bool = False) -> pl.Expr:
    """Divide to the nearest float; Polars multiplies by the reciprocal of a scalar (49 / 49 is then not 1)."""
    return a / _spread(a, b, varies)


def _spread(a: pl.Expr, b: pl.Expr | float, varies: bool) -> pl.Expr | float:
    """Return an operand that may be one constant as a column as long as the other, so that no short cut is taken."""
    return b if varies else a.is_null().cast(pl.Float64) * 0.0 + b


def _floordiv(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    return _unless_zero(node, b, a // b)


def _mod(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    return _unless_zero(node, b, a % b)


def _unless_zero(node: Node, divisor: pl.Expr, result: pl.Expr) -> pl.Expr:
    """Null where the divisor is zero; a literal divisor needs no look at the data."""
    below = node.args[1]
    if below.op == "literal" and below.value:
        return result
    return pl.when(divisor != 0).then(result)


def _neg(node: Node, a: pl.Expr) -> pl.Expr:
    return -a


def _round(node: Node, a: pl.Expr) -> pl.Expr:
    return a.round(node.value, mode="half_away_from_zero")


def _sqrt(node: Node, a: pl.Expr) -> pl.Expr:
    return pl.when(a >= 0).then(a.sqrt())


def _ln(node: Node, a: pl.Expr) -> pl.Expr:
    return pl.when(a > 0).then(a.log())


def _pow(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    # A scalar exponent of 2 to 8 is multiplied out, with another last bit than the C library's pow.
    power = a.pow(_spread(a, b, node.args[1].op == "column"))
    lost = (power.is_nan() & ~a.is_nan() & ~b.is_nan()) | ((a == 0) & (b < 0))
    return pl.when(~lost).then(power)


# ── comparison and logic ─────────────────────────────────────────────────────────────────────────────────────────────


_COMPARISONS: dict[str, tuple[Callable[[Any, Any], pl.Expr], Callable[[Any, Any], pl.Expr]]] = {
    "eq": (operator.eq, operator.eq),
    "ne": (operator.ne, operator.ne),
    "lt": (operator.lt, operator.gt),
    "le": (operator.le, operator.ge),
    "gt": (operator.gt, operator.lt),
    "ge": (operator.ge, operator.le),
    "same": (pl.Expr.eq_missing, pl.Expr.eq_missing),
    "differs": (pl.Expr.ne_missing, pl.Expr.ne_missing),
}


def _compare(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    """Compare with the constant side on the right: on the left it may come back one row long (Polars 2.1, eager)."""
    plain, mirrored = _COMPARISONS[node.op]
    if any(each.op == "column" for each in node.args[0].walk()):
        return plain(a, b)
    return mirrored(b, a)


def _in(node: Node, a: pl.Expr) -> pl.Expr:
    return a.is_in(pl.Series(values=list(node.value), dtype=DTYPES.get(node.args[0].type or "text")).implode())


def _like(node: Node, a: pl.Expr) -> pl.Expr:
    pattern: str = node.value
    inner = pattern.strip("%")
    if "_" in pattern or "%" in inner:
        return a.str.contains(like_regex(pattern) + "$")
    if "%" not in pattern:
        return a == pl.lit(pattern)
    if pattern.startswith("%") and pattern.endswith("%"):
        return a.str.contains(inner, literal=True)
    return a.str.starts_with(inner) if pattern.endswith("%") else a.str.ends_with(inner)


def _case(node: Node, *args: pl.Expr) -> pl.Expr:
    chain: Any = pl
    for at in range(0, len(args) - 1, 2):
        chain = chain.when(args[at]).then(args[at + 1])
    result: pl.Expr = chain.otherwise(args[-1])
    return result


def _coalesce(node: Node, *args: pl.Expr) -> pl.Expr:
    # not pl.coalesce: with a literal it may come back one row long inside a comparison (Polars 2.1)
    result = args[-1]
    for each in reversed(args[:-1]):
        result = pl.when(each.is_not_null()).then(each).otherwise(result)
    return result


def _least(node: Node, *args: pl.Expr) -> pl.Expr:
    best = args[0]
    for each in args[1:]:
        best = pl.when(best.is_null() | (each < best)).then(each).otherwise(best)
    return best


def _greatest(node: Node, *args: pl.Expr) -> pl.Expr:
    best = args[0]
    for each in args[1:]:
        best = pl.when(best.is_null() | (each > best)).then(each).otherwise(best)
    return best


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _trim(node: Node, a: pl.Expr) -> pl.Expr:
    if not node.value:
        return a
    strip = {"trim": a.str.strip_chars, "ltrim": a.str.strip_chars_start, "rtrim": a.str.strip_chars_end}
    return strip[node.op](node.value)


def _substr(node: Node, a: pl.Expr, start: pl.Expr, length: pl.Expr | None = None) -> pl.Expr:
    if length is None:
        return pl.when(start.is_not_null()).then(a.str.slice((start - 1).clip(0)))
    offset = (start - 1).clip(0)
    count = (start - 1 + length - offset).clip(0)
    return pl.when(start.is_not_null() & length.is_not_null()).then(a.str.slice(offset, count))


def _replace(node: Node, a: pl.Expr) -> pl.Expr:
    old, new = node.value
    return a.str.replace_all(old, new, literal=True) if old else a


# ── moments ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _moment(node: Node, a: pl.Expr) -> pl.Expr:
    return a if node.type == "timestamp" else a.cast(pl.Datetime("us"))


def _part(node: Node, a: pl.Expr) -> pl.Expr:
    moment = _moment(node.args[0], a).dt
    name = {"isodow": "weekday", "doy": "ordinal_day"}.get(node.value, node.value)
    part: pl.Expr = getattr(moment, name)()
    return part.cast(pl.Int64)


def _date_trunc(node: Node, a: pl.Expr) -> pl.Expr:
    return _moment(node.args[0], a).dt.truncate(_EVERY.get(node.value, "1y"))


def _date_diff(node: Node, a: pl.Expr, b: pl.Expr) -> pl.Expr:
    first, last = (_moment(arg, each) for arg, each in zip(node.args, (a, b), strict=True))
    unit = node.value
    if unit in ("month", "quarter", "year"):
        span = {"month": 1, "quarter": 3, "year": 12}[unit]
        months = [each.dt.year().cast(pl.Int64) * 12 + each.dt.month().cast(pl.Int64) - 1 for each in (last, first)]
        return months[0] // span - months[1] // span
    span, shift = UNITS_US[unit], (3 * UNITS_US["day"] if unit == "week" else 0)  # 1970-01-01 was a Thursday
    counts = [(each.cast(pl.Int64) + shift) // span for each in (last, first)]
    return counts[0] - counts[1]


def _epoch(node: Node, a: pl.Expr) -> pl.Expr:
    return _quotient(_micros(node.args[0].type, a), 1e6)


def _micros(kind: str, a: pl.Expr) -> pl.Expr:
    if kind in ("timestamp", "duration"):
        return a.cast(pl.Int64)
    if kind == "date":
        return a.cast(pl.Datetime("us")).cast(pl.Int64)

    def choose(series: pl.Series) -> pl.Series:
        return series.cast(pl.Datetime("us") if series.dtype == pl.Date else series.dtype).cast(pl.Int64)

    return a.map_batches(choose, return_dtype=pl.Int64, is_elementwise=True)


def _to_timestamp(node: Node, a: pl.Expr) -> pl.Expr:
    micros = (a * 1e6).round(0, mode="half_away_from_zero")
    good = micros.is_between(FIRST_US, LAST_US)
    return pl.when(good).then(micros).cast(pl.Int64, strict=False).cast(pl.Datetime("us"))


def _make_timestamp(node: Node, *args: pl.Expr) -> pl.Expr:
    year, month, day, hour, minute, second = args
    in_month = (
        pl.when(month.is_in([4, 6, 9, 11]))
        .then(30)
        .when(month != 2)
        .then(31)
        .when((year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0)))
        .then(29)
        .otherwise(28)
    )
    micros = (second * 1e6).round(0, mode="half_away_from_zero")
    good = (
        year.is_between(1, 9999)
        & month.is_between(1, 12)
        & day.is_between(1, in_month)
        & hour.is_between(0, 23)
        & minute.is_between(0, 59)
        & micros.is_between(0, 59_999_999)
    )
    # pl.datetime refuses an impossible day even in a branch not taken, so what it gets is nulled first.
    midnight = pl.datetime(*(pl.when(good).then(each) for each in (year, month, day)), time_unit="us")
    clock = (hour * 3600 + minute * 60) * 1_000_000 + pl.when(good).then(micros).cast(pl.Int64)
    return midnight + pl.when(good).then(clock).cast(pl.Duration("us"))


# ── casts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _cast(node: Node, a: pl.Expr) -> pl.Expr:
    source, target = node.args[0].type, node.value
    if source:
        return cast_column(a, source, target)
    dtype = DTYPES[target]

    def choose(series: pl.Series) -> pl.Series:
        kind = _kind_of(series.dtype)
        found = cast_column(pl.col(series.name), kind, target) if kind else pl.lit(None, dtype)
        return series.to_frame().with_columns(found.alias(series.name)).to_series()

    return a.map_batches(choose, return_dtype=dtype, is_elementwise=True)


def _kind_of(dtype: Any) -> str:
    """Name the type of a Polars type as `Node.type` does; "" when there is none."""
    if dtype == pl.Duration:
        return "duration"
    return "null" if dtype == pl.Null else type_of(dtype) or ""


def cast_column(a: pl.Expr, source: str, target: str) -> pl.Expr:
    """Return the cast of a column of known type as SQL makes it: null where it cannot be made."""
    if source == target and source != "":
        return a
    if source == "text":
        return _from_text(a, target)
    if target == "text":
        return _to_text(a, source)
    if source == "duration" or (source in ("date", "timestamp")) != (target in ("date", "timestamp")):
        return pl.lit(None, DTYPES[target]) if source != "null" else a.cast(DTYPES[target])
    if target == "bool":
        return a != 0
    return a.cast(DTYPES[target], strict=False)


def _from_text(a: pl.Expr, target: str) -> pl.Expr:
    if target == "int":
        return pl.when(a.str.contains(INT_PATTERN)).then(a.cast(pl.Int64, strict=False))
    if target == "float":
        return pl.when(a.str.contains(FLOAT_PATTERN)).then(a.cast(pl.Float64, strict=False))
    if target == "bool":
        return a.str.to_lowercase().replace_strict(WORDS, default=None, return_dtype=pl.Boolean)
    if target == "date":
        good = pl.when(a.str.contains("^[0-9]{4}-[0-9]{2}-[0-9]{2}$") & ~a.str.starts_with("0000")).then(a)
        return good.str.to_date("%Y-%m-%d", strict=False)
    # Every shape is written out to the second and parsed once: Polars works out what an expression shares with another
    # anew each time, and tries each format that does not fit at four times the cost of one that does.
    plain = a.str.strip_suffix("Z")
    length = plain.str.len_bytes()
    clock = (
        pl.when(length >= 19)
        .then(plain.str.slice(11, 8))
        .when(length == 16)
        .then(plain.str.slice(11, 5) + ":00")
        .otherwise(pl.lit("00:00:00"))
    )
    head = (a.str.slice(0, 10) + " " + clock).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    tail = plain.str.slice(20).str.pad_end(6, "0").cast(pl.Int64, strict=False)
    moment = head + pl.when(length > 20).then(tail).otherwise(0).cast(pl.Duration("us"))
    # chrono reads a second 60 (a leap second) that Python's datetime has no place for
    return pl.when(a.str.contains(TIMESTAMP_PATTERN) & (a.str.slice(17, 2) != "60")).then(moment)


def _to_text(a: pl.Expr, source: str) -> pl.Expr:
    if source == "timestamp":
        return a.dt.strftime("%Y-%m-%d %H:%M:%S%.f")
    if source == "duration":
        return pl.lit(None, pl.String)
    return a.cast(pl.String)


_OPERATIONS: dict[str, Callable[..., pl.Expr]] = {
    "column": _column,
    "literal": _literal,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "floordiv": _floordiv,
    "mod": _mod,
    "neg": _neg,
    "abs": lambda node, a: a.abs(),
    "sign": lambda node, a: a.sign(),
    "floor": lambda node, a: a.floor(),
    "ceil": lambda node, a: a.ceil(),
    "round": _round,
    "sqrt": _sqrt,
    "ln": _ln,
    "exp": lambda node, a: a.exp(),
    "pow": _pow,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "same", "differs"), _compare),
    "and": lambda node, a, b: a & b,
    "or": lambda node, a, b: a | b,
    "not": lambda node, a: ~a,
    "is_null": lambda node, a: a.is_null(),
    "in": _in,
    "like": _like,
    "case": _case,
    "coalesce": _coalesce,
    "least": _least,
    "greatest": _greatest,
    "lower": lambda node, a: a.str.to_lowercase(),
    "upper": lambda node, a: a.str.to_uppercase(),
    "length": lambda node, a: a.str.len_chars().cast(pl.Int64),
    "trim": _trim,
    "ltrim": _trim,
    "rtrim": _trim,
    "substr": _substr,
    "concat": lambda node, *args: pl.concat_str(args, ignore_nulls=True),
    "join": lambda node, a, b: a + b,
    "replace": _replace,
    "starts_with": lambda node, a, b: a.str.starts_with(b),
    "ends_with": lambda node, a, b: a.str.ends_with(b),
    "contains": lambda node, a, b: a.str.contains(b, literal=True),
    "part": _part,
    "date_trunc": _date_trunc,
    "date_diff": _date_diff,
    "epoch": _epoch,
    "to_timestamp": _to_timestamp,
    "make_timestamp": _make_timestamp,
    "cast": _cast,
}
