"""Linear baselines are those of scikit-learn, without scikit-learn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from tenon.training import Data, Guard, Linear, Options, Part, Run
from tenon.training.linear import RIDGE, constant, linear, logistic

Make = Callable[..., Data]


def options() -> Options:
    return Options(guard=Guard())


def test_logistic_regression_has_the_weights_of_scikit_learn(make: Make, run: Run) -> None:
    data = make()
    fitted = logistic(data, run, options())
    matrix = data.matrix("onehot").train.astype(np.float64)
    reference = LogisticRegression(C=1 / RIDGE, tol=1e-9, max_iter=1_000).fit(matrix, data.train.y)
    assert isinstance(fitted.model, Linear)
    np.testing.assert_allclose(fitted.model.weights, reference.coef_[0], atol=1e-4)
    assert fitted.model.bias == pytest.approx(reference.intercept_[0], abs=1e-4)
    np.testing.assert_allclose(
        fitted.predict(data.test.x), reference.predict_proba(data.matrix("onehot").test)[:, 1], atol=1e-5
    )


def test_linear_regression_has_the_weights_of_scikit_learn(make: Make, run: Run) -> None:
    data = make(task="regression")
    fitted = linear(data, run, options())
    reference = Ridge(alpha=RIDGE).fit(data.matrix("onehot").train.astype(np.float64), data.train.y)
    np.testing.assert_allclose(fitted.model.weights, reference.coef_, atol=1e-6)
    assert fitted.model.bias == pytest.approx(reference.intercept_, abs=1e-6)


def test_labels_that_a_line_separates_still_converge(make: Make, run: Run) -> None:
    data = make(400)
    sides: Any = {
        side: Part(part.x, (part.x["wind"] > 0).to_numpy().astype(float)) for side, part in data.parts().items()
    }
    split = replace(data, **sides)
    fitted = logistic(split, run, options())
    assert np.isfinite(fitted.model.weights).all()
    assert ((fitted.predict(split.test.x) > 0.5) == (split.test.y == 1)).mean() > 0.95


def test_a_constant_answers_the_training_mean(make: Make, run: Run) -> None:
    for task in ("binary", "regression"):
        data = make(task=task)
        found = constant(data, run, options()).predict(data.test.x)
        np.testing.assert_allclose(found, np.full(len(data.test), data.train.y.mean()))


def test_scores_far_out_do_not_overflow() -> None:
    model = Linear(weights=np.array([1.0]), bias=0.0, logit=True)
    assert model.predict(np.array([[-1e30], [0], [1e30]], np.float32)).tolist() == [0.0, 0.5, 1.0]


def test_training_is_imported_without_lightgbm_scikit_learn_or_torch() -> None:
    code = "import sys; from tenon.training import experiment, fit, Guard; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.replace("'", "").strip("[]\n").split(", "))
    assert not modules & {"lightgbm", "sklearn", "torch", "onnx", "pandas", "tenon.model", "tenon.ingest"}
