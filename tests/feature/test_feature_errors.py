"""What is wrong with a feature is said before any data is read: what was expected, what came, where, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from tenon.contract import Column, Source
from tenon.errors import ConfigError
from tenon.feature import Feature, FeatureSet, Label

TRIPS = Source(
    "trips",
    key=["trip"],
    time="start",
    known="end",
    columns=[
        Column("trip", "int"),
        Column("start", "timestamp"),
        Column("end", "timestamp", nullable=True),
        Column("driver"),
        Column("fare", "float", late=True),
        Column("dear", "bool", derive="fare > 20"),
        Column("very_dear", "bool", derive="dear AND fare > 50"),
        Column("day", "date", derive="cast(start AS date)"),
        Column("lat", "float"),
        Column("zone", "text"),
    ],
)
ZONES = Source("zones", key=["zone"], columns=[Column("zone", "int"), Column("area", "float")])
AREAS = Source("areas", key=["area"], columns=[Column("area"), Column("people", "int")])
CALLS = Source(
    "calls",
    key=["caller"],
    time="at",
    columns=[Column("caller"), Column("at", "timestamp"), Column("lat", "float"), Column("seconds", "int")],
)
SOURCES = {source.name: source for source in (TRIPS, ZONES, AREAS, CALLS)}


def compiled(*features: Feature, label: Label = Label("fare > 10"), spine: Source = TRIPS) -> FeatureSet:
    return FeatureSet.compile(features, label, spine, SOURCES)


def no_column(x: pl.Series) -> Any:
    return x.no_such_method()  # type: ignore[attr-defined]


def dates(x: pl.Series) -> pl.Series:
    return x.dt.date()


WRONG: list[tuple[Feature, Sequence[str]]] = [
    (Feature("f", "drivr"), ["feature 'f'", "'drivr'", "did you mean 'driver'?"]),
    (Feature("f", "seconds", of="cals"), ["feature 'f'", "'cals'", "did you mean 'calls'?"]),
    (Feature("f", "fare * 2"), ["feature 'f'", "'fare' is late: known only at 'end'", "over= and window="]),
    (Feature("f", "end > start"), ["feature 'f'", "'end' is when the late columns become known"]),
    (Feature("f", "dear"), ["feature 'f'", "'dear' is derived from 'fare', and 'fare' is late"]),
    (Feature("f", "very_dear"), ["feature 'f'", "'very_dear' is derived from 'dear'", "'fare' is late"]),
    (Feature("f", "avg(fare)", over="driver"), ["feature 'f'", "window= with an aggregate", "window='7d'"]),
    (Feature("f", "fare", over="driver", window="7d"), ["feature 'f'", "an aggregate with window=", "avg(...)"]),
    (Feature("f", "lat", over="driver"), ["feature 'f'", "an aggregate with over="]),
    (Feature("f", "avg(fare)", over="driver", window="7 days"), ["feature 'f', window", "'7 days'", "'7d'"]),
    (Feature("f", "avg(fare)", over="driver", window="0s"), ["feature 'f', window", "'0s'"]),
    (Feature("f", "avg(fare)", over="driver", window="9999999w"), ["feature 'f', window", "'9999999w'"]),
    (Feature("f", "seconds", of="calls", on="driver", within="soon"), ["feature 'f', within", "'soon'"]),
    (Feature("f", "avg(fare)", over="car", window="7d"), ["feature 'f'", "column of source 'trips'", "'car'"]),
    (Feature("f", "avg(seconds)", of="calls", over="lat", window="7d"), ["compared exactly", "'lat' of type float"]),
    (Feature("f", "avg(seconds)", of="calls", window="7d"), ["column of source 'trips', got 'caller'", "on="]),
    (Feature("f", "seconds", of="calls"), ["column of source 'trips', got 'caller'", "in on="]),
    (Feature("f", "seconds", of="calls", on=("driver", "zone")), ["one column in on= for each of 'caller'", "2 of 1"]),
    (Feature("f", "area", of="zones"), ["'zone' of the same type as 'zones.zone' (int), got text", "derive a column"]),
    (Feature("f", "people", of="areas", on="zone", within="3h"), ["no within= for a lookup", "'3h'", "leave it out"]),
    (Feature("f", "avg(people)", of="areas", on="zone", window="3h"), ["with time= to aggregate over", "'areas'"]),
    (Feature("f", "avg(fare)", window="3h", within="3h"), ["no within= for an aggregate"]),
    (Feature("f", "lat", within="3h"), ["no within= for a feature of the row itself"]),
    (Feature("f", "lat", on="zone"), ["no on= for a feature of the row itself"]),
    (Feature("f", "fare - avg(fare)", window="3h"), ["columns inside aggregates only", "'fare' outside"]),
    (Feature("f", "max(driver)", window="3h"), ["a number, or true or false in max()", "text"]),
    (Feature("f", "last(start)", window="3h"), ["or text in last()", "timestamp", "epoch(x)"]),
    (Feature("f", "avg(max(fare))", window="3h"), ["feature 'f'", "'max()' inside another aggregate"]),
    (Feature("f", "avg(driver)", window="3h"), ["feature 'f'", "numbers with avg()"]),
    (Feature("f", "day"), ["feature 'f'", "a number, true or false, or text", "a date", "hour(x)"]),
    (Feature("f", "start"), ["feature 'f'", "a timestamp"]),
    (Feature("f", "start - timestamp '2013-01-01'"), ["feature 'f'", "a duration", "epoch(x)"]),
    (Feature("f", "NULL"), ["feature 'f'", "nothing but null"]),
    (Feature("f", "lat +"), ["feature 'f'", "an SQL expression", "check the syntax"]),
    (Feature("f", "avg(fare)", of="calls", over="end", window="1h"), ["feature 'f'", "'fare'"]),
    (Feature("f", "count(*)", over="end", window="1h"), ["feature 'f'", "'end' is when the late columns"]),
    (Feature("_f", "lat"), ["feature '_f'", "does not begin with '_'"]),
    (Feature("", "lat"), ["does not begin with '_'"]),
    (Feature("f", function=no_column, columns=("lat",)), ["a function of columns", "AttributeError"]),
    (Feature("f", function=dates, columns=("start",)), ["a function that returns numbers", "Date"]),
    (Feature("f", function=dates), ["columns= that the function takes", "none"]),
    (Feature("f", function=dates, columns=("strat",)), ["'strat'", "did you mean 'start'?"]),
    (Feature("f", function=dates, columns=("fare",)), ["'fare' is late"]),
    (Feature("f", function=dates, columns=("lat",), window="3h"), ["no window= for a function"]),
]


@pytest.mark.parametrize(
    ("feature", "words"),
    WRONG,
    ids=[f"{f.sql or getattr(f.function, '__name__', '')}-{at}" for at, (f, _) in enumerate(WRONG)],
)
def test_a_wrong_feature_is_refused_in_words(feature: Feature, words: Sequence[str]) -> None:
    with pytest.raises(ConfigError) as error:
        compiled(feature)
    said = str(error.value)
    assert said.startswith("expected ")
    assert [word for word in words if word not in said] == [], said


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="each feature name once, got 'f' twice"):
        compiled(Feature("f", "lat"), Feature("f", "lat * 2"))


def test_the_columns_of_a_label_are_late_even_when_nobody_said_so() -> None:
    plain = Source(
        "plain",
        key=["id"],
        time="at",
        columns=[
            Column("id", "int"),
            Column("at", "timestamp"),
            Column("y", "int"),
            Column("z", "int", derive="y + 1"),
        ],
    )
    assert FeatureSet.compile([Feature("f", "id")], Label("y > 3"), plain, {}).names == ("f",)
    for sql in ("y", "z"):
        with pytest.raises(ConfigError, match="'y' is what the label is made of"):
            FeatureSet.compile([Feature("f", sql)], Label("y > 3"), plain, {})


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (Label("driver"), "a label that is true or false, or a number, got text"),
        (Label("fair > 3"), "did you mean 'fare'?"),
        (Label("fare > 3", known="ends"), "did you mean 'end'?"),
        (Label("avg(fare)"), "over one row"),
    ],
)
def test_a_wrong_label_is_refused_in_words(label: Label, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        compiled(Feature("f", "lat"), label=label)
    assert words in str(error.value)
    assert "label 'label'" in str(error.value)


def test_a_source_to_predict_needs_a_time_known_beforehand() -> None:
    with pytest.raises(ConfigError, match="source with time="):
        compiled(Feature("f", "area"), spine=ZONES)
    late = Source(
        "late",
        key=["id"],
        time="at",
        known="at2",
        columns=[
            Column("id", "int"),
            Column("at", "timestamp", late=True),
            Column("at2", "timestamp"),
            Column("y", "int", late=True),
        ],
    )
    with pytest.raises(ConfigError, match="a time known before prediction"):
        FeatureSet.compile([], Label("y"), late, {})


def test_times_that_are_no_times_are_refused() -> None:
    odd = Source("odd", key=["id"], time="at", columns=[Column("id", "int"), Column("at", "text"), Column("y", "int")])
    with pytest.raises(
        ConfigError, match="times that are timestamps or dates, got 'at' of type text - at source 'odd'"
    ):
        FeatureSet.compile([], Label("y"), odd, {})


def test_a_key_that_nobody_declared_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="declare columns=, or take those that ingest found"):
        FeatureSet.compile([], Label("y"), Source("bare", key=["id"], time="at"), {})


def test_a_lookup_for_a_derived_column_must_name_a_source_of_the_project() -> None:
    lost = Source(
        "lost",
        key=["id"],
        time="at",
        columns=[
            Column("id", "int"),
            Column("at", "timestamp"),
            Column("y", "int", late=True),
            Column("tz", derive="zone", of="airport", on="id"),
        ],
    )
    with pytest.raises(ConfigError, match="source 'lost', column 'tz'; did you mean 'airports'"):
        FeatureSet.compile([Feature("f", "tz")], Label("y"), lost, {"airports": ZONES})
