"""The promises of the SQL language: what expressions mean, and what is refused in words."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest

from tenon.contract import sql
from tenon.contract.sql_functions import AGGREGATES, FUNCTIONS
from tenon.errors import ConfigError

TYPES = {"i": "int", "f": "float", "s": "text", "b": "bool", "t": "timestamp", "d": "date", "n": "int"}
ROW: dict[str, Any] = {
    "i": 7,
    "f": -2.5,
    "s": "Héllo",
    "b": True,
    "t": dt.datetime(2013, 11, 3, 5, 15, 2, 250_000),
    "d": dt.date(2013, 11, 3),
    "n": None,
}
NULL = None
CASES: list[tuple[str, Any]] = [
    # arithmetic
    ("i / 2", 3.5),
    ("i / 0", NULL),
    ("i // 2", 3),
    ("-i // 2", -4),
    ("i div 2", 3),
    ("i // 0", NULL),
    ("mod(-7, 3)", 2),
    ("-7 % 3", 2),
    ("f % 2", 1.5),
    ("i + n", NULL),
    ("b + b", 2),
    ("i * 9223372036854775807", 9223372036854775801),  # wraps at 64 bits
    ("49 / 49.0", 1.0),
    ("pow(2, 10)", 1024.0),
    ("i ** 2", 49.0),
    ("pow(0, -1)", NULL),
    ("pow(-8, 0.5)", NULL),
    ("sqrt(f)", NULL),
    ("ln(0)", NULL),
    ("exp(1000)", math.inf),
    ("round(2.5)", 3.0),
    ("round(f)", -3.0),
    ("round(3.14159, 2)", 3.14),
    ("floor(f)", -3.0),
    ("ceil(f)", -2.0),
    ("abs(f) + sign(f)", 1.5),
    # comparison, logic and choice
    ("i > 5 and n > 5", NULL),
    ("i < 5 and n > 5", False),
    ("i > 5 or n > 5", True),
    ("not n > 5", NULL),
    ("n is null", True),
    ("i is not null", True),
    ("(n > 5) is true", False),
    ("n is not distinct from null", True),
    ("i between 7 and 8", True),
    ("i not in (1, 2)", True),
    ("n in (1, 2)", NULL),
    ("i in (1, null)", NULL),
    ("case when n > 1 then 'a' when b then 'b' end", "b"),
    ("case i when 7 then 1 else 2.5 end", 1.0),
    ("if(f > 0, 1, 2)", 2),
    ("coalesce(n, i)", 7),
    ("nullif(i, 7)", NULL),
    ("least(i, n, f)", -2.5),
    ("greatest(i, n, f)", 7.0),
    # text
    ("lower(s)", "héllo"),
    ("length(s)", 5),
    ("substr(s, 2, 3)", "éll"),
    ("substring(s from 2)", "éllo"),
    ("substr(s, 0, 2)", "H"),
    ("trim('  x ')", "x"),
    ("concat(s, n, 1)", "Héllo1"),
    ("s || n", NULL),
    ("replace(s, 'l', 'L')", "HéLLo"),
    ("s like 'H_l%'", True),
    ("s not like '%z%'", True),
    ("starts_with(s, 'H') and ends_with(s, 'o') and contains(s, 'll')", True),
    # casts
    ("cast('12' as int)", 12),
    ("cast(' 12' as int)", NULL),
    ("cast('1e3' as float)", 1000.0),
    ("cast('nan' as float)", NULL),
    ("cast(-1.9 as int)", -1),
    ("cast('Yes' as bool)", True),
    ("cast(t as text)", "2013-11-03 05:15:02.250"),
    ("cast(1.0 as text)", "1.0"),
    ("t::date", dt.date(2013, 11, 3)),
    ("cast('2013-11-01T05:15:00Z' as timestamp)", dt.datetime(2013, 11, 1, 5, 15)),
    ("cast(s as timestamp)", NULL),
    # time
    ("hour(t) * 60 + minute(t)", 315),
    ("extract(year from t)", 2013),
    ("isodow(t)", 7),  # a Sunday
    ("dayofweek(d)", 7),
    ("week(d)", 44),
    ("quarter(t)", 4),
    ("day_of_year(d)", 307),
    ("date_trunc('week', t)", dt.datetime(2013, 10, 28)),
    ("date_trunc('quarter', d)", dt.datetime(2013, 10, 1)),
    ("date_diff('day', '2013-11-01 23:00', t)", 2),  # midnights between
    ("date_diff('month', d, '2014-02-01')", 3),
    ("epoch(t) - epoch(d)", 18902.25),
    ("t + interval '1 hour 30 minutes'", dt.datetime(2013, 11, 3, 6, 45, 2, 250_000)),
    ("d + i * interval '1 minute'", dt.datetime(2013, 11, 3, 0, 7)),
    ("t - interval i day", dt.datetime(2013, 10, 27, 5, 15, 2, 250_000)),
    ("t - d > interval 5 hour", True),
    ("(t - d) / interval '1 hour'", 5.250625),
    ("make_timestamp(2013, 2, 28, 5, 15, 30)", dt.datetime(2013, 2, 28, 5, 15, 30)),
    ("make_timestamp(2013, 2, 30)", NULL),
    ("make_date(2012, 2, 29)", dt.date(2012, 2, 29)),
    ("to_timestamp(0.5)", dt.datetime(1970, 1, 1, 0, 0, 0, 500_000)),
    ("t >= '2013-11-03'", True),
    ("d < date '2013-11-04'", True),
    ("t + interval '3000000 day'", NULL),  # after the year 9999
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_an_expression_means_what_the_page_says(text: str, expected: object) -> None:
    expr = sql.parse(text, "test", TYPES)
    frame = pl.DataFrame([ROW], schema_overrides={"n": pl.Int64})
    found = frame.select("i", sql.to_polars(expr).alias("_out"))["_out"][0]
    assert (found, type(found)) == (expected, type(expected))
    assert sql.to_function(expr)(ROW) == expected


REFUSED = [
    ("hourr(t)", "did you mean 'hour'?"),
    ("hour(s)", "a date or timestamp with hour(), got text (column 's')"),
    ("j + 1", "expected a column that exists, got 'j'"),
    ("s + 1", "expected numbers with +, got text (column 's')"),
    ("t > 3", "the same type on both sides of >, got a timestamp (column 't') and a whole number ('3')"),
    ("t > 'noon'", "expected a timestamp, got 'noon'"),
    ("avg(avg(i))", "'avg()' inside another aggregate"),
    ("sum(i) over ()", "got 'SUM(i) OVER ()'"),
    ("(select 1)", "a scalar expression over columns"),
    ("x.i", "a column name alone, got 'x.i'"),
    ("", "one SQL expression, got nothing"),
    ("i; drop table i", "one SQL expression, got 2 statements"),
    ("i +", "an SQL expression"),
    ("now()", "a function tenon knows, got 'now()'"),
    ("random()", "a function tenon knows"),
    ("t + interval '1 month'", "an interval of fixed length"),
    ("t + interval i year", "a unit of fixed length, got 'year'"),
    ("round(f, i)", "a literal as this argument of round()"),
    ("s like s", "a text literal after LIKE"),
    ("substr(s)", "2 to 3 arguments of substr(), got 1"),
    ("cast(s as json)", "a type to cast to, got 'JSON'"),
    ("case when i then 1 end", "a condition with WHEN, got a whole number (column 'i')"),
    ("not i", "a condition with NOT"),
    ("cast(t as int)", "use epoch(x) for seconds"),
    ("99999999999999999999", "a whole number of 64 bits"),
    ("(" * 500 + "i" + ")" * 500, "nested at most 100 deep"),
    ("not " * 3000 + "b", "at most 10,000 characters"),
    ("not " * 2000 + "b", "at test"),
    ("-" * 900 + "i", "at test"),
    ("i + " * 2400 + "i", "at test"),
    ("x -> 1", "at test"),
    ("$1", "at test"),
    ("date_trunc('fortnight', t)", "a unit as the first argument of date_trunc()"),
    ("count(distinct i, f)", "one argument of count(), got 2"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_no_expression_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sql.parse(text, "at test", TYPES)
    assert said in str(refused.value)
    assert "at test" in str(refused.value)
    assert len(str(refused.value)) < 1_000


def test_without_types_columns_are_taken_as_they_come() -> None:
    expr = sql.parse("i / 2 + f", "test")
    assert expr.type == "float" or expr.type == ""
    assert sql.columns(expr) == {"i", "f"}
    assert sql.to_function(expr)({"i": 1, "f": 2.0}) == 2.5
    assert pl.DataFrame({"i": [1], "f": [2.0]}).select(sql.to_polars(expr).alias("x"))["x"].to_list() == [2.5]


def test_a_cast_of_a_column_of_unknown_type_looks_at_the_values() -> None:
    expr = sql.parse("cast(x as int)", "test")
    for values, expected in (
        (["7", "x", None], [7, None, None]),
        ([1.9, -1.9, None], [1, -1, None]),
        ([True, False, None], [1, 0, None]),
        ([dt.date(2013, 1, 1), None], [None, None]),
    ):
        frame = pl.DataFrame({"x": values})
        assert frame.select(sql.to_polars(expr).alias("x"))["x"].to_list() == expected
        assert [sql.to_function(expr)({"x": value}) for value in values] == expected


def test_a_row_without_a_column_is_an_error_and_not_null() -> None:
    with pytest.raises(KeyError, match="i"):
        sql.to_function(sql.parse("i + 1", "test"))({})


def test_the_type_of_an_expression_is_known_when_its_columns_are() -> None:
    types = {
        "i + f": "float",
        "i > 1": "bool",
        "t - t": "duration",
        "lower(s)": "text",
        "null": "null",
        "avg(i)": "float",
    }
    assert {text: sql.parse(text, "test", TYPES).type for text in types} == types


def test_an_aggregate_is_told_by_name_argument_and_distinct() -> None:
    found = sql.aggregate_of(sql.parse("avg(i > 3)", "test", TYPES))
    assert found is not None
    name, argument, distinct = found
    assert (name, distinct) == ("avg", False)
    assert argument is not None
    assert sql.to_function(argument)(ROW) == 1
    assert sql.aggregate_of(sql.parse("count(*)", "test")) == ("count", None, False)
    counted = sql.aggregate_of(sql.parse("count(distinct s)", "test"))
    assert counted is not None and counted[0] == "count" and counted[2]
    assert sql.aggregate_of(sql.parse("i + 1", "test")) is None


def test_an_aggregate_with_a_filter_counts_only_rows_that_meet_it() -> None:
    found = sql.aggregate_of(sql.parse("sum(f) filter (where i > 7)", "test", TYPES))
    assert found is not None and found[1] is not None
    assert sql.to_function(found[1])(ROW) is None
    assert sql.to_function(found[1])({**ROW, "i": 8}) == -2.5


def test_an_expression_over_aggregates_is_split_into_both() -> None:
    outer, parts = sql.split(sql.parse("avg(f) / max(i) - avg(f)", "test", TYPES))
    assert {name: part[0] for name, part in parts.items()} == {"_agg0": "avg", "_agg1": "max"}
    assert sql.columns(outer) == {"_agg0", "_agg1"}
    assert sql.to_function(outer)({"_agg0": 6.0, "_agg1": 3}) == -4.0


def test_an_aggregate_is_refused_where_there_is_only_one_row() -> None:
    expr = sql.parse("avg(i) + 1", "column 'x'", TYPES)
    for run in (sql.to_polars, sql.to_function):
        with pytest.raises(
            ConfigError, match=r"expected an expression over one row, got the aggregate avg\(\) - at column"
        ):
            run(expr)


def test_every_function_is_on_the_page() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "contract.md").read_text("utf-8")
    for name in [*FUNCTIONS, *AGGREGATES]:
        assert f"`{name}`" in page, name
