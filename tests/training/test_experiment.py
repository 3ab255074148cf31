"""An experiment trains the simplest first, measures side by side, and says when a model is not worth its price."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from tenon import engine, metric
from tenon.errors import BudgetError, ConfigError, TrainingError
from tenon.ledger import Budget
from tenon.store import Store
from tenon.training import Data, Fitted, Guard, Options, Outcome, Part, Run, experiment, study
from tenon.training.boost import idle_cores, lightgbm
from tenon.training.track import curves, load

Make = Callable[..., Data]


def codes(outcome: Outcome) -> list[str]:
    return [finding.code for finding in outcome.findings]


# ── simplest first ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_baselines_come_first_and_the_model_is_measured_beside_them(make: Make, run: Run) -> None:
    found = experiment(make(), "lightgbm", run, seed=1)
    assert list(found.baselines) == ["constant", "logistic"]
    assert found.baseline == "logistic"
    assert found.baselines["constant"]["roc_auc"].value == 0.5
    assert found.metrics["test"]["roc_auc"].value > found.baselines["logistic"]["roc_auc"].value
    assert found.lift["roc_auc"].low > 0
    assert found.lift["roc_auc"].value == pytest.approx(
        found.metrics["test"]["roc_auc"].value - found.baselines["logistic"]["roc_auc"].value
    )
    assert codes(found) == []
    assert sum(group["rows"] for group in found.calibration) == 600
    assert found.split["test"] == {
        "from": "2013-04-11T00:00:00",
        "to": "2013-05-05T23:00:00",
        "rows": 600,
        "rate": pytest.approx(found.split["test"]["rate"]),
    }


def test_importance_names_what_matters_first_and_sums_to_one(make: Make, run: Run) -> None:
    for trainer in ("lightgbm", "logistic"):
        found = experiment(make(bent=False), trainer, run)
        assert found.importance[0]["name"] == "wind"
        assert {one["name"] for one in found.importance} == set(make(100).names)
        assert sum(one["gain"] for one in found.importance) == pytest.approx(1)


def test_a_regression_has_a_linear_baseline_and_its_own_metrics(make: Make, run: Run) -> None:
    found = experiment(make(task="regression"), "lightgbm", run)
    assert list(found.baselines) == ["constant", "linear"]
    assert found.lift["rmse"].low > 0
    assert found.baselines["constant"]["r2"].value == pytest.approx(0, abs=0.05)
    assert found.fitted.threshold is None


def test_the_same_seed_gives_the_same_model_and_the_same_numbers(make: Make, run: Run) -> None:
    one, other = (experiment(make(), "lightgbm", run, seed=7) for _ in range(2))
    assert one.metrics == other.metrics
    assert one.lift == other.lift
    np.testing.assert_array_equal(one.scores["test"], other.scores["test"])


def test_the_number_of_threads_changes_nothing(make: Make, run: Run) -> None:
    data = make()
    one, two = (
        lightgbm(data, run, Options(guard=Guard(), threads=threads, rounds=30)).predict(data.test.x)
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert 1 <= idle_cores() <= engine.cores()


def test_the_threshold_flags_as_many_validation_rows_as_are_positive(make: Make, run: Run) -> None:
    data = make()
    found = experiment(data, "logistic", run)
    assert found.fitted.threshold is not None
    assert int((found.scores["valid"] >= found.fitted.threshold).sum()) == int(data.valid.y.sum())


def test_a_constant_has_no_baseline_and_flags_nothing(make: Make, run: Run) -> None:
    found = experiment(make(), "constant", run)
    assert (found.baselines, found.baseline, found.lift) == ({}, "", {})
    assert found.fitted.threshold == 0.5


def test_learning_curves_are_logged_while_it_trains(make: Make, run: Run, store: Store) -> None:
    found = experiment(make(), "lightgbm", run)
    run.flush()
    steps, losses = curves(store, run.id)["valid_loss"]
    assert len(steps) == found.params["rounds_tried"]
    assert int(steps[np.argmin(losses)]) == found.params["rounds"]


def test_an_outcome_is_plain_data_in_the_fields_of_a_run_record(make: Make, run: Run) -> None:
    body = json.loads(json.dumps(experiment(make(), "lightgbm", run).to_dict()))
    assert set(body["metrics"]) == {"valid", "test"}
    assert set(body["metrics"]["test"]["roc_auc"]) == {"value", "low", "high"}
    assert body["status"] == "done"
    assert {"trainer", "params", "seed", "split", "baselines", "lift", "calibration", "importance"} <= set(body)


# ── what a person should know ────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_does_not_beat_its_baseline_beyond_noise_is_told(make: Make, run: Run, store: Store) -> None:
    found = experiment(make(bent=False, rows=1_500), "lightgbm", run)
    assert codes(found) == ["training/not-better"]
    assert found.findings[0].said.startswith("lightgbm is not better than the logistic baseline beyond noise")
    run.flush()
    assert [one["code"] for one in load(store, run.id)["findings"]] == ["training/not-better"]


def test_a_network_must_beat_constant_linear_and_boosted_baselines_and_is_told_with_all_their_prices(
    make: Make, run: Run
) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    pytest.importorskip("lightgbm", reason="the extra 'train' is not installed")

    def network(data: Data, run: Run) -> Any:
        torch.manual_seed(0)
        x = torch.from_numpy(data.matrix("onehot").train)
        y = torch.from_numpy(data.train.y).float()[:, None]
        net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for step in range(30):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x), y)
            loss.backward()
            if not run.guard.step(step, loss=loss):
                break
            optimizer.step()
        whole = torch.nn.Sequential(net, torch.nn.Sigmoid())
        return Fitted(model=whole, encoding=data.matrix("onehot").encoding, task=data.task, trainer="network")

    found = experiment(make(rows=1_500), network, run)
    assert set(found.baselines) == {"constant", "logistic", "lightgbm"}
    assert found.baseline == "lightgbm"
    assert set(found.costs) == {"constant", "logistic", "lightgbm", "network"}
    assert all(cost["seconds"] > 0 and cost["usd"] >= 0 for cost in found.costs.values())
    told = next(one for one in found.findings if one.code == "training/not-better")
    assert all(f"{name} 0." in told.said.partition(" On test: ")[2] for name in found.costs)


def test_a_feature_that_knows_the_label_is_suspected_of_a_leak(make: Make, run: Run) -> None:
    data = make()
    parts: Any = {
        side: Part(part.x.with_columns(arr_delay=pl.Series(part.y * 40 + np.arange(len(part)) % 20)), part.y, part.time)
        for side, part in data.parts().items()
    }
    leaky = replace(data, **parts, names=(*data.names, "arr_delay"), kinds={**data.kinds, "arr_delay": "number"})
    found = experiment(leaky, "lightgbm", run)
    said = [one.said for one in found.findings if one.code == "training/suspicious"]
    assert any("'arr_delay' alone gives ROC AUC 1.0000" in one for one in said)
    assert any("lightgbm reaches roc_auc 1.0000 on test" in one for one in said)


def test_a_feature_that_is_missing_whenever_the_label_is_set_is_suspected_too(make: Make, run: Run) -> None:
    data = make()
    parts: Any = {
        side: Part(part.x.with_columns(landed=pl.Series(np.where(part.y == 1, np.nan, 1.0)).fill_nan(None)), part.y)
        for side, part in data.parts().items()
    }
    leaky = replace(data, **parts, names=(*data.names, "landed"), kinds={**data.kinds, "landed": "number"})
    assert "training/suspicious" in codes(experiment(leaky, "logistic", run))


def test_a_regression_that_is_too_good_is_suspected(make: Make, run: Run) -> None:
    data = make(task="regression")
    parts: Any = {
        side: Part(part.x.with_columns(noise=pl.Series(part.y * 2)), part.y) for side, part in data.parts().items()
    }
    said = [one.said for one in experiment(replace(data, **parts), "linear", run).findings]
    assert any("r2 1.0000" in one for one in said)
    assert any("'noise' alone gives rank correlation 1.0000" in one for one in said)


# ── what cannot be trained ───────────────────────────────────────────────────────────────────────────────────────────


def broken(data: Data, side: str, part: Part) -> Data:
    sides: Any = {side: part}
    return replace(data, **sides)


@pytest.mark.parametrize("side", ["train", "valid", "test"])
def test_a_label_that_never_varies_is_refused_in_words_and_kept_with_the_run(
    make: Make, run: Run, store: Store, side: str
) -> None:
    data = make(300)
    part = data.parts()[side]
    with pytest.raises(TrainingError) as error:
        experiment(broken(data, side, Part(part.x, np.zeros(len(part)))), "lightgbm", run)
    assert f"expected a label that varies on the {side} side, got {len(part)} rows that are all 0" in str(error.value)
    assert "check the label's SQL" in str(error.value)
    run.flush()
    assert [one["code"] for one in load(store, run.id)["findings"]] == ["training/label-constant"]


@pytest.mark.parametrize("side", ["train", "valid", "test"])
def test_an_empty_side_of_the_split_is_refused_in_words(make: Make, run: Run, side: str) -> None:
    data = make(300)
    with pytest.raises(TrainingError, match=f"expected rows on the {side} side of the split, got none - at the split"):
        experiment(broken(data, side, Part(data.parts()[side].x.head(0), np.empty(0))), "lightgbm", run)


def test_other_data_that_cannot_be_trained_on_is_refused_in_words(make: Make, run: Run) -> None:
    data = make(300)
    x, y = data.train.x, data.train.y.copy()
    with pytest.raises(TrainingError, match="expected the features 'wind', got rows without them - at the train side"):
        experiment(broken(data, "train", Part(x.drop("wind"), y)), "lightgbm", run)
    with pytest.raises(TrainingError, match="expected a label for each row, got 3 labels for 180 rows"):
        broken(data, "train", Part(x, y[:3]))
    y[3] = np.nan
    with pytest.raises(TrainingError, match="expected a label that is a number in every row, got 1 missing of 180"):
        experiment(broken(data, "train", Part(x, y)), "lightgbm", run)
    y[3] = 7
    with pytest.raises(TrainingError, match="expected labels 0 and 1 for a binary task, got 7"):
        experiment(broken(data, "train", Part(x, y)), "lightgbm", run)
    with pytest.raises(TrainingError, match="expected at least one feature, got none"):
        experiment(replace(data, names=()), "lightgbm", run)
    with pytest.raises(TrainingError, match="expected a kind of feature, got 'numeric' - at feature 'wind'"):
        experiment(replace(data, kinds={**data.kinds, "wind": "numeric"}), "lightgbm", run)


def test_a_trainer_nobody_knows_or_of_another_task_is_refused(make: Make, run: Run) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lightgbm'"):
        experiment(make(300), "lightgbn", run)
    with pytest.raises(ConfigError, match="expected a trainer for a binary task, got 'linear'"):
        experiment(make(300), "linear", run)
    with pytest.raises(ConfigError, match="expected a trainer for a regression task, got 'logistic'"):
        experiment(make(300, task="regression"), "lightgbm", run, baselines=["logistic"])


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_spent_budget_stops_the_trees_and_keeps_those_so_far(make: Make, run: Run) -> None:
    ticks = iter(range(10_000))

    def clock() -> float:  # every look at the clock is a minute later: a machine that is very slow
        return next(ticks) * 60.0

    guard = Guard(budget=Budget(hours=0.5), run=run, clock=clock)
    found = experiment(make(), "lightgbm", run, baselines=["constant"], guard=guard)
    assert found.stopped
    assert found.to_dict()["status"] == "stopped"
    assert 1 <= found.params["rounds"] <= found.params["rounds_tried"] <= 31
    assert codes(found)[0] == "training/budget-spent"
    assert found.metrics["test"]["roc_auc"].value > 0.5


def test_no_model_is_begun_once_its_baselines_have_spent_the_budget(make: Make, run: Run) -> None:
    ticks = iter(range(10_000))
    guard = Guard(budget=Budget(hours=1), run=run, clock=lambda: next(ticks) * 3_600.0)
    with pytest.raises(BudgetError, match="lightgbm was not begun"):
        experiment(make(), "lightgbm", run, guard=guard)


# ── trainers of the user's own ───────────────────────────────────────────────────────────────────────────────────────


def test_a_function_that_returns_an_estimator_is_a_trainer(make: Make, run: Run) -> None:
    def forest(data: Data, run: Run) -> Any:
        from sklearn.ensemble import ExtraTreesClassifier

        matrix = data.matrix()
        model = ExtraTreesClassifier(30, min_samples_leaf=10, random_state=0)
        model.fit(np.nan_to_num(matrix.train), data.train.y)
        return model

    found = experiment(make(bent=False), forest, run)
    assert found.trainer == "forest"
    assert found.metrics["test"]["roc_auc"].value > 0.6
    assert found.importance[0]["name"] == "wind"


def test_a_function_may_bring_its_own_encoding(make: Make, run: Run) -> None:
    def ridge(data: Data, run: Run) -> Fitted:
        from sklearn.linear_model import Ridge

        matrix = data.matrix("onehot")
        model = Ridge().fit(matrix.train, data.train.y)
        return Fitted(model=model, encoding=matrix.encoding, task=data.task, trainer="ridge")

    data = make(task="regression", bent=False)
    found = experiment(data, ridge, run)
    assert found.metrics["test"]["r2"].value == pytest.approx(found.baselines["linear"]["r2"].value, abs=1e-3)
    assert codes(found) == ["training/not-better"]


def test_a_loop_of_the_users_own_finds_its_guard_in_the_run(make: Make, run: Run) -> None:
    def loop(data: Data, run: Run) -> Any:
        from sklearn.linear_model import SGDClassifier

        matrix = data.matrix("onehot")
        model = SGDClassifier(loss="log_loss", random_state=0)
        for step in range(1_000):
            model.partial_fit(matrix.train, data.train.y, classes=[0, 1])
            p = model.predict_proba(matrix.valid)[:, 1]
            loss = metric.evaluate("binary", data.valid.y, p, samples=0, names=["log_loss"])["log_loss"].value
            run.log(step, valid_loss=loss)
            if not run.guard.step(step, loss=loss):
                break
        return Fitted(model=model, encoding=matrix.encoding, task=data.task, trainer="sgd")

    found = experiment(make(1_500, bent=False), loop, run)
    assert codes(found)[0] == "training/flat"
    assert not found.stopped


def test_a_long_training_that_never_asked_its_guard_is_told_and_held_against_its_budget(
    make: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "UNGUARDED_S", 0.0)
    ticks = iter(range(1_000_000))
    guard = Guard(budget=Budget(hours=0.1), run=run, clock=lambda: next(ticks) * 600.0)

    def deaf(data: Data, run: Run) -> Fitted:
        from sklearn.linear_model import Ridge

        matrix = data.matrix("onehot")
        model = Ridge().fit(matrix.train, data.train.y)
        return Fitted(model=model, encoding=matrix.encoding, task=data.task, trainer="deaf")

    outcome = experiment(make(task="regression"), deaf, run, baselines=[], guard=guard)
    assert {"training/unguarded", "training/budget-spent"} <= set(codes(outcome))
    assert outcome.stopped


def test_what_a_trainer_raises_is_told_with_its_line(make: Make, run: Run) -> None:
    def clumsy(data: Data, run: Run) -> Any:
        return 1 / 0

    with pytest.raises(TrainingError, match=r"got ZeroDivisionError: division by zero - at .*test_experiment.py:\d+"):
        experiment(make(300), clumsy, run)


def test_what_is_no_model_is_refused_in_words(make: Make, run: Run) -> None:
    def nothing(data: Data, run: Run) -> None:
        return None

    with pytest.raises(TrainingError, match="expected a trained model, got None - at trainer 'nothing'"):
        experiment(make(300), nothing, run)
    with pytest.raises(TrainingError, match=r"got builtins\.str for a binary task"):
        experiment(make(300), lambda data, run: "model", run)


def test_a_model_of_other_columns_is_refused_in_words(make: Make, run: Run) -> None:
    def narrow(data: Data, run: Run) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression().fit(data.matrix().train[:, :1], data.train.y)

    with pytest.raises(TrainingError, match=r"expected a model of the 4 columns of data.matrix\(\), got one of 1"):
        experiment(make(300), narrow, run)


def test_a_torch_module_of_other_columns_is_refused_in_words(make: Make, run: Run) -> None:
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")

    def narrow(data: Data, run: Run) -> Any:
        return torch.nn.Linear(3, 1)

    with pytest.raises(TrainingError, match=r"columns of data.matrix\(\), got mat1 and mat2 .* at trainer 'narrow'"):
        experiment(make(300), narrow, run)
