"""The gRPC door: the same answers as over HTTP, the same checks, the right codes; Triton's own client speaks it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tenon.config import KeyConfig, ServeConfig
from tenon.errors import UsageError
from tenon.limits import ServingLimits
from tenon.serving import Client, Seams, Settings, build_app, running, wire
from tenon.serving.rpc import _tensors

from ..waiting import eventually

pytestmark = pytest.mark.skipif(
    find_spec("grpc") is None or find_spec("tritonclient") is None,
    reason="grpcio comes with the extra 'grpc', tritonclient with 'dev'",
)
Started = Any  # (url, address of the gRPC door)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(flights: Any) -> Iterator[Callable[..., Started]]:
    with ExitStack() as stack:

        def body(
            *services: Any,
            limits: ServingLimits = ServingLimits(),
            seams: Any = None,
            inline_ms: float = 2.0,
            **serve: Any,
        ) -> Started:
            port = free_port()
            settings = Settings(serve=ServeConfig(grpc_port=port, **serve), limits=limits, inline_ms=inline_ms)
            app = build_app(services or (flights.make_service(),), seams=seams, settings=settings)
            return stack.enter_context(running(app)), f"127.0.0.1:{port}"

        yield body


def client(address: str) -> Any:
    import tritonclient.grpc as triton

    return triton.InferenceServerClient(address)


def inputs(rows: list[dict[str, Any]], columns: Any) -> list[Any]:
    import tritonclient.grpc as triton

    found = []
    for name, kind in columns:
        values = [row[name] for row in rows]
        dtype = {"FP64": np.float64, "INT64": np.int64}.get(kind)
        array = np.array(values, dtype) if dtype else np.array([str(value).encode() for value in values], object)
        tensor = triton.InferInput(name, [len(rows)], kind)
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


COLUMNS = [("sched_dep", "BYTES"), ("flight", "INT64"), ("distance", "FP64"), ("carrier", "BYTES")]


def call(address: str, method: str, request: Any, metadata: Any = (), timeout: float = 10.0) -> tuple[Any, Any]:
    """Call a method as any gRPC client would; return the answer and the call's ends (code, details, metadata)."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        made = channel.unary_unary(f"/{wire.SERVICE}/{method}")
        body = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            answer, ended = made.with_call(body, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            return None, error
    return wire.messages()[f"{method}Response"].FromString(answer), ended


def asked(flights: Any, **changed: Any) -> Any:
    """Return a ModelInferRequest with typed contents for one row."""
    made = wire.messages()["ModelInferRequest"](model_name="late", id="mine")
    row = {**flights.ASK, **changed}
    for name, kind in COLUMNS:
        tensor = made.inputs.add(name=name, datatype=kind, shape=[1])
        field = {"BYTES": "bytes_contents", "INT64": "int64_contents", "FP64": "fp64_contents"}[kind]
        value = row[name]
        getattr(tensor.contents, field).append(value.encode() if isinstance(value, str) else value)
    return made


# ── the same answers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_tritonclient_gets_the_bits_of_the_plain_door(start: Any, flights: Any) -> None:
    url, address = start()
    rows = [{**flights.ASK, "flight": number, "distance": 100.0 * number} for number in range(1, 8)]
    with Client(url) as plain:
        wanted = plain.predict("late", rows)["predictions"]
    with client(address) as triton:
        result = triton.infer("late", inputs(rows, COLUMNS), request_id="7")
        assert result.get_response().id == "7"
        assert result.as_numpy("score").tolist() == [one["score"] for one in wanted]
        assert result.as_numpy("decision").tolist() == [one["decision"] for one in wanted]
        assert len({bytes(value) for value in result.as_numpy("id")}) == 7


def test_tritonclient_reads_health_metadata_and_the_repository(start: Any, flights: Any) -> None:
    _, address = start(repository=True)
    with client(address) as triton:
        assert triton.is_server_live() and triton.is_server_ready()
        assert triton.is_model_ready("late") and triton.is_model_ready("late", "v1")
        assert triton.get_server_metadata().name == "tenon"
        about = triton.get_model_metadata("late")
        assert list(about.versions) == ["v1"] and about.platform == "tenon"
        assert {one.name: one.datatype for one in about.inputs} == dict(COLUMNS)
        assert [one.name for one in about.outputs] == ["score", "decision", "id"]
        triton.unload_model("late")
        assert not triton.is_model_ready("late")
        (one,) = triton.get_model_repository_index().models
        assert (one.name, one.state, one.reason) == ("late", "UNAVAILABLE", "unloaded")
        triton.load_model("late")
        assert triton.is_model_ready("late")


def test_typed_contents_and_raw_ones_are_answered_alike_each_in_its_own_way(start: Any, flights: Any) -> None:
    _, address = start()
    typed, _ = call(address, "ModelInfer", asked(flights))
    assert typed.id == "mine" and not typed.raw_output_contents
    assert [one.name for one in typed.outputs] == ["score", "decision", "id"]
    with client(address) as triton:
        score = triton.infer("late", inputs([flights.ASK], COLUMNS)).as_numpy("score")
    assert list(typed.outputs[0].contents.fp64_contents) == score.tolist()
    assert len(typed.outputs[1].contents.bool_contents) == 1
    only = asked(flights)
    only.outputs.add(name="decision")
    assert [one.name for one in call(address, "ModelInfer", only)[0].outputs] == ["decision"]


def test_a_missing_number_is_nan_and_a_trace_comes_back(start: Any, flights: Any) -> None:
    url, address = start()
    with Client(url) as plain:
        (wanted,) = plain.predict("late", [{**flights.ASK, "distance": None}])["predictions"]
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    answer, ended = call(address, "ModelInfer", asked(flights, distance=float("nan")), [("traceparent", trace)])
    assert list(answer.outputs[0].contents.fp64_contents) == [wanted["score"]]
    assert ("traceparent", trace) in [tuple(pair) for pair in ended.initial_metadata()]


def test_what_comes_by_grpc_is_observed_counted_and_costed(start: Any, flights: Any) -> None:
    seen: list[Any] = []

    def tap(batch: Any) -> bool:
        seen.append(batch)
        return True

    url, address = start(seams=Seams(tap=tap))
    call(address, "ModelInfer", asked(flights))
    call(address, "ModelInfer", asked(flights, flight=10**6))
    eventually(lambda: sum(len(batch["id"]) for batch in seen) >= 2)
    assert sorted(error for batch in seen for error in batch["error"]) == ["", "invalid"]
    import urllib.request

    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    assert 'tenon_requests_total{door="grpc",status="200"} 1.0' in text
    assert 'tenon_requests_total{door="grpc",status="422"} 1.0' in text
    assert 'tenon_usd_total{model="late"} 1e-06' in text


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda one: one.inputs[1].contents.int64_contents.append(2), "INVALID_ARGUMENT", "expected 1 values, got"),
        (lambda one: one.inputs[1].contents.int64_contents.__setitem__(0, 10**6), "INVALID_ARGUMENT", "[flight][0]"),
        (lambda one: one.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"), "INVALID_ARGUMENT", "UTF-8"),
        (lambda one: one.inputs[2].contents.int64_contents.append(1), "INVALID_ARGUMENT", "inputs[distance].contents"),
        (lambda one: one.inputs[2].shape.__setitem__(0, -1), "INVALID_ARGUMENT", "shape [1] or [1, 1], got [-1]"),
        (lambda one: setattr(one.inputs[2], "datatype", "FP8"), "INVALID_ARGUMENT", "'FP8'"),
        (lambda one: one.raw_input_contents.append(b"a"), "INVALID_ARGUMENT", "expected 4 raw_input_contents"),
        (lambda one: one.raw_input_contents.extend([b"a"] * 4), "INVALID_ARGUMENT", "raw_input_contents alone"),
        (lambda one: one.outputs.add(name="nothing"), "INVALID_ARGUMENT", "expected outputs among"),
        (lambda one: one.ClearField("inputs"), "INVALID_ARGUMENT", "expected a list of input tensors"),
        (lambda one: setattr(one, "model_name", "lat"), "NOT_FOUND", "did you mean 'late'?"),
        (lambda one: setattr(one, "model_name", "../../etc/passwd"), "NOT_FOUND", "no model is named"),
        (lambda one: setattr(one, "model_version", "v9"), "NOT_FOUND", "'late' serves version v1"),
    ],
)  # fmt: skip
def test_a_wrong_call_gets_its_code_and_the_path_of_the_fault(
    start: Any, flights: Any, change: Any, code: str, said: str
) -> None:
    _, address = start()
    request = asked(flights)
    change(request)
    answer, ended = call(address, "ModelInfer", request)
    assert answer is None
    assert (ended.code().name, said in ended.details()) == (code, True), ended.details()


