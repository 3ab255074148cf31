"""Before launch: what a training needs is predicted, and one that cannot fit is refused with a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenon import ledger
from tenon.errors import TrainingError
from tenon.ledger import Budget, Meter
from tenon.limits import Answer
from tenon.store import Store
from tenon.training import TRAINERS, Data, Guard, Options, Run, experiment, fit
from tenon.training.track import load

Make = Callable[..., Data]
GB = 10**9


@pytest.mark.parametrize("trainer", ["lightgbm", "logistic"])
def test_the_peak_is_predicted_and_never_less_than_it_is(make: Make, run: Run, trainer: str) -> None:
    data = make(120_000)
    found = fit(data, trainer)
    before = ledger.resident_bytes()
    with Meter() as meter:
        TRAINERS[trainer](data, run, Options(guard=Guard(), rounds=20))
    assert found.measured
    assert found.answer is Answer.OK
    assert found.peak_bytes >= meter.usage().peak_bytes - before
    assert found.peak_bytes < 0.5 * GB
    assert found.seconds > 0


def test_what_cannot_fit_is_never_with_how_many_rows_would(make: Make) -> None:
    data = make(30_000)
    room = ledger.resident_bytes() + 65 * 2**20
    found = fit(data, "lightgbm", memory_bytes=room)
    assert found.answer is Answer.NEVER
    assert 0 < found.rows_that_fit < len(data.train)
    assert f"train on the latest {found.rows_that_fit:,} rows" in found.reason
    with pytest.raises(TrainingError, match="expected a training that fits into"):
        found.require()


def test_what_fits_the_machine_but_not_what_is_free_now_is_later(make: Make) -> None:
    found = fit(make(30_000), "lightgbm", memory_bytes=64 * GB, free_bytes=1_000_000)
    assert found.answer is Answer.LATER
    assert found.admission.retry_after_s > 0
    assert "the 1 MB free now" in found.reason


def test_a_budget_too_small_for_a_useful_part_is_never(make: Make) -> None:
    data = make(80_000)
    assert fit(data, "lightgbm", budget=Budget(usd=1e-9)).answer is Answer.NEVER
    roomy = fit(data, "lightgbm", budget=Budget(usd=100))
    assert roomy and "USD" in roomy.reason
    partly = fit(data, "lightgbm", budget=Budget(hours=roomy.seconds / 3_600 / 5))
    assert partly and "the budget may stop it before all 1,000 rounds" in partly.reason


def test_a_function_of_the_users_own_is_not_run_to_be_measured(make: Make) -> None:
    def never_called(data: Data, run: Any) -> Any:
        raise AssertionError("called")

    found = fit(make(80_000), never_called)
    assert found.answer is Answer.OK
    assert not found.measured
    assert found.reason.endswith("time was not measured")


def test_more_rows_need_more(make: Make) -> None:
    small, large = (fit(make(rows), "logistic").peak_bytes for rows in (5_000, 20_000))
    assert small < large


def test_an_experiment_that_cannot_fit_is_refused_before_anything_is_trained(
    make: Make, run: Run, store: Store
) -> None:
    guard = Guard(budget=Budget(usd=1e-12), run=run)
    with pytest.raises(TrainingError, match="expected 5% of the rounds to cost at most 1e-12 USD"):
        experiment(make(80_000), "lightgbm", run, guard=guard)
    run.flush()
    assert [one["code"] for one in load(store, run.id)["findings"]] == ["training/does-not-fit"]
    assert "valid_loss" not in run.metrics()
