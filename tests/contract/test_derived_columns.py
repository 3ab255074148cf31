"""Derived columns: the same for frames and rows, in the order they depend on each other; lookups never guess."""

from __future__ import annotations

import datetime as dt
from typing import Any

import polars as pl
import pytest

from tenon.contract import Column, derivation, derive, derive_rows
from tenon.errors import ConfigError, InputError, MissingError

AIRPORTS = pl.DataFrame({"faa": ["JFK", "LAX", None], "tz": [-5.0, -8.0, 1.0]})
FLIGHTS = pl.DataFrame(
    {
        "time_hour": [dt.datetime(2013, 1, 1, 10), dt.datetime(2013, 1, 1, 11), None],
        "minute": [17, 59, 0],
        "dest": ["LAX", "XXX", None],
    }
)
COLUMNS = [
    Column("time_hour", "timestamp"),
    Column("minute", "int"),
    Column("dest"),
    # declared before what it reads
    Column("local", "timestamp", nullable=True, derive="sched_dep + dest_tz * interval '1 hour'"),
    Column("sched_dep", "timestamp", derive="time_hour + minute * interval '1 minute'"),
    Column("dest_tz", "float", nullable=True, derive="tz", of="airports", on="dest"),
    Column("minutes", "float", derive="hour(sched_dep) * 60 + minute"),
]
KEYS = {"airports": ("faa",)}


def test_frames_and_rows_derive_the_same() -> None:
    frame = derive(FLIGHTS, COLUMNS, {"airports": AIRPORTS}, KEYS)
    rows = derive_rows(FLIGHTS.to_dicts(), COLUMNS, {"airports": AIRPORTS}, KEYS)
    assert frame["sched_dep"][0] == dt.datetime(2013, 1, 1, 10, 17)
    assert frame["local"].to_list() == [dt.datetime(2013, 1, 1, 2, 17), None, None]
    assert frame.schema["minutes"] == pl.Float64
    assert [{name: row[name] for name in frame.columns} for row in rows] == frame.to_dicts()


def test_a_derivation_says_what_a_row_must_bring() -> None:
    types = {"time_hour": "timestamp", "minute": "int", "dest": "text", "other": "int"}
    assert derivation(COLUMNS, types, {"airports": AIRPORTS}, KEYS).inputs == {"time_hour", "minute", "dest"}


def test_the_rows_given_are_left_as_they_are() -> None:
    rows = FLIGHTS.to_dicts()
    before = [dict(row) for row in rows]
    derive_rows(rows, COLUMNS, {"airports": AIRPORTS}, KEYS)
    assert rows == before


def test_no_rows_derive_to_no_rows() -> None:
    frame = derive(FLIGHTS.clear(), COLUMNS, {"airports": AIRPORTS}, KEYS)
    assert frame.height == 0
    assert "local" in frame.columns
    assert derive_rows([], COLUMNS[:2], {}, {}) == []


def test_deriving_twice_changes_nothing() -> None:
    once = derive(FLIGHTS, COLUMNS, {"airports": AIRPORTS}, KEYS)
    assert derive(once, COLUMNS, {"airports": AIRPORTS}, KEYS).select(once.columns).equals(once)


def test_a_lookup_finds_the_order_of_rows_as_it_was() -> None:
    many = pl.DataFrame({"dest": ["LAX", "JFK", "XXX", "JFK"] * 500, "n": range(2000)})
    found = derive(
        many,
        [Column("tz", "float", nullable=True, derive="tz", of="airports", on="dest")],
        {"airports": AIRPORTS},
        KEYS,
    )
    assert found["n"].to_list() == list(range(2000))
    assert found["tz"].to_list()[:4] == [-8.0, -5.0, None, -5.0]


@pytest.mark.parametrize(
    ("columns", "kind", "said"),
    [
        ([Column("a", "int", derive="b"), Column("b", "int", derive="a")], ConfigError, "a circle: 'a' <- 'b' <- 'a'"),
        ([Column("a", "int", derive="a + 1")], ConfigError, "a circle"),
        ([Column("a", "int", derive="minut")], ConfigError, "did you mean 'minute'?"),
        ([Column("a", "int", derive="minute / 2")], ConfigError, "SQL of type int, got float"),
        ([Column("a", "float", derive="avg(minute)")], ConfigError, "the aggregate avg()"),
        ([Column("a", "float", derive="tz", of="planes", on="dest")], MissingError, "the rows of source 'planes'"),
        ([Column("a", "float", derive="tz", of="airports", on="des")], ConfigError, "a column after on=, got 'des'"),
        ([Column("a", "float", derive="tzz", of="airports", on="dest")], ConfigError, "did you mean 'tz'?"),
        (
            [Column("a", "float", derive="tz", of="airports", on="minute")],
            ConfigError,
            "of the same type as the key 'faa'",
        ),
    ],
)
def test_what_cannot_be_derived_is_said_with_its_place(columns: list[Column], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as refused:
        derive(FLIGHTS, columns, {"airports": AIRPORTS}, KEYS)
    assert said in str(refused.value)
    assert "column 'a'" in str(refused.value)


def test_a_lookup_never_chooses_between_two_rows() -> None:
    twice = pl.DataFrame({"faa": ["LAX", "LAX"], "tz": [1.0, 2.0]})
    column = Column("a", "float", derive="tz", of="airports", on="dest")
    with pytest.raises(InputError, match="one row for each 'faa' in source 'airports', got 2 for 'LAX'"):
        derive(FLIGHTS, [column], {"airports": twice}, KEYS)


@pytest.mark.parametrize("keys", [{}, {"airports": ()}, {"airports": ("faa", "tz")}])
def test_a_lookup_needs_one_key_column(keys: dict[str, Any]) -> None:
    column = Column("a", "float", derive="tz", of="airports", on="dest")
    with pytest.raises(ConfigError, match="one key column in source 'airports' to look up by"):
        derive(FLIGHTS, [column], {"airports": AIRPORTS}, keys)
