"""The promises of time: the matrix is what a slow and obvious reading of the rules gives, no later fact changes it, and
the online state gives the same bits at the same moments, however the facts came in."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.contract import Column, Source
from tenon.feature import Feature, FeatureSet, Label

Row = dict[str, Any]
Frames = dict[str, pl.DataFrame]
START = dt.datetime(2013, 3, 1)
EXAMPLES = 30  # hundreds of each were run while this was written

FLIGHTS = Source(
    "flights",
    key=["flight"],
    time="dep",
    known="arr",
    columns=[
        Column("flight", "int"),
        Column("dep", "timestamp"),
        Column("arr", "timestamp", nullable=True),
        Column("carrier", nullable=True),
        Column("origin"),
        Column("delay", "float", late=True, nullable=True),
        Column("gate", late=True, nullable=True),
        Column("miles", "int", nullable=True),
    ],
)
WEATHER = Source(
    "weather",
    key=["origin"],
    time="hour",
    known="seen",
    columns=[
        Column("origin"),
        Column("hour", "timestamp"),
        Column("seen", "timestamp", nullable=True),
        Column("wind", "float", nullable=True),
        Column("sky", nullable=True),
    ],
)
AIRLINES = Source(
    "airlines", key=["carrier"], columns=[Column("carrier"), Column("name", nullable=True), Column("size", "int")]
)
SOURCES = {source.name: source for source in (FLIGHTS, WEATHER, AIRLINES)}
LABEL = Label("delay > 30")

FEATURES = (
    Feature("long", "miles * 2 > 5"),
    Feature("code", "carrier || '-' || origin"),
    Feature("size", "size / 3.0", of="airlines"),
    Feature("name", "name", of="airlines"),
    Feature("wind", "wind", of=WEATHER, within="10m"),
    Feature("sky", "sky", of=WEATHER),
    Feature("wind_max", "max(wind)", of="weather", window="15m"),
    Feature("n", "count(*)", over="carrier", window="10m"),
    Feature("n_delay", "count(delay)", over="carrier", window="10m"),
    Feature("late", "avg(delay > 1)", over="carrier", window="10m"),
    Feature("total", "sum(delay)", over=("carrier", "origin"), window="20m"),
    Feature("mean", "avg(delay)", over="carrier", window="20m"),
    Feature("spread", "stddev(delay)", over="origin", window="20m"),
    Feature("miles_spread", "stddev(miles)", over="origin", window="20m"),
    Feature("least", "min(delay)", over="carrier", window="10m"),
    Feature("most", "max(delay)", window="5m"),
    Feature("gates", "count(DISTINCT gate)", over="origin", window="20m"),
    Feature("delays", "count(DISTINCT delay)", over="origin", window="20m"),
    Feature("newest", "last(delay)", over="carrier", window="20m"),
    Feature("oldest", "first(gate)", over="origin", window="10m"),
    Feature("share", "sum(delay) / count(*)", over="carrier", window="20m"),
    Feature("strong", "avg(miles) FILTER (WHERE delay > 0)", over="carrier", window="20m"),
    Feature("previous", "delay", of="flights", within="30m"),
    Feature("previous_gate", "gate", of="flights"),
)


def minute(number: float) -> dt.datetime:
    """Return a moment of the small world."""
    return START + dt.timedelta(minutes=number)


DELAYS = [0.1, 0.2, 0.3, -0.0, 0.0, 1.0, 7.25, -3.0, 1e16, -1e16, 1e-9, 5e-324, 1.7e308, float("nan"), float("inf")]
FLIGHT_ROWS = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 40),
        st.one_of(st.none(), st.integers(-3, 15)),
        st.sampled_from(["AA", "BB", None]),
        st.sampled_from(["JFK", "LGA"]),
        st.one_of(st.none(), st.sampled_from(DELAYS)),
        st.sampled_from([None, "g1", "g2", "g3"]),
        st.one_of(st.none(), st.integers(-2, 9)),
    ),
    max_size=30,
)
WEATHER_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["JFK", "LGA"]),
        st.integers(0, 40),
        st.one_of(st.none(), st.integers(-5, 10)),
        st.one_of(st.none(), st.sampled_from([0.1, 3.5, -2.0])),
        st.sampled_from([None, "clear", "rain"]),
    ),
    max_size=15,
)
AIRLINE_ROWS = st.lists(
    st.tuples(st.sampled_from(["AA", "BB", "CC"]), st.sampled_from([None, "Alpha", "Beta"]), st.integers(0, 9)),
    max_size=4,
)
SCHEMAS: dict[str, dict[str, Any]] = {
    "flights": {
        "flight": pl.Int64,
        "dep": pl.Datetime("us"),
        "arr": pl.Datetime("us"),
        "carrier": pl.String,
        "origin": pl.String,
        "delay": pl.Float64,
        "gate": pl.String,
        "miles": pl.Int64,
    },
    "weather": {
        "origin": pl.String,
        "hour": pl.Datetime("us"),
        "seen": pl.Datetime("us"),
        "wind": pl.Float64,
        "sky": pl.String,
    },
    "airlines": {"carrier": pl.String, "name": pl.String, "size": pl.Int64},
}


def frame(name: str, rows: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """Return rows of a source as a frame; times are minutes, and the second one is counted from the first."""
    whole = []
    for row in rows:
        if name != "airlines":
            known = None if row[2] is None else minute(row[1] + row[2])
            row = (row[0], minute(row[1]), known, *row[3:])
        whole.append(tuple(row))
    return pl.DataFrame(whole, schema=SCHEMAS[name], orient="row")


@st.composite
def worlds(draw: Callable[..., Any]) -> Frames:
    """Draw rows of every source, with ties, nulls, versions of one fact and numbers that hurt."""
    airlines = {row[0]: row for row in draw(AIRLINE_ROWS)}
    return {
        "flights": frame("flights", draw(FLIGHT_ROWS)),
        "weather": frame("weather", draw(WEATHER_ROWS)),
        "airlines": frame("airlines", list(airlines.values())),
    }


COMPILED = FeatureSet.compile(FEATURES, LABEL, FLIGHTS, SOURCES)


def features_of(frames: Frames) -> pl.DataFrame:
    return COMPILED.matrix(frames).select(COMPILED.names)


def requests_of(flights: pl.DataFrame) -> list[dict[str, Any]]:
    return flights.select(list(COMPILED.inputs)).to_dicts()


def bits(values: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Return every value spelt so that two are equal only when their bits are."""
    return {
        name: [value.hex() if isinstance(value, float) else repr(value) for value in column]
        for name, column in values.items()
    }


