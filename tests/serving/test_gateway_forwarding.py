"""The gateway in front of real processes: passed on unchanged, streamed, retried, sticky, refused, warm again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tenon.config import ServeConfig
from tenon.limits import Limits, RouteLimits
from tenon.serving import running
from tenon.serving.admission import Gate, Quota
from tenon.serving.gateway import Gateway
from tenon.serving.replica import Within, connect

from ..waiting import eventually

REPLICA = """
import asyncio, json, sys, os
import uvicorn
name, delay = sys.argv[1], float(sys.argv[2])
seen = set()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = (await receive()).get("body", b"")
    path = scope["path"]
    head = [(b"content-type", b"application/json"), (b"x-replica", name.encode())]
    async def say(status, data, more=()):
        await send({"type": "http.response.start", "status": status,
                    "headers": [*head, *more, (b"content-length", b"%d" % len(data))]})
        await send({"type": "http.response.body", "body": data})
    if path in ("/readyz", "/health"):
        return await say(200, b"{}")
    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for n in range(5):
            await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % n, "more_body": True})
            await asyncio.sleep(0.15)
        return await send({"type": "http.response.body", "body": b""})
    if path == "/die":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        await asyncio.sleep(0.1)
        os._exit(1)
    if path == "/busy":
        return await say(503 if name == "a" else 200, name.encode())
    if path == "/predict/kill" and name == "a" or path == "/act":
        os._exit(1)
    if path == "/large":
        return await say(200, b"x" * 3_000_000)
    if path.startswith("/v1/"):
        await asyncio.sleep(0.002 if body[:3000] in seen else 0.15)
        seen.add(body[:3000])
    await asyncio.sleep(delay)
    headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
    await say(200, json.dumps({"replica": name, "method": scope["method"], "path": path, "headers": headers,
        "query": scope["query_string"].decode(), "body": body.decode("latin-1")}).encode())

