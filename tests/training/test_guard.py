"""A guard stops a run that is lost, spends no more than it may, and leaves a good run alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tenon.config import Prices
from tenon.errors import BudgetError, TrainingError, UsageError
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Data, Guard, Rules, Run
from tenon.training.track import load

Curve = NDArray[np.float64]
Make = Callable[..., Data]


def play(guard: Guard, losses: Curve) -> int:
    """Show a curve to the guard and return the step at which it said stop, or how many steps there were."""
    for step, loss in enumerate(losses.tolist()):
        if not guard.step(step, loss=loss):
            return step
    return len(losses)


def falling(steps: int, *, seed: int, noise: float = 0.05, floor: float = 0.3) -> Curve:
    """A loss that falls as a power of the step, as losses of real networks do, with noise."""
    rng = np.random.default_rng(seed)
    return floor + 2 * (1 + np.arange(steps) / 20) ** -0.7 + noise * rng.standard_normal(steps)


# ── numbers that are none ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("loss", "got"),
    [("low", "'low'"), ([0.5], r"\[0.5\]"), (np.ones(3), r"a ndarray of shape \(3,\)"), (object(), "<object object")],
)
def test_a_loss_that_is_not_one_number_is_refused_in_words(loss: Any, got: str) -> None:
    said = f"expected a loss or norm that is one number, got {got}"
    with pytest.raises(UsageError, match=said):
        Guard().step(0, loss=loss)
    with pytest.raises(UsageError, match=said):
        Guard().evaluated(0, loss)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_caught_at_its_step(loss: float, run: Run, store: Store) -> None:
    guard = Guard(run=run)
    guard.step(11, loss=1.0)
    with pytest.raises(
        TrainingError, match=f"expected a finite loss, got {loss} - at abc123/12; lower the learning rate"
    ):
        guard.step(12, loss=loss)
    run.flush()
    assert [one["code"] for one in load(store, run.id)["findings"]] == ["training/loss-not-finite"]


def test_a_gradient_that_is_no_number_is_caught_before_the_optimiser_steps() -> None:
    weights, stepped = np.ones(3), 0
    guard = Guard()
    with pytest.raises(TrainingError, match="expected a finite gradient norm, got nan"):
        for step in range(10):
            gradient = weights * (math.nan if step == 4 else 0.1)
            guard.step(step, loss=float(weights @ weights), grad_norm=float(np.linalg.norm(gradient)))
            weights = weights - gradient
            stepped += 1
    assert stepped == 4
    assert np.isfinite(weights).all()


# ── losses that run away or lie flat ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_still_gains_is_left_alone(seed: int) -> None:
    losses = falling(1_000, seed=seed, noise=0.02)
    assert play(Guard(), losses) > 600


def test_a_spike_that_comes_back_is_left_alone() -> None:
    losses = falling(400, seed=0)
    losses[150:155] += 20
    assert play(Guard(rules=Rules(flat=False)), losses) == 400


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_runs_away_is_stopped_with_its_numbers(seed: int) -> None:
    losses = falling(1_000, seed=seed)
    losses[200:] += np.exp(np.arange(800) / 20) - 1
    guard = Guard()
    with pytest.raises(TrainingError, match="expected a loss near its best"):
        play(guard, losses)
    assert guard.stopped is not None and guard.stopped.code == "training/diverged"
    assert 200 < guard.stopped.numbers["step"] < 300
    assert guard.stopped.numbers["loss"] > guard.stopped.numbers["first"]


@pytest.mark.parametrize("epoch", [1, 50, 700])
def test_steps_that_begin_again_at_every_epoch_are_counted_on(epoch: int) -> None:
    losses = np.concatenate([falling(800, seed=1), 1 + 0.05 * np.arange(1_000)])
    guard, taken = Guard(), 0
    with pytest.raises(TrainingError, match="times the noise above the best"):
        for taken, loss in enumerate(losses.tolist()):
            guard.step(taken % epoch, loss=loss)
    assert 800 < taken < 1_000


def test_a_run_that_has_gained_and_lies_flat_is_told_once_and_goes_on() -> None:
    rng = np.random.default_rng(0)
    losses = 0.7 + 1.5 * np.exp(-np.arange(5_000) / 20) + 0.01 * rng.standard_normal(5_000)
    guard = Guard()
    assert play(guard, losses) == 5_000
    assert [one.code for one in guard.findings] == ["training/flat"] and guard.stopped is None


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
def test_a_run_that_lies_flat_is_stopped_and_kept_where_that_is_asked(noise: float) -> None:
    rng = np.random.default_rng(0)
    losses = 0.7 + 1.5 * np.exp(-np.arange(20_000) / 20) + noise * rng.standard_normal(20_000)
    guard = Guard(rules=Rules(stop_flat=True))
    assert play(guard, losses) < (400 if noise < 0.1 else 10_000)
    assert guard.stopped is not None and guard.stopped.code == "training/flat"
    assert guard.stopped.said.startswith("The loss lies flat at 0.")


def test_a_loss_that_never_moved_is_stopped_too() -> None:
    guard = Guard()
    assert play(guard, np.full(1_000, math.log(2))) < 100
    assert guard.stopped is not None and guard.stopped.code == "training/flat"


def test_rules_can_be_turned_off() -> None:
    losses = np.concatenate([falling(300, seed=0), np.full(300, 50.0)])
    assert play(Guard(rules=Rules(diverged=False, flat=False)), losses) == 600


def test_memory_is_bounded_however_long_the_run() -> None:
    guard = Guard(rules=Rules(diverged=False, flat=False))
    play(guard, np.linspace(2, 1, 30_000))
    assert len(guard.trend.losses) <= 257
    assert guard.trend._every == 128


def test_another_model_begins_with_a_clean_history() -> None:
    guard = Guard()
    play(guard, falling(100, seed=0) / 100)
    guard.forget()
    assert play(guard, falling(300, seed=1, noise=0.02)) == 300


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def minutes() -> Callable[[], float]:
    ticks: Iterator[int] = iter(range(100_000))
    return lambda: next(ticks) * 60.0


def test_a_run_stops_when_its_hours_are_spent_and_says_what_it_cost(run: Run) -> None:
    guard = Guard(budget=Budget(hours=2), run=run, clock=minutes())
    assert play(guard, falling(1_000, seed=0)) == 120
    assert guard.stopped is not None
    assert guard.stopped.said.startswith(
        "The budget is spent at step 120: expected the run to cost at most 2 hours, got 2"
    )
    assert guard.spent.hours > 2


def test_money_and_energy_stop_a_run_too() -> None:
    for budget in (Budget(usd=1e-9), Budget(kwh=1e-12)):
        guard = Guard(budget=budget, prices=Prices(), clock=minutes())
        sum(i * i for i in range(1_000_000))  # some work to be paid for
        assert play(guard, falling(1_000, seed=0)) < 1_000
        assert guard.stopped is not None and guard.stopped.code == "training/budget-spent"


def test_the_invoice_has_a_line_for_each_thing_used_and_adds_up(run: Run) -> None:
    guard = Guard(budget=Budget(usd=1e-9), run=run, prices=Prices(usd_per_core_hour=10.0), clock=minutes())
    sum(i * i for i in range(1_000_000))
    play(guard, falling(1_000, seed=0))
    assert guard.stopped is not None
    assert "Invoice in USD: compute " in guard.stopped.said or "Invoice in USD: memory " in guard.stopped.said
    entries = guard.invoice()
    assert {entry.kind for entry in entries} == {"compute", "memory", "energy"}
    assert {entry.subject for entry in entries} == {"abc123"}
    assert sum(entry.usd for entry in entries) >= guard.stopped.numbers["usd"] > 0


def test_a_loop_that_does_not_listen_is_stopped_by_an_error() -> None:
    guard = Guard(budget=Budget(hours=1), clock=minutes())
    with pytest.raises(BudgetError, match="The loop was told to stop and went on, at step 61"):
        for step in range(1_000):
            guard.step(step, loss=1 / (1 + step))
    flat = Guard()
    with pytest.raises(TrainingError, match="The loop was told to stop and went on"):
        for step in range(1_000):
            flat.step(step, loss=0.5)


# ── real loops ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_real_loop_with_a_learning_rate_far_too_high_is_stopped(make: Make) -> None:
    from sklearn.linear_model import SGDRegressor

    data = make(task="regression", bent=False)
    matrix = data.matrix("onehot")
    model = SGDRegressor(learning_rate="constant", eta0=0.35, random_state=0, penalty=None)
    guard = Guard()
    with pytest.raises(TrainingError):
        for step in range(2_000):
            rows = slice(step * 32 % 1_700, step * 32 % 1_700 + 32)
            model.partial_fit(matrix.train[rows], data.train.y[rows])
            guard.step(step, loss=float(np.mean((model.predict(matrix.train[rows]) - data.train.y[rows]) ** 2)))
    assert guard.stopped is not None
    assert guard.stopped.code == "training/diverged"
    assert guard.stopped.numbers["step"] < 200


def test_a_step_costs_next_to_nothing() -> None:
    guard, losses = Guard(rules=Rules(flat=False)), falling(20_000, seed=0).tolist()
    start = time.process_time()
    for step, loss in enumerate(losses):
        guard.step(step, loss=loss)
    # A hundredth of a step of 10 ms would be 100 microseconds; bounded loosely, machines are shared.
    assert (time.process_time() - start) / len(losses) < 100e-6


def test_a_budget_of_nothing_is_spent_at_the_first_step() -> None:
    guard = Guard(budget=Budget(hours=0))
    assert not guard.step(0, loss=1.0)
    assert guard.stopped is not None and guard.stopped.code == "training/budget-spent"
