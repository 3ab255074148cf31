"""One encoding for training and serving: the same rows give the same matrix however they travel."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon import encoding
from tenon.encoding import Category, Encoding, Number
from tenon.errors import InputError

KINDS = {"wind": "number", "carrier": "category", "calm": "number"}


def frame(rows: int = 400) -> tuple[pl.DataFrame, np.ndarray[Any, np.dtype[np.float64]]]:
    rng = np.random.default_rng(0)
    wind = rng.normal(10, 4, rows)
    carrier = np.array(["AA", "UA", "WN", "rare"])[np.minimum(rng.integers(0, 40, rows) // 13, 3)]
    y = (rng.random(rows) < np.where(carrier == "UA", 0.6, np.where(carrier == "WN", 0.1, 0.3))).astype(np.float64)
    table = pl.DataFrame({"wind": wind, "carrier": carrier, "calm": wind < 5})
    missing = pl.int_range(pl.len()) % 10 == 0
    return table.with_columns(wind=pl.when(missing).then(None).otherwise("wind")), y


def learnt(form: str = "ordinal") -> Encoding:
    table, y = frame()
    return Encoding.learn(table.to_dict(), y, KINDS, form)


# ── what is learnt ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_levels_are_ordered_by_the_mean_label_and_unseen_ones_lie_at_the_overall_mean() -> None:
    carrier = learnt().features[1]
    assert isinstance(carrier, Category)
    assert carrier.levels == ("WN", "AA", "UA")
    assert carrier.unseen in (0.5, 1.5)
    assert carrier.pooled  # 'rare' has too few rows for a place of its own


def test_a_missing_value_is_nan_only_where_training_saw_some() -> None:
    wind, _, calm = learnt().features
    assert isinstance(wind, Number) and isinstance(calm, Number)
    assert wind.missing and not calm.missing
    matrix = learnt().matrix({"wind": [None], "carrier": [None], "calm": [None]})
    assert np.isnan(matrix[0, 0])
    assert matrix[0, 1] == learnt().features[1].unseen  # type: ignore[union-attr]
    assert matrix[0, 2] == calm.median


def test_the_onehot_form_is_standardised_and_has_a_column_for_each_level_the_rest_and_missing() -> None:
    coded = learnt("onehot")
    assert coded.columns == (
        ("wind", ""),
        ("wind", "missing"),
        ("carrier", "= WN"),
        ("carrier", "= AA"),
        ("carrier", "= UA"),
        ("carrier", "other"),
        ("calm", ""),
    )
    table, _ = frame()
    matrix = coded.matrix(table.to_dict())
    assert matrix[:, 1].mean() == pytest.approx(0.1)
    assert (matrix[:, 2:6].sum(axis=1) == 1).all()
    assert matrix[:, 6].mean() == pytest.approx(0, abs=1e-3)
    assert matrix[:, 6].std() == pytest.approx(1, abs=1e-3)


def test_values_never_seen_find_their_place_in_the_onehot_form() -> None:
    row = learnt("onehot").matrix({"wind": [1e30], "carrier": ["never seen"], "calm": [False]})
    assert row[0, 0] == encoding.CLIP
    assert row[0, 2:6].tolist() == [0, 0, 0, 1]
    assert learnt("onehot").matrix({"wind": [1], "carrier": [None], "calm": [0]})[0, 2:6].sum() == 0


def test_a_number_that_is_always_missing_or_never_varies_is_harmless() -> None:
    columns = {"empty": [None] * 30, "same": [3.0] * 30}
    for form in encoding.FORMS:
        coded = Encoding.learn(columns, np.arange(30) % 2.0, {"empty": "number", "same": "number"}, form)
        assert np.isfinite(coded.matrix({"empty": [None], "same": [3.0]})[0, -1])


def test_one_category_takes_a_bounded_number_of_columns() -> None:
    values = [f"level {i % 90}" for i in range(90 * 30)]
    coded = Encoding.learn({"c": values}, np.zeros(len(values)), {"c": "category"}, "onehot")
    assert coded.width == encoding.LEVELS + 1


# ── the same row, however it travels ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", encoding.FORMS)
def test_one_row_is_a_batch_of_one(form: str) -> None:
    table, _ = frame(60)
    encode = learnt(form).compile()
    whole = encode(table.to_dict())
    rows = table.to_dict(as_series=False)
    for i in range(60):
        one = encode({name: [values[i]] for name, values in rows.items()})
        np.testing.assert_array_equal(one[0], whole[i])


@pytest.mark.parametrize("form", encoding.FORMS)
def test_lists_arrays_series_and_tuples_give_the_same_matrix(form: str) -> None:
    table, _ = frame(50)
    encode = learnt(form).compile()
    series = encode(table.to_dict())
    lists = table.to_dict(as_series=False)
    np.testing.assert_array_equal(encode(lists), series)
    np.testing.assert_array_equal(encode({name: tuple(values) for name, values in lists.items()}), series)
    arrays = {name: np.array(values, object if name == "carrier" else np.float64) for name, values in lists.items()}
    np.testing.assert_array_equal(encode(arrays), series)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.none() | st.floats(allow_nan=True), st.none() | st.text(max_size=4), st.none() | st.booleans()),
        max_size=8,
    )
)
def test_an_encoding_that_went_through_json_is_the_same(rows: list[tuple[Any, Any, Any]]) -> None:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(KINDS)}
    for form in encoding.FORMS:
        coded = learnt(form)
        again = Encoding.from_dict(json.loads(json.dumps(coded.to_dict(), allow_nan=False)))
        np.testing.assert_array_equal(again.matrix(columns), coded.matrix(columns))


def test_one_and_one_point_zero_are_one_level() -> None:
    coded = Encoding.learn({"c": ["1", "2"] * 30}, np.arange(60) % 2.0, {"c": "category"})
    assert coded.matrix({"c": [1, 1.0, "1", True]}).ravel().tolist() == [0, 0, 0, 0.5]


def test_integers_with_missing_values_and_decimals_are_numbers_too() -> None:
    coded = Encoding.learn({"n": [1.0, None] * 10}, np.arange(20) % 2.0, {"n": "number"})
    found = coded.matrix({"n": pl.Series([7, None], dtype=pl.Int64)}).ravel()
    assert found[0] == 7 and np.isnan(found[1])
    assert coded.matrix({"n": pl.Series([None, None])}).shape == (2, 1)
    assert coded.matrix({"n": pl.Series(["1.5"]).cast(pl.Decimal(scale=2))}).ravel().tolist() == [1.5]


def test_no_features_still_count_rows() -> None:
    assert Encoding(form="ordinal", features=()).matrix({"any": [1, 2, 3]}).shape == (3, 0)


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"wind": [1.0], "calm": [1.0]}, "expected the features 'carrier', got columns 'calm', 'wind'"),
        ({"wind": [1.0, 2.0], "carrier": ["AA"], "calm": [1]}, "expected columns of one length"),
        ({"wind": ["7"], "carrier": ["AA"], "calm": [1]}, "expected a number, got '7' - at feature 'wind'"),
        ({"wind": [10**400], "carrier": ["AA"], "calm": [1]}, "expected a number a float can hold"),
        ({"wind": 1.0, "carrier": ["AA"], "calm": [1]}, "expected a list of values, got 1.0 - at feature 'wind'"),
        (
            {"wind": [1, 2], "carrier": "AA", "calm": [1, 0]},
            "expected a list of values, got 'AA' - at feature 'carrier'",
        ),
        ({"wind": [[1]], "carrier": ["AA"], "calm": [1]}, "expected a number, got [1]"),
        ({"wind": [1], "carrier": [{"a": 1}], "calm": [1]}, "expected text, got {'a': 1} - at feature 'carrier'"),
        (
            {"wind": np.array(["2013-01-01"], "datetime64[s]"), "carrier": ["AA"], "calm": [1]},
            "values of type datetime",
        ),
    ],
)
@pytest.mark.parametrize("form", encoding.FORMS)
def test_columns_that_cannot_be_encoded_are_refused_in_words(form: str, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        learnt(form).matrix(columns)
    assert said in str(error.value)


@pytest.mark.parametrize("body", [{}, {"form": "ordinal", "features": [{}]}, {"form": "other", "features": []}])
def test_a_broken_manifest_is_refused_in_words(body: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        Encoding.from_dict(body)