def test_bytes_that_are_no_message_are_an_invalid_argument_and_no_fault_of_ours(start: Any) -> None:
    _, address = start()
    _, ended = call(address, "ModelInfer", b"\x0a\xff\xff\xff\xff\x0f")
    assert ended.code().name == "INVALID_ARGUMENT" and "expected a ModelInferRequest" in ended.details()


def test_a_message_over_the_limit_is_resource_exhausted(start: Any, flights: Any) -> None:
    _, address = start(limits=ServingLimits(body_bytes=10_000))
    _, ended = call(address, "ModelInfer", asked(flights, carrier="a" * 20_000))
    assert ended.code().name == "RESOURCE_EXHAUSTED"


def test_keys_hold_at_this_door_too_and_say_when_to_come_back(start: Any, flights: Any) -> None:
    keys = {"nightly": KeyConfig(key="a-long-enough-key", rate_per_s=0.1, burst=1)}
    _, address = start(keys=keys, token="the-owner-of-all", repository=True)
    mine = [("x-api-key", "a-long-enough-key")]
    assert call(address, "ModelInfer", asked(flights))[1].code().name == "UNAUTHENTICATED"
    assert call(address, "ServerLive", b"", [("authorization", "Bearer wrong")])[1].code().name == "UNAUTHENTICATED"
    assert call(address, "ModelInfer", asked(flights), mine)[0] is not None
    _, ended = call(address, "ModelInfer", asked(flights), mine)
    assert ended.code().name == "RESOURCE_EXHAUSTED"
    more = dict(ended.trailing_metadata())
    assert 1 <= int(more["retry-after"]) <= 10 and int(more["grpc-retry-pushback-ms"]) <= 10_000
    status = wire.messages()["Status"].FromString(more["grpc-status-details-bin"])
    assert status.details[0].type_url == wire.RETRY_INFO
    delay = wire.messages()["RetryInfo"].FromString(status.details[0].value).retry_delay
    assert 0 < delay.seconds + delay.nanos / 1e9 <= 10
    load = wire.messages()["RepositoryModelLoadRequest"](model_name="late")
    assert call(address, "RepositoryModelLoad", load, mine)[1].code().name == "PERMISSION_DENIED"
    owner = [("authorization", "Bearer the-owner-of-all")]
    assert call(address, "RepositoryModelLoad", load, owner)[0] is not None


