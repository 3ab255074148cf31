"""Profiles: exact where they say so, within bounds elsewhere, mergeable in any order, the same bytes every time."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import CorruptError, InputError
from tenon.sketch import ColumnProfile, Profile, profile
from tenon.sketch.quantiles import K, Quantiles

RANK_ERROR = 0.02  # four times what KLL promises for one rank at 99 %


def frame(rows: int = 20_000, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": rng.lognormal(size=rows),
            "i": rng.integers(0, 50, rows),
            "s": rng.choice(["UA", "B6", "9E", "é" * 60], rows, p=[0.5, 0.3, 0.19, 0.01]),
            "u": [f"user-{value}" for value in rng.integers(0, 2**40, rows)],
            "b": rng.random(rows) < 0.25,
            "t": [dt.datetime(2013, 1, 1) + dt.timedelta(seconds=int(s)) for s in rng.integers(0, 10**7, rows)],
            "gap": [None if value < 0.1 else value for value in rng.random(rows)],
        }
    )


def test_a_profile_holds_what_a_look_at_the_rows_gives() -> None:
    rows = frame()
    columns = profile(rows).columns
    assert {name: column.kind for name, column in columns.items()} == {
        "x": "number",
        "i": "number",
        "s": "category",
        "u": "category",
        "b": "category",
        "t": "time",
        "gap": "number",
    }
    x = rows["x"].to_numpy()
    assert (columns["x"].min, columns["x"].max) == (x.min(), x.max())
    assert columns["x"].mean == pytest.approx(x.mean(), rel=1e-12)
    assert columns["x"].std == pytest.approx(x.std(ddof=1), rel=1e-12)
    assert columns["gap"].missing == rows["gap"].null_count()
    assert columns["gap"].missing_share == rows["gap"].null_count() / rows.height
    assert columns["i"].distinct == 50
    assert columns["u"].distinct == pytest.approx(rows["u"].n_unique(), rel=0.06)
    assert columns["t"].min == rows["t"].cast(pl.Int64).to_numpy().min() / 1e6
    counts = rows["b"].value_counts().rows_by_key("b")
    assert columns["b"].levels() == {"false": counts[False][0][0], "true": counts[True][0][0]}
    assert columns["s"].top(1)[0][0] == "UA"
    assert sum(columns["s"].levels().values()) == rows.height
    assert columns["s"].lengths.max == 60
    assert columns["s"].lengths.mean == pytest.approx(float(rows["s"].str.len_chars().to_numpy().mean()))


@pytest.mark.parametrize("name", ["x", "i", "t", "gap"])
def test_quantiles_and_shares_are_within_their_bound(name: str) -> None:
    rows = frame()
    column = profile(rows).columns[name]
    series = rows[name].drop_nulls()
    values = np.sort((series.cast(pl.Int64).to_numpy() / 1e6) if name == "t" else series.to_numpy().astype(float))
    for q in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        found = column.quantile(q)
        low = np.searchsorted(values, found, "left") / len(values)
        high = np.searchsorted(values, found, "right") / len(values)
        assert low - RANK_ERROR <= q <= high + RANK_ERROR, (q, found)
        assert column.cdf([found])[0] == pytest.approx(high, abs=RANK_ERROR)
    assert (column.quantile(0), column.quantile(1)) == (values[0], values[-1])
    assert column.cdf([values[0] - 1, values[-1]]) == [0.0, 1.0]


def test_a_histogram_adds_up() -> None:
    column = profile(frame()).columns["x"]
    edges, counts = column.histogram(12)
    assert len(edges) == 13 and len(counts) == 12
    assert sum(counts) == 20_000
    assert all(count >= 0 for count in counts)
    assert profile(pl.DataFrame({"x": [3.0, 3.0]})).columns["x"].histogram(5) == ([3.0, 3.0], [2])
    assert profile(pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})).columns["x"].histogram(5) == ([], [])


def test_nan_is_missing_and_infinity_is_counted_apart() -> None:
    column = profile(pl.DataFrame({"x": [1.0, math.nan, math.inf, -math.inf, None]})).columns["x"]
    assert (column.rows, column.missing, column.infinite, column.count) == (5, 2, 2, 1)
    assert (column.mean, column.min, column.max) == (1.0, 1.0, 1.0)


def test_columns_of_any_type_have_a_profile() -> None:
    rows = pl.DataFrame(
        {
            "list": [[1], None],
            "null": [None, None],
            "time": [dt.time(5), None],
            "span": [dt.timedelta(hours=1), None],
            "day": [dt.date(2013, 1, 1), None],
            "kind": pl.Series(["a", None], dtype=pl.Categorical),
            "tiny": pl.Series([1, None], dtype=pl.UInt8),
            "money": pl.Series(["1.50", None]).cast(pl.Decimal(10, 2)),
            "zoned": pl.Series([dt.datetime(2013, 1, 1), None]).dt.replace_time_zone("Europe/Zurich"),
        }
    )
    found = profile(rows)
    assert {column.missing for name, column in found.columns.items() if name != "null"} == {1}
    assert found.columns["null"].missing == 2
    assert found.columns["money"].max == 1.5
    assert found.columns["zoned"].max == dt.datetime(2012, 12, 31, 23, tzinfo=dt.UTC).timestamp()
    assert Profile.from_bytes(found.to_bytes()) is not None


def test_nothing_has_a_profile_too() -> None:
    assert profile(pl.DataFrame()).rows == 0
    empty = profile(frame().clear())
    assert empty.rows == 0
    assert math.isnan(empty.columns["x"].quantile(0.5))
    assert empty.merge(profile(frame(100))).to_bytes() == profile(frame(100)).to_bytes()


# ── merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def exact(found: Profile) -> dict[str, Any]:
    return {
        name: (
            column.rows,
            column.missing,
            column.infinite,
            column.min if column.moments.count else None,
            column.max if column.moments.count else None,
            column.distinct,
            column.levels(),
            column.lengths.count,
        )
        for name, column in found.columns.items()
    }


numbers = st.none() | st.floats() | st.integers(-5, 5).map(float)
tables = st.lists(st.tuples(numbers, st.none() | st.sampled_from(["a", "b", "c", "d"])), max_size=40)


@settings(max_examples=100, deadline=None)
@given(tables, tables, tables)
def test_merging_is_associative_and_the_whole_is_the_sum_of_its_parts(
    one: list[Any], two: list[Any], three: list[Any]
) -> None:
    schema: dict[str, Any] = {"x": pl.Float64, "s": pl.String}
    a, b, c = (pl.DataFrame(rows, schema=schema, orient="row") for rows in (one, two, three))
    left = profile(a).merge(profile(b)).merge(profile(c))
    right = profile(a).merge(profile(b).merge(profile(c)))
    whole = profile(pl.concat([a, b, c]))
    assert exact(left) == exact(right) == exact(whole)
    for q in (0.1, 0.5, 0.9):  # few values: nothing was thinned, so quantiles are exact as well
        found = [each.columns["x"].quantile(q) for each in (left, right, whole)]
        assert found[0] == found[1] == found[2] or all(math.isnan(each) for each in found)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6_000), min_size=1, max_size=25), st.integers(0, 2**32), st.booleans())
def test_ranks_stay_within_their_bound_however_the_stream_was_cut(sizes: list[int], seed: int, ordered: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(size=sum(sizes))
    if ordered:
        values = np.sort(values)
    parts = [Quantiles.of(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    shares = np.linspace(0.02, 0.98, 25)
    ranks = np.searchsorted(np.sort(values), whole.quantile(shares), side="right") / len(values)
    assert np.abs(ranks - shares).max() < RANK_ERROR + 1 / len(values)
    assert whole.points()[1][-1] == len(values), "the weights are the rows"
    assert sum(map(len, whole.levels)) <= 3 * K + 100


def test_a_thousand_small_batches_are_as_good_as_one() -> None:
    values = np.random.default_rng(3).normal(size=200_000)
    whole = Quantiles.of(values[:200])
    for at in range(200, len(values), 200):
        whole = whole.merge(Quantiles.of(values[at : at + 200]))
    shares = np.linspace(0.01, 0.99, 99)
    ranks = np.searchsorted(np.sort(values), whole.quantile(shares), side="right") / len(values)
    assert np.abs(ranks - shares).max() < RANK_ERROR


def test_moments_merge_to_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(1e9, 1.0, 9_000)
    whole = profile(pl.DataFrame({"x": values})).columns["x"]
    merged = profile(pl.DataFrame({"x": values[:10]}))
    for at in range(10, 9_000, 899):
        merged = merged.merge(profile(pl.DataFrame({"x": values[at : at + 899]})))
    assert merged.columns["x"].mean == pytest.approx(whole.mean, rel=1e-14)
    assert merged.columns["x"].moments.variance == pytest.approx(whole.moments.variance, rel=1e-6)


def test_a_column_that_one_side_lacks_is_missing_in_its_rows() -> None:
    merged = profile(pl.DataFrame({"a": [1]})).merge(profile(pl.DataFrame({"b": ["x", "y"]})))
    assert (merged.rows, merged.columns["a"].missing, merged.columns["b"].missing) == (3, 2, 1)
    late = profile(pl.DataFrame({"a": [None, None]})).merge(profile(pl.DataFrame({"a": [1.0]})))
    assert (late.columns["a"].kind, late.columns["a"].missing) == ("number", 2)


def test_columns_of_two_kinds_do_not_merge() -> None:
    with pytest.raises(InputError, match="a column of kind number, got category"):
        profile(pl.DataFrame({"a": [1]})).merge(profile(pl.DataFrame({"a": ["x"]})))


def test_a_lazy_frame_has_the_profile_of_its_rows() -> None:
    assert exact(profile(frame().lazy())) == exact(profile(frame()))


def test_too_many_categories_are_bounded_and_say_so() -> None:
    rows = pl.DataFrame({"s": [f"v{i}" for i in range(3_000)] + ["often"] * 500 + ["long" * 40] * 400})
    column = profile(rows).columns["s"]
    assert column.top(1) == [("often", 500)]
    assert column.top(2)[1][1] == 400 and len(column.top(2)[1][0]) <= 48
    assert column.top_levels.bound == 1
    assert len(column.levels()) <= 200
    merged = profile(rows).merge(profile(rows)).columns["s"]
    assert merged.top(1) == [("often", 1000)]
    assert merged.top_levels.bound >= 2, "what is lost may be more than each side lost"


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bytes_come_back_as_they_were() -> None:
    data = profile(frame()).to_bytes()
    again = Profile.from_bytes(data)
    assert again.to_bytes() == data
    assert exact(again) == exact(profile(frame()))
    assert again.columns["x"].quantile(0.3) == profile(frame()).columns["x"].quantile(0.3)


def test_the_same_rows_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "rows.parquet")
    script = (
        "import sys, hashlib, polars as pl; sys.path.insert(0, sys.argv[1]); from tenon.sketch import profile;"
        "print(hashlib.sha256(profile(pl.read_parquet(sys.argv[2])).to_bytes()).hexdigest())"
    )
    source = str(Path(__file__).parents[2] / "src")
    told = {
        subprocess.run(
            [sys.executable, "-c", script, source, str(tmp_path / "rows.parquet")],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads},
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    }
    assert len(told) == 1


def test_a_column_takes_less_than_20_kb_however_it_was_built() -> None:
    rng = np.random.default_rng(1)
    rows = pl.DataFrame({"x": rng.normal(size=300_000), "s": ["名前" * 12 + str(i) for i in range(300_000)]})
    merged = profile(rows.head(1_000))
    for at in range(1_000, rows.height, 7_001):
        merged = merged.merge(profile(rows.slice(at, 7_001)))
    for found in (profile(rows), merged):
        for name, column in found.columns.items():
            assert len(Profile(rows=found.rows, columns={name: column}).to_bytes()) < 20_000, name


@pytest.mark.parametrize("data", [b"", b"\x00", b"nonsense", msgspec.msgpack.encode({"version": 1}), b"\x81\xa1v\x01"])
def test_bytes_that_are_no_profile_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptError, match="expected the bytes of a profile"):
        Profile.from_bytes(data)


def test_a_damaged_profile_is_refused_and_not_believed() -> None:
    data = profile(frame(500)).to_bytes()
    for at in range(0, len(data), 97):
        broken = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        try:
            found = Profile.from_bytes(broken)
        except (CorruptError, InputError):
            continue
        for column in found.columns.values():
            assert isinstance(column, ColumnProfile)


def test_a_profile_of_a_newer_tenon_is_refused_with_what_to_do() -> None:
    body = msgspec.msgpack.decode(profile(frame(10)).to_bytes()) | {"version": 99}
    with pytest.raises(InputError, match="use a newer tenon"):
        Profile.from_bytes(msgspec.msgpack.encode(body))
