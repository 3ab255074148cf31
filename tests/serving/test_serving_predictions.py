"""A request is answered with the scores that the same model gives offline, or refused in words that name the fault."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tenon.config import ServeConfig
from tenon.limits import ServingLimits
from tenon.serving import Settings

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def offline(flights: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Score rows without a server: the same features, the same model."""
    from datetime import datetime

    typed = [{"distance": None, **row, "sched_dep": datetime.fromisoformat(row["sched_dep"])} for row in rows]
    online = flights.FEATURES.online({"flights": flights.PAST})
    scores: list[float] = flights.predictor().score(online.read(typed)).tolist()
    return scores


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bare_row_is_answered_with_a_score_a_decision_and_an_id(ask: Any, flights: Any) -> None:
    answer = ask.predict(flights.ASK)
    assert answer.status == 200
    assert (answer.json["model"], answer.json["version"]) == ("late", "v1")
    (one,) = answer.json["predictions"]
    assert one["score"] == offline(flights, [flights.ASK])[0]
    assert one["decision"] is (one["score"] >= 0.5)
    assert one["id"]


def test_many_rows_are_answered_in_order_to_the_bit(ask: Any, flights: Any) -> None:
    rows = [{**flights.ASK, "distance": float(d), "carrier": c} for d in range(0, 4000, 7) for c in ("AA", "DL", "UA")]
    answer = ask.predict({"rows": rows})
    assert [one["score"] for one in answer.json["predictions"]] == offline(flights, rows)
    assert len({one["id"] for one in answer.json["predictions"]}) == len(rows)


def test_an_id_of_the_callers_own_comes_back(ask: Any, flights: Any) -> None:
    rows = [{**flights.ASK, "id": "UA 1545"}, {**flights.ASK, "id": 7}, {**flights.ASK, "id": None}, flights.ASK]
    ids = [one["id"] for one in ask.predict({"rows": rows}).json["predictions"]]
    assert ids[:2] == ["UA 1545", "7"]
    assert all(ids)


def test_a_nullable_column_may_be_left_out_and_means_missing(ask: Any, flights: Any) -> None:
    without = {name: value for name, value in flights.ASK.items() if name != "distance"}
    scores = [ask.predict(row).json["predictions"][0]["score"] for row in (without, {**flights.ASK, "distance": None})]
    assert scores[0] == scores[1] == offline(flights, [without])[0]


@pytest.mark.parametrize(
    ("column", "written", "meant"),
    [
        ("sched_dep", "2013-11-01T05:15:00Z", "2013-11-01T05:15:00"),
        ("sched_dep", "2013-11-01T01:15:00-04:00", "2013-11-01T05:15:00"),
        ("distance", 1400, 1400.0),
    ],
)
def test_a_value_written_otherwise_means_the_same(
    ask: Any, flights: Any, column: str, written: Any, meant: Any
) -> None:
    scores = [ask.predict({**flights.ASK, column: value}).json["predictions"][0]["score"] for value in (written, meant)]
    assert scores[0] == scores[1]


def test_a_model_without_a_threshold_answers_without_a_decision(start: Any, flights: Any) -> None:
    (one,) = start(flights.make_service(threshold=None)).predict(flights.ASK).json["predictions"]
    assert set(one) == {"id", "score"}


def test_two_models_answer_each_for_itself(start: Any, flights: Any) -> None:
    ask = start(flights.make_service(), flights.make_service(name="later", version="w9", bias=2.0))
    first = ask("POST", "/predict/late", flights.ASK).json
    second = ask("POST", "/predict/later", flights.ASK).json
    assert (first["version"], second["version"]) == ("v1", "w9")
    assert first["predictions"][0]["score"] < second["predictions"][0]["score"]


