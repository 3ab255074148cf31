"""Metrics agree with scikit-learn, intervals with theory, and what cannot be measured is said in words."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from tenon import metric
from tenon.errors import InputError
from tenon.metric import Estimate
from tenon.model import gate

Floats = NDArray[np.float64]


def binary(rows: int, *, seed: int = 0, decimals: int | None = None) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.2).astype(np.float64)
    y[0], y[1] = 0, 1
    p = np.clip(0.2 + 0.15 * y + 0.15 * rng.standard_normal(rows), 0, 1)
    return y, p if decimals is None else p.round(decimals)


# ── parity with scikit-learn ─────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60).filter(
        lambda rows: len({y for y, _ in rows}) == 2
    )
)
def test_binary_metrics_are_those_of_scikit_learn_with_any_ties(rows: list[tuple[int, int]]) -> None:
    y, p = np.array([y for y, _ in rows]), np.array([p / 6 for _, p in rows])
    found = metric.evaluate("binary", y, p, samples=20)
    assert found["roc_auc"].value == pytest.approx(reference.roc_auc_score(y, p), abs=1e-12)
    assert found["average_precision"].value == pytest.approx(reference.average_precision_score(y, p), abs=1e-12)
    assert found["brier"].value == pytest.approx(reference.brier_score_loss(y, p), abs=1e-12)
    assert found["log_loss"].value == pytest.approx(reference.log_loss(y, p, labels=[0, 1]), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=60).filter(
        lambda rows: np.ptp([y for y, _ in rows]) > 1e-3
    )
)
def test_regression_metrics_are_those_of_scikit_learn(rows: list[tuple[float, float]]) -> None:
    y, p = np.array([y for y, _ in rows]), np.array([p for _, p in rows])
    found = metric.evaluate("regression", y, p, samples=20)
    assert found["rmse"].value == pytest.approx(reference.root_mean_squared_error(y, p), rel=1e-9)
    assert found["mae"].value == pytest.approx(reference.mean_absolute_error(y, p), rel=1e-9)
    assert found["r2"].value == pytest.approx(reference.r2_score(y, p), rel=1e-6, abs=1e-9)


def test_r2_keeps_its_digits_far_from_zero() -> None:
    y = 1e9 + np.arange(100.0)
    p = y + np.sin(np.arange(100.0))
    assert metric.evaluate("regression", y, p)["r2"].value == pytest.approx(reference.r2_score(y, p), abs=1e-9)


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resample_measures_as_scikit_learn_does_with_weights() -> None:
    y, p = binary(500, decimals=2)
    counts = np.bincount(np.random.default_rng(5).integers(0, 500, 500), minlength=500)
    found = metric._Scored.of(y, p, metric.METRICS["binary"]).measure(counts)
    wanted = [
        reference.roc_auc_score(y, p, sample_weight=counts),
        reference.average_precision_score(y, p, sample_weight=counts),
        reference.brier_score_loss(y, p, sample_weight=counts),
        reference.log_loss(y, p, sample_weight=counts),
    ]
    assert found == pytest.approx(wanted, rel=1e-9)


def test_the_interval_of_roc_auc_is_as_wide_as_theory_says() -> None:
    y, p = binary(4_000)
    found = metric.evaluate("binary", y, p, samples=1_000)["roc_auc"]
    # DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988): the variance of the Mann-Whitney statistic.
    above = (p[y == 1][:, None] > p[y == 0][None, :]) + 0.5 * (p[y == 1][:, None] == p[y == 0][None, :])
    spread = math.sqrt(above.mean(1).var(ddof=1) / (y == 1).sum() + above.mean(0).var(ddof=1) / (y == 0).sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert found.low < found.value < found.high


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    y, p = binary(400)
    assert metric.evaluate("binary", y, p, seed=3) == metric.evaluate("binary", y, p, seed=3)
    assert metric.evaluate("binary", y, p, seed=3) != metric.evaluate("binary", y, p, seed=4)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = metric.evaluate("regression", rng.standard_normal(300), np.zeros(300), seed=seed, samples=100)["rmse"]
        covered += found.low <= 1.0 <= found.high
    assert 86 <= covered <= 100


def test_a_rare_class_that_some_resamples_miss_still_gets_an_interval() -> None:
    y, p = np.zeros(50), np.linspace(0, 1, 50)
    y[-1] = 1
    found = metric.evaluate("binary", y, p)["roc_auc"]
    assert found.value == 1.0
    assert found.low <= found.value <= found.high


def test_many_rows_are_measured_well_within_a_second() -> None:
    y, p = binary(54_000)
    start = time.process_time()
    metric.evaluate("binary", y, p, samples=200)
    assert time.process_time() - start < 5.0  # a tenth of a second of work; bounded loosely, machines are shared


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_paired_interval_is_narrower_than_two_intervals_suggest() -> None:
    y, p = binary(2_000)
    worse = np.clip(p + 0.02 * np.random.default_rng(1).standard_normal(2_000), 0, 1)
    lift = metric.compare("binary", y, p, worse)["roc_auc"]
    alone = metric.evaluate("binary", y, p)["roc_auc"]
    assert lift.high - lift.low < (alone.high - alone.low) / 2
    assert lift.value == pytest.approx(metric.rank_auc(y, p) - metric.rank_auc(y, worse))


def test_positive_is_better_whatever_the_metric() -> None:
    y, p = binary(2_000)
    lift = metric.compare("binary", y, p, np.full(2_000, y.mean()))
    assert all(one.low > 0 for name, one in lift.items() if name != "log_loss")
    opposite = metric.compare("binary", y, np.full(2_000, y.mean()), p)
    assert {name: -one.value for name, one in opposite.items()} == pytest.approx({n: o.value for n, o in lift.items()})


def test_a_model_compared_with_itself_has_no_lift_at_all() -> None:
    y, p = binary(300)
    assert metric.compare("binary", y, p, p)["roc_auc"] == Estimate(value=0.0, low=0.0, high=0.0)


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calibration_has_groups_of_equal_size_that_hold_every_row() -> None:
    y, _ = binary(1_003)
    groups = metric.calibration(y, np.random.default_rng(0).random(1_003))
    assert len(groups) == 10
    assert sum(group["rows"] for group in groups) == 1_003
    assert max(group["rows"] for group in groups) - min(group["rows"] for group in groups) <= 1
    assert [group["predicted"] for group in groups] == sorted(group["predicted"] for group in groups)


def test_equal_predictions_stay_in_one_group() -> None:
    y, _ = binary(1_000)
    (group,) = metric.calibration(y, np.full(1_000, 0.2))
    assert group["rows"] == 1_000
    assert group["low"] < y.mean() < group["high"]
    assert [one["rows"] for one in metric.calibration(y, (np.arange(1_000) >= 950) * 1.0)] == [950, 50]


def test_wilson_gives_the_published_interval() -> None:
    # Brown, Cai and DasGupta (Statistical Science 16, 2001): no hit in 10 rows is bounded by 0.278.
    assert metric.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert metric.wilson(0, 0) == (0.0, 1.0)


def test_calibration_of_a_regression_bounds_the_mean() -> None:
    rng = np.random.default_rng(0)
    p = rng.standard_normal(1_000)
    for group in metric.calibration(p + rng.standard_normal(1_000), p, task="regression"):
        assert group["low"] < group["observed"] < group["high"]
        assert group["high"] - group["low"] == pytest.approx(2 * 1.96 / 10, rel=0.35)


# ── what cannot be measured ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("task", "y", "p", "said"),
    [
        ("binary", [0, 0, 0], [0.1, 0.2, 0.3], "expected both labels, 0 and 1, among the rows, got 3"),
        ("binary", [], [], "expected at least one row to measure, got none"),
        ("binary", [0, 1], [0.1, float("nan")], "expected predictions that are numbers, got 1 missing"),
        ("binary", [0, None], [0.1, 0.2], "got 1 missing or infinite of 2 - at row 1"),
        ("binary", [0, 2], [0.1, 0.2], "expected labels 0 and 1, got 2"),
        ("binary", [0, 1], [0.1, 1.5], "expected probabilities between 0 and 1, got 1.5"),
        ("binary", [0, 1], [0.1], "expected one prediction for each truth, got 1 for 2"),
        ("binary", ["a", "b"], [0.1, 0.2], "expected truths that are numbers"),
        ("binary", [[0, 1], [1, 0]], [0.1, 0.2], "expected one column of truths, got an array of shape (2, 2)"),
        ("ranking", [0, 1], [0.1, 0.2], "expected a task, got 'ranking'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_words(task: str, y: list[float], p: list[float], said: str) -> None:
    with pytest.raises(InputError) as error:
        metric.evaluate(task, y, p)
    assert said in str(error.value)


def test_one_class_alone_can_still_be_measured_where_that_means_something() -> None:
    found = metric.evaluate("binary", [0, 0, 0], [0.1, 0.2, 0.3], names=["brier", "log_loss"])
    assert found["brier"].value == pytest.approx(np.mean(np.square([0.1, 0.2, 0.3])))


def test_a_metric_nobody_knows_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'roc_auc'"):
        metric.evaluate("binary", [0, 1], [0, 1], names=["roc_au"])


def test_an_estimate_is_plain_data_and_comes_back() -> None:
    found = Estimate(value=0.5, low=0.4, high=0.6)
    assert Estimate.from_dict({**found.to_dict(), "unit": "new in a later release"}) == found
    assert str(found) == "0.5000 [0.4000, 0.6000]"


def test_a_gate_that_imports_no_numpy_knows_the_same_metrics() -> None:
    assert gate.HIGHER_IS_BETTER == metric.HIGHER_IS_BETTER
