"""The promise: an expression over a frame and the same expression over one row give the same bits."""

from __future__ import annotations

import datetime as dt
import math
import struct
from typing import Any

import polars as pl
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from tenon.contract.frame import DTYPES
from tenon.contract.sql import parse, to_function, to_polars
from tenon.errors import ConfigError

TYPES = {
    "i": "int",
    "j": "int",
    "f": "float",
    "g": "float",
    "s": "text",
    "u": "text",
    "b": "bool",
    "c": "bool",
    "t": "timestamp",
    "v": "timestamp",
    "d": "date",
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, 0.1, 1e16, 1e300, -1e300, 5e-324, math.inf, -math.inf, math.nan]
WORDS = ["", "a", " a ", "12", "-7", "1.5", "1e3", "true", "No", "2013-02-28", "2013-02-30", "2013-01-01 05:06:07.25"]

ints = st.one_of(st.integers(-10, 10), st.integers(-(2**63), 2**63 - 1))
floats = st.one_of(st.sampled_from(SPECIAL), st.floats(), st.floats(-1000, 1000))
texts = st.one_of(
    st.sampled_from(WORDS), st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), max_size=6)
)
moments = st.one_of(
    st.datetimes(dt.datetime(1960, 1, 1), dt.datetime(2040, 1, 1)),
    st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0)),
)
dates = st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))
BY_TYPE = {"int": ints, "float": floats, "text": texts, "bool": st.booleans(), "timestamp": moments, "date": dates}
rows = st.fixed_dictionaries({name: st.none() | BY_TYPE[kind] for name, kind in TYPES.items()})


@st.composite
def sql(draw: st.DrawFn, kind: str, depth: int) -> str:
    """Draw an expression of a type, nested at most `depth` deep."""
    names = [name for name, its in TYPES.items() if its == kind]
    if depth == 0 or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([*names, *_LITERALS[kind]]))
    form = draw(st.sampled_from(_FORMS[kind]))
    parts = [draw(sql(piece[: piece.index("}")], depth - 1)) for piece in form.split("{")[1:]]
    text = form
    for part in parts:
        text = text[: text.index("{")] + f"({part})".replace("{", "") + text[text.index("}") + 1 :]
    return text


