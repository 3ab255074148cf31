"""Sessions with state: what they say does not depend on which replica answers, which one drains and which one dies."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenon.config import ServeConfig
from tenon.contract import Column
from tenon.errors import InputError
from tenon.limits import Limits, RouteLimits, ServingLimits
from tenon.model.steps import OnnxSteps
from tenon.serving import Stateful, build_app, running
from tenon.serving.autoscale import Autoscaler
from tenon.serving.fleet import LocalFleet
from tenon.serving.gateway import Gateway
from tenon.serving.replica import connect
from tenon.serving.scale import Scaling

from ..waiting import eventually

TOKEN = "the fleet's own"
COLUMNS = [Column("speed", "float"), Column("load", "float", nullable=True)]
MANIFEST = {
    "columns": [{"name": "speed", "type": "float"}, {"name": "load", "type": "float", "nullable": True}],
    "inputs": {"x": ["speed", "load"]},
    "state": {"h": "h_next"},
    "output": "y",
}
SERVER = """
import os, sys, time
from pathlib import Path
from tenon import config
from tenon.cli import tenon
tenon(["serve", sys.argv[1], "--stateful", f"wear={sys.argv[1]}", "--port", sys.argv[2]])
"""


def recurrent() -> bytes:
    """Return a graph of one recurrent cell: h' = tanh(x W + h U), y = h' V."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dice = np.random.default_rng(4)
    weights = {"W": (2, 8), "U": (8, 8), "V": (8, 1)}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xw"]),
        helper.make_node("MatMul", ["h", "U"], ["hu"]),
        helper.make_node("Add", ["xw", "hu"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h_next"]),
        helper.make_node("MatMul", ["h_next", "V"], ["y"]),
    ]
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", 2],
        "h": ["batch", 8],
        "h_next": ["batch", 8],
        "y": ["batch", 1],
    }
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    start = [
        numpy_helper.from_array(dice.normal(0, 0.6, size).astype(np.float32), name) for name, size in weights.items()
    ]
    graph = helper.make_graph(nodes, "wear", [infos["x"], infos["h"]], [infos["h_next"], infos["y"]], start)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def steps() -> OnnxSteps:
    return OnnxSteps.load(recurrent(), MANIFEST)


class Counter:
    """A user's own model: three lines."""

    def first(self) -> Mapping[str, Any]:
        return {"sum": np.zeros(1)}

    def step(
        self, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[float], Mapping[str, Any]]:
        sums = state["sum"][0] + np.cumsum([row["speed"] for row in rows])
        return list(sums), {"sum": sums[-1:]}


def counting(**more: Any) -> Stateful:
    return Stateful(name="count", version="1", model=Counter(), columns=COLUMNS, token=TOKEN, **more)


