"""Replay plays ticks in order over kept connections, and says in words what was refused or why nothing answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from tenon.config import ServeConfig
from tenon.errors import InputError, MissingError, UsageError
from tenon.limits import ServingLimits
from tenon.serving import Client, Pace, Seams, Settings, Tick, build_app, replay, running
from tenon.serving.play import Latencies
from tenon.store import Store

DAY = datetime(2013, 11, 1, tzinfo=UTC)


def tick(hours: float, **given: Any) -> Tick:
    return Tick(end=(DAY + timedelta(hours=hours)).timestamp(), **given)


def asked(flights: Any, number: int) -> dict[str, Any]:
    return {**flights.ASK, "id": f"n{number}"}


# ── replay ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_fact_and_label_of_every_tick_arrives_in_order(start: Any, flights: Any, store: Store) -> None:
    order: list[str] = []

    def tap(batch: Any) -> bool:
        order.extend(batch["id"])
        return True

    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}, tap=tap), settings=Settings(tap_s=0.01))
    ticks = [
        tick(
            n,
            facts={"flights": [flights.fact(n + 1)]},
            labels=[{"id": f"n{n * 20}", "label": True}],
            rows=[asked(flights, n * 20 + k) for k in range(20)],
        )
        for n in range(5)
    ]
    told: list[tuple[float, float, str]] = []
    pace = Pace(total_rows=100)
    done = replay(iter(ticks), ask.url, "late", pace=pace, progress=lambda *said: told.append(said))
    assert (done.predictions, done.facts, done.duplicates, done.labels, done.errors) == (100, 5, 0, 5, 0)
    assert (done.ticks, done.retries, done.said) == (5, 0, ())
    assert 0 < done.p50_ms <= done.p99_ms <= done.max_ms
    assert done.to_dict()["rate_per_s"] == done.rate_per_s > 0
    assert told[-1][:2] == (100.0, 100.0)
    time.sleep(0.05)
    assert [int(own[1:]) // 20 for own in order] == [n for n in range(5) for _ in range(20)], "tick after tick"
    assert sum(pl.read_ipc(batch.body).height for batch in store.read("labels", "late")) == 5


def test_a_prediction_of_a_tick_sees_its_facts(start: Any, flights: Any, store: Store) -> None:
    scores: list[float] = []

    def tap(batch: Any) -> bool:
        scores.extend(batch["score"])
        return True

    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}, tap=tap), settings=Settings(tap_s=0.01))
    late = [{**flights.fact(n), "carrier": "UA"} for n in (1, 2, 3)]
    ticks = [tick(n, facts={"flights": [late[n]]}, rows=[asked(flights, n)]) for n in range(3)]
    replay(ticks, ask.url, "late", pace=Pace(connections=1))
    time.sleep(0.05)
    assert scores == sorted(set(scores)), "each late flight of the carrier raises the next score"


def test_facts_played_twice_are_duplicates(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}))
    ticks = [tick(0, facts={"flights": [flights.fact(n) for n in range(1, 101)]})]
    assert replay(ticks, ask.url, "late", pace=Pace(facts_per_request=30)).facts == 100
    again = replay(ticks, ask.url, "late")
    assert (again.facts, again.duplicates) == (0, 100)


def test_rows_may_share_requests(start: Any, flights: Any) -> None:
    ask = start()
    ticks = [tick(0, rows=[asked(flights, n) for n in range(95)])]
    done = replay(ticks, ask.url, "late", pace=Pace(rows_per_request=10))
    assert (done.predictions, done.errors) == (95, 0)
    assert ask("GET", "/metrics").raw.decode().count('tenon_requests_total{door="predict",status="200"} 10.0') == 1


def test_refusals_are_counted_and_the_first_are_told_in_words(start: Any, flights: Any) -> None:
    rows = [{**flights.ASK, "carrier": "ZZ"} if n % 2 else flights.ASK for n in range(20)]
    done = replay([tick(0, rows=rows)], start().url, "late")
    assert (done.predictions, done.errors, len(done.said)) == (10, 10, 5)
    assert "$.carrier expected text, one of 'AA', 'DL', 'UA', got 'ZZ'" in done.said[0]


def test_a_wrong_token_is_told_in_words(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(serve=ServeConfig(token="s3cret")))
    ticks = [tick(0, rows=[flights.ASK] * 3)]
    assert "give the token of the service" in replay(ticks, ask.url, "late", pace=Pace(token="no")).said[0]
    assert replay(ticks, ask.url, "late", pace=Pace(token="s3cret")).predictions == 3


def test_a_service_that_asks_to_come_back_is_asked_again(start: Any, flights: Any) -> None:
    class Slow:
        def __init__(self, predictor: Any) -> None:
            self.predictor = predictor

        def score(self, columns: Any) -> Any:
            time.sleep(0.1)
            return self.predictor.score(columns)

    limits = ServingLimits(queue_rows=3, batch_rows=1)
    service = flights.make_service(predictor=Slow(flights.predictor()))
    ask = start(service, settings=Settings(limits=limits, inline_ms=0.0))
    done = replay([tick(0, rows=[flights.ASK] * 8)], ask.url, "late", pace=Pace(connections=8))
    assert (done.predictions, done.errors) == (8, 0)
    assert done.retries > 0


def test_the_pace_is_kept(start: Any, flights: Any) -> None:
    ask = start()
    ticks = [tick(n, rows=[flights.ASK]) for n in range(4)]
    began = time.perf_counter()
    done = replay(ticks, ask.url, "late", pace=Pace(speed=3600 / 0.15))
    assert 0.45 <= time.perf_counter() - began < 2.0
    assert done.behind_s < 0.5


def test_no_service_at_the_url_is_said_in_words(flights: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(MissingError, match=rf"a service that answers, .* - at http://127.0.0.1:{port}; start it with"):
        replay([tick(0, rows=[flights.ASK])], f"http://127.0.0.1:{port}", "late")
    with pytest.raises(MissingError, match="no such host"):
        Client("http://no.such.host.invalid").get("/healthz")
    with pytest.raises(UsageError, match="the URL of a service"):
        replay([], "ftp://x", "late")
    with pytest.raises(UsageError, match="connections of at least 1"):
        Pace(connections=0)


def test_a_service_that_goes_away_is_said_in_words(flights: Any) -> None:
    gone = threading.Event()

    def ticks(url: str) -> Iterator[Tick]:
        yield tick(0, rows=[flights.ASK] * 5)
        gone.wait(10)
        yield tick(1, rows=[flights.ASK] * 5)

    failed: list[BaseException] = []

    def work(url: str) -> None:
        try:
            replay(ticks(url), url, "late", pace=Pace(timeout_s=2.0))
        except MissingError as error:
            failed.append(error)

    with running(build_app([flights.make_service()])) as url:
        thread = threading.Thread(target=work, args=(url,))
        thread.start()
        time.sleep(0.3)
    gone.set()
    thread.join(20)
    assert "a service that answers" in str(failed[0])


def test_what_is_no_http_is_said_in_words(flights: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"hello, this is another protocol\r\n")
            time.sleep(0.5)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(InputError, match="an answer in HTTP"):
            replay(
                [tick(0, rows=[flights.ASK])], f"127.0.0.1:{server.getsockname()[1]}", "late", pace=Pace(connections=1)
            )


def test_latencies_are_right_within_one_percent() -> None:
    latencies = Latencies()
    for number in range(1, 10_001):
        latencies.add(number / 1e4)
    assert latencies.quantile(0.5) == pytest.approx(0.5, rel=0.011)
    assert latencies.quantile(0.99) == pytest.approx(0.99, rel=0.011)
    assert latencies.max_s == 1.0
    assert Latencies().quantile(0.5) == 0.0


# ── the client of commands ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_client_predicts_posts_facts_and_labels(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}))
    with Client(ask.url) as client:
        answer = client.predict("late", [asked(flights, 1), asked(flights, 2)])
        assert [one["id"] for one in answer["predictions"]] == ["n1", "n2"]
        assert client.facts("flights", [flights.FACT])["accepted"] == 1
        assert client.labels("late", [{"id": "n1", "label": True}])["accepted"] == 1
        assert client.get("/readyz")["models"] == {"late": "v1"}


def test_the_client_says_what_was_refused(start: Any, flights: Any) -> None:
    with Client(start().url) as client:
        with pytest.raises(InputError, match=r"expected an answer, got 422: .*\$\.rows\[0\]\.carrier expected text"):
            client.predict("late", [{**flights.ASK, "carrier": "ZZ"}])
        with pytest.raises(InputError, match=r"404: .*look at its /docs"):
            client.predict("other", [flights.ASK])
        with pytest.raises(InputError, match="is it a tenon service"):
            client.get("/metrics")


def test_the_client_survives_a_connection_that_was_closed_while_idle(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(idle_s=0.3)))
    with Client(ask.url) as client:
        client.get("/healthz")
        time.sleep(2.5)
        assert client.get("/healthz") == {"status": "ok"}
