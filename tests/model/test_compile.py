"""What was trained and what was compiled give the same answers, for every kind of model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import InputError
from tenon.model import Predictor, compile, parity, tree
from tenon.training import Data, Fitted, Run

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None,
    reason="torch and its ONNX exporter come with the extra 'torch'",
)

Made = Any  # what conftest trained and compiled
Make = Callable[..., Data]
Train = Callable[..., Made]


@pytest.mark.parametrize(
    ("trainer", "task"),
    [
        ("constant", "binary"),
        ("logistic", "binary"),
        ("lightgbm", "binary"),
        ("constant", "regression"),
        ("linear", "regression"),
        ("lightgbm", "regression"),
    ],
)
def test_every_built_in_answers_as_it_was_trained(made_by: Train, trainer: str, task: str) -> None:
    made = made_by(trainer, task)
    proof = parity(made.outcome.fitted, made.compiled, made.data.test.x, made.data.test.y)
    assert proof.holds
    assert proof.rows == 600
    assert proof.decision_flips == 0
    assert abs(proof.metric_delta) < 1e-4


def test_no_row_changes_sides_at_a_threshold_of_a_tree(late: Made) -> None:
    """Values that lie exactly on, just below and just above every threshold go the way LightGBM sends them."""
    fitted = late.outcome.fitted
    dump = fitted.model.dump_model(num_iteration=fitted.rounds)
    on: dict[int, list[float]] = {}
    waiting = [one["tree_structure"] for one in dump["tree_info"]]
    while waiting:
        node = waiting.pop()
        if "split_feature" in node:
            on.setdefault(node["split_feature"], []).append(node["threshold"])
            waiting += [node["left_child"], node["right_child"]]
    rows = [[0.0, 0.0, 0.0]]
    for feature, thresholds in on.items():
        for at in thresholds:
            near = np.float32(at)
            for value in (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))):
                rows.append([10.0, 12.0, 1.0])
                rows[-1][feature] = float(value)
    matrix = np.array(rows, np.float32)
    found = Predictor.load(late.compiled.onnx, late.compiled.manifest).score_matrix(matrix)
    np.testing.assert_allclose(found, fitted.score(matrix), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=True, width=32),
            st.none() | st.integers(-(10**9), 10**9),
            st.none() | st.sampled_from(["AA", "UA", "never seen", ""]),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_rows_nobody_thought_of_are_answered_alike(late: Made, rows: list[tuple[Any, Any, Any]]) -> None:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("wind", "hour", "carrier"))}
    found = Predictor.load(late.compiled.onnx, late.compiled.manifest).score(columns)
    np.testing.assert_allclose(found, late.outcome.fitted.predict(columns), atol=1e-6)


@pytest.mark.parametrize("missing", ["none", "some"])
@pytest.mark.parametrize("objective", ["binary", "regression"])
def test_a_forest_sends_missing_values_where_lightgbm_does(make: Make, missing: str, objective: str) -> None:
    import lightgbm as lgb

    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (500, 3)).astype(np.float32)
    if missing == "some":
        x[rng.random(x.shape) < 0.2] = np.nan
    y = (np.nan_to_num(x[:, 0], nan=2.0) + x[:, 1] ** 2 > 1).astype(float)
    y = np.nan_to_num(y)
    booster = lgb.train({"objective": objective, "verbosity": -1, "num_leaves": 7}, lgb.Dataset(x, y), 20)
    data = make()
    coded = replace(data.encoding(), features=(*data.encoding().features[:2], data.encoding().features[1]))
    fitted = Fitted(model=booster, encoding=coded, task=objective, trainer="own")
    assert tree.plain(booster.dump_model())
    predictor = Predictor.load(compile(fitted, data).onnx, compile(fitted, data).manifest)
    asked = x.copy()
    asked[::3] = np.nan
    asked[1] = [0.0, -0.0, np.inf]
    np.testing.assert_allclose(predictor.score_matrix(asked), booster.predict(asked), atol=1e-6)


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_forest_with_categories_of_lightgbms_own_goes_through_onnxmltools(make: Make, rounds: int) -> None:
    import lightgbm as lgb

    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 6, 800), rng.normal(0, 1, 800), rng.normal(0, 1, 800)]).astype(np.float32)
    y = ((x[:, 0] == 2) | (x[:, 0] == 5)).astype(float) + 0.1 * x[:, 1] > 0.5
    trained = lgb.Dataset(x, y, categorical_feature=[0])
    booster = lgb.train({"objective": "binary", "verbosity": -1, "min_data_per_group": 5}, trained, 10)
    assert not tree.plain(booster.dump_model())
    data = make()
    fitted = Fitted(model=booster, encoding=data.encoding(), task="binary", trainer="own", rounds=rounds)
    compiled = compile(fitted, data)
    found = Predictor.load(compiled.onnx, compiled.manifest).score_matrix(x)
    np.testing.assert_allclose(found, booster.predict(x, num_iteration=rounds or None), atol=1e-6)


# ── models of the user's own ─────────────────────────────────────────────────────────────────────────────────────────


def pipeline(data: Data, run: Run) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression())
    return model.fit(data.matrix().train, data.train.y)


def forest(data: Data, run: Run) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    matrix = np.nan_to_num(data.matrix().train)
    return RandomForestRegressor(10, max_depth=5, random_state=0).fit(matrix, data.train.y)


def estimator(data: Data, run: Run) -> Any:
    from lightgbm import LGBMClassifier

    return LGBMClassifier(n_estimators=20, verbosity=-1).fit(data.matrix().train, data.train.y)


def graph(data: Data, run: Run) -> bytes:
    from skl2onnx import to_onnx

    model = pipeline(data, run)
    return bytes(to_onnx(model, data.matrix().train[:1], options={id(model): {"zipmap": False}}).SerializeToString())


@pytest.mark.parametrize("trainer", [pipeline, estimator, graph])
def test_a_model_of_the_users_own_answers_as_it_was_trained(made_by: Train, trainer: Any) -> None:
    made = made_by(trainer)
    assert made.outcome.trainer == trainer.__name__
    assert parity(made.outcome.fitted, made.compiled, made.data.test.x, made.data.test.y).holds


def test_a_regressor_of_the_users_own_compiles_too(make: Make) -> None:
    data = make(task="regression")
    fitted = Fitted(model=forest(data, None), encoding=data.encoding(), task="regression", trainer="forest")  # type: ignore[arg-type]
    columns = data.test.x.drop_nulls().to_dict()
    proof = parity(fitted, compile(fitted, data), columns)
    assert proof.holds, proof.said


@needs_torch
def test_a_torch_module_answers_as_it_was_trained(made_by: Train) -> None:
    def network(data: Data, run: Run) -> Any:
        import torch

        torch.manual_seed(0)
        matrix = data.matrix("onehot")
        module = torch.nn.Sequential(torch.nn.Linear(matrix.encoding.width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        answer = torch.nn.Sequential(module, torch.nn.Sigmoid())
        optimiser = torch.optim.Adam(answer.parameters(), lr=0.02)
        x, y = torch.from_numpy(matrix.train), torch.from_numpy(data.train.y).float()[:, None]
        for step in range(100):
            loss = torch.nn.functional.binary_cross_entropy(answer(x), y)
            optimiser.zero_grad()
            loss.backward()
            if not run.guard.step(step, loss=loss.item()):
                break
            optimiser.step()
        return Fitted(model=answer, encoding=matrix.encoding, task=data.task, trainer="network")

    made = made_by(network)
    proof = parity(made.outcome.fitted, made.compiled, made.data.test.x, made.data.test.y)
    assert proof.holds, proof.said
    assert made.outcome.metrics["test"]["roc_auc"].value > 0.6


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("a word", "got builtins.str; export it to ONNX and return the bytes"),
        (b"not onnx", "expected an ONNX graph, got 8 bytes that cannot be read"),
    ],
)
def test_what_has_no_onnx_form_is_refused_in_words(make: Make, model: Any, said: str) -> None:
    data = make(100)
    with pytest.raises(InputError) as error:
        compile(Fitted(model=model, encoding=data.encoding(), task="binary", trainer="own"), data)
    assert said in str(error.value)


def test_an_estimator_that_its_converter_refuses_is_named(make: Make) -> None:
    from sklearn.semi_supervised import LabelSpreading

    data = make(100)
    model = LabelSpreading().fit(np.nan_to_num(data.matrix().train), data.train.y)
    with pytest.raises(InputError, match="got LabelSpreading, which its converter refuses"):
        compile(Fitted(model=model, encoding=data.encoding(), task="binary", trainer="own"), data)


def test_a_graph_without_one_score_for_each_row_is_refused(make: Make) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    data = make(200)
    matrix = np.nan_to_num(data.matrix().train)
    model = LogisticRegression().fit(matrix, np.arange(len(matrix)) % 3)
    given = bytes(to_onnx(model, matrix[:1], options={id(model): {"zipmap": False}}).SerializeToString())
    with pytest.raises(InputError, match="expected an output with one score"):
        compile(Fitted(model=given, encoding=data.encoding(), task="binary", trainer="own"), data)


# ── the manifest ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_manifest_is_json_and_says_all_that_serving_needs(late: Made) -> None:
    manifest = json.loads(json.dumps(late.compiled.manifest, allow_nan=False))
    assert manifest["names"] == ["wind", "hour", "carrier"]
    assert manifest["kinds"] == {"wind": "number", "hour": "number", "carrier": "category"}
    assert manifest["task"] == "binary"
    assert manifest["threshold"] == late.outcome.fitted.threshold
    assert manifest["output"]["kind"] == "probability"
    assert {"tenon", "lightgbm", "onnx"} <= set(manifest["versions"])
    again = Predictor.load(late.compiled.onnx, manifest)
    np.testing.assert_array_equal(
        again.score(late.columns), Predictor.load(late.compiled.onnx, late.compiled.manifest).score(late.columns)
    )


def test_compiling_twice_gives_the_same_bytes(late: Made) -> None:
    assert compile(late.outcome.fitted, late.data) == late.compiled
