"""Comparing profiles: figures by their formulas, what is unseen, and what changed between versions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from tenon.sketch import compare, diff, profile


def frame(rows: int, seed: int, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": rng.normal(shift, 1.0, rows),
            "hour": rng.integers(0, 24, rows),
            "s": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2]),
            "b": rng.random(rows) < 0.5,
        }
    )


def exact_psi(reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    borders = np.quantile(reference, np.arange(1, 10) / 10)
    shares = []
    for values in (reference, other):
        counts = np.bincount(np.searchsorted(borders, values), minlength=10)
        shares.append((counts + 0.5) / (len(values) + 5))
    return float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 1.0])
def test_psi_and_ks_are_those_of_the_rows_within_the_sketch(shift: float) -> None:
    a, b = frame(50_000, 1), frame(30_000, 2, shift)
    found = compare(profile(a), profile(b))["x"]
    x, y = np.sort(a["x"].to_numpy()), np.sort(b["x"].to_numpy())
    assert found.psi == pytest.approx(exact_psi(x, y), abs=0.005 + 0.05 * shift)
    both = np.concatenate([x, y])
    ks = np.abs(np.searchsorted(x, both, "right") / len(x) - np.searchsorted(y, both, "right") / len(y)).max()
    assert found.distance == pytest.approx(ks, abs=0.015)
    assert found.mean_delta == pytest.approx((y.mean() - x.mean()) / x.std(ddof=1), rel=1e-9)
    assert (found.bins, found.rows_reference, found.rows) == (10, 50_000, 30_000)


def test_a_profile_beside_itself_has_not_moved() -> None:
    one = profile(frame(5_000, 0))
    for found in compare(one, one).values():
        assert (found.psi, found.distance, found.missing_delta, found.unseen) == (0.0, 0.0, 0.0, 0.0)
    assert diff(one, one).same
    assert diff(one, one).to_dict()["changed"] == {}


def test_psi_of_categories_is_by_hand() -> None:
    one = profile(pl.DataFrame({"s": ["a"] * 60 + ["b"] * 40}))
    two = profile(pl.DataFrame({"s": ["a"] * 30 + ["b"] * 70}))
    found = compare(one, two)["s"]
    p, q = np.array([60.5, 40.5]) / 101, np.array([30.5, 70.5]) / 101
    assert found.psi == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert found.distance == pytest.approx(0.3)
    assert (found.bins, found.kind) == (2, "category")


def test_an_emptied_bin_is_large_and_finite() -> None:
    one, two = profile(pl.DataFrame({"x": range(1000)})), profile(pl.DataFrame({"x": range(500)}))
    assert 1 < compare(one, two)["x"].psi < 20
    gone = compare(profile(pl.DataFrame({"s": ["a", "b"] * 50})), profile(pl.DataFrame({"s": ["a"] * 100})))["s"]
    assert 0 < gone.psi < 20


def test_values_the_reference_never_held_are_unseen() -> None:
    one = profile(pl.DataFrame({"s": ["a"] * 90 + ["b"] * 10}))
    two = profile(pl.DataFrame({"s": ["a"] * 50 + ["new"] * 40 + ["newer"] * 10}))
    found = compare(one, two)["s"]
    assert found.unseen == 0.5
    assert found.unseen_levels == ("new", "newer")
    many = profile(pl.DataFrame({"s": [f"v{i}" for i in range(1000)]}))
    assert compare(many, two)["s"].unseen == 0.0, "a reference that could not keep all cannot tell"


def test_missing_values_are_no_bin_and_are_told_apart() -> None:
    one = profile(pl.DataFrame({"x": [1.0, 2.0, 3.0, None] * 100}))
    two = profile(pl.DataFrame({"x": [1.0, 2.0, 3.0, None, None, None] * 100}))
    found = compare(one, two)["x"]
    assert found.psi < 0.001
    assert (found.missing_reference, found.missing, found.missing_delta) == (0.25, 0.5, 0.25)


def test_a_discrete_number_has_as_many_bins_as_it_can() -> None:
    one = profile(pl.DataFrame({"x": [0] * 950 + [1] * 50}))
    two = profile(pl.DataFrame({"x": [0] * 500 + [1] * 500}))
    found = compare(one, two)["x"]
    assert found.bins == 2
    assert found.psi > 1
    constant = profile(pl.DataFrame({"x": [7] * 100}))
    assert compare(constant, constant)["x"].psi == 0.0
    assert compare(constant, constant)["x"].bins == 1
    assert math.isnan(compare(constant, constant)["x"].mean_delta)


def test_what_cannot_be_compared_has_no_figure() -> None:
    one = profile(pl.DataFrame({"a": [1.0], "b": ["x"], "c": [None], "only": [1]}))
    two = profile(pl.DataFrame({"a": ["x"], "b": ["x"], "c": [1.0]}))
    found = compare(one, two)
    assert list(found) == ["a", "b", "c"]
    assert math.isnan(found["a"].psi) and math.isnan(found["c"].psi)
    assert found["a"].to_dict()["psi"] is None


def test_versions_of_a_dataset_are_told_apart_in_words() -> None:
    before = profile(frame(2_000, 1).with_columns(went=1, kind=pl.lit(1), gap=pl.lit(1.0)))
    after = profile(
        frame(2_100, 1, 0.3)
        .with_columns(came=1, kind=pl.lit("x"), gap=None)
        .with_columns(
            s=pl.when(pl.col("s") == "c").then(pl.lit("d")).otherwise("s"), gap=pl.col("gap").cast(pl.Float64)
        )
    )
    found = diff(before, after)
    assert not found.same
    assert found.rows == (2_000, 2_100)
    assert (found.added, found.removed) == (("came",), ("went",))
    assert found.retyped == {"kind": ("number", "category")}
    assert "new: 'd'" in found.said["s"] and "gone: 'c'" in found.said["s"]
    assert any("mean +0.3" in line for line in found.said["x"])
    assert any(
        line.startswith("missing 0 of 2,000 (0.00%), now 2,100 of 2,100 (100.00%)") for line in found.said["gap"]
    )
    assert found.to_dict()["changed"]["x"]["psi"] > 0.05
    assert set(found.changed) >= {"x", "s", "gap", "kind"}
