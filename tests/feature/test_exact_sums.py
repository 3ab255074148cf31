"""Sums of windows are the exact sums, rounded once: whatever the numbers, and by every path alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.feature import exact
from tenon.feature.exact import Floats, Ints
from tenon.feature.history import Runs, Shared, Windows, aggregate, current, edge, lay_out
from tenon.feature.series import AGGREGATES, Series, Track

ANY = st.floats(allow_nan=False, allow_infinity=False)
KINDS: dict[str, Callable[[Random], float]] = {
    "whole numbers": lambda r: float(r.randrange(-1000, 1000)),
    "cents": lambda r: r.randrange(-100_000, 100_000) / 100,
    "measurements": lambda r: r.gauss(10, 3),
    "wide": lambda r: r.gauss(0, 1) * 10.0 ** r.randrange(-8, 9),
    "very wide": lambda r: r.gauss(0, 1) * 10.0 ** r.randrange(-300, 300),
    "cancelling": lambda r: r.choice([1e16, -1e16, 1.0, 1e-16, 0.1]),
    "tiny": lambda r: 5e-324 * r.randrange(-9, 9),
    "huge": lambda r: r.choice([1.7e308, -1.7e308, 1.0]),
}


def windows(random: Random, size: int, count: int) -> tuple[Ints, Ints]:
    ends = [sorted((random.randrange(size + 1), random.randrange(size + 1))) for _ in range(count)]
    return np.array([lo for lo, _ in ends]), np.array([hi for _, hi in ends])


def rounded(total: Fraction) -> float:
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return math.nan


def expected_sums(values: Floats, lo: Ints, hi: Ints) -> list[float]:
    running = [Fraction(0)]
    for value in values.tolist():
        running.append(running[-1] + Fraction(value))
    return [rounded(running[b] - running[a]) for a, b in zip(lo, hi, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_window_sums_are_exact_and_rounded_once(kind: str) -> None:
    random = Random(kind)
    values = np.array([KINDS[kind](random) for _ in range(400)])
    lo, hi = windows(random, 400, 300)
    found = exact.window_sums(exact.prefix(values), lo, hi)
    np.testing.assert_array_equal(found, expected_sums(values, lo, hi))


@pytest.mark.parametrize("kind", KINDS)
def test_window_deviations_are_exact_and_rounded_once(kind: str) -> None:
    random = Random(kind)
    values = np.array([KINDS[kind](random) for _ in range(150)])
    lo, hi = windows(random, 150, 100)
    found = exact.window_deviations(values, hi - lo, lo, hi)
    for a, b, deviation in zip(lo.tolist(), hi.tolist(), found.tolist(), strict=True):
        numbers = [Fraction(value) for value in values[a:b].tolist()]
        if len(numbers) < 2:
            assert math.isnan(deviation)
            continue
        mean = sum(numbers, Fraction(0)) / len(numbers)
        variance = rounded(sum(((x - mean) ** 2 for x in numbers), Fraction(0)) / (len(numbers) - 1))
        assert math.isnan(deviation) if math.isnan(variance) else deviation == math.sqrt(variance)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY, min_size=1, max_size=40), st.data())
def test_any_numbers_have_exact_window_sums(numbers: list[float], data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, len(numbers)))
    hi = data.draw(st.integers(lo, len(numbers)))
    ends = np.array([lo]), np.array([hi])
    values = np.array(numbers)
    np.testing.assert_array_equal(exact.window_sums(exact.prefix(values), *ends), expected_sums(values, *ends))


def test_a_tie_between_two_floats_is_broken_by_what_lies_beyond() -> None:
    """1 + 2^-53 lies half way between two floats; a third number far below decides which way it goes."""
    for far, expected in ((0.0, 1.0), (2.0**-120, 1.0 + 2.0**-52), (-(2.0**-120), 1.0)):
        values = np.array([1.0, 2.0**-53, far])
        found = exact.window_sums(exact.prefix(values), np.array([0]), np.array([3]))
        assert found.tolist() == [expected]


def test_the_sum_of_a_window_does_not_feel_what_lies_outside() -> None:
    values = np.array([1e300, 0.1, 0.2, 0.3, -1e300])
    found = exact.window_sums(exact.prefix(values), np.array([1]), np.array([4]))
    assert found.tolist() == [math.fsum([0.1, 0.2, 0.3])]


# ── the online lists come to the same ────────────────────────────────────────────────────────────────────────────────

NAMES = ("count", "sum", "avg", "stddev", "min", "max", "distinct", "first", "last")


def naive(name: str, values: list[float | None], lo: int, hi: int) -> float | None:
    track = Track(values[lo:hi], frozenset([name]))
    track.settle()
    found: float | None = AGGREGATES[name](track, 0, hi - lo)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_long_track_changed_in_the_middle_reads_like_a_new_one(name: str) -> None:
    """Thousands of values, put in and taken out at random: block extremes and running sums are mended, never stale."""
    random = Random(name)
    draw = [None, *(random.gauss(0, 1) * 10.0 ** random.randrange(-5, 5) for _ in range(200)), 7.0, -2.0]
    track = Track([random.choice(draw) for _ in range(9_000)], frozenset([name]))
    for _ in range(60):
        for _ in range(random.randrange(4)):
            place = random.randrange(len(track.values))
            if random.random() < 0.5:
                track.insert(place, random.choice(draw))
            else:
                track.remove(place)
        if track.ready != len(track.values):
            track.settle()
        lo, hi = sorted((random.randrange(len(track.values) + 1), random.randrange(len(track.values) + 1)))
        if name not in ("min", "max"):
            hi = min(hi, lo + 300)
        assert AGGREGATES[name](track, lo, hi) == naive(name, track.values, lo, hi)


@pytest.mark.parametrize("name", NAMES)
def test_offline_and_online_aggregates_agree_over_long_windows(name: str) -> None:
    random = Random(name)
    values = [random.choice([None, 0.1, 2.0, random.gauss(0, 9), random.gauss(0, 9)]) for _ in range(3_000)]
    lo, hi = windows(random, 3_000, 60)
    array = np.array([math.nan if value is None else value for value in values])
    if name in ("first", "last"):
        places = edge(~np.isnan(array), lo, hi, last=name == "last")
        found = [None if place < 0 else values[place] for place in places.tolist()]
    else:
        parts = Windows(lo=lo, hi=hi, shared=Shared(prefixes={}, counts={}))
        found = [None if math.isnan(value) else value for value in aggregate(parts, name, "x", array).tolist()]
    assert found == [naive(name, values, a, b) for a, b in zip(lo.tolist(), hi.tolist(), strict=True)]


def test_empty_columns_and_empty_windows_have_no_value() -> None:
    nothing, none = np.array([]), np.array([0, 0])
    parts = Windows(lo=none, hi=none, shared=Shared(prefixes={}, counts={}))
    for name in ("sum", "avg", "stddev", "min", "max"):
        assert np.isnan(aggregate(parts, name, "x", nothing)).all(), name
    assert aggregate(parts, "count", "x", nothing).tolist() == [0, 0]
    assert aggregate(parts, "distinct", "x", nothing).tolist() == [0, 0]
    assert edge(np.array([], dtype=np.bool_), none, none, last=True).tolist() == [-1, -1]
    assert edge(np.array([], dtype=np.bool_), none, none, last=False).tolist() == [-1, -1]


def test_a_layout_keeps_groups_together_and_leaves_out_what_has_none() -> None:
    codes, known = np.array([1, 0, -1, 1, 0]), np.array([5, 9, 1, 2, 9])
    by_time = np.argsort(known, kind="stable")
    runs: Runs = lay_out(codes, known, by_time, lambda tied: tied[::-1])
    assert runs.order.tolist() == [4, 1, 3, 0]  # the two that tie were put in order by the last argument


def test_replaced_versions_are_left_out_of_the_windows_that_hold_them() -> None:
    until = np.array([3, 99, 99, 5])
    places, lo, hi = current(np.array([0, 1, 2]), np.array([3, 1, 4]), until, np.array([4, 4, 4]))
    assert places.tolist() == [1, 2, 2, 3]
    assert (lo.tolist(), hi.tolist()) == ([0, 2, 2], [2, 2, 4])


def test_a_series_takes_out_the_right_one_of_facts_known_at_one_instant() -> None:
    series = Series([1, 2, 2, 2, 3], [10, 11, 12, 13, 14], [Track([1.0, 2.0, 3.0, 4.0, 5.0], frozenset(["sum"]))])
    series.settle()
    series.remove(2, 12)
    assert (series.rows, series.tracks[0].values) == ([10, 11, 13, 14], [1.0, 2.0, 4.0, 5.0])