def test_the_trace_of_the_caller_is_echoed_when_it_is_one(ask: Any, flights: Any) -> None:
    assert ask.predict(flights.ASK, {"traceparent": TRACE}).headers["traceparent"] == TRACE
    assert "traceparent" not in ask.predict(flights.ASK, {"traceparent": "<script>"}).headers
    assert "traceparent" not in ask.predict(flights.ASK).headers


def test_an_answer_says_nothing_of_the_server(ask: Any, flights: Any) -> None:
    assert "server" not in ask.predict(flights.ASK).headers


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "path", "expected", "got"),
    [
        ({"flight": "x"}, "$.rows[0].flight", "a whole number", "'x'"),
        ({"flight": 5.5}, "$.rows[0].flight", "a whole number", "5.5"),
        ({"flight": True}, "$.rows[0].flight", "a whole number", "True"),
        ({"flight": 0}, "$.rows[0].flight", "a whole number from 1 to 9999", "0"),
        ({"flight": 10**30}, "$.rows[0].flight", "a whole number", "1000000000000000000000000000000"),
        ({"carrier": None}, "$.rows[0].carrier", "text", "null"),
        ({"carrier": "ZZ"}, "$.rows[0].carrier", "text, one of 'AA', 'DL', 'UA'", "'ZZ'"),
        ({"sched_dep": "tomorrow"}, "$.rows[0].sched_dep", "a timestamp such as 2013-11-01T05:15:00", "'tomorrow'"),
        ({"distance": -1}, "$.rows[0].distance", "a number from 0 to 6000", "-1"),
        ({"distence": 1}, "$.rows[0].distence", "a column of this request (did you mean 'distance'?)", None),
        ({"id": [1]}, "$.rows[0].id", "text or a whole number", "[1]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_what_was_expected_and_what_came(
    ask: Any, flights: Any, change: dict[str, Any], path: str, expected: str, got: str | None
) -> None:
    row = {**flights.ASK, **change}
    for body, place in (({"rows": [row]}, path), (row, path.replace("$.rows[0]", "$"))):
        answer = ask.predict(body)
        assert answer.status == 422
        (fault,) = answer.json["faults"]
        assert (fault["path"], fault["expected"]) == (place, expected)
        assert got is None or fault["got"] == got


def test_every_fault_of_every_row_is_named(ask: Any, flights: Any) -> None:
    rows = [flights.ASK, {**flights.ASK, "carrier": 1, "distance": "far"}, 7, {}]
    faults = ask.predict({"rows": rows}).json["faults"]
    paths = [fault["path"] for fault in faults]
    assert {"$.rows[1].carrier", "$.rows[1].distance", "$.rows[2]", "$.rows[3].carrier"} <= set(paths)
    assert not [path for path in paths if path.startswith("$.rows[0]")]


def test_a_thousand_faults_are_counted_and_the_first_twenty_shown(ask: Any, flights: Any) -> None:
    answer = ask.predict({"rows": [{**flights.ASK, "carrier": number} for number in range(1000)]})
    assert answer.status == 422
    assert len(answer.json["faults"]) == 20
    assert answer.json["more_faults"] >= 80
    assert answer.json["faults"][7]["path"] == "$.rows[7].carrier"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"{", "expected JSON in UTF-8"),
        (b"\xff\xfe", "expected JSON in UTF-8"),
        (b"[1]", "or one row object, got [1]"),
        (b'"row"', 'or one row object, got "row"'),
        (b"[" * 100_000, "expected JSON"),
        (b"[" * 40 + b"]" * 40, "nested at most 32 deep"),
        (b'{"x":' * 500 + b"1" + b"}" * 500, "nested at most 32 deep"),
    ],
)
def test_what_is_no_json_object_is_400(ask: Any, body: bytes, said: str) -> None:
    answer = ask.predict(body)
    assert answer.status == 400
    assert said in answer.json["error"]


@pytest.mark.parametrize("rows", [[], {}, "x", None, 3])
def test_rows_must_be_a_list_of_at_least_one(ask: Any, rows: Any) -> None:
    answer = ask.predict({"rows": rows})
    assert answer.status == 422
    assert answer.json["faults"][0]["path"] == "$.rows"