def test_models_stay_loaded_where_clients_may_not_load(start: Any) -> None:
    _, address = start()
    unload = wire.messages()["RepositoryModelUnloadRequest"](model_name="late")
    assert call(address, "RepositoryModelUnload", unload)[1].code().name == "PERMISSION_DENIED"


def test_an_unloaded_model_is_unavailable(start: Any, flights: Any) -> None:
    _, address = start(repository=True)
    unload = wire.messages()["RepositoryModelUnloadRequest"](model_name="late")
    assert call(address, "RepositoryModelUnload", unload)[0] is not None
    assert call(address, "ModelInfer", asked(flights))[1].code().name == "UNAVAILABLE"


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Gate:
    """A predictor that scores only when it is let."""

    def __init__(self) -> None:
        self.open, self.entered, self.rows = threading.Event(), threading.Event(), 0

    def score(self, columns: Any) -> Any:
        self.entered.set()
        assert self.open.wait(30)
        count = len(next(iter(columns.values())))
        self.rows += count
        return np.zeros(count)


def test_a_call_whose_caller_has_stopped_waiting_leaves_the_queue(start: Any, flights: Any) -> None:
    gate = Gate()
    url, address = start(flights.make_service(predictor=gate), inline_ms=-1.0)  # batches go to the worker thread
    first = threading.Thread(target=lambda: call(address, "ModelInfer", asked(flights)))
    first.start()
    assert gate.entered.wait(10)
    _, ended = call(address, "ModelInfer", asked(flights), timeout=0.2)  # waits behind the first
    assert ended.code().name == "DEADLINE_EXCEEDED"
    time.sleep(1)  # the service counts the time for itself, and comes to its end a moment after the caller
    gate.open.set()
    first.join(10)
    with Client(url) as plain:
        assert plain.predict("late", [flights.ASK])["predictions"][0]["score"] == 0.0
    assert gate.rows == 2  # the first and the last: nobody scored what nobody waited for


