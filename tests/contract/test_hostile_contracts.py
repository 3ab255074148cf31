"""Contract files from anywhere: what is no contract is refused in words, with its place, and in no time."""

from __future__ import annotations

import time

import polars as pl
import pytest

from tenon.contract import Column, Contract, check, check_rows
from tenon.errors import ConfigError, TenonError

HEAD = "apiVersion: v3.1.0\n"
COLUMN = HEAD + "schema:\n- name: t\n  properties:\n  - {name: x, "
INT = COLUMN + "logicalType: integer, "


def bomb(leaf: str, end: str) -> str:
    lines = [f"{b}: &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)]
    return HEAD + f"a: &a {leaf}\n" + "\n".join(lines) + end


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb("[x]", "\nschema: *k"), "at most 500,000 values, got "),
        (bomb("x", "\nschema: [{name: t, properties: [{name: a, description: *k}]}]"), "once aliases are unfolded"),
        (HEAD + "a: &a [*a]", "one that refers to itself"),
        (HEAD + "schema: " + "[" * 4_000 + "]" * 4_000, "nested too deeply"),
        (HEAD + "\tschema: 3", "at ODCS file, line 2, column 1"),
        (HEAD + "schema: \x00", "expected YAML"),
        (INT + f"logicalTypeOptions: {{minimum: {'9' * 5000}}}}}", "expected YAML, got Exceeds the limit"),
        (INT + "logicalTypeOptions: {minimum: .nan, maximum: 3}}", "smaller first, got (nan, 3)"),
        (INT + "logicalTypeOptions: {minimum: [1], maximum: {a: b}}}", "with two values of type int"),
        (COLUMN + "logicalTypeOptions: 7}", "a mapping, got 7 - at $.schema.t.x.logicalTypeOptions"),
        (COLUMN + "logicalTypeOptions: {maxLength: '1) OR (1=1'}}", "a number, got '1) OR (1=1'"),
        (COLUMN + "logicalTypeOptions: {pattern: '(['}}", "a regular expression, got '(['"),
        (COLUMN + "logicalType: integr}", "got 'integr' - at $.schema.t.x.logicalType; did you mean 'integer'?"),
        (COLUMN + "required: 'no'}", "true or false, got 'no' - at $.schema.t.x.required"),
        (COLUMN + "quality: [{metric: invalidValues, arguments: 7}]}", "at $.schema.t.x.quality[0].arguments"),
        (COLUMN + "quality: [{metric: invalidValues, arguments: {validValues: 7}}]}", "a list, got 7"),
        (COLUMN + "quality: [{metric: invalidValues, mustBe: 101, unit: percent}]}", "from 0 to 100 percent, got 101"),
        (COLUMN + "customProperties: [{property: between, value: 7}]}", "a list, got 7 - at $.schema.t.x.between"),
        (COLUMN + "unique: 3}\nslaProperties: 4", "true or false, got 3"),
    ],
)
def test_a_hostile_or_mistaken_file_is_refused_in_words(text: str, said: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigError) as refused:
        Contract.from_odcs(text)
        pytest.fail("it was read")
    assert said in str(refused.value)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("x IN (SELECT y FROM z)", "a list after IN"),
        ("count(x) > 1", "an expression over one row, got the aggregate count()"),
        ("y > 1", "a column that exists, got 'y'"),
        ("(" * 3_000 + "x = 'a'" + ")" * 3_000, "nested at most 100 deep, got"),
        (" AND ".join(["x = 'a'"] * 5_000), "at most 10,000 characters"),
        ("x = 'a'; DROP TABLE t", "SQL"),
        ("length(x)", "a condition, got a value of type int"),
    ],
)
def test_sql_that_is_no_row_rule_is_refused(sql: str, said: str) -> None:
    text = COLUMN + "required: true}\n  quality:\n  - type: sql\n    customProperties:\n"
    body = text + f'    - {{property: rule, value: "{sql}"}}\n'
    with pytest.raises(TenonError) as refused:
        check(pl.DataFrame({"x": ["a"]}), Contract.from_odcs(body))
    assert said in str(refused.value)


def test_a_query_that_is_no_count_of_rows_is_named_as_unread() -> None:
    text = (
        COLUMN + "required: true}\n  quality:\n  - {type: sql, query: 'DROP TABLE t'}\n  - {type: sql, query: {a: b}}"
    )
    assert Contract.from_odcs(text).unread == ("$.schema.t.quality[0]", "$.schema.t.quality[1]")


def test_bounds_beyond_any_number_hold_everything() -> None:
    text = INT + "logicalTypeOptions: {minimum: -99999999999999999999999, maximum: 99999999999999999999999}}"
    assert check(pl.DataFrame({"x": [-(2**63), 2**63 - 1]}), Contract.from_odcs(text)).passed
    words = INT + "quality: [{metric: invalidValues, arguments: {validValues: [99999999999999999999999, 3]}}]}"
    assert check(pl.DataFrame({"x": [3, 4]}), Contract.from_odcs(words)).bad["x"].to_list() == [4]


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|aa)*", "(a|a)*b", "a*a*a*a*a*a*", "([a-z]+)*@x"])
def test_a_pattern_that_backtracks_for_ever_takes_no_time(pattern: str) -> None:
    values = ["a" * 60 + "!", "a" * 5_000 + "\n", "aaaa"]
    started = time.perf_counter()
    frame = check(pl.DataFrame({"x": values}), Contract(name="t", columns=(Column("x", pattern=pattern),)))
    faults = check_rows([{"x": value} for value in values], [Column("x", pattern=pattern)]).faults
    assert time.perf_counter() - started < 5
    assert len(faults) == frame.bad.height >= 2
