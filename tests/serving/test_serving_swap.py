"""Another version takes over between two requests: none is dropped, no fact missed, and what served when is kept."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tenon.errors import MissingError
from tenon.serving import App, Seams, Service, Settings, build_app, running
from tenon.store import Store

from ..waiting import eventually

QUICK = Settings(poll_s=0.05)


class Alias:
    """Which version is current, how versions are made, and what was recorded."""

    def __init__(self, make: Callable[..., Service]) -> None:
        self.make = make
        self.version = "v1"
        self.events: list[tuple[str, str, Mapping[str, Any]]] = []
        self.loads: list[str] = []
        self.fails = False

    def seams(self, **more: Any) -> Seams:
        return Seams(current=lambda _: self.version, load=self.load, record=self.record, **more)

    def load(self, model: str, version: str) -> Service:
        self.loads.append(version)
        if self.fails:
            raise MissingError("expected the version, got none")
        return self.make(version, bias=float(len(version)))

    def record(self, kind: str, subject: str, body: Mapping[str, Any]) -> None:
        self.events.append((kind, subject, body))


def version_of(ask: Any, flights: Any) -> str:
    version: str = ask.predict(flights.ASK).json["version"]
    return version


def test_the_alias_is_followed_and_each_change_is_recorded(start: Any, flights: Any) -> None:
    alias = Alias(flights.make_service)
    ask = start(seams=alias.seams(), settings=QUICK)
    assert version_of(ask, flights) == "v1"
    alias.version = "v2-better"
    assert eventually(lambda: version_of(ask, flights) == "v2-better", 4)
    assert ask("GET", "/readyz").json["models"] == {"late": "v2-better"}
    assert ask("GET", "/v2/models/late").json["versions"] == ["v2-better"]
    assert ask("GET", "/v2/models/late/versions/v1").status == 404
    assert eventually(lambda: len(alias.events) == 2, 4)
    (_, _, began), (kind, subject, swapped) = alias.events
    assert (kind, subject) == ("serving", "late")
    assert (began["state"], began["version"]) == ("start", "v1")
    assert (swapped["state"], swapped["version"], swapped["previous"]) == ("swap", "v2-better", "v1")
    assert {"pid", "host", "port"} <= set(swapped)
    assert swapped["port"] == int(ask.url.rsplit(":", 1)[1])


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving_and_is_not_tried_each_second(
    start: Any, flights: Any
) -> None:
    alias = Alias(flights.make_service)
    ask = start(seams=alias.seams(), settings=QUICK)
    alias.fails, alias.version = True, "v2"
    assert eventually(lambda: bool(alias.loads), 4)
    time.sleep(0.3)
    assert alias.loads == ["v2"]
    assert version_of(ask, flights) == "v1"
    alias.fails, alias.version = False, "v3"
    assert eventually(lambda: version_of(ask, flights) == "v3", 4)


def test_no_request_is_dropped_while_versions_change_under_load(start: Any, flights: Any) -> None:
    alias = Alias(flights.make_service)
    ask = start(seams=alias.seams(), settings=QUICK)
    stop = threading.Event()
    statuses: list[int] = []
    scores: dict[str, set[float]] = {}

    def work() -> None:
        asker = flights.asker(ask.url)
        while not stop.is_set():
            answer = asker.predict(flights.ASK)
            statuses.append(answer.status)
            scores.setdefault(answer.json["version"], set()).add(answer.json["predictions"][0]["score"])
        asker.connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 6):
        alias.version = "v" * number
        assert eventually(lambda: alias.version in scores, 4)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert len(scores) == 5
    assert all(len(found) == 1 for found in scores.values()), "each answer names the version that made it"


def test_facts_posted_before_during_and_after_a_swap_reach_the_new_version(
    start: Any, flights: Any, store: Store
) -> None:
    alias = Alias(flights.make_service)
    ask = start(seams=alias.seams(store=store, sources={"flights": flights.SOURCE}), settings=QUICK)
    posted = 0

    def post(count: int) -> None:
        nonlocal posted
        for _ in range(count):
            posted += 1
            assert ask("POST", "/facts/flights", flights.fact(posted)).json["accepted"] == 1

    post(20)
    alias.version = "v2"
    post(60)
    assert eventually(lambda: version_of(ask, flights) == "v2", 4)
    post(20)
    expected = flights.make_service("v2", bias=2.0)
    from datetime import datetime

    import polars as pl

    from tenon.serving import restore

    restore(expected.online, store, {"flights": flights.SOURCE})
    row = {**flights.ASK, "sched_dep": datetime.fromisoformat(flights.ASK["sched_dep"])}
    wanted = expected.predictor.score(expected.online.read([row])).tolist()[0]
    assert ask.predict(flights.ASK).json["predictions"][0]["score"] == wanted
    assert sum(pl.read_ipc(batch.body).height for batch in store.read("facts", "flights")) == posted


async def asgi(app: App, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Ask the app as any ASGI server would, without one."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.request", "body": body[9:]}]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_swap_may_be_asked_for_directly_and_under_any_asgi_server(flights: Any, store: Store) -> None:
    async def scenario() -> None:
        app = build_app([flights.make_service()], seams=Seams(store=store, sources={"flights": flights.SOURCE}))
        await app.start()
        body = json.dumps(flights.ASK).encode()
        assert (await asgi(app, "POST", "/predict/late", body))[1]["version"] == "v1"
        await app.swap(flights.make_service("v2"))
        status, answer = await asgi(app, "POST", "/predict/late", body)
        assert (status, answer["version"]) == (200, "v2")
        with pytest.raises(MissingError, match="did you mean 'late'"):
            await app.swap(flights.make_service("v2", name="lat"))
        assert (await asgi(app, "POST", "/facts/flights", json.dumps(flights.FACT).encode()))[1]["accepted"] == 1
        await app.stop()
        assert (await asgi(app, "GET", "/readyz"))[0] == 503

    asyncio.run(scenario())


def test_start_and_stop_are_recorded_and_a_record_that_fails_stops_nothing(flights: Any) -> None:
    alias = Alias(flights.make_service)
    with running(build_app([flights.make_service()], seams=Seams(record=alias.record))):
        pass
    assert [body["state"] for _, _, body in alias.events] == ["start", "stop"]

    def failing(kind: str, subject: str, body: Mapping[str, Any]) -> None:
        raise MissingError("expected the store, got none")

    with running(build_app([flights.make_service()], seams=Seams(record=failing))) as url:
        ask = flights.asker(url)
        assert ask.predict(flights.ASK).status == 200
        ask.connection.close()
