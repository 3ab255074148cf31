"""A gauge is a quick way to ask the cast: it says of every cell what the cast says, in whatever order cells come."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.ingest import values
from tenon.ingest.gauge import KEPT, gauge
from tenon.ingest.profile import MISFIT, Profile, learn
from tenon.ingest.values import Reading

NULL = ("", "NA", "-1", "1900-01-01", "нет")
READINGS = (
    Reading(type="int", null=NULL),
    Reading(type="float", null=NULL),
    Reading(type="int", plain=False, group=",", null=NULL),
    Reading(type="float", plain=False, group=".", decimal=",", unit="€", null=NULL),
    Reading(type="bool", true=("yes",), false=("no",), plain=False, null=NULL),
    Reading(type="date", formats=("%Y-%m-%d",), plain=False, null=NULL),
    Reading(type="date", formats=("%d %b %Y", "%d.%m.%y"), plain=False, null=NULL),
    Reading(type="date", formats=("%a, %d %b %Y",), plain=False, null=NULL),
    Reading(type="timestamp", formats=("%Y-%m-%d %H:%M:%S",), plain=False, null=NULL),
    Reading(type="timestamp", formats=("%Y%m%dT%H%M%SZ", "%d/%m/%Y %H:%M"), plain=False, null=NULL),
)
KNOWN = (
    *(
        "2021-02-28",
        "2021-02-29",
        "2021-13-01",
        "2021-1-1",
        "+2021-01-01",
        "0013-01-01",
        "1900-01-01",
        "2021-01-01 24:00:00",
    ),
    *(
        "2021-01-01 23:59:60",
        "20210101T101112Z",
        "31/04/2021 10:00",
        "3 Feb 2021",
        "30 Feb 2021",
        "29.02.21",
        "29.02.20",
    ),
    *("Mon, 01 Feb 2021", "Tue, 01 Feb 2021", "9223372036854775807", "9223372036854775808", "000000000000000000001"),
    *(
        "1,234",
        "1,23",
        "1.234,5 €",
        "(12,5)",
        "inf",
        "nan",
        "1e400",
        "1e",
        "-1",
        "+1",
        " 12 ",
        "\u00a07\u00a0",
        "\x1c1",
    ),
    *("2024-01-0\t", "2024-01-11 ", " 9999999999999999999", " 1111111111111111111"),
    *("yes", "No", "NA", " NA", "нет", "٣", "", " "),
)
CELLS = st.one_of(
    st.sampled_from(KNOWN),
    st.text(alphabet="0123456789-+.,: TZeE/€", max_size=22),
    st.dates().map(str),
    st.datetimes().map(lambda when: when.strftime("%Y-%m-%d %H:%M:%S")),
    st.text(max_size=8),
)


@pytest.mark.parametrize("reading", READINGS, ids=lambda one: f"{one.type} {' '.join(one.formats)}")
@settings(max_examples=40, deadline=None)
@given(cells=st.lists(CELLS, min_size=1, max_size=12))
def test_a_gauge_says_what_the_cast_says(reading: Reading, cells: list[str]) -> None:
    text = pl.Series([cell.encode("utf-8", "replace").decode() for cell in cells], dtype=pl.String)
    bare = text.str.strip_chars()
    fits = [a or b for a, b in zip(values.fits(text, reading), values.fits(bare, reading), strict=True)]
    judge = gauge(Profile(reading=reading, missing=0.01, cells=1000))
    for cell, word, fit in zip(text.to_list(), bare.to_list(), fits, strict=True):
        missing = word in reading.null
        want = 1.0 if missing else 0.0 if fit else MISFIT
        assert judge(cell.encode()) == want == judge(cell.encode()), cell


@pytest.mark.parametrize("reading", READINGS, ids=lambda one: f"{one.type} {' '.join(one.formats)}")
def test_known_cells_are_judged_as_the_cast_reads_them(reading: Reading) -> None:
    test_a_gauge_says_what_the_cast_says.hypothesis.inner_test(reading, list(KNOWN))


def test_plain_numbers_are_held_against_the_digits_seen() -> None:
    judge = gauge(learn([f"{n}.25" for n in range(10, 99)], Reading(type="float")))
    assert judge(b"55.75") == judge(b"-55.75") == 0
    assert judge(b"555.75") == 1.5 and judge(b"5.75") == 1.0 and judge(b"55.755") == 1.5
    assert judge(b"05.75") == 3.0 and judge(b"55.") == 1.0 and judge(b"word") >= MISFIT


def test_text_is_held_against_words_shapes_beginnings_and_lengths() -> None:
    words = gauge(learn(["red", "green"] * 50, Reading()))
    assert words(b"red") == 0 < words(b"blue")
    codes = gauge(learn([f"AB-{n:04d}" for n in range(100)], Reading()))
    assert codes(b"AB-0042") == 0 < codes(b"AB-42") and codes("AB-004é".encode()) >= 4
    prose = gauge(learn([f"{'word ' * (n % 5 + 2)}{n}" for n in range(200)], Reading()))
    assert prose(b"word word 7") == 0 < prose(b"word " * 40) and prose(b"9 word word") > 0


def test_a_gauge_that_has_seen_more_than_it_keeps_still_says_the_same() -> None:
    judge = gauge(Profile(reading=Reading(type="float"), cells=10))
    first = [judge(b"x" * n + b"1.5") for n in range(30)]
    for number in range(2 * KEPT):
        judge(b"%d-" % number + bytes((97 + number % 26, 97 + number // 26 % 26, 97 + number // 676)))
    assert [judge(b"x" * n + b"1.5") for n in range(30)] == first