import socket
sock = socket.create_server(("127.0.0.1", int(sys.argv[3])), backlog=512)
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off")).run(sockets=[sock])
"""


@contextmanager
def process(name: str, *, delay: float = 0.0, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a small server in a process of its own; yields it and its URL."""
    with subprocess.Popen(
        [sys.executable, "-c", REPLICA, name, str(delay), str(port)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server, f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def pair() -> Iterator[list[str]]:
    """Two replicas that nobody kills."""
    with process("a") as (_, a), process("b") as (_, b):
        yield [a, b]


@contextmanager
def gateway(urls: list[str], **more: Any) -> Iterator[str]:
    with running(Gateway(connect(urls), **more)) as url:
        yield url


def ask(
    url: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


# ── passing on ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_and_its_answer_are_passed_on_unchanged_but_for_headers_of_the_connection(pair: list[str]) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with gateway(pair) as url:
        status, headers, body = ask(
            url, "POST", "/predict/m%20x?a=1&b=%2F", b'{"rows": []}',
            x_mine="kept", connection="x-hop", x_hop="dropped", traceparent=trace,
        )  # fmt: skip
    told = json.loads(body)
    assert (status, told["method"], told["path"], told["query"]) == (200, "POST", "/predict/m x", "a=1&b=%2F")
    assert told["body"] == '{"rows": []}'
    assert told["headers"]["x-mine"] == "kept"
    assert "x-hop" not in told["headers"]
    assert told["headers"]["host"] in {url.removeprefix("http://") for url in pair}
    assert headers["x-replica"] == told["replica"]
    spans = {headers["traceparent"], told["headers"]["traceparent"]}
    assert len(spans) == 1 and spans.pop().split("-")[1] == trace.split("-")[1]
    assert told["headers"]["traceparent"] != trace


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_every_method_is_passed_on(pair: list[str], method: str) -> None:
    with gateway(pair) as url:
        status, headers, body = ask(url, method, "/thing")
    assert status == 200
    assert body == b"" if method == "HEAD" else json.loads(body)["method"] == method
    assert int(headers["content-length"]) > 0


def test_a_large_answer_comes_whole_and_a_stream_comes_as_it_is_made(pair: list[str]) -> None:
    with gateway(pair) as url:
        assert len(ask(url, "GET", "/large")[2]) == 3_000_000
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        began = time.monotonic()
        connection.request("GET", "/stream")
        answer = connection.getresponse()
        first = answer.read1(100)
        took = time.monotonic() - began
        assert first == b"data: 0\n\n"
        assert took < 0.4
        assert answer.read().count(b"data") == 4
        connection.close()


def test_an_app_in_this_process_is_a_replica_too(flights: Any) -> None:
    from tenon.serving import build_app

    with running(Gateway({"here": Within(build_app([flights.make_service()]))})) as url:
        status, _, body = ask(url, "POST", "/predict/late", json.dumps(flights.ASK).encode())
        assert status == 200 and len(json.loads(body)["predictions"]) == 1
        assert ask(url, "GET", "/nothing")[0] == 404


# ── where requests go ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_stays_with_its_replica_by_header_and_by_cookie(pair: list[str]) -> None:
    with gateway(pair) as url:
        for key in ("one", "two", "three"):
            by_header = {ask(url, "POST", "/predict/m", b"{}", x_session_id=key)[1]["x-replica"] for _ in range(6)}
            cookie = f"other=1; tenon-session={key}"
            by_cookie = {ask(url, "POST", "/predict/m", b"{}", cookie=cookie)[1]["x-replica"] for _ in range(6)}
            assert len(by_header | by_cookie) == 1


def test_a_conversation_goes_on_where_its_beginning_was_read(pair: list[str]) -> None:
    with gateway(pair) as url:
        homes = set()
        for talk in range(6):
            messages = [{"role": "user", "content": f"{talk} " + "long ago " * 600}]
            seen = set()
            for turn in range(4):
                body = json.dumps({"model": "m", "messages": messages}).encode()
                seen.add(ask(url, "POST", "/v1/chat/completions", body)[1]["x-replica"])
                messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"and {turn}?"}]
            assert len(seen) == 1
            homes |= seen
        assert homes == {"a", "b"}


# ── when replicas fail ───────────────────────────────────────────────────────────────────────────────────────────────


def hammer(url: str, seconds: float, connections: int = 8) -> tuple[list[int], list[str]]:
    """Ask on kept connections from several threads; returns every status and who answered."""
    until, statuses, names = time.monotonic() + seconds, list[int](), list[str]()

    def work() -> None:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        while time.monotonic() < until:
            connection.request("POST", "/predict/m", b"{}")
            answer = connection.getresponse()
            statuses.append(answer.status)
            names.append(answer.getheader("x-replica") or "")
            answer.read()
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, names


def test_a_replica_killed_under_load_fails_no_request_and_is_used_again_when_it_is_back() -> None:
    with process("a", delay=0.01) as (victim, a), process("b", delay=0.01) as (_, b), gateway([a, b]) as url:
        killer = threading.Timer(0.7, victim.kill)
        killer.start()
        statuses, names = hammer(url, 2.0)
        assert set(statuses) == {200}
        assert {"a", "b"} == set(names) and set(names[-20:]) == {"b"}
        with process("a", delay=0.01, port=int(a.rpartition(":")[2])):
            assert eventually(lambda: "a" in hammer(url, 0.3)[1], 8)


def test_a_replica_that_hangs_is_found_out_and_its_requests_go_elsewhere() -> None:
    limits = Limits(route=RouteLimits(probe_s=0.1))
    with ExitStack() as stack:
        (victim, a), (_, b) = (stack.enter_context(process(name, delay=0.02)) for name in "ab")
        url = stack.enter_context(running(Gateway(connect([a, b], limits), limits=limits)))
        hammer(url, 0.3)
        os.kill(victim.pid, signal.SIGSTOP)
        statuses, _ = hammer(url, 1.0)
        os.kill(victim.pid, signal.SIGCONT)
    assert set(statuses) == {200}


def test_one_that_is_full_is_passed_over_and_only_a_request_that_may_be_asked_twice_is() -> None:
    with ExitStack() as stack:
        (_, a), (_, b) = (stack.enter_context(process(name)) for name in "ab")
        url = stack.enter_context(gateway([a, b]))
        assert {ask(url, "GET", "/busy")[2] for _ in range(10)} == {b"b"}
        assert {ask(url, "POST", "/predict/kill", b"{}")[0] for _ in range(10)} == {200}
        status, _, body = ask(url, "POST", "/act", b"{}")
        assert status == 502
        assert "may not be asked twice" in json.loads(body)["error"]


def test_an_answer_that_breaks_off_in_its_middle_is_not_taken_for_whole() -> None:
    with process("a") as (_, a), gateway([a]) as url, pytest.raises(http.client.HTTPException):
        ask(url, "GET", "/die")


@pytest.mark.parametrize(
    "said",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", b"HTTP/1.1 999999 X\r\n\r\n"],
)
def test_a_replica_that_speaks_no_http_is_a_refusal_in_words(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1_000)
                    connection.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        limits = Limits(route=RouteLimits(hold_s=0.2))
        with running(Gateway(connect([f"http://127.0.0.1:{port}"]), limits=limits)) as url:
            status, headers, body = ask(url, "GET", "/x")
        server.shutdown(socket.SHUT_RDWR)
    assert status == 503
    assert headers["retry-after"] == "1"
    assert "expected a replica that answers" in json.loads(body)["error"]


def test_no_replica_up_is_waited_for_within_the_hold_and_then_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    limits = Limits(route=RouteLimits(hold_s=4.0, probe_s=0.1))
    with running(Gateway(connect([f"http://127.0.0.1:{port}"], limits), limits=limits)) as url, ExitStack() as stack:
        assert ask(url, "GET", "/readyz")[0] in (200, 503)
        threading.Timer(0.3, lambda: stack.enter_context(process("late", port=port))).start()
        assert ask(url, "GET", "/x")[0] == 200


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_the_token_nothing_passes(pair: list[str]) -> None:
    with gateway(pair, serve=ServeConfig(token="secret")) as url:
        assert ask(url, "GET", "/x")[0] == 401
        assert ask(url, "GET", "/x", authorization="Bearer wrong")[0] == 401
        assert ask(url, "GET", "/x", authorization="Bearer secret")[0] == 200
        assert ask(url, "GET", "/healthz")[0] == 200


def test_a_key_that_asks_too_often_is_told_when_to_come_back(pair: list[str]) -> None:
    gate = Gate({"alice": Quota(rate_per_s=0.5, burst=3)})
    with gateway(pair, gate=gate) as url:
        got = [ask(url, "GET", "/x", x_api_key="alice") for _ in range(5)]
        assert [status for status, _, _ in got] == [200, 200, 200, 429, 429]
        assert got[-1][1]["retry-after"] in ("1", "2")
        assert {ask(url, "GET", "/x", x_api_key="bob")[0] for _ in range(5)} == {200}


def test_a_body_beyond_its_bound_is_refused(pair: list[str]) -> None:
    with gateway(pair) as url:
        assert ask(url, "POST", "/predict/m", b"x" * 5_000_000)[0] == 413


# ── what can be seen, and what is kept ───────────────────────────────────────────────────────────────────────────────


def test_counts_and_the_state_of_replicas_can_be_read(pair: list[str]) -> None:
    with gateway(pair) as url:
        for _ in range(3):
            ask(url, "GET", "/x")
        text = ask(url, "GET", "/metrics")[2].decode()
        assert 'tenon_gateway_requests_total{status="200"} 3.0' in text
        assert "tenon_gateway_seconds_bucket" in text
        state = json.loads(ask(url, "GET", "/replicas")[2])
    assert [replica["up"] for replica in state["replicas"]] == [True, True]
    assert state["goodput"] == 1.0


def test_a_gateway_that_comes_back_knows_where_conversations_are(pair: list[str], tmp_path: Path) -> None:
    state = tmp_path / "deep" / "route.state"

    def body(talk: int) -> bytes:
        return json.dumps({"prompt": f"{talk} " + "word " * 4_000}).encode()

    homes = {}
    with gateway(pair, state=state) as url:
        for talk in range(8):
            homes[talk] = ask(url, "POST", "/v1/completions", body(talk))[1]["x-replica"]
    with gateway(pair, state=state) as url:
        assert {n: ask(url, "POST", "/v1/completions", body(n))[1]["x-replica"] for n in range(8)} == homes
    state.write_bytes(b"\x00 broken")
    with gateway(pair, state=state) as url:
        assert ask(url, "POST", "/v1/completions", body(1))[0] == 200
