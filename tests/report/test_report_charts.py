"""Pictures: well-formed for any numbers, described for those who do not see them, and the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.report import chart, word
from tenon.report.chart import Bar, Frame, Point, Series, Span

SVG = "{http://www.w3.org/2000/svg}"
FRAME = Frame(title="Late <flights>", desc='week "by" week & more', x_name="week", y_name="AUC")
PLACES = ("d", "x", "y", "cx", "cy", "r", "width", "height", "viewBox")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
SHARES = st.floats(min_value=0.0, max_value=1.0)
MOMENTS = st.floats(min_value=-2e9, max_value=4e9)
POINTS = st.builds(Point, x=NUMBERS, y=st.none() | NUMBERS, low=st.none() | NUMBERS, high=st.none() | NUMBERS)


def parsed(picture: str) -> ElementTree.Element:
    """Read a picture as XML and check what every picture must have."""
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    assert root.attrib["role"] == "img"
    assert root.findtext(f"{SVG}title")
    assert root.findtext(f"{SVG}desc")
    for node in root.iter():
        assert not any(re.search(r"nan|inf", value) for name, value in node.attrib.items() if name in PLACES), (
            node.attrib
        )
    return root


def texts(picture: str) -> list[str]:
    return [node.text or "" for node in parsed(picture).iter(f"{SVG}text")]


@settings(max_examples=30, deadline=None)
@given(st.lists(POINTS, max_size=8), st.booleans())
def test_lines_are_drawn_for_any_numbers(points: list[Point], limited: bool) -> None:
    series = [Series(name="ours", points=tuple(points)), Series(name="theirs", points=tuple(points[:2]), tone="")]
    parsed(chart.line(series, FRAME, limit=(0.5, "promised") if limited else None))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), NUMBERS, NUMBERS, NUMBERS), max_size=6))
def test_bars_are_drawn_for_any_numbers_and_names(rows: list[tuple[str, float, float, float]]) -> None:
    parsed(chart.bars([Bar(label=name, value=v, low=low, high=high) for name, v, low, high in rows], FRAME))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES, st.integers(0, 10**9)), max_size=10))
def test_calibration_is_drawn_for_any_shares(groups: list[tuple[float, float, float, float, int]]) -> None:
    points = [Point(x=x, y=y, low=low, high=high, rows=rows) for x, y, low, high, rows in groups]
    parsed(chart.calibration(points, FRAME))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.none() | NUMBERS, min_size=3, max_size=3), max_size=4))
def test_heat_is_drawn_for_any_numbers_and_gaps(values: list[list[float | None]]) -> None:
    rows = [f"<column {i}>" for i in range(len(values))]
    parsed(
        chart.heat(rows, ["a", "b", "c"], values, FRAME, steps=[(0.1, 0.25)] * len(rows), marked=frozenset(rows[:1]))
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), MOMENTS, st.floats(0, 1e9)), max_size=5))
def test_timelines_are_drawn_for_any_times(spans: list[tuple[str, float, float]]) -> None:
    parsed(chart.timeline([Span(label=name, start=at, end=at + long, said="rows") for name, at, long in spans], FRAME))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | NUMBERS, max_size=20))
def test_sparklines_are_drawn_for_any_numbers(values: list[float | None]) -> None:
    parsed(chart.spark(values, Frame(title="errors", desc="by week", width=120, height=28)))


@pytest.mark.parametrize(("share", "filled"), [(0.0, 0), (0.004, 0), (0.486, 49), (0.5, 50), (1.0, 100)])
def test_icons_fill_as_many_of_a_hundred_as_the_share_says(share: float, filled: int) -> None:
    picture = chart.icons([("flights", share)], FRAME)
    circles = list(parsed(picture).iter(f"{SVG}circle"))
    assert len(circles) == 100
    assert sum("fill:none" not in circle.attrib["style"] for circle in circles) == filled


def test_a_week_without_a_value_is_a_gap_and_not_a_guess() -> None:
    points = tuple(Point(x=float(i), y=None if i == 2 else 0.7, low=0.6, high=0.8) for i in range(5))
    picture = chart.line([Series(name="AUC", points=points)], FRAME)
    lines = [node.attrib["d"] for node in parsed(picture).iter(f"{SVG}path") if "fill:none" in node.attrib["style"]]
    assert len(lines) == 2


def test_every_estimate_is_drawn_with_its_interval() -> None:
    bar = chart.bars([Bar(label="ours", value=0.76, low=0.75, high=0.77)], FRAME, start=0.5)
    assert "v9" in bar
    alone = chart.line([Series(name="AUC", points=(Point(x=0.0, y=0.7, low=0.6, high=0.8),))], FRAME)
    assert sum("stroke-width:1.6" in node.attrib.get("style", "") for node in parsed(alone).iter(f"{SVG}path")) == 1


def test_a_picture_of_nothing_says_so() -> None:
    for draw in EMPTY:
        assert "nothing to show yet" in texts(draw())


EMPTY: list[Callable[[], str]] = [
    lambda: chart.line([], FRAME),
    lambda: chart.line([Series(name="a", points=(Point(x=0.0, y=None),))], FRAME),
    lambda: chart.bars([], FRAME),
    lambda: chart.calibration([], FRAME),
    lambda: chart.heat([], ["a"], [], FRAME, steps=[]),
    lambda: chart.spark([None, None], FRAME),
    lambda: chart.timeline([], FRAME),
]


def test_two_different_pictures_on_one_page_have_different_ids() -> None:
    one, other = (chart.spark(values, FRAME) for values in ([1.0, 2.0], [2.0, 1.0]))
    assert re.findall(r'id="([^"]+)"', one) != re.findall(r'id="([^"]+)"', other)
    assert one == chart.spark([1.0, 2.0], FRAME)


def test_axis_marks_are_round_and_hold_the_data() -> None:
    assert chart.ticks(0.722, 0.785, 4) == [0.72, 0.74, 0.76, 0.78, 0.8]
    assert chart.tick_texts([0.72, 0.74], word.decimal) == ["0.72", "0.74"]
    assert chart.tick_texts([0.0, 2000.0], word.decimal) == ["0", "2,000"]


def test_months_divide_a_year_and_days_a_week() -> None:
    year = chart.time_ticks(1_356_998_400.0, 1_388_534_399.0)
    assert [name for _, name in year] == ["Feb", "Apr", "Jun", "Aug", "Oct", "Dec"]
    week = chart.time_ticks(1_386_547_200.0, 1_387_152_000.0)
    assert week[0][1] == "9 Dec"
