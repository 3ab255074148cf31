"""Existing clients of the Open Inference Protocol work unchanged: tritonclient, with JSON and with binary tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tenon.config import KeyConfig, ServeConfig
from tenon.serving import Seams, Settings

TEXTS = {
    "carrier": ["UA", "DL", "AA"],
    "sched_dep": ["2013-11-01T05:15:00", "2013-11-02T05:15:00Z", "2013-11-03 05:15:00"],
}
NUMBERS: dict[str, list[Any]] = {"flight": [1545, 2, 3], "distance": [1400.0, float("nan"), 300.0]}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "carrier": TEXTS["carrier"][n],
            "sched_dep": TEXTS["sched_dep"][n],
            "flight": NUMBERS["flight"][n],
            "distance": None if np.isnan(NUMBERS["distance"][n]) else NUMBERS["distance"][n],
        }
        for n in range(3)
    ]


def tensor(name: str, values: Any, datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": datatype, "data": values}


def inputs() -> list[dict[str, Any]]:
    return [
        tensor("carrier", TEXTS["carrier"], "BYTES"),
        tensor("sched_dep", TEXTS["sched_dep"], "BYTES"),
        tensor("flight", NUMBERS["flight"], "INT64"),
        tensor("distance", [1400.0, None, 300.0], "FP64"),
    ]


def infer(ask: Any, body: Any, headers: dict[str, str] | None = None) -> Any:
    return ask("POST", "/v2/models/late/infer", body, headers)


def scores(ask: Any) -> list[float]:
    return [one["score"] for one in ask.predict({"rows": rows()}).json["predictions"]]


# ── with the client people have ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("column_shape", [False, True])
def test_tritonclient_gets_the_scores_of_the_plain_door(ask: Any, binary: bool, column_shape: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(ask.url.removeprefix("http://"))
    asked = []
    for name, values, datatype in (
        *((name, np.array(values, object), "BYTES") for name, values in TEXTS.items()),
        ("flight", np.array(NUMBERS["flight"], np.int32), "INT32"),
        ("distance", np.array(NUMBERS["distance"], np.float32), "FP32"),
    ):
        if not binary and name == "distance":  # JSON has no NaN, so that tritonclient cannot send one
            datatype, values = "FP32", np.array([1400.0, 1400.0, 300.0], np.float32)
        shaped = values.reshape(-1, 1) if column_shape else values
        one = triton.InferInput(name, list(shaped.shape), datatype)
        one.set_data_from_numpy(shaped, binary_data=binary)
        asked.append(one)
    wanted = None if binary else [triton.InferRequestedOutput("score", binary_data=False)]
    answer = client.infer("late", asked, outputs=wanted, request_id="mine")
    found = answer.as_numpy("score")
    assert found.dtype == np.float64
    assert answer.get_response()["id"] == "mine"
    if binary:
        assert found.tolist() == scores(ask)
        assert answer.as_numpy("decision").tolist() == [score >= 0.5 for score in scores(ask)]
        assert len(set(answer.as_numpy("id").tolist())) == 3
    else:
        assert found.tolist()[0] == scores(ask)[0]
    client.close()


def test_tritonclient_reads_metadata_versions_health_and_the_repository(ask: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(ask.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("late")
    assert client.is_model_ready("late", "v1")
    assert not client.is_model_ready("late", "v0")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("late")
    assert metadata["versions"] == ["v1"]
    assert {one["name"]: one["datatype"] for one in metadata["inputs"]} == {
        "carrier": "BYTES",
        "sched_dep": "BYTES",
        "flight": "INT64",
        "distance": "FP64",
    }
    assert [one["name"] for one in metadata["outputs"]] == ["score", "decision", "id"]
    assert [(one["name"], one["version"], one["state"]) for one in client.get_model_repository_index()] == [
        ("late", "v1", "READY")
    ]
    client.close()


def test_tritonclient_is_told_what_is_wrong(ask: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    refused = pytest.importorskip("tritonclient.utils").InferenceServerException
    client = triton.InferenceServerClient(ask.url.removeprefix("http://"))
    one = triton.InferInput("carrier", [1], "BYTES")
    one.set_data_from_numpy(np.array(["ZZ"], object))
    with pytest.raises(refused, match=r"inputs\[carrier\]\[0\]"):
        client.infer("late", [one])
    client.close()


# ── by hand ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_tensors_are_answered_as_the_plain_door_answers(ask: Any) -> None:
    answer = infer(ask, {"id": "mine", "inputs": inputs()})
    assert answer.status == 200
    assert (answer.json["model_name"], answer.json["model_version"]) == ("late", "v1")
    assert answer.json["id"] == "mine"
    outputs = {one["name"]: one for one in answer.json["outputs"]}
    assert outputs["score"] == {"name": "score", "datatype": "FP64", "shape": [3], "data": scores(ask)}
    assert outputs["decision"]["data"] == [score >= 0.5 for score in scores(ask)]
    assert list(outputs) == ["score", "decision", "id"]


def test_only_the_outputs_that_are_wanted_come(ask: Any) -> None:
    answer = infer(ask, {"inputs": inputs(), "outputs": [{"name": "decision"}]})
    assert [one["name"] for one in answer.json["outputs"]] == ["decision"]


def test_a_version_that_is_served_has_a_path_and_another_has_none(ask: Any) -> None:
    assert ask("POST", "/v2/models/late/versions/v1/infer", {"inputs": inputs()}).status == 200
    assert ask("POST", "/v2/models/late/versions/v2/infer", {"inputs": inputs()}).status == 404


def test_ids_are_the_callers_own_when_given(ask: Any) -> None:
    answer = infer(ask, {"inputs": [*inputs(), tensor("id", ["a", "b", "c"], "BYTES")]})
    assert next(one for one in answer.json["outputs"] if one["name"] == "id")["data"] == ["a", "b", "c"]


def test_a_fault_names_the_tensor_and_the_row(ask: Any) -> None:
    wrong = [tensor("carrier", ["UA", "DL", "??"], "BYTES"), *inputs()[1:]]
    answer = infer(ask, {"inputs": wrong})
    assert answer.status == 422
    assert answer.json == {"error": "expected text, one of 'AA', 'DL', 'UA', got '??' - at inputs[carrier][2]"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": []}, "a list of input tensors"),
        ({"inputs": 5}, "a list of input tensors"),
        ({"inputs": [5]}, "a list of input tensors"),
        ({"inputs": [{"shape": [1], "datatype": "INT64", "data": [1]}]}, "a name of its own"),
        ({"inputs": [tensor("flight", [1], "INT64")] * 2}, "a name of its own"),
        ({"inputs": [{"name": "flight", "shape": [1, 2], "datatype": "INT64", "data": [1, 2]}]}, "shape [n] or [n, 1]"),
        ({"inputs": [{"name": "flight", "shape": [-1], "datatype": "INT64", "data": []}]}, "shape [n]"),
        ({"inputs": [{"name": "flight", "shape": [True], "datatype": "INT64", "data": [1]}]}, "shape [n]"),
        ({"inputs": [{"name": "flight", "shape": [2], "datatype": "INT64", "data": [1]}]}, "2 values"),
        ({"inputs": [{"name": "flight", "shape": [1], "datatype": "FP8", "data": [1]}]}, "a datatype among"),
        ({"inputs": [{"name": "flight", "shape": [1], "datatype": "INT64"}]}, "data as a list"),
        ({"inputs": [tensor("flight", [1, 2], "INT64"), tensor("carrier", ["UA"], "BYTES")]}, "shape [2]"),
        ({"outputs": [{"name": "scores"}]}, "outputs among 'decision', 'id', 'score'"),
        ({"outputs": 7}, "outputs among"),
        ({"inputs": [{"name": "flight", "shape": [10**9], "datatype": "INT64", "data": []}]}, "at most 10,000 rows"),
    ],
)
def test_a_wrong_request_is_refused_in_the_words_of_the_protocol(ask: Any, change: dict[str, Any], said: str) -> None:
    answer = infer(ask, {"inputs": inputs(), **change})
    assert answer.status in (400, 413)
    assert list(answer.json) == ["error"]
    assert said in answer.json["error"]


@pytest.mark.parametrize(
    ("sent", "size", "datatype", "blob", "said"),
    [
        ("9", 8, "INT64", b"12345678", "Inference-Header-Content-Length within"),
        ("-1", 8, "INT64", b"12345678", "Inference-Header-Content-Length within"),
        ("x", 8, "INT64", b"12345678", "Inference-Header-Content-Length within"),
        ("", 9, "INT64", b"12345678", "binary_data_size within the 8 bytes"),
        ("", -1, "INT64", b"12345678", "binary_data_size within"),
        ("", 7, "INT64", b"1234567", "8 bytes"),
        ("", 8, "INT64", b"123456789", "8 bytes of binary tensors"),
        ("", 8, "BYTES", b"\xff\xff\xff\xffabcd", "preceded by their length"),
        ("", 8, "BYTES", b"\x04\x00\x00\x00\xff\xff\xff\xff", "UTF-8"),
        ("", 8, "BYTES", b"\x01\x00\x00\x00abcd", "1 texts"),
        ("", 8, "COMPLEX", b"12345678", "a datatype among"),
    ],
)
def test_broken_binary_tensors_are_refused(
    ask: Any, sent: str, size: int, datatype: str, blob: bytes, said: str
) -> None:
    one = {"name": "flight", "shape": [1], "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one]}).encode()
    length = {"9": str(len(head) + 1000), "": str(len(head))}.get(sent, sent)
    answer = infer(ask, head + blob, {"inference-header-content-length": length})
    assert answer.status == 400
    assert said in answer.json["error"]


def test_a_path_of_the_protocol_that_is_not_there_is_404(ask: Any) -> None:
    assert ask("GET", "/v2/models/other").status == 404
    assert ask("GET", "/v2/models/late/infer").status == 405


# ── the repository ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_tritonclient_unloads_and_loads_a_model_and_sees_it_in_the_index(start: Any, flights: Any) -> None:
    triton = pytest.importorskip("tritonclient.http")
    ask = start(settings=Settings(serve=ServeConfig(repository=True)))
    client = triton.InferenceServerClient(ask.url.removeprefix("http://"))
    try:
        client.unload_model("late")
        assert not client.is_model_ready("late") and client.is_server_ready()
        (entry,) = client.get_model_repository_index()
        assert (entry["name"], entry["state"], entry["reason"]) == ("late", "UNAVAILABLE", "unloaded")
        assert ask("POST", "/v2/repository/index", {"ready": True}).json == []
        refused = ask.predict(flights.ASK)
        assert refused.status == 503 and "retry-after" in refused.headers
        client.load_model("late")
        assert client.is_model_ready("late")
        assert ask.predict(flights.ASK).status == 200
    finally:
        client.close()


def test_loading_takes_up_what_the_alias_names_now(start: Any, flights: Any) -> None:
    named = ["v1"]
    seams = Seams(current=lambda _: named[0], load=lambda _, version: flights.make_service(version))
    ask = start(seams=seams, settings=Settings(serve=ServeConfig(repository=True), poll_s=60.0))
    named[0] = "v2"
    assert ask("POST", "/v2/repository/models/late/load", {}).status == 200
    assert ask.predict(flights.ASK).json["version"] == "v2"


def test_loading_is_for_the_owner_brings_no_files_and_no_name_reaches_the_file_system(start: Any, ask: Any) -> None:
    assert ask("POST", "/v2/repository/models/late/load").status == 403, "unless the service's settings allow it"
    keys = {"alice": KeyConfig(key="alice-secret")}
    own = start(settings=Settings(serve=ServeConfig(repository=True, keys=keys, token="owner-token")))
    owner = {"authorization": "Bearer owner-token"}
    assert own("POST", "/v2/repository/models/late/unload", headers={"x-api-key": "alice-secret"}).status == 403
    own.connection.close()
    for name in ("..%2f..%2fetc%2fpasswd", "../../etc/passwd", "late/../late", "other", "%00", "late%0a"):
        assert own("POST", f"/v2/repository/models/{name}/load", headers=owner).status == 404
    files = {"parameters": {"file:1/model.onnx": "aGVsbG8=", "config": "{}"}}
    assert own("POST", "/v2/repository/models/late/load", files, owner).status == 400
    assert own("POST", "/v2/repository/models/late/load", b"{", owner).status == 400
    assert own("POST", "/v2/repository/models/late/unload", headers=owner).status == 200
