"""Plain rows against their columns: values in the right types, and every fault with its path."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.contract import Column, check_rows

COLUMNS = [
    Column("n", "int", between=(0, 23)),
    Column("x", "float", nullable=True),
    Column("s", "text", one_of=("a", "b"), nullable=True),
    Column("p", "text", pattern="[A-Z]{2}", nullable=True),
    Column("b", "bool", nullable=True),
    Column("d", "date", nullable=True, between=("2013-01-01", "2013-12-31")),
    Column("t", "timestamp", nullable=True),
    Column("w", "int", nullable=True, between=(0, 1), severity="warning"),
]


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"n": 5}, "n", 5),
        ({"n": 5.0}, "n", 5),
        ({"n": 1, "x": 3}, "x", 3.0),
        ({"n": 1, "t": "2013-11-01T05:15:00"}, "t", dt.datetime(2013, 11, 1, 5, 15)),
        ({"n": 1, "t": "2013-11-01 05:15"}, "t", dt.datetime(2013, 11, 1, 5, 15)),
        ({"n": 1, "t": "2013-11-01T05:15:00Z"}, "t", dt.datetime(2013, 11, 1, 5, 15)),
        ({"n": 1, "t": "2013-11-01T05:15:00+02:00"}, "t", dt.datetime(2013, 11, 1, 3, 15)),
        ({"n": 1, "t": dt.datetime(2013, 11, 1, 5, tzinfo=dt.UTC)}, "t", dt.datetime(2013, 11, 1, 5)),
        ({"n": 1, "d": "2013-11-01"}, "d", dt.date(2013, 11, 1)),
        ({"n": 1, "w": 7}, "w", 7),  # a warning refuses nothing
        ({"n": 1, "id": "mine"}, "n", 1),
    ],
)
def test_a_value_comes_out_in_its_type(given: dict[str, Any], name: str, expected: object) -> None:
    checked = check_rows([given], COLUMNS)
    assert checked.faults == []
    assert checked.rows[0][name] == expected
    assert type(checked.rows[0][name]) is type(expected)
    assert list(checked.rows[0]) == [column.name for column in COLUMNS]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, {"path": "$.rows[0].n", "expected": "a whole number", "got": "nothing"}),
        ({"n": None}, {"path": "$.rows[0].n", "expected": "a whole number", "got": "null"}),
        ({"n": "five"}, {"path": "$.rows[0].n", "expected": "a whole number", "got": "'five'"}),
        ({"n": True}, {"path": "$.rows[0].n", "expected": "a whole number", "got": "True"}),
        ({"n": 5.5}, {"path": "$.rows[0].n", "expected": "a whole number", "got": "5.5"}),
        ({"n": 24}, {"path": "$.rows[0].n", "expected": "a whole number from 0 to 23", "got": "24"}),
        ({"n": 1, "x": float("nan")}, {"path": "$.rows[0].x", "expected": "a number", "got": "nan"}),
        ({"n": 1, "x": 10**400}, {"path": "$.rows[0].x", "expected": "a number", "got": "1" + "0" * 76 + "..."}),
        ({"n": 1, "s": "c"}, {"path": "$.rows[0].s", "expected": "text, one of 'a', 'b'", "got": "'c'"}),
        ({"n": 1, "p": "AAB"}, {"path": "$.rows[0].p", "expected": "text like [A-Z]{2}", "got": "'AAB'"}),
        ({"n": 1, "b": 1}, {"path": "$.rows[0].b", "expected": "true or false", "got": "1"}),
        (
            {"n": 1, "d": "2014-01-01"},
            {
                "path": "$.rows[0].d",
                "expected": "a date such as 2013-11-01 from 2013-01-01 to 2013-12-31",
                "got": "'2014-01-01'",
            },
        ),
        (
            {"n": 1, "t": "noon"},
            {"path": "$.rows[0].t", "expected": "a timestamp such as 2013-11-01T05:15:00", "got": "'noon'"},
        ),
        (
            {"n": 1, "nn": 2},
            {
                "path": "$.rows[0].nn",
                "expected": "a column of this request (did you mean 'n'?)",
                "got": "a column it does not have",
            },
        ),
        (7, {"path": "$.rows[0]", "expected": "an object with the columns by name", "got": "7"}),
    ],
)
def test_a_fault_says_path_expected_and_got(given: Any, fault: dict[str, str]) -> None:
    assert check_rows([given], COLUMNS).faults == [fault]


def test_every_fault_of_every_row_is_told_in_order() -> None:
    checked = check_rows([{"n": 1}, {"n": "x", "b": "y"}, {"n": None}], COLUMNS)
    assert [fault["path"] for fault in checked.faults] == ["$.rows[1].n", "$.rows[1].b", "$.rows[2].n"]
    assert [row["n"] for row in checked.rows] == [1, None, None]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from([column.name for column in COLUMNS]), anything) | anything, max_size=3))
def test_no_value_makes_the_check_raise(rows: list[Any]) -> None:
    checked = check_rows(rows, COLUMNS)
    assert len(checked.rows) == len(rows)
    for fault in checked.faults:
        assert fault["path"].startswith("$.rows[") and fault["expected"] and len(fault["got"]) <= 80
