"""A smaller or quicker form of a model answers only where it is proven in the owner's units and worth it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tenon.model import Gate, Predictor, build_variants, compile, decide, parity, variant
from tenon.model.variant import Place
from tenon.training import Data, Fitted

Made = Any  # what conftest trained and compiled
Make = Callable[..., Data]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None,
    reason="torch and its ONNX exporter come with the extra 'torch'",
)


@pytest.fixture(scope="module")
def network(late: Made) -> Made:
    """A small network, trained for a moment."""
    import torch

    torch.manual_seed(0)
    data, width = late.data, 700
    matrix = data.matrix("onehot")
    layers = [torch.nn.Linear(matrix.encoding.width, width), torch.nn.ReLU(), torch.nn.Linear(width, width)]
    module = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(width, 1), torch.nn.Sigmoid())
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    x, y = torch.from_numpy(matrix.train), torch.from_numpy(data.train.y).float()[:, None]
    for _ in range(20):
        loss = torch.nn.functional.binary_cross_entropy(module(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fitted = Fitted(model=module, encoding=matrix.encoding, task=data.task, trainer="network", threshold=0.5)
    return fitted, compile(fitted, data), data


@needs_torch
def test_a_networks_forms_are_measured_proven_and_chosen_by_the_gate(network: Made) -> None:
    fitted, compiled, data = network
    gate = Gate(max_size_mb=1.2, flips=0.05)
    built = build_variants(compiled, data.test.x, data.test.y, gate, usd_per_core_hour=0.04)
    found = {one.name: one for one in built.variants}
    assert list(found) == ["full", "fp16", "int8"]
    full, half, eighth = found.values()
    assert full.proven and not full.chosen and "MB, 1.2 MB allowed" in full.said
    assert 0.45 < half.size_bytes / full.size_bytes < 0.55
    assert 0.2 < eighth.size_bytes / full.size_bytes < 0.35
    assert half.proven and half.flips <= 1 and 0 < half.max_abs < 1e-3
    assert built.chosen.size_bytes < 1.2e6 and built.chosen.said.startswith("chosen: proven, and takes")
    assert all(one.usd_per_1000 > 0 and one.rows_per_s > 0 and 0 < one.p50_ms <= one.p99_ms for one in built.variants)

    predictor = Predictor.load(built.compiled.onnx, built.compiled.manifest)
    assert built.compiled.manifest["variant"] == built.chosen.name
    assert built.compiled.manifest["onnx"]["sha256"].startswith(built.chosen.digest)
    scores, reference = predictor.score(data.test.x.to_dict()), fitted.predict(data.test.x.to_dict())
    assert ((scores >= 0.5) != (reference >= 0.5)).sum() <= built.chosen.flips + 1


@needs_torch
def test_a_form_that_changes_decisions_is_refused_with_the_figures(network: Made) -> None:
    fitted, compiled, data = network
    scores = np.sort(fitted.predict(data.test.x.to_dict()))
    crowded = float(scores[len(scores) // 2])  # in the middle of where the scores are
    moved = replace(compiled, manifest={**compiled.manifest, "threshold": crowded})
    built = build_variants(moved, data.test.x, data.test.y, Gate(flips=0.0, max_size_mb=0.001))
    eighth = next(one for one in built.variants if one.name == "int8")
    assert not eighth.proven and not eighth.chosen and eighth.flips > 0
    assert eighth.said.startswith(f"refused: {eighth.flips} of 600 decisions change, 0 allowed")
    assert eighth.gain is not None and eighth.gain["low"] <= eighth.gain["value"] <= eighth.gain["high"]


def test_a_forest_is_not_cut_short_where_decisions_would_change(late: Made) -> None:
    built = build_variants(late.compiled, late.data.test.x, late.data.test.y, Gate())
    full, short = built.variants
    assert (full.name, short.name) == ("full", "short")
    assert built.chosen is full and full.said == "what was trained, exactly"
    assert short.size_bytes < 0.6 * full.size_bytes
    assert not short.proven and f"{short.flips} of 600 decisions change, 0 allowed" in short.said
    assert built.compiled == late.compiled


def test_half_a_forest_scores_as_the_first_half_of_its_rounds_does(late: Made) -> None:
    fitted = late.outcome.fitted
    trees = fitted.rounds or fitted.model.num_trees()
    half = compile(replace(fitted, rounds=(trees + 1) // 2), late.data)
    made = variant.candidates(late.compiled)["short"]
    scores = [Predictor.load(one.onnx, one.manifest).score(late.columns) for one in (half, made)]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_a_forest_with_trees_of_one_leaf_scores_as_lightgbm_does(make: Make) -> None:
    import lightgbm as lgb

    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (300, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(float)
    booster = lgb.train({"objective": "binary", "verbosity": -1, "min_data_in_leaf": 60}, lgb.Dataset(x, y), 3)
    shape = booster.dump_model()
    shape["tree_info"][1]["tree_structure"] = {"leaf_value": 0.25}
    data = make()

    class Stumped:
        best_iteration = 0

        def dump_model(self, num_iteration: int | None = None) -> dict[str, Any]:
            return shape

    coded = replace(data.encoding(), features=(*data.encoding().features[:2], data.encoding().features[1]))
    compiled = compile(Fitted(model=Stumped(), encoding=coded, task="binary", trainer="own"), data)
    found = Predictor.load(compiled.onnx, compiled.manifest).score_matrix(x)
    odds: list[Any] = [booster.predict(x, raw_score=True, start_iteration=i, num_iteration=1) for i in (0, 2)]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(odds[0] + odds[1] + 0.25))), atol=1e-6)


def test_a_model_with_few_weights_has_no_other_form(made_by: Callable[..., Made]) -> None:
    made = made_by("linear", "regression")
    built = build_variants(made.compiled, made.data.test.x, made.data.test.y, Gate())
    (full,) = built.variants
    assert full.chosen and full.said == "what was trained, exactly; nothing in it could be made smaller"
    assert built.metric == "rmse"


@needs_torch
def test_rows_that_cannot_tell_the_metric_prove_nothing(network: Made) -> None:
    _, compiled, data = network
    built = build_variants(compiled, data.test.x, np.zeros(len(data.test.y)), Gate())
    assert built.chosen.name == "full"
    assert all("these rows cannot tell roc_auc" in one.said for one in built.variants if one.name != "full")


def test_what_a_form_loses_counts_before_the_gate(late: Made) -> None:
    outcome, proof = late.outcome.to_dict(), parity(late.outcome.fitted, late.compiled, late.data.test.x)
    built = build_variants(late.compiled, late.data.test.x, late.data.test.y, Gate())
    lift = outcome["lift"]["roc_auc"]["value"]
    worse = replace(built.variants[0], gain={"value": -0.01, "low": -0.02, "high": 0.0}, name="int8")
    gate = Gate(beat_baseline=lift - 0.005)
    assert decide(gate, outcome, proof, built.chosen.latency, 1).allowed
    decision = decide(gate, outcome, proof, worse.latency, 1, worse)
    assert [check.name for check in decision.checks if not check.passed] == ["baseline"]


def test_a_graph_that_a_converter_refuses_has_no_such_form_and_is_no_error(
    late: Made, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    graph = onnx.ModelProto.FromString(late.compiled.onnx)
    forest = next(node for node in graph.graph.node if node.op_type == "TreeEnsemble")
    roots = next(one for one in forest.attribute if one.name == "tree_roots")
    roots.ints[:] = [10**6] * len(roots.ints)
    broken = replace(late.compiled, onnx=graph.SerializeToString())
    assert variant.candidates(broken) == {}
    assert "the variant 'short' could not be made" in caplog.text


def test_what_was_measured_is_kept_under_the_place_it_holds_for(late: Made) -> None:
    here = Place.here()
    assert here.key == Place.here().key and len(here.key) == 12
    assert here.key != Place.here(threads=2).key
    assert here.key != replace(here, cpu=(*here.cpu, "amx_int8")).key
    assert here.key != replace(here, onnxruntime="1.0.0").key
    built = build_variants(late.compiled, late.data.test.x, late.data.test.y, Gate())
    body = json.loads(json.dumps(built.to_dict(), allow_nan=False))
    assert body["key"] == here.key and body["place"]["onnxruntime"] == here.onnxruntime
    assert [one["name"] for one in body["variants"]] == ["full", "short"]
    assert variant.Variant.from_dict({**body["variants"][1], "new": 1}) == built.variants[1]