_LITERALS = {
    "int": ["0", "1", "-3", "7", "null"],
    "float": ["0.0", "2.5", "-0.5", "1e10", "null"],
    "text": ["''", "'a'", "'Ab c'", "'12'", "null"],
    "bool": ["true", "false", "null"],
    "timestamp": ["timestamp '2013-11-01 05:15:00'", "cast('1969-12-31 23:59:59.5' as timestamp)"],
    "date": ["date '2013-11-01'", "date '2012-02-29'"],
    "duration": ["interval '1 hour'", "interval '90 seconds'", "interval i minute"],
}
_ANY = ["int", "float", "text", "bool", "timestamp", "date"]
_SHARED = [
    "case when {bool} then {%s} else {%s} end",
    "case when {bool} then {%s} when {bool} then {%s} end",
    "coalesce({%s}, {%s})",
    "nullif({%s}, {%s})",
    "least({%s}, {%s})",
    "greatest({%s}, {%s}, {%s})",
    "if({bool}, {%s}, {%s})",
]
_FORMS = {
    "int": [
        *(
            "{int} + {int}",
            "{int} - {int}",
            "{int} * {int}",
            "{int} // {int}",
            "{int} % {int}",
            "-{int}",
            "{bool} + {bool}",
        ),
        *("abs({int})", "sign({int})", "round({int}, 2)", "floor({int})", "length({text})", "cast({float} as int)"),
        *(
            "cast({text} as int)",
            "cast({bool} as int)",
            "hour({timestamp})",
            "minute({timestamp})",
            "second({timestamp})",
        ),
        *("day({date})", "month({timestamp})", "year({date})", "quarter({timestamp})", "week({date})"),
        *("dayofweek({timestamp})", "day_of_year({date})", "hour({date})"),
        *("date_diff('day', {timestamp}, {timestamp})", "date_diff('week', {date}, {timestamp})"),
        *("date_diff('month', {date}, {date})", "date_diff('hour', {timestamp}, {date})"),
    ],
    "float": [
        *("{float} + {int}", "{float} - {float}", "{float} * {float}", "{int} / {int}", "{float} / {float}"),
        *("{float} // {float}", "mod({float}, {float})", "-{float}", "abs({float})", "sign({float})", "round({float})"),
        *("round({float}, 2)", "floor({float})", "ceil({float})", "sqrt({float})", "ln({float})", "exp({float})"),
        *("pow({float}, {int})", "power({float}, {float})", "cast({text} as float)", "cast({int} as double)"),
        *("epoch({timestamp})", "epoch({date})", "epoch({timestamp} - {timestamp})", "epoch({duration})"),
    ],
    "text": [
        *("lower({text})", "upper({text})", "trim({text})", "ltrim({text}, 'a1')", "substr({text}, {int})"),
        *(
            "substring({text}, 2, 3)",
            "substr({text}, i % 5, j % 5)",
            "concat({text}, {int}, {text})",
            "{text} || {text}",
        ),
        *("replace({text}, 'a', 'bb')", "cast({int} as text)", "cast({bool} as text)", "cast({float} as text)"),
        *("cast({timestamp} as text)", "cast({date} as text)", "rtrim({text})"),
    ],
    "bool": [
        *(f"{{{kind}}} {sign} {{{kind}}}" for kind in _ANY for sign in ("=", "<>", "<", "<=", ">", ">=")),
        *(f"{{{kind}}} is null" for kind in _ANY),
        *("{bool} and {bool}", "{bool} or {bool}", "not {bool}", "{int} < {float}", "{float} = {int}"),
        *("{int} between {int} and {float}", "{int} in (1, -3, 7)", "{float} in (1, 2.5)", "{text} in ('a', '12')"),
        *(
            "{text} not in ('a', null)",
            "{text} like 'a%'",
            "{text} like '%1_%'",
            "{text} like '%a'",
            "{text} like '%a%'",
        ),
        *(
            "contains({text}, {text})",
            "starts_with({text}, {text})",
            "ends_with({text}, {text})",
            "{date} <= {timestamp}",
        ),
        *("cast({text} as bool)", "cast({float} as bool)", "cast({int} as bool)", "{timestamp} >= '2013-01-01'"),
        *(
            "{bool} is true",
            "{text} is distinct from {text}",
            "{duration} > {duration}",
            "{float} is not distinct from {int}",
        ),
    ],
    "timestamp": [
        *("{timestamp} + {duration}", "{timestamp} - {duration}", "{date} + {duration}", "cast({date} as timestamp)"),
        *(
            f"date_trunc('{unit}', {{timestamp}})"
            for unit in ("second", "hour", "day", "week", "month", "quarter", "year")
        ),
        *(
            "make_timestamp(2000 + i % 50, j % 14, i % 33, j % 25, 30, f)",
            "cast({text} as timestamp)",
            "to_timestamp(f)",
        ),
        "date_trunc('day', {date})",
    ],
    "date": ["cast({timestamp} as date)", "cast({text} as date)", "make_date(2000, i % 14, j % 33)"],
    "duration": ["{duration} + {duration}", "{timestamp} - {timestamp}", "{date} - {date}", "(i % 1000) * {duration}"],
}
for _kind in _ANY:
    _FORMS[_kind] += [form.replace("%s", _kind) for form in _SHARED]

expressions = st.sampled_from([*_ANY, "duration"]).flatmap(lambda kind: sql(kind, 3))


def same(a: Any, b: Any) -> bool:
    """Compare two values by type and bits; every NaN is one NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (a != a and b != b) or struct.pack("<d", a) == struct.pack("<d", b)
    return bool(a == b)


SIZES = [float(f"{digits}e{power}") for power in range(-12, 30) for digits in ("1", "9.999000099990002")]


def run(text: str, table: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    """Run an expression both ways over a table."""
    frame = pl.DataFrame(table, schema={name: DTYPES[kind] for name, kind in TYPES.items()})
    expr = parse(text, "test", TYPES)
    function = to_function(expr)
    # beside a column, so that a constant expression has the frame's height
    columns = frame.select("i", to_polars(expr).alias("_out")).get_column("_out").to_list()
    return columns, [function(row) for row in table]


@settings(max_examples=150, deadline=None)
@given(expressions, st.lists(rows, min_size=1, max_size=6))
@example("floor(f / g)", [dict.fromkeys(TYPES) | {"f": 1.0, "g": 0.1}])
@example("cast(f as text)", [dict.fromkeys(TYPES) | {"f": size * sign} for size in SIZES for sign in (1, -1)])
@example("pow(f, 7) + power(f, 2)", [dict.fromkeys(TYPES) | {"f": n / 7} for n in range(1, 2000, 13)])
@example("-(-(cast(null as int)))", [dict.fromkeys(TYPES)])
@example("i * j", [dict.fromkeys(TYPES) | {"i": 2**62, "j": 3}])
def test_frames_and_rows_give_the_same_bits(text: str, table: list[dict[str, Any]]) -> None:
    try:
        columns, values = run(text, table)
    except ConfigError as error:  # an impossible literal is refused while parsing: cast('12' as date)
        assert "write it as '2013-11-01'" in str(error), text
        reject()
    for one, other in zip(columns, values, strict=True):
        assert same(one, other), (text, one, other)
