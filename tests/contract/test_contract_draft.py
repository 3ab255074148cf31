"""A first draft: what it proposes, and that the frame it came from keeps it."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.contract import Contract, check, infer


def frame() -> pl.DataFrame:
    n = 1000
    return pl.DataFrame(
        {
            "id": range(1, n + 1),
            "hour": [i % 24 for i in range(n)],
            "price": [i / 7 for i in range(n)],
            "carrier": [("UA", "B6", "9E")[i % 3] for i in range(n)],
            "tail": [f"N{i:05d}" for i in range(n)],
            "code": [f"AB-{i:04d}" for i in range(n)],
            "note": [f"some words {i}" * (i % 3 + 1) for i in range(n)],
            "at": [dt.datetime(2013, 1, 1) + dt.timedelta(hours=i) for i in range(n)],
            "gap": [None if i % 5 else i for i in range(n)],
            "empty": pl.Series([None] * n, dtype=pl.Float64),
            "many": [[i] for i in range(n)],
        }
    )


def test_a_draft_proposes_types_ranges_sets_patterns_and_a_key() -> None:
    draft = infer(frame(), "flights")
    columns = {column.name: column for column in draft.columns}
    assert draft.inferred
    assert draft.key == ("id",)
    assert list(columns) == [name for name in frame().columns if name != "many"]
    assert list(columns["hour"].between or ()) == [0, 30]
    assert list(columns["price"].between or ()) == [0.0, 200.0]
    assert columns["carrier"].one_of == ("9E", "B6", "UA")
    assert columns["tail"].pattern == "[0-9A-Z]{6}"
    assert columns["code"].pattern == r"[A-Z]{2}\-[0-9]{4}"
    assert columns["note"].pattern == "" and columns["note"].one_of is None
    assert columns["at"].type == "timestamp" and columns["at"].between is None
    assert columns["gap"].nullable and not columns["id"].nullable
    assert columns["empty"].nullable and columns["empty"].between is None


def test_few_rows_propose_little() -> None:
    draft = infer(frame().head(20), "few")
    assert draft.key == ()
    assert all(column.one_of is None and not column.pattern and not column.unique for column in draft.columns)


def test_a_draft_is_reviewed_as_yaml_and_comes_back() -> None:
    draft = infer(frame(), "flights")
    assert "status: draft" in draft.to_odcs()
    assert Contract.from_odcs(draft.to_odcs()).digest == draft.digest


cells = {
    "i": st.none() | st.integers(-(2**62), 2**62),
    "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "s": st.none() | st.text(max_size=5),
    "t": st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries(cells), max_size=8), st.sampled_from([1, 30]))
def test_a_frame_keeps_the_draft_made_of_it(table: list[dict[str, Any]], times: int) -> None:
    schema: dict[str, Any] = {"i": pl.Int64, "f": pl.Float64, "s": pl.String, "t": pl.Datetime("us")}
    whole = pl.DataFrame(table * times, schema=schema)
    verdict = check(whole, infer(whole, "draft"))
    assert verdict.passed, verdict.findings
    assert verdict.bad.height == 0


def test_numbers_that_are_none_are_kept_out_of_the_range() -> None:
    draft = infer(pl.DataFrame({"x": [1.0, math.inf, math.nan]}), "x")
    assert draft.columns[0].between is not None
    assert all(math.isfinite(end) for end in draft.columns[0].between if isinstance(end, float))