# ── the slow and obvious reading ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One version of a fact: from when it may be used, when it happened, and its row."""

    usable: float  # minutes; a row of the own source is usable only strictly after it happened
    known: float
    time: float
    row: dict[str, Any]


def minutes(moment: dt.datetime) -> float:
    return (moment - START) / dt.timedelta(minutes=1)


def events(source: Source, rows: pl.DataFrame) -> list[list[Event]]:
    """Return the versions of each fact, as they came."""
    facts: dict[tuple[Any, ...], list[Event]] = {}
    for row in rows.to_dicts():
        if row[source.known_at] is None:
            continue
        time, known = minutes(row[source.time]), minutes(row[source.known_at])
        own = source is FLIGHTS
        known = max(known, time) if own else known
        event = Event(usable=known + 1e-6 if own and known <= time else known, known=known, time=time, row=row)
        versions = facts.setdefault((*(row[name] for name in source.key), time), [])
        read = [name for name in row if name != source.known_at]
        if not any(all(same(old.row[name], row[name]) for name in read) and old.known == known for old in versions):
            versions.append(event)  # a version that came before, exactly, is no news
    return list(facts.values())


def same(a: Any, b: Any) -> bool:
    return number(a) == number(b) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def number(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value + 0.0 if math.isfinite(value) else None


def usable(facts: list[list[Event]], now: float) -> list[Event]:
    """Return of each fact the version that came last of those known by now, ordered by known, time and key."""
    current = [[event for event in versions if event.usable <= now] for versions in facts]
    found = [versions[-1] for versions in current if versions]
    return sorted(found, key=lambda e: (e.usable, e.time, e.row.get("flight", e.row["origin"])))


Values = list[Any]


def exactly(total: Fraction) -> float | None:
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return None


def total_of(values: Values) -> float | None:
    total = Fraction(0)
    for value in values:
        total += Fraction(value)
    return exactly(total) if values else None


def mean_of(values: Values) -> float | None:
    total = total_of(values)
    return None if total is None else total / len(values)


def spread_of(values: Values) -> float | None:
    if len(values) < 2:
        return None
    numbers, n = [Fraction(value) for value in values], len(values)
    mean = sum(numbers, Fraction(0)) / n
    variance = exactly(sum(((x - mean) ** 2 for x in numbers), Fraction(0)) / (n - 1))
    return None if variance is None else math.sqrt(variance)


def slow(
    row: dict[str, Any], flights: list[list[Event]], weather: list[list[Event]], airlines: pl.DataFrame
) -> dict[str, Any]:
    """Return every feature of one flight, read off the rules one by one."""
    now = minutes(row["dep"])

    def past(window: float, facts: list[list[Event]] = flights, **equal: Any) -> list[dict[str, Any]]:
        inside = [event for event in usable(facts, now) if event.known > now - window]
        matched = all(value is not None for value in equal.values())
        return [e.row for e in inside if matched and all(e.row[name] == value for name, value in equal.items())]

    def values(rows: list[dict[str, Any]], name: str) -> Values:
        found = [row[name] if isinstance(row[name], str) else number(row[name]) for row in rows]
        return [value for value in found if value is not None]

    def asof(facts: list[list[Event]], value: str, within: float, **equal: Any) -> Any:
        last = [e for e in usable(facts, now) if all(e.row[name] == wanted for name, wanted in equal.items())][-1:]
        if not last or now - last[0].known > within:
            return None
        found = last[0].row[value]
        return found if isinstance(found, str) else number(found)

    carrier, origin = row["carrier"], row["origin"]
    airline = next((a for a in airlines.to_dicts() if a["carrier"] == carrier), {"name": None, "size": None})
    by_carrier = {window: past(window, carrier=carrier) for window in (10, 20)}
    by_origin = {window: past(window, origin=origin) for window in (10, 20)}
    late = [float(math.isnan(r["delay"]) or r["delay"] > 1) for r in by_carrier[10] if r["delay"] is not None]
    both = past(20, carrier=carrier, origin=origin)
    of_20 = values(by_carrier[20], "delay")
    strong = [r for r in by_carrier[20] if r["delay"] is not None and (math.isnan(r["delay"]) or r["delay"] > 0)]
    share = total_of(of_20)
    return {
        "long": None if row["miles"] is None else float(row["miles"] * 2 > 5),
        "code": None if carrier is None else f"{carrier}-{origin}",
        "size": None if airline["size"] is None else airline["size"] / 3.0,
        "name": airline["name"],
        "wind": asof(weather, "wind", 10, origin=origin),
        "sky": asof(weather, "sky", math.inf, origin=origin),
        "wind_max": max(values(past(15, weather, origin=origin), "wind"), default=None),
        "n": float(len(by_carrier[10])),
        "n_delay": float(len(values(by_carrier[10], "delay"))),
        "late": mean_of(late),
        "total": total_of(values(both, "delay")),
        "mean": mean_of(of_20),
        "spread": spread_of(values(by_origin[20], "delay")),
        "miles_spread": spread_of(values(by_origin[20], "miles")),
        "least": min(values(by_carrier[10], "delay"), default=None),
        "most": max(values(past(5), "delay"), default=None),
        "gates": float(len(set(values(by_origin[20], "gate")))),
        "delays": float(len(set(values(by_origin[20], "delay")))),
        "newest": (values(by_carrier[20], "delay") or [None])[-1],
        "oldest": (values(by_origin[10], "gate") or [None])[0],
        "share": None if share is None else number(share / len(by_carrier[20])),
        "strong": mean_of(values(strong, "miles")),
        "previous": asof(flights, "delay", 30, flight=row["flight"]),
        "previous_gate": asof(flights, "gate", math.inf, flight=row["flight"]),
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds())
def test_the_matrix_is_the_slow_and_obvious_reading_to_the_bit(frames: Frames) -> None:
    flights, weather = events(FLIGHTS, frames["flights"]), events(WEATHER, frames["weather"])
    expected: dict[str, list[Any]] = {name: [] for name in COMPILED.names}
    for row in frames["flights"].to_dicts():
        for name, value in slow(row, flights, weather, frames["airlines"]).items():
            expected[name].append(value)
    assert bits(features_of(frames).to_dict(as_series=False)) == bits(expected)


# ── no later fact changes an earlier feature ─────────────────────────────────────────────────────────────────────────


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(), worlds(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_no_fact_known_later_changes_an_earlier_feature(
    frames: Frames, other: Frames, cut: int, random: Random
) -> None:
    """Delete, alter, move and add whatever became known after the cut: features of flights until then stay the same."""
    before = features_of(frames).filter(frames["flights"]["dep"] <= minute(cut))
    changed = {}
    for name, source in (("flights", FLIGHTS), ("weather", WEATHER)):
        rows, strange = frames[name].to_dicts(), [row for row in other[name].to_dicts() if later(source, row, cut)]
        new = [row for row in strange if source is WEATHER or row["dep"] > minute(cut)]
        kept = []
        for row in rows:
            if not later(source, row, cut):
                kept.append(row)  # known by the cut: not touched
            elif row[source.time] <= minute(cut) and source is FLIGHTS:
                fresh = random.choice([row, *strange])
                kept.append({**row, "delay": fresh["delay"], "gate": fresh["gate"], "arr": moved(row, fresh, cut)})
            elif random.random() < 0.5:
                kept.append(random.choice([row, *new]))
        for row in new:
            kept.insert(random.randrange(len(kept) + 1), row)
        changed[name] = pl.DataFrame(kept, schema=SCHEMAS[name], orient="row")
    changed["airlines"] = frames["airlines"]
    after = features_of(changed).filter(changed["flights"]["dep"] <= minute(cut))
    assert bits(after.to_dict(as_series=False)) == bits(before.to_dict(as_series=False))


def later(source: Source, row: dict[str, Any], cut: int) -> bool:
    """Say whether a row became known after the cut, or never; a flight is not known before it leaves."""
    known = row[source.known_at]
    return known is None or max(known, row["dep"] if source is FLIGHTS else known) > minute(cut)


def moved(row: dict[str, Any], fresh: dict[str, Any], cut: int) -> dt.datetime | None:
    return None if fresh["arr"] is None else max(minute(cut + 1), row["dep"], fresh["arr"])


def test_the_label_and_the_future_are_in_no_feature() -> None:
    rows = [(1, 0, 5, "AA", "JFK", 50.0, "g1", 3), (2, 10, 5, "AA", "JFK", 60.0, "g1", 3)]
    one = features_of(
        {"flights": frame("flights", rows), "weather": frame("weather", []), "airlines": frame("airlines", [])}
    )
    rows[1] = (2, 10, 9, "AA", "JFK", -60.0, "g9", 3)
    two = features_of(
        {"flights": frame("flights", rows), "weather": frame("weather", []), "airlines": frame("airlines", [])}
    )
    assert one.equals(two)
    assert one["n"].to_list() == [0.0, 1.0]


# ── online is offline ────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_facts_applied_in_any_order_read_as_the_matrix_to_the_bit(frames: Frames, random: Random) -> None:
    expected = bits(features_of(frames).to_dict(as_series=False))
    begun = {name: rows[: random.randrange(rows.height + 1)] for name, rows in frames.items()}
    state = COMPILED.online(begun)
    rest = {name: rows[begun[name].height :] for name, rows in frames.items()}
    for name in ("weather", "flights", "airlines"):
        for row in shuffled(rest[name], SOURCES[name], random):
            state.apply(name, rest[name][row])
            if random.random() < 0.3 and frames["flights"].height:
                state.read(requests_of(frames["flights"][:1]))  # reading in between builds what later facts must mend
    assert bits(state.read(requests_of(frames["flights"]))) == expected
    assert all(state.apply(name, rows) == 0 for name, rows in rest.items()), "a fact applied twice changes nothing"
    assert bits(COMPILED.load(state.to_bytes()).read(requests_of(frames["flights"]))) == expected
    assert COMPILED.load(state.to_bytes()).to_bytes() == state.to_bytes()


def shuffled(rows: pl.DataFrame, source: Source, random: Random) -> list[int]:
    """Return positions in random order, versions of one fact in the order in which they came."""
    names = [*source.key, *([source.time] if source.time else [])]
    identity = rows.select(names).rows()
    turns: dict[Any, list[int]] = {}
    for position, name in enumerate(identity):
        turns.setdefault(name, []).append(position)
    random.shuffle(identity)
    return [turns[name].pop(0) for name in identity]


@settings(max_examples=EXAMPLES // 2, deadline=None)
@given(worlds(), st.integers(0, 40))
def test_pruning_changes_no_later_read(frames: Frames, cut: int) -> None:
    state = COMPILED.online(frames)
    rows = requests_of(frames["flights"].filter(pl.col("dep") >= minute(cut)))
    expected = bits(state.read(rows))
    state.prune(minute(cut))
    assert bits(state.read(rows)) == expected
    assert bits(COMPILED.load(state.to_bytes()).read(rows)) == expected
