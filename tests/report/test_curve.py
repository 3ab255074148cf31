"""Curves: no extreme is lost in thinning, what is no number is marked, every float64 is drawn, names are harmless."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.report import chart, runs
from tenon.report.curve import BAD, Axis, Curve, plain, svg, thinned

FRAME = chart.Frame(title="loss", desc="how it went")


def of(values: Any, steps: Any = None, columns: int = 50) -> Curve:
    return thinned(np.arange(len(values)) if steps is None else steps, np.asarray(values, float), columns=columns)


# ── thinning ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=600),
    columns=st.integers(1, 40),
)
def test_extremes_ends_and_what_is_no_number_survive_thinning(values: list[float], columns: int) -> None:
    curve = of(values, columns=columns)
    finite = [value for value in values if math.isfinite(value)]
    assert (curve.points, curve.not_finite) == (len(values), len(values) - len(finite))
    assert len(curve.steps) <= 5 * columns and list(curve.steps) == sorted(curve.steps)
    assert bool(curve.bad) == bool(curve.not_finite) and len(curve.bad) <= columns
    kept = curve.finite()
    if finite:
        assert (min(kept), max(kept), kept[0], kept[-1]) == (min(finite), max(finite), finite[0], finite[-1])
    for step, value in zip(curve.steps, curve.values, strict=True):
        logged = values[step]
        assert value == logged or (value is None and not math.isfinite(logged)), "nothing is drawn that was not logged"


def test_one_outlier_in_a_million_points_is_kept_and_drawn_in_under_a_second() -> None:
    values = np.random.default_rng(1).normal(size=1_000_000)
    values[654_321], values[123_456], values[777_777] = 50.0, -40.0, math.nan
    steps = np.arange(len(values))
    start = time.perf_counter()
    curve = thinned(steps, values, columns=600)
    text, picture = plain([(0, curve)]), svg([(0, curve)], FRAME)
    assert time.perf_counter() - start < 1.0
    assert curve.values[curve.steps.index(654_321)] == 50.0 and curve.values[curve.steps.index(123_456)] == -40.0
    assert curve.bad == (777_777,)
    assert len(picture) < 100_000 and "no number at step 777,777" in picture
    assert text[-2].index(BAD) == pytest.approx(3 + 0.777777 * 76, abs=2)


def test_points_logged_out_of_order_are_put_in_order() -> None:
    curve = of([3.0, 1.0, 2.0], steps=np.array([3, 1, 2]))
    assert (curve.steps, curve.values) == ((1, 2, 3), (1.0, 2.0, 3.0))


def test_a_stretch_without_numbers_breaks_the_line() -> None:
    values = np.ones(10_000)
    values[4_000:6_000] = np.nan
    curve = of(values, columns=50)
    assert None in curve.values
    assert svg([(0, curve)], FRAME).count("stroke-width:1.7") == 2, "two lines, with a gap between them"


# ── axes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "wanted", "log"),
    [
        ([1e-3, 1.0], "auto", True),
        ([0.1, 1.0], "auto", False),
        ([0.0, 1e6], "auto", False),
        ([-1.0, 1e6], "log", False),
        ([0.5, 1.0], "log", True),
        ([1e-9, 1.0], "linear", False),
    ],
)
def test_the_axis_is_logarithmic_over_decades_above_zero(values: list[float], wanted: Any, log: bool) -> None:
    assert Axis.of(values, wanted).log is log
    said = plain([(0, of(values))], wanted=wanted)[-1]
    assert ("log scale" in said) is log


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.floats(), max_size=40),
    steps=st.integers(-(2**62), 2**62),
    several=st.booleans(),
    wanted=st.sampled_from(["auto", "log", "linear"]),
)
def test_every_float_is_drawn_within_its_width(values: list[float], steps: int, several: bool, wanted: Any) -> None:
    at = np.arange(len(values), dtype=np.int64) * 97 + steps
    curve = of(values, steps=at, columns=20)
    lines = plain([(3, curve)], several=several, wanted=wanted, width=80, height=5)
    assert all(len(line) <= 80 for line in lines)
    picture = svg([(3, curve)], FRAME, wanted=wanted)
    numbers = [float(text) for path in re.findall(r' d="M([^"]*)"', picture) for text in re.findall(r"-?[\d.]+", path)]
    assert all(-20 <= number <= 700 for number in numbers), "nothing lies outside the picture"
    marks = Axis.of(curve.finite(), wanted).marks() if curve.finite() else []
    assert len(marks) <= 12


def test_several_curves_are_told_apart_without_colour() -> None:
    lines = plain([(0, of([0.0, 1.0])), (1, of([1.0, 0.0]))], width=40, height=9)
    assert "A" in lines[0] and "B" in lines[0] and any("*" in line for line in lines)
    picture = svg([(0, of([0.0, 1.0])), (1, of([1.0, 0.0]))], FRAME)
    assert "stroke-dasharray:7 4" in picture and ">A</text>" in picture


def test_what_has_nothing_to_show_says_so() -> None:
    assert plain([(0, of([]))]) == ["  nothing was logged"]
    assert plain([(0, of([math.nan]))]) == ["  no value is a number"]
    assert "nothing to show" in svg([(0, of([math.inf]))], FRAME)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = "</style><script>alert('x')</script>\x1b[2J\u202e\"'&"


def test_a_page_of_hostile_names_is_harmless_and_asks_for_nothing() -> None:
    curve = of([1.0, math.nan, 2.0])
    record = {"id": HOSTILE, "model": HOSTILE, "status": HOSTILE}
    tables = {HOSTILE: ([HOSTILE], [[HOSTILE], ["=1+1"]])}
    found = {"curves": [{HOSTILE: curve}, {HOSTILE: curve}], "tables": tables}
    page = runs.page(HOSTILE, [record, record], found)
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("</style>") == 1 and "<td>=1+1" not in page and "<td>&#x27;=1+1" in page
    assert not re.search(r"(src|href)\s*=|url\(|@import", page)
    assert page.count("default-src 'none'") == 1 and "prefers-color-scheme:dark" in page


def test_the_same_runs_give_the_same_page() -> None:
    found = {"curves": [{"loss": of([1.0, 2.0])}], "tables": {}}
    assert runs.page("r", [{"id": "r"}], found) == runs.page("r", [{"id": "r"}], found)
