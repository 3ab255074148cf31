"""Malformed, oversized, slow, truncated and pipelined requests: never a 5xx, never a crash, memory and time bounded."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.limits import ServingLimits
from tenon.serving import Settings


@contextmanager
def wire(ask: Any) -> Iterator[socket.socket]:
    host, port = ask.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def everything(sock: socket.socket) -> bytes:
    """Read until the server closes."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def request(path: bytes, body: bytes, *more: bytes, method: bytes = b"POST") -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *more]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# ── any bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["rows", "inputs", "outputs", "id", "carrier", "flight", "sched_dep", "distance", "parameters"])
shaped = st.dictionaries(
    keys | st.text(max_size=4), json_values | st.lists(st.dictionaries(keys, json_values), max_size=3)
)
bodies = st.one_of(
    st.binary(max_size=80),
    json_values.map(lambda value: json.dumps(value).encode()),
    shaped.map(lambda value: json.dumps(value).encode()),
)
paths = st.sampled_from(
    ["/predict/late", "/v2/models/late/infer", "/labels/late", "/facts/flights", "/", "/v2/repository/index"]
)


@settings(max_examples=300, deadline=None)
@given(
    path=paths, body=bodies, length=st.none() | st.integers(-5, 100).map(str) | st.text("0123456789abc-", max_size=6)
)
def test_no_body_of_any_door_is_answered_with_a_5xx_of_ours(
    served: Any, path: str, body: bytes, length: str | None
) -> None:
    headers = {} if length is None else {"inference-header-content-length": length}
    answer = served("POST", path, body, headers)
    # A service without a store answers 503 to well-formed facts and labels, and to nothing else.
    assert answer.status < 500 or (answer.status == 503 and path.startswith(("/facts", "/labels")))


@pytest.fixture(scope="module")
def served(plain: str, flights: Any) -> Iterator[Any]:
    asker = flights.asker(plain)
    yield asker
    asker.connection.close()


@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200), st.text(max_size=100).map(lambda t: b"POST /" + t.encode() + b" HTTP/1.1\r\n\r\n")
    )
)
def test_no_bytes_on_the_wire_bring_the_service_down(served: Any, data: bytes) -> None:
    with wire(served) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(0.02)
        try:
            answer = sock.recv(65536)
        except TimeoutError:
            answer = b""  # it waits for the rest
    assert all(status < 500 for status in statuses(answer))
    assert served("GET", "/healthz").status == 200


def test_mutated_requests_are_answered_or_cut_and_never_5xx(served: Any, flights: Any) -> None:
    rng = random.Random(7)
    good = request(b"/predict/late", json.dumps(flights.ASK).encode(), b"content-type: application/json")
    seen: set[int] = set()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(data))
            change = rng.random()
            if change < 0.4:
                data[place] = rng.randrange(256)
            elif change < 0.7:
                del data[place : place + rng.randint(1, 20)]
            else:
                data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
            data = data or bytearray(b"x")
        with wire(served) as sock:
            sock.sendall(bytes(data))
            sock.settimeout(0.01)
            try:
                seen.update(statuses(sock.recv(65536)))
            except (TimeoutError, ConnectionResetError):
                pass
    assert seen
    assert all(status < 500 for status in seen), seen
    assert served.predict(flights.ASK).status == 200


# ── heads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("complete", [True, False])
def test_a_head_over_the_limit_is_431(start: Any, complete: bool) -> None:
    ask = start(settings=Settings(limits=ServingLimits(header_bytes=4000)))
    with wire(ask) as sock:
        sock.sendall(b"POST /predict/late HTTP/1.1\r\n")
        try:
            for number in range(100):
                sock.sendall(b"x-%d: %s\r\n" % (number, b"y" * 100))
                time.sleep(0.001)
            if complete:
                sock.sendall(b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = everything(sock)
    assert statuses(answer) == [431] or answer == b""
    assert ask("GET", "/healthz").status == 200


def test_a_head_over_the_limit_in_one_piece_is_431(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(header_bytes=4000)))
    with wire(ask) as sock:
        sock.sendall(request(b"/predict/late", b"{}", *(b"x-%d: %s" % (n, b"y" * 100) for n in range(60))))
        assert 431 in statuses(everything(sock))
    assert ask.predict(flights.ASK, {"x-large": "y" * 3000}).status == 200