def test_calls_in_flight_finish_when_the_service_stops_and_new_ones_are_refused(flights: Any) -> None:
    port = free_port()
    settings = Settings(serve=ServeConfig(grpc_port=port), inline_ms=-1.0)  # every batch goes to the worker thread
    gate = Gate()
    found: list[Any] = []
    with ExitStack() as stack:
        app = build_app([flights.make_service(predictor=gate)], settings=settings)
        stack.enter_context(running(app))
        asking = threading.Thread(target=lambda: found.append(call(f"127.0.0.1:{port}", "ModelInfer", asked(flights))))
        asking.start()
        assert gate.entered.wait(10)
        closing = threading.Thread(target=stack.pop_all().close)
        closing.start()
        assert eventually(lambda: not app.ready) and not found
        gate.open.set()
        closing.join(20)
        asking.join(20)
    assert list(found[0][0].outputs[0].contents.fp64_contents) == [0.0]
    assert call(f"127.0.0.1:{port}", "ServerLive", b"", timeout=2)[1].code().name in (
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    )


def test_a_grpc_port_that_is_taken_is_said_in_words(flights: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        settings = Settings(serve=ServeConfig(grpc_port=sock.getsockname()[1]))
        with pytest.raises(UsageError), running(build_app([flights.make_service()], settings=settings)):
            pass


# ── the messages ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_messages_have_the_numbers_of_those_that_triton_generates() -> None:
    from tritonclient.grpc import service_pb2

    ours = wire.messages()
    compared = 0
    for name in wire.MESSAGES:
        theirs = service_pb2
        for part in name.split("."):
            theirs = getattr(theirs, part, None)
        if theirs is None:
            assert name in ("Any", "Status", "Duration", "RetryInfo")
            continue
        numbers = {field.name: (field.number, field.type) for field in theirs.DESCRIPTOR.fields}
        for field in ours[name].DESCRIPTOR.fields:
            assert numbers[field.name] == (field.number, field.type), f"{name}.{field.name}"
            compared += 1
    assert compared > 60


def test_any_message_is_read_or_refused() -> None:
    """A seeded walk over requests put together at random: reading one never raises."""
    import random

    from google.protobuf.message import DecodeError

    dice, made = random.Random(0), wire.messages()["ModelInferRequest"]
    for _ in range(500):
        body = dice.randbytes(dice.randint(0, 60))
        try:
            request = made.FromString(body)
        except DecodeError:  # what is no message is refused before it comes here
            request = made()
            for _ in range(dice.randint(0, 3)):
                kind = dice.choice(["FP64", "BYTES", "", "INT8", "FP16"])
                tensor = request.inputs.add(name=dice.choice(["a", ""]), datatype=kind, shape=[dice.randint(-2, 3)])
                tensor.contents.fp64_contents.extend([1.0] * dice.randint(0, 2))
                tensor.contents.bytes_contents.extend([dice.randbytes(2)] * dice.randint(0, 2))
            request.raw_input_contents.extend([b"a"] * dice.randint(0, 2))
        found = _tensors(request)
        assert isinstance(found, tuple) or found.status == 400


def test_without_grpc_the_port_is_refused_with_what_to_install() -> None:
    import subprocess
    import sys

    code = """
import sys
sys.modules["grpc"] = None
from tenon.errors import MissingError
from tenon.serving import rpc
try:
    rpc.needed()
except MissingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'tenon[grpc]'" in done.stdout
