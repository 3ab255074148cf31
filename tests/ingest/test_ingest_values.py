"""Values are read as what they are, by vote of their column; what could mean two things stays text and is reported."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import polars as pl
import pytest

from tenon.ingest.missing import known
from tenon.ingest.values import Reading, cast, learn

from .conftest import Read

D = date


@pytest.mark.parametrize(
    ("cells", "type_", "values"),
    [
        (["1", "-2", "+3"], "int", [1, -2, 3]),
        (["1.5", "2", "-.5", "1e3"], "float", [1.5, 2.0, -0.5, 1000.0]),
        (["1,234", "999", "12"], "int", [1234, 999, 12]),
        (["1,234.5", "7.25"], "float", [1234.5, 7.25]),
        (["1.234,50", "7,25"], "float", [1234.5, 7.25]),
        (["1 234,5", "12 345 678,9"], "float", [1234.5, 12345678.9]),
        (["$5.10", "$1,200.00", "$7"], "float", [5.1, 1200.0, 7.0]),
        (["€ 12,50", "€ 1.200,00"], "float", [12.5, 1200.0]),
        (["12.5%", "3 %"], "float", [12.5, 3.0]),
        (["(1,234.50)", "12.00"], "float", [-1234.5, 12.0]),
        (["2024-01-31", "2023-12-01"], "date", [D(2024, 1, 31), D(2023, 12, 1)]),
        (["31/01/2024", "01/02/2024"], "date", [D(2024, 1, 31), D(2024, 2, 1)]),
        (["01/31/2024", "01/02/2024"], "date", [D(2024, 1, 31), D(2024, 1, 2)]),
        (["31.1.2024", "1.2.2024"], "date", [D(2024, 1, 31), D(2024, 2, 1)]),
        (["3 Mar 2024", "14 Apr 2023"], "date", [D(2024, 3, 3), D(2023, 4, 14)]),
        (["March 3, 2024", "April 14, 2023"], "date", [D(2024, 3, 3), D(2023, 4, 14)]),
        (
            ["2024-01-31 10:00", "2024-02-01 23:59"],
            "timestamp",
            [datetime(2024, 1, 31, 10), datetime(2024, 2, 1, 23, 59)],
        ),
        (["2024-01-31T10:00:00.5Z"] * 2, "timestamp", [datetime(2024, 1, 31, 10, 0, 0, 500_000)] * 2),
        (
            ["1/31/2024 1:30 PM", "1/2/2024 11:00 AM"],
            "timestamp",
            [datetime(2024, 1, 31, 13, 30), datetime(2024, 1, 2, 11)],
        ),
        (["yes", "no", "Yes"], "bool", [True, False, True]),
        (["да", "нет"], "bool", [True, False]),
        (["true", "TRUE"], "bool", [True, True]),
        (["007", "8"], "text", ["007", "8"]),
        (["12345678901234567890", "1"], "text", ["12345678901234567890", "1"]),
        (["$5", "€6"], "text", ["$5", "€6"]),
        (["0013-01-01", "0014-01-01"], "text", ["0013-01-01", "0014-01-01"]),
        (["12:30", "01:15"], "text", ["12:30", "01:15"]),
    ],
)
def test_a_column_is_read_as_the_narrowest_type_that_holds_it(cells: list[str], type_: str, values: list[Any]) -> None:
    reading = learn(cells)
    done = cast(pl.Series("x", cells), reading)
    assert (reading.type, done.values.to_list(), done.misfit) == (type_, values, None)


def test_dates_that_could_mean_two_days_stay_text_and_say_so(read: Read) -> None:
    done = read("a,b\n01/02/2024,1\n03/04/2024,2\n")
    assert done.types["a"] == "text" and "ingest/ambiguous-date" in done.codes
    assert read("a,b\n01/02/2024,1\n13/04/2024,2\n").frame["a"].to_list() == [D(2024, 2, 1), D(2024, 4, 13)]


def test_dates_of_both_orders_in_one_column_stay_text(read: Read) -> None:
    rows = "".join(f"{n:02d}/12/2024,{n}\n12/{n:02d}/2024,{n}\n" for n in range(1, 25))
    assert read("a,b\n" + rows).types["a"] == "text"


def test_a_comma_that_could_mean_two_things_stays_text_unless_the_file_tells(read: Read) -> None:
    done = read("a;b\n1,234;x\n5,678;y\n")
    assert done.types["a"] == "text" and "ingest/ambiguous-number" in done.codes
    assert read("a;b\n1,234;1,5\n5,678;2,75\n").frame["a"].to_list() == [1.234, 5.678]


@pytest.mark.parametrize(
    "word",
    ["", "NA", "n/a", "NULL", "(null)", "NaN", "-", "—", "?", "\\N", "#N/A", "нет", "нет данных", "ΝULL", "NА", "НУЛЛ"],
)
def test_known_words_for_nothing_are_missing_in_columns_with_a_type(read: Read, word: str) -> None:
    rows = "".join(f"{n};{n * 1.5}\n" for n in range(40))
    done = read(f"a;b\n{rows}41;{word}\n42;9.5\n")
    assert done.frame["b"].to_list()[-2:] == [None, 9.5] and done.result.quarantined == 0


def test_a_word_that_keeps_coming_back_is_learnt_as_missing_and_shown_for_review(read: Read) -> None:
    rows = "".join(f"{n},{n}\n" if n % 10 else f"{n},left out\n" for n in range(1, 60))
    done = read("a,b\n" + rows)
    (finding,) = [one for one in done.result.findings if one.code == "ingest/null-words"]
    assert done.frame["b"].null_count() == 5 and (finding.place, "left out" in finding.said) == ("b", True)


def test_words_that_mean_missing_beside_numbers_mean_it_in_text_columns_of_the_file(read: Read) -> None:
    done = read("a,b\n1,NA\nNA,x\n3,y\n")
    assert done.rows == [(1, None), (None, "x"), (3, "y")]
    assert read("code,b\nNA,1\nDE,2\nFR,3\n").frame["code"].to_list() == ["NA", "DE", "FR"]


def test_what_means_nothing_is_known_by_its_look() -> None:
    assert known("  (NULL) ") and known("н/д") and not known("none of these") and not known("0")


# ── mixed columns ────────────────────────────────────────────────────────────────────────────────────────────────────

MIXED = "id,v\n" + "".join(f"{n},{n}\n" for n in range(60)) + "60,seven\n61,62\n"


def test_by_row_a_cell_that_does_not_fit_sends_its_row_to_quarantine(read: Read) -> None:
    done = read(MIXED)
    assert done.frame.height == 61 and done.types["v"] == "int"
    (record,) = done.quarantine.to_dicts()
    assert (record["raw"], record["column"], record["reason"], record["line"]) == (b"60,seven\n", "v", "type", 62)
    assert record["offset"] == MIXED.index("60,seven") and "null words" in record["fix"]
    assert "ingest/mixed-types" in done.codes


def test_by_cell_it_becomes_null_and_is_flagged_with_what_it_was(read: Read) -> None:
    done = read(MIXED, policy="cell")
    assert done.rows[60] == (60, None) and done.result.quarantined == 0
    (record,) = done.repairs.to_dicts()
    assert (record["row"], record["column"], record["repair"], record["was"]) == (60, "v", "type", "seven")


def test_a_column_that_is_half_words_is_text(read: Read) -> None:
    rows = "".join(f"{n},{n if n % 2 else 'w' + str(n)}\n" for n in range(60))
    assert read("id,v\n" + rows).types["v"] == "text"


def test_what_the_sample_could_not_know_is_voted_on_by_the_whole_file(read: Read) -> None:
    from tenon.limits import IngestLimits

    small = IngestLimits(sample_bytes=2_000, chunk_bytes=20_000)
    head = "".join(f"{n},{n},{n}\n" for n in range(2_000))
    tail = "".join(f"{n},{n}.5,k{n}\n" for n in range(2_000, 20_000))
    done = read("id,a,b\n" + head + tail, limits=small)
    assert done.types == {"id": "int", "a": "float", "b": "text"}
    assert done.frame.height == 20_000 and done.result.quarantined == 0 and done.frame["a"].sum() > 0


@pytest.mark.parametrize(
    ("cell", "value", "repair"),
    [(" 7 ", 7, "blanks"), ('"1,234"', 1234, "groups"), ("12.0", 12, "decimals"), ("7\u00a0", 7, "blanks")],
)
def test_a_cell_that_can_be_read_more_kindly_is_and_is_flagged(read: Read, cell: str, value: int, repair: str) -> None:
    rows = "".join(f"{n},{n}\n" for n in range(1_500))
    done = read(f"id,v\n{rows}1500,{cell}\n")
    assert done.rows[-1] == (1500, value)
    assert done.repairs.select("row", "column", "repair").rows() == [(1500, "v", repair)]


def test_a_decimal_among_whole_numbers_is_never_cut() -> None:
    done = cast(pl.Series(["1", "2.5"]), Reading(type="int"))
    assert done.values.to_list() == [1, None] and done.misfit is not None and done.misfit.to_list() == [False, True]
