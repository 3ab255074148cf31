"""Words: the same number reads the same everywhere, and no text from outside can do anything."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.report import word

CASES: list[tuple[Callable[..., str], Any, str]] = [
    (word.count, 336_776, "336,776"),
    (word.count, 2.6, "3"),
    (word.decimal, 0.76, "0.760"),
    (word.decimal, -0.0001, "-0.0001"),
    (word.decimal, 0.0, "0.000"),
    (word.decimal, 3.1e-7, "3.1e-07"),
    (word.decimal, 12_345.6, "12,346"),
    (word.compact, 10.0, "10"),
    (word.compact, 0.0354, "0.0354"),
    (word.compact, 1_386_547_200.0, "1,386,547,200"),
    (word.percent, 0.234, "23.4%"),
    (word.percent, 0.0, "0.0%"),
    (word.percent, 0.0004, "<0.1%"),
    (word.percent, 0.99999, ">99.9%"),
    (word.percent, 1.0, "100.0%"),
    (word.of_hundred, 0.755, "76"),
    (word.of_hundred, 0.5, "50"),
    (word.money, 12.4, "$12.40"),
    (word.money, 0.0, "$0.00"),
    (word.money, 0.00213, "$0.0021"),
    (word.money, 1234.5, "$1,234"),
    (word.money, -3.0, "-$3.00"),
    (word.money_words, 0.0, "nothing"),
    (word.money_words, 0.002, "less than a cent"),
    (word.money_words, 0.01, "1 cent"),
    (word.money_words, 0.124, "12 cents"),
    (word.money_words, 3.5, "$3.50"),
    (word.size, 999, "999 B"),
    (word.size, 34_100_000, "34.1 MB"),
    (word.size, 2.5e15, "2,500.0 TB"),
    (word.duration, 0.41, "0.4 s"),
    (word.duration, 41.2, "41 s"),
    (word.duration, 200, "3 min 20 s"),
    (word.duration, 7_500, "2 h 5 min"),
    (word.duration, 86_400 * 3, "3 d"),
    (word.day, "2013-11-04T05:15:00", "4 Nov 2013"),
    (word.day, 1_383_542_100.0, "4 Nov 2013"),
    (word.day, "2013-11-04T23:15:00-05:00", "5 Nov 2013"),
    (word.day, None, ""),
    (word.day, "soon", "soon"),
    (word.day, 1e300, "1e+300"),
    (word.moment, "2013-11-04T05:15:00", "4 Nov 2013, 05:15 UTC"),
]


@pytest.mark.parametrize(("write", "value", "said"), CASES)
def test_a_number_is_written_one_way(write: Callable[..., str], value: Any, said: str) -> None:
    assert write(value) == said


def test_a_count_agrees_with_its_noun() -> None:
    assert [word.plural(n, "alert") for n in (0, 1, 2)] == ["0 alerts", "1 alert", "2 alerts"]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_cleaned_text_holds_nothing_a_terminal_or_a_page_would_act_on(text: str) -> None:
    clean = word.clean(text)
    assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in clean)
    assert len(clean) <= word.TEXT_CHARS
    assert word.clean(clean) == clean


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "  =1+1", "-x"])
def test_a_formula_in_a_cell_is_defused(text: str) -> None:
    assert word.cell(text) == "'" + text


@pytest.mark.parametrize("text", ["-3.5", "+0.038", "-12 %", "-", "–", "", "a=b", "-1.2e-05", "-3 ms"])
def test_a_plain_number_in_a_cell_stays_a_number(text: str) -> None:
    assert word.cell(text) == text


def test_plain_data_is_cleaned_however_deep() -> None:
    assert word.cleaned({"a\x1b": [{"b": "c\nd"}, float("nan"), (1, True, None)]}) == {
        "a·": [{"b": "c d"}, None, [1, True, None]]
    }
