"""A feature set as a whole: its digest, its inputs, derived columns, functions, the shape of the matrix, findings."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import polars as pl
import pytest

from tenon.contract import Column, Source
from tenon.errors import ConfigError, InputError, MissingError
from tenon.feature import Feature, FeatureSet, Label

ZONES = Source("zones", key=["code"], columns=[Column("code"), Column("hours", "int"), Column("name")])
TRIPS = Source(
    "trips",
    key=["trip"],
    time="start",
    known="end",
    columns=[
        Column("trip", "int"),
        Column("day", "date"),
        Column("minute", "int"),
        Column("zone"),
        Column("taken", "int", nullable=True, late=True),
        Column("tip", "float", nullable=True, late=True),
        Column("hours", "int", derive="hours", of="zones", on="zone"),
        Column("start", "timestamp", derive="cast(day AS timestamp) + interval minute minute - interval hours hour"),
        Column("end", "timestamp", derive="start + interval taken minute", nullable=True),
        Column("rush", "bool", derive="hour(start) BETWEEN 7 AND 9"),
    ],
)
SOURCES = {"trips": TRIPS, "zones": ZONES}
DAY = dt.date(2024, 5, 1)


def at(hour: int, minute: int = 0) -> dt.datetime:
    return dt.datetime(2024, 5, 1, hour, minute)


def doubled(minute: pl.Series) -> pl.Series:
    return minute * 2


def bare() -> Source:
    """A source without a key that nobody looks back on."""
    return Source(
        "bare", time="at", columns=[Column("at", "timestamp"), Column("zone"), Column("tip", "float", late=True)]
    )


def compiled(*features: Feature, label: Label = Label("tip > 2")) -> FeatureSet:
    return FeatureSet.compile(features, label, TRIPS, SOURCES)


FEATURES = (
    Feature("rush", "rush"),
    Feature("hour", "hour(start)"),
    Feature("tips", "avg(tip)", over="zone", window="3h"),
    Feature("rushes", "sum(rush)", over="zone", window="3h"),
    Feature("place", "upper(name)", of="zones", on="zone"),
    Feature("twice", function=doubled, columns=("minute",)),
)


def trips() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "trip": [1, 2, 3, 4],
            "day": [DAY] * 4,
            "minute": [540, 600, 660, 900],
            "zone": ["P", "P", "P", "L"],
            "taken": [30, None, 10, 5],
            "tip": [3.0, None, 1.0, 2.5],
        }
    )


def zones() -> pl.DataFrame:
    return pl.DataFrame({"code": ["P", "L"], "hours": [2, 0], "name": ["Paris", None]})


def frames() -> dict[str, pl.DataFrame]:
    return {"trips": trips(), "zones": zones()}


# ── the matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_matrix_holds_features_then_label_times_and_keys() -> None:
    made = compiled(*FEATURES).matrix(frames())
    assert made.to_dict(as_series=False) == {
        "rush": [1.0, 1.0, 1.0, 0.0],
        "hour": [7.0, 8.0, 9.0, 15.0],
        "tips": [None, 3.0, 3.0, None],
        "rushes": [None, 1.0, 1.0, None],
        "place": ["PARIS", "PARIS", "PARIS", None],
        "twice": [1080.0, 1200.0, 1320.0, 1800.0],
        "_label": [1.0, None, 0.0, 1.0],
        "_time": [at(7), at(8), at(9), at(15)],
        "_known": [
            dt.datetime(2024, 5, 1, 7, 30),
            None,
            dt.datetime(2024, 5, 1, 9, 10),
            dt.datetime(2024, 5, 1, 15, 5),
        ],
        "_key_trip": [1, 2, 3, 4],
    }
    assert dict(compiled(*FEATURES).kinds) == {
        **dict.fromkeys(compiled(*FEATURES).names, "number"),
        "place": "category",
    }


def test_the_matrix_of_no_rows_has_every_column_in_its_type() -> None:
    made = compiled(*FEATURES).matrix({"trips": trips().clear(), "zones": zones()})
    assert made.height == 0
    assert made.schema == compiled(*FEATURES).matrix(frames()).schema
    alone = compiled().matrix(frames())
    assert alone.columns == ["_label", "_time", "_known", "_key_trip"]


def test_a_label_may_be_a_number_known_at_its_own_time() -> None:
    made = compiled(label=Label("tip", known="start")).matrix(frames())
    assert made["_label"].to_list() == [3.0, None, 1.0, 2.5]
    assert made["_known"].to_list() == made["_time"].to_list()


def test_derived_columns_that_are_there_are_taken_as_they_are() -> None:
    whole = compiled().derive("trips", trips(), {"zones": zones()})
    assert whole["start"].to_list() == [at(7), at(8), at(9), at(15)]
    made = compiled(*FEATURES)
    assert made.matrix({"trips": whole, "zones": zones()}).equals(made.matrix(frames()))
    moved = whole.with_columns(pl.lit(False).alias("rush"))
    assert made.matrix({"trips": moved, "zones": zones()})["rush"].sum() == 0


def test_narrow_and_zoned_columns_of_other_programs_are_read_as_declared() -> None:
    whole = compiled().derive("trips", trips(), {"zones": zones()})
    strange = whole.with_columns(
        pl.col("minute").cast(pl.Int16),
        pl.col("start").dt.replace_time_zone("UTC"),
        pl.col("zone").cast(pl.Categorical),
    )
    made = compiled(*FEATURES)
    assert made.matrix({"trips": strange, "zones": zones()}).equals(made.matrix({"trips": whole, "zones": zones()}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trips": trips()}, "the rows of source 'zones', got none"),
        ({"trips": trips().drop("zone"), "zones": zones()}, "the column 'zone', from which others are derived"),
        (
            {"trips": trips().with_columns(zone=pl.lit("X")), "zones": zones()},
            "a time in every row, got 4 of 4 rows without",
        ),
        (
            {"trips": trips().with_columns(tip=pl.lit("1")), "zones": zones()},
            "'tip' to be float, as declared, got text",
        ),
    ],
)
def test_frames_that_cannot_be_read_are_refused_in_words(given: dict[str, pl.DataFrame], words: str) -> None:
    with pytest.raises((InputError, MissingError)) as error:
        compiled(*FEATURES).matrix(given)
    assert words in str(error.value)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_brings_what_is_neither_late_nor_derived() -> None:
    assert compiled(*FEATURES).inputs == {"day": "date", "minute": "int", "zone": "text"}
    assert compiled(Feature("n", "count(*)", window="1h")).inputs == {"day": "date", "minute": "int", "zone": "text"}


def test_a_request_reads_like_its_row_of_the_matrix_raw_or_derived() -> None:
    made = compiled(*FEATURES)
    state = made.online(frames())
    expected = made.matrix(frames()).select(made.names).to_dict(as_series=False)
    raw = trips().select(list(made.inputs)).to_dicts()
    assert state.read(raw) == expected
    derived = made.derive("trips", trips(), {"zones": zones()}).select("start", "rush", "zone", "minute").to_dicts()
    assert state.read(derived) == expected
    assert made.load(state.to_bytes()).read(raw) == expected


def test_facts_are_derived_and_lookups_follow_what_is_applied() -> None:
    made = compiled(*FEATURES)
    state = made.online({"trips": trips().clear(), "zones": zones().clear()})
    row: dict[str, Any] = {"day": DAY, "minute": 660, "zone": "P"}
    with pytest.raises(InputError, match="a time in 'start', got null"):
        state.read([row])
    assert state.apply("zones", zones()) == 2
    assert state.apply("zones", zones()) == 0
    assert state.apply("trips", state.derive_facts("trips", trips().to_dicts())) == 3
    assert state.read([row])["tips"] == [3.0]
    state.apply("zones", pl.DataFrame({"code": ["P"], "hours": [1], "name": ["Rome"]}))
    assert state.read([row])["hour"] == [10.0]
    assert state.read([row])["place"] == ["ROME"]


def test_a_function_that_returns_something_else_is_told_so() -> None:
    def short(minute: pl.Series) -> pl.Series:
        return minute.head(1)

    def fickle(minute: pl.Series) -> Any:
        return minute if not len(minute) else ["text"] * len(minute)

    with pytest.raises(ConfigError, match="a column of 4 rows, got 1 rows - at feature 'f'"):
        compiled(Feature("f", function=short, columns=("minute",))).matrix(frames())
    with pytest.raises(ConfigError, match="a number, as for no rows, got String - at feature 'f'"):
        compiled(Feature("f", function=fickle, columns=("minute",))).matrix(frames())


# ── the digest ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_digest_names_the_meaning_and_nothing_else() -> None:
    digest = compiled(*FEATURES).digest
    assert len(digest) == 12
    assert compiled(*FEATURES).digest == digest
    unused = dataclasses.replace(TRIPS, columns=[*TRIPS.columns, Column("note")], path="elsewhere/*.csv")
    assert FeatureSet.compile(FEATURES, Label("tip > 2"), unused, SOURCES).digest == digest


@pytest.mark.parametrize("change", ["sql", "order", "label", "derive", "function", "known"])
def test_what_changes_the_meaning_changes_the_digest(change: str) -> None:
    features, label, spine = FEATURES, Label("tip > 2"), TRIPS
    if change == "sql":
        features = (*features[:2], Feature("tips", "avg(tip)", over="zone", window="4h"), *features[3:])
    elif change == "order":
        features = features[::-1]
    elif change == "label":
        label = Label("tip > 3")
    elif change == "derive":
        rush = Column("rush", "bool", derive="hour(start) BETWEEN 6 AND 9")
        spine = dataclasses.replace(spine, columns=[*spine.columns[:-1], rush])
    elif change == "known":
        spine = dataclasses.replace(spine, known="")
    else:
        features = (*features[:-1], Feature("twice", function=lambda minute: minute * 3, columns=("minute",)))
    changed = FeatureSet.compile(features, label, spine, {**SOURCES, "trips": spine})
    assert changed.digest != compiled(*FEATURES).digest


# ── findings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_findings_tell_what_is_odd_about_keys_times_and_joins() -> None:
    odd = trips().with_columns(
        trip=pl.Series([1, 2, 3, 3]), minute=pl.Series([540, 600, 660, 660]), taken=pl.Series([-5, None, 10, 10])
    )
    made = compiled(
        Feature("hour", "hour(start)"),
        Feature("tips", "avg(tip)", over="zone", window="1s"),
        Feature("place", "name", of="zones", on="zone"),
    )
    twice = pl.concat([zones(), zones().head(1)])
    table = FeatureSet.compile(
        [Feature("place", "name", of="zones", on="zone")], Label("tip"), bare(), {"zones": ZONES}
    )
    plain = {"bare": trips().select("zone", "tip").with_columns(at=pl.lit(at(1))), "zones": twice}
    said = [f.said for f in table.examine(plain, table.matrix(plain)) if f.code == "feature/repeated-fact"]
    assert said == ["1 of 3 rows share code with a later row, and only the last counts."]
    given = {"trips": made.derive("trips", odd.with_columns(zone=pl.lit("P")), {"zones": zones()}), "zones": zones()}
    found = {finding.code: finding for finding in made.examine(given, made.matrix(given))}
    assert {code: found[code].numbers for code in sorted(found)} == {
        "feature/constant": {"rows": 4},
        "feature/known-early": {"rows": 4, "early": 1},
        "feature/never-known": {"rows": 4, "unknown": 1},
        "feature/repeated-fact": {"rows": 4, "repeated": 1},
    }
    assert (
        found["feature/repeated-fact"].said
        == "1 of 4 rows share trip, start with a later row, and are taken for earlier versions of it."
    )
    constant = [f for f in made.examine(given, made.matrix(given)) if f.code == "feature/constant"]
    assert [(f.place, f.said) for f in constant] == [
        ("feature 'tips'", "No row of 4 has a value."),
        ("feature 'place'", "All 4 rows have one value."),
    ]


def test_nothing_is_found_where_nothing_is_odd() -> None:
    made = compiled(*FEATURES[:2])
    assert made.examine(frames(), made.matrix(frames())) == []


def test_a_set_compiles_again_from_no_more_than_the_sources_it_needs() -> None:
    """What a model version keeps is `needs`; a derived column that nobody reads may look elsewhere."""
    idle = dataclasses.replace(
        TRIPS, columns=[*TRIPS.columns, Column("tax", "float", derive="rate", of="taxes", on="zone")]
    )
    taxes = Source("taxes", key=["zone"], columns=[Column("zone"), Column("rate", "float")])
    first = FeatureSet.compile(FEATURES, Label("tip > 2"), idle, {**SOURCES, "taxes": taxes})
    kept = {name: first.sources[name] for name in first.needs}
    assert sorted(kept) == ["trips", "zones"]
    assert FeatureSet.compile(FEATURES, Label("tip > 2"), idle, kept).digest == first.digest
