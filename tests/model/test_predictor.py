"""One body scores: a row, a batch and a file alike, from any thread, and says in words what it cannot read."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tenon.errors import CorruptError, InputError
from tenon.model import Predictor, latency
from tenon.model import predict as scoring

Made = Any  # what conftest trained and compiled


def load(made: Made) -> Predictor:
    return Predictor.load(made.compiled.onnx, made.compiled.manifest)


def test_one_row_is_a_batch_of_one(late: Made) -> None:
    predictor = load(late)
    whole = predictor.score(late.columns)
    one_by_one = [
        predictor.score({name: [values[i]] for name, values in late.columns.items()})[0] for i in range(len(whole))
    ]
    np.testing.assert_array_equal(one_by_one, whole)
    assert whole.dtype == np.float64


def test_a_frame_its_series_and_its_lists_are_scored_alike(late: Made) -> None:
    predictor = load(late)
    np.testing.assert_array_equal(predictor.score(late.data.test.x.to_dict()), predictor.score(late.columns))


def test_threads_share_one_predictor_and_threads_inside_move_only_the_last_digit(late: Made) -> None:
    predictor = load(late)
    wanted = predictor.score(late.columns)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: predictor.score(late.columns), range(40)):
            np.testing.assert_array_equal(found, wanted)
    parallel = Predictor.load(late.compiled.onnx, late.compiled.manifest, threads=2)
    np.testing.assert_allclose(parallel.score(late.columns), wanted, atol=1e-6)


def test_rows_beyond_a_chunk_are_scored_like_the_others(late: Made) -> None:
    predictor = load(late)
    times = scoring.CHUNK_ROWS // 600 + 1
    many = {name: values * times for name, values in late.columns.items()}
    found = predictor.score(many)
    assert len(found) > scoring.CHUNK_ROWS
    np.testing.assert_array_equal(found, np.tile(predictor.score(late.columns), times))


def test_no_rows_give_no_scores(late: Made) -> None:
    assert load(late).score({"wind": [], "hour": [], "carrier": []}).shape == (0,)


def test_columns_a_model_does_not_read_do_no_harm(late: Made) -> None:
    predictor = load(late)
    np.testing.assert_array_equal(predictor.score({**late.columns, "flight": [1]}), predictor.score(late.columns))
    assert predictor.names == ("wind", "hour", "carrier")
    assert predictor.threshold == late.outcome.fitted.threshold


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"wind": [1], "hour": [2]}, "expected the features 'carrier', got columns 'hour', 'wind'"),
        ({"wind": ["1"], "hour": [2], "carrier": ["AA"]}, "expected a number, got '1' - at feature 'wind'"),
        ({"wind": [1, 2], "hour": [2], "carrier": ["AA"]}, "expected columns of one length"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_in_words(late: Made, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        load(late).score(columns)
    assert said in str(error.value)


# ── what was damaged ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_graph_is_found_before_it_answers(late: Made) -> None:
    graph = late.compiled.onnx
    for damaged in (graph[:-100], b"", graph[:500] + bytes([graph[500] ^ 1]) + graph[501:], b"\x00" * len(graph)):
        with pytest.raises(CorruptError, match=r"that the manifest names, got .* bytes with the digest"):
            Predictor.load(damaged, late.compiled.manifest)


def test_a_graph_that_is_none_is_refused_in_words(late: Made) -> None:
    for bytes_ in (b"", b"hello", late.compiled.onnx[:200]):
        with pytest.raises(InputError, match=r"expected an ONNX graph, got .* bytes that cannot be read"):
            scoring.open_session(bytes_)


@pytest.mark.parametrize("lacking", ["onnx", "encoding", "output"])
def test_a_manifest_that_lacks_something_is_refused_in_words(late: Made, lacking: str) -> None:
    body = {name: value for name, value in late.compiled.manifest.items() if name != lacking}
    with pytest.raises(InputError, match="expected a model's manifest, got one that cannot be read"):
        Predictor.load(late.compiled.onnx, body)


def test_a_manifest_of_a_later_release_is_refused_in_words(late: Made) -> None:
    with pytest.raises(InputError, match="expected a manifest of format 1 or older, got format 2; update tenon"):
        Predictor.load(late.compiled.onnx, {**late.compiled.manifest, "format": 2})


def test_fields_of_a_later_release_are_skipped(late: Made) -> None:
    assert Predictor.load(late.compiled.onnx, {**late.compiled.manifest, "new": 1}).names


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_latency_is_measured_on_real_rows_one_at_a_time(late: Made) -> None:
    found = latency(load(late), late.data.test.x, rows=200)
    assert found.rows == 200
    assert 0 < found.p50_ms <= found.p99_ms
    with pytest.raises(InputError, match="expected rows to measure latency on, got none"):
        latency(load(late), late.data.test.x.head(0))


def test_scoring_is_imported_without_anything_of_training() -> None:
    code = "import sys; import tenon.model.predict; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    barred = {"torch", "sklearn", "lightgbm", "onnx", "onnxmltools", "skl2onnx", "polars", "scipy", "pandas"}
    assert not modules & barred
    assert not {name for name in modules if name.startswith(("tenon.training", "tenon.store", "tenon.ingest"))}