def ask(
    url: str, path: str, body: Any = None, session: str = "", method: str = "POST", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if session:
            given["x-session-id"] = session
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        raw = answer.read()
        found = json.loads(raw) if answer.getheader("content-type") == "application/json" else raw
        return answer.status, found, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


# ── one replica ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_goes_on_where_it_was_and_rows_without_one_begin_anew() -> None:
    with running(build_app([], stateful=[counting()])) as url:
        first = ask(url, "/predict/count", {"rows": [{"speed": 1}, {"speed": 2}]}, "a")[1]
        assert [one["score"] for one in first["predictions"]] == [1.0, 3.0]
        assert (first["session"], first["step"]) == ("a", 1)
        by_cookie = ask(url, "/predict/count", {"speed": 4}, cookie="x=1; tenon-session=a")[1]
        assert by_cookie["predictions"] == [{"score": 7.0}]
        assert ask(url, "/predict/count", {"speed": 4}, "b")[1]["predictions"] == [{"score": 4.0}]
        for _ in range(2):
            assert ask(url, "/predict/count", {"speed": 4})[1]["predictions"] == [{"score": 4.0}]


def test_a_request_is_checked_against_the_columns_and_changes_nothing_when_it_is_wrong() -> None:
    with running(build_app([], stateful=[counting()])) as url:
        ask(url, "/predict/count", {"speed": 1}, "a")
        status, told, _ = ask(url, "/predict/count", {"speed": "fast"}, "a")
        assert status == 422
        assert told["faults"][0]["path"] == "$.speed"
        assert ask(url, "/predict/count", {"speed": 1}, "a")[1]["step"] == 2


def test_states_are_kept_within_their_bytes_and_the_longest_unused_leaves() -> None:
    model = counting(limits=ServingLimits(state_bytes=3_000))
    with running(build_app([], stateful=[model])) as url:
        for name in ("a", "b", "a", "c", "d", "a", "e"):
            ask(url, "/predict/count", {"speed": 1}, name)
        assert model.size <= 3_000
        assert model.evicted > 0
        assert ask(url, "/predict/count", {"speed": 1}, "a")[1]["step"] == 4
        assert "tenon_session_memory_ratio 0." in ask(url, "/metrics", method="GET")[1].decode()


def test_a_numbered_request_is_applied_once_and_only_in_its_place() -> None:
    with running(build_app([], stateful=[counting()])) as url:

        def numbered(step: int, request: str) -> tuple[int, Any, dict[str, str]]:
            return ask(url, "/predict/count", {"speed": 1}, "a", x_session_step=str(step), x_session_request=request)

        assert numbered(1, "p")[1]["predictions"] == [{"score": 1.0}]
        assert numbered(2, "q")[1] == numbered(2, "q")[1]  # asked twice, answered twice, applied once
        status, _, headers = numbered(2, "another")
        assert (status, headers["x-session-have"]) == (409, "2")
        assert numbered(7, "r")[0] == 409
        assert numbered(3, "s")[1]["predictions"] == [{"score": 3.0}]


def test_doors_for_states_open_for_the_fleet_alone_and_take_in_only_what_is_a_state_of_theirs() -> None:
    with running(build_app([], stateful=[counting()])) as url:
        ask(url, "/predict/count", {"speed": 5}, "a")
        for path in ("/sessions", "/sessions/count"):
            assert ask(url, path, session="a", method="GET")[0] == 403
            assert ask(url, path, session="a", method="GET", x_fleet_token="the fleet's ow")[0] == 403
        assert ask(url, "/sessions", method="GET", x_fleet_token=TOKEN)[1] == {"sessions": {"count": {"a": 1}}}
        status, state, headers = ask(url, "/sessions/count", session="a", method="GET", x_fleet_token=TOKEN)
        assert (status, headers["x-session-step"]) == (200, "1")
        assert ask(url, "/sessions/count", state, "twin", x_fleet_token=TOKEN)[0] == 200
        assert ask(url, "/predict/count", {"speed": 1}, "twin")[1]["predictions"] == [{"score": 6.0}]
        for broken in (b"\x00", state[:-3], state.replace(b"float64", b"float32"), state.replace(b"sum", b"sun")):
            assert ask(url, "/sessions/count", broken, "a", x_fleet_token=TOKEN)[0] == 422
        assert ask(url, "/predict/count", {"speed": 1}, "a")[1]["predictions"] == [{"score": 6.0}]
    with running(
        build_app([], stateful=[Stateful(name="count", version="1", model=Counter(), columns=COLUMNS)])
    ) as url:
        assert ask(url, "/sessions", method="GET", x_fleet_token="")[0] == 403


# ── a graph with state ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recurrent_graph_says_row_by_row_what_its_arithmetic_says() -> None:
    model = steps()
    rows = [{"speed": 0.5, "load": 1.0}, {"speed": -1.0, "load": 0.25}, {"speed": 2.0, "load": 0.0}]
    at_once, state = model.step(model.first(), rows)
    singly, now = [], model.first()
    for row in rows:
        (found,), now = model.step(now, [row])
        singly.append(found)
    assert at_once == singly
    assert np.array_equal(state["h"], now["h"]) and state["h"].shape == (1, 8)
    assert len(set(at_once)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": {"z": ["speed"]}}, "an input of the graph"),
        ({"state": {}}, "nothing for 'h'"),
        ({"state": {"h": "g"}}, "an output of the graph"),
        ({"output": "Y"}, "one of 'h_next', 'y'"),
        ({"inputs": {"x": ["speed"]}}, "a place for each column"),
        ({"inputs": None}, "a manifest without"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_refused_by_what_does_not(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        OnnxSteps.load(recurrent(), {**MANIFEST, **change})


# ── a gateway before replicas ────────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_brings_a_state_that_its_replica_forgot_and_refuses_one_that_is_nowhere() -> None:
    small = counting(limits=ServingLimits(state_bytes=1_500))
    serve = ServeConfig(fleet_token=TOKEN)
    with running(build_app([], stateful=[small])) as replica:
        with running(Gateway(connect([replica]), serve=serve)) as url:
            for _ in range(3):
                for name in "abcdefgh":
                    assert ask(url, "/predict/count", {"speed": 1}, name)[0] == 200
            assert small.evicted > 10
            assert ask(url, "/predict/count", {"speed": 1}, "a")[1]["predictions"] == [{"score": 4.0}]
            assert ask(url, "/sessions/count", session="a", method="GET", x_fleet_token=TOKEN)[0] == 404
            told = ask(url, "/predict/count", {"speed": 1}, "a", x_session_step="40")
            assert told[1]["step"] == 5  # a caller does not number them
        tight = Limits(route=RouteLimits(session_bytes=0))
        with running(Gateway(connect([replica]), serve=ServeConfig(), limits=tight)) as url:
            for name in "klmnop":
                assert ask(url, "/predict/count", {"speed": 1}, name)[0] == 200
            status, told, _ = ask(url, "/predict/count", {"speed": 1}, "k")
            assert status == 410
            assert "was lost" in told["error"]
            assert ask(url, "/predict/count", {"speed": 1}, "k")[1]["predictions"] == [{"score": 1.0}]


def test_requests_of_one_session_go_one_after_the_other_and_too_many_are_told_to_come_back() -> None:
    limits = Limits(route=RouteLimits(session_waiting=40))
    with running(build_app([], stateful=[counting()])) as a, running(build_app([], stateful=[counting()])) as b:
        with running(Gateway(connect([a, b]), serve=ServeConfig(fleet_token=TOKEN), limits=limits)) as url:
            found = list[float]()

            def work() -> None:
                found.append(ask(url, "/predict/count", {"speed": 1}, "a")[1]["predictions"][0]["score"])

            threads = [threading.Thread(target=work) for _ in range(30)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(found) == [float(n) for n in range(1, 31)]


def test_a_gateway_that_comes_back_knows_where_each_session_stands(tmp_path: Path) -> None:
    serve = ServeConfig(fleet_token=TOKEN)
    with running(build_app([], stateful=[counting()])) as a, running(build_app([], stateful=[counting()])) as b:
        for turn in range(1, 4):  # each time a gateway that remembers nothing
            with running(Gateway(connect([a, b]), serve=serve)) as url:
                for name in "abcdef":
                    assert ask(url, "/predict/count", {"speed": 1}, name)[1]["predictions"] == [{"score": float(turn)}]


def test_sessions_say_the_same_whoever_drains_and_whoever_dies(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(recurrent())
    (tmp_path / "tenon.json").write_text(json.dumps(MANIFEST))
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    os.environ["PYTHONPATH"], before = os.pathsep.join(sys.path), os.environ.get("PYTHONPATH")
    try:
        fleet = LocalFleet(f"{sys.executable} {server} {tmp_path} {{port}}", drain_s=3.0, token=TOKEN)
        scaler = Autoscaler(fleet=fleet, scaling=Scaling(least=2, most=2), sample_s=0.1)
        gateway = Gateway({}, serve=ServeConfig(fleet_token=TOKEN), scaler=scaler)
        said: dict[str, list[float]] = {f"machine {n}": [] for n in range(10)}
        faults, stop = list[Any](), threading.Event()

        def client(name: str, url: str) -> None:
            dice = random.Random(name)
            while not stop.is_set():
                status, told, _ = ask(url, "/predict/wear", row(dice), name)
                if status != 200:
                    faults.append((status, told))
                    return
                said[name].append(told["predictions"][0]["score"])
                time.sleep(0.01)

        with running(gateway) as url:

            def ready() -> list[Any]:
                replicas = ask(url, "/replicas", method="GET")[1]
                up = [one for one in replicas["replicas"] if one["up"]]
                return up if replicas["fleet"]["ready"] == len(up) == 2 else []

            assert eventually(ready, 25, every=0.05)
            threads = [threading.Thread(target=client, args=(name, url)) for name in said]
            for thread in threads:
                thread.start()
            assert eventually(lambda: min(map(len, said.values())) >= 20, 25, every=0.05)
            drained, killed = ready()
            scaler.retire(drained["name"])
            assert eventually(lambda: "left" in {event.what for event in scaler.events}, 25, every=0.05)
            process = fleet._running[killed["name"]][1]
            os.kill(process.pid, signal.SIGKILL)
            least = min(map(len, said.values()))
            assert eventually(ready, 25, every=0.05)
            assert eventually(lambda: min(map(len, said.values())) >= least + 20, 25, every=0.05)
            stop.set()
            for thread in threads:
                thread.join()
            moved = ask(url, "/replicas", method="GET")[1]["sessions"]
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    assert not faults
    assert moved["handed_over"] > 0 and moved["rebuilt"] > 0 and moved["lost"] == 0
    for name, scores in said.items():
        dice, model = random.Random(name), steps()
        rows = [row(dice) for _ in scores]
        assert scores == model.step(model.first(), rows)[0]


def row(dice: random.Random) -> dict[str, float]:
    return {"speed": dice.gauss(0, 1), "load": dice.random()}