def test_another_key_beside_rows_is_a_fault(ask: Any, flights: Any) -> None:
    answer = ask.predict({"rows": [flights.ASK], "debug": True})
    assert answer.json["faults"] == [{"path": "$.debug", "expected": "only 'rows'", "got": "'debug'"}]


def test_a_place_that_is_not_there_suggests_one_that_is(ask: Any, flights: Any) -> None:
    answer = ask("POST", "/predict/lat", flights.ASK)
    assert (answer.status, "did you mean '/predict/late'?" in answer.json["error"]) == (404, True)
    assert ask("POST", "/predict/..%2f..%2fetc%2fpasswd", flights.ASK).status == 404
    assert ask("POST", "/predict/" + "x" * 5000, flights.ASK).status == 404


def test_another_method_is_405_and_says_which(ask: Any) -> None:
    answer = ask("DELETE", "/predict/late")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_a_page_of_another_site_may_not_post(ask: Any, flights: Any) -> None:
    host = ask.url.removeprefix("http://")
    assert ask.predict(flights.ASK, {"origin": f"http://{host}"}).status == 200
    assert ask.predict(flights.ASK, {"origin": "https://elsewhere.example"}).status == 403


def test_a_token_is_needed_when_one_is_set(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(serve=ServeConfig(token="s3cret")))
    refused = ask.predict(flights.ASK)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="tenon"')
    assert ask.predict(flights.ASK, {"authorization": "Bearer wrong"}).status == 401
    assert ask.predict(flights.ASK, {"authorization": "Bearer s3cret"}).status == 200
    assert ask("GET", "/metrics").status == 401
    assert ask("GET", "/nothing").status == 401
    assert ask("GET", "/healthz").status == 200
    assert ask("GET", "/readyz").status == 200


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_over_the_limit_is_413_before_it_is_sent(start: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(body_bytes=1000)))
    host, port = ask.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"POST /predict/late HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000000\r\n\r\n")
        head = sock.recv(65536)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head


def test_a_chunked_body_over_the_limit_is_413(start: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(body_bytes=1000)))
    for chunks in ([b" " * 600] * 50, [b" " * 500_000] * 50):
        body, headers = iter(chunks), {"transfer-encoding": "chunked"}
        ask.connection.request("POST", "/predict/late", body, headers, encode_chunked=True)
        answer = ask.connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (413, "close")
        assert "at most 1,000 bytes" in json.loads(answer.read())["error"]


def test_a_caller_that_goes_on_sending_still_reads_why_it_was_refused(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(serve=ServeConfig(token="s3cret")))
    for _ in range(5):
        assert ask.predict(b" " * 3_000_000).status == 401


def test_more_rows_than_a_request_may_have_is_413(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(rows_per_request=10)))
    assert ask.predict({"rows": [flights.ASK] * 10}).status == 200
    answer = ask.predict({"rows": [flights.ASK] * 11})
    assert (answer.status, "at most 10 rows" in answer.json["error"]) == (413, True)


def test_a_row_whose_features_cannot_be_computed_is_refused_alone(start: Any, flights: Any) -> None:
    ask = start()
    answer = ask.predict({**flights.ASK, "sched_dep": "0001-01-01T00:00:00"})
    assert answer.status in (200, 422)
    assert ask.predict(flights.ASK).status == 200


def test_a_body_in_pieces_is_read_whole(ask: Any, flights: Any) -> None:
    data = json.dumps(flights.ASK).encode()
    pieces = iter([data[:5], data[5:20], data[20:]])
    ask.connection.request("POST", "/predict/late", pieces, {"transfer-encoding": "chunked"}, encode_chunked=True)
    answer = ask.connection.getresponse()
    assert (answer.status, len(json.loads(answer.read())["predictions"])) == (200, 1)