def test_more_connections_than_the_limit_are_told_to_come_back(start: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(connections=3)))
    with wire(ask), wire(ask), wire(ask), wire(ask) as fourth:
        answer = everything(fourth)
        assert statuses(answer) == [503]
        assert b"retry-after: 1" in answer


# ── slowness ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clients_that_never_finish_are_let_go(start: Any) -> None:
    halves = {
        b"POST /predict/late HTTP/1.1\r\nhost: x\r\n": [408],
        b"POST /predict/late HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{": [408],
        b"POST /predict/late HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{": [408],
        b"": [],
    }
    ask = start(settings=Settings(limits=ServingLimits(request_s=0.5, idle_s=0.5)))
    began = time.perf_counter()
    with ExitStack() as stack:
        wires = {sent: stack.enter_context(wire(ask)) for sent in halves}
        for sent, sock in wires.items():
            sock.sendall(sent)
        for sent, sock in wires.items():
            assert statuses(everything(sock)) == halves[sent], sent
    assert time.perf_counter() - began < 5
    assert ask("GET", "/healthz").status == 200


def test_a_client_that_drips_bytes_does_not_get_more_time(start: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(request_s=1.0)))
    began = time.perf_counter()
    with wire(ask) as sock:
        sock.sendall(b"POST /predict/late HTTP/1.1\r\ncontent-length: 10000\r\n\r\n")
        try:
            while time.perf_counter() - began < 8:
                sock.sendall(b" ")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.perf_counter() - began < 6


def test_a_client_that_does_not_read_its_answers_is_let_go(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(request_s=0.5)))
    body = json.dumps({"rows": [flights.ASK] * 5000}).encode()
    with wire(ask) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        began = time.perf_counter()
        try:
            while time.perf_counter() - began < 8:
                sock.sendall(request(b"/predict/late", body))
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.perf_counter() - began < 8
    assert ask("GET", "/healthz").status == 200


# ── several requests on one wire ─────────────────────────────────────────────────────────────────────────────────────


def test_pipelined_requests_are_answered_in_order(ask: Any, flights: Any) -> None:
    parts = [request(b"/predict/late", json.dumps({**flights.ASK, "id": n}).encode()) for n in range(50)]
    with wire(ask) as sock:
        sock.sendall(b"".join(parts))
        found = b""
        while found.count(b"HTTP/1.1 200") < 50 or not found.endswith(b"}]}"):
            data = sock.recv(65536)
            assert data, found
            found += data
    ids = [int(part.split(b'"')[0]) for part in found.split(b'"id":"')[1:]]
    assert ids == list(range(50))


def test_a_client_that_leaves_in_the_middle_costs_nothing(ask: Any, flights: Any) -> None:
    for _ in range(50):
        with wire(ask) as sock:
            sock.sendall(request(b"/predict/late", json.dumps(flights.ASK).encode()))
        with wire(ask) as sock:
            sock.sendall(b"POST /predict/late HTTP/1.1\r\ncontent-length: 500\r\n\r\n{")
    assert ask.predict(flights.ASK).status == 200


def test_memory_stays_bounded_under_large_bodies_and_open_ends(start: Any) -> None:
    ask = start()
    process = psutil.Process()
    blob = b'{"rows": [' + b'{"carrier": 1}, ' * 200_000 + b"{}]}"
    ask.predict(blob)
    before = process.memory_info().rss
    for _ in range(8):
        assert ask.predict(blob).status == 422
    assert process.memory_info().rss - before < 150 * 1024 * 1024
