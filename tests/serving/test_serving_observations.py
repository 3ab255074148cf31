"""Monitoring is told of every answer, after it was given, and can neither slow one nor stop one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tenon.limits import ServingLimits, WatchLimits
from tenon.serving import Seams, Settings
from tenon.store import Store
from tenon.watch import Collector

Batch = Mapping[str, Sequence[Any]]


class Kept:
    """A tap that keeps what it is offered, until it is told to refuse or to fail."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.answer: bool | Exception = True

    def __call__(self, batch: Batch) -> bool:
        self.batches.append(batch)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def rows(self, wanted: int) -> list[dict[str, Any]]:
        """Wait for so many rows and return them."""
        for _ in range(200):
            found = [
                dict(zip(b, values, strict=True)) for b in self.batches for values in zip(*b.values(), strict=True)
            ]
            if len(found) >= wanted:
                return found
            time.sleep(0.01)
        raise AssertionError(f"expected {wanted} rows, got {self.batches}")


def metric(ask: Any, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(ask("GET", "/metrics").raw.decode()):
        for one in family.samples:
            if one.name == name and labels.items() <= one.labels.items():
                return float(one.value)
    return 0.0


QUICK = Settings(tap_s=0.02)


def test_an_observation_holds_what_was_asked_what_was_read_and_what_was_answered(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap, clock=lambda: 1_400_000_000.0), settings=QUICK)
    (one,) = ask.predict({**flights.ASK, "id": "mine"}).json["predictions"]
    (row,) = tap.rows(1)
    took = row.pop("latency_ms")
    assert 0 < took < 1000
    assert row == {
        "id": "mine",
        "time": datetime(2013, 11, 1, 5, 15),
        "at": 1_400_000_000.0,
        "model": "late",
        "version": "v1",
        "score": one["score"],
        "error": "",
        "usd": 1e-6,
        "key_carrier": "UA",
        "key_flight": 1545,
        "f_hour": 5.0,
        "f_flight": 1545.0,
        "f_distance": 1400.0,
        "f_carrier": "UA",
        "f_carrier_late_7d": 0.5,
    }


def test_rows_are_gathered_over_requests_and_offered_together(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap), settings=Settings(tap_s=0.3))
    for _ in range(20):
        ask.predict({"rows": [flights.ASK] * 3})
    assert len(tap.rows(60)) == 60
    assert len(tap.batches) <= 3


def test_a_full_batch_is_offered_without_waiting(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap), settings=Settings(tap_s=60.0, tap_batch_rows=10))
    ask.predict({"rows": [flights.ASK] * 25})
    assert len(tap.rows(25)) == 25


def test_what_waits_is_offered_when_the_service_stops(flights: Any) -> None:
    from tenon.serving import build_app, running

    tap = Kept()
    with running(build_app([flights.make_service()], seams=Seams(tap=tap), settings=Settings(tap_s=60.0))) as url:
        ask = flights.asker(url)
        ask.predict(flights.ASK)
        ask.connection.close()
    assert len(tap.rows(1)) == 1


def test_a_refused_request_is_an_observation_with_its_error(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap), settings=QUICK)
    ask.predict(flights.ASK)
    ask.predict({**flights.ASK, "carrier": "ZZ"})
    good, bad = tap.rows(2)
    assert (good["error"], bad["error"], bad["score"], bad["f_hour"]) == ("", "invalid", None, None)
    assert bad["id"]
    assert bad["time"] <= datetime.now(UTC).replace(tzinfo=None)


def test_a_flood_of_bad_requests_does_not_fill_the_store(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap, clock=lambda: 5.0), settings=Settings(tap_s=0.02, tap_batch_rows=10_000))
    for _ in range(1100):
        ask.predict(b"{")
    ask.predict(flights.ASK)
    assert len(tap.rows(1001)) == 1001
    assert metric(ask, "tenon_tap_dropped_rows_total", model="late") == 100
    assert metric(ask, "tenon_errors_total", model="late", kind="invalid") == 1100


def test_the_event_time_may_be_derived(start: Any, flights: Any) -> None:
    tap = Kept()
    service = flights.make_service(time="", moments=lambda rows: [datetime(2020, 1, 1)] * len(rows))
    start(service, seams=Seams(tap=tap), settings=QUICK).predict(flights.ASK)
    assert tap.rows(1)[0]["time"] == datetime(2020, 1, 1)


def test_a_time_that_cannot_be_told_costs_no_other_row_its_own(start: Any, flights: Any) -> None:
    def moments(rows: Sequence[Mapping[str, Any]]) -> list[datetime | None]:
        if any(row["flight"] == 13 for row in rows):
            raise ValueError("flight 13 has no time")
        return [datetime(2020, 1, 1)] * len(rows)

    tap = Kept()
    ask = start(flights.make_service(time="", moments=moments), seams=Seams(tap=tap), settings=QUICK)
    ask.predict({"rows": [{**flights.ASK, "flight": number} for number in (12, 13, 14)]})
    found = [row["time"] == datetime(2020, 1, 1) for row in tap.rows(3)]
    assert found == [True, False, True]


def test_another_version_begins_another_batch(start: Any, flights: Any) -> None:
    tap = Kept()
    two = (flights.make_service(), flights.make_service(name="other", version="w1"))
    ask = start(*two, seams=Seams(tap=tap), settings=QUICK)
    ask.predict(flights.ASK)
    ask("POST", "/predict/other", flights.ASK)
    tap.rows(2)
    assert all(len(set(batch["version"])) == 1 for batch in tap.batches)


def test_a_tap_that_refuses_or_fails_is_counted_and_answers_go_on(start: Any, flights: Any) -> None:
    tap = Kept()
    ask = start(seams=Seams(tap=tap), settings=QUICK)
    for answer in (False, RuntimeError("monitoring is down")):
        tap.batches.clear()
        tap.answer = answer
        assert ask.predict({"rows": [flights.ASK] * 2}).status == 200
        tap.rows(2)
    assert ask.predict(flights.ASK).status == 200
    assert metric(ask, "tenon_tap_dropped_rows_total", model="late") >= 4


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_count_requests_rows_errors_cost_and_time(start: Any, flights: Any) -> None:
    ask = start()
    for _ in range(3):
        ask.predict({"rows": [flights.ASK] * 4})
    ask.predict(b"{")
    assert metric(ask, "tenon_requests_total", door="predict", status="200") == 3
    assert metric(ask, "tenon_requests_total", door="predict", status="400") == 1
    assert metric(ask, "tenon_rows_total", model="late") == 12
    assert metric(ask, "tenon_errors_total", model="late", kind="invalid") == 1
    assert round(metric(ask, "tenon_usd_total", model="late"), 9) == 12e-6
    assert round(metric(ask, "tenon_usd_per_1000", model="late"), 9) == 1e-3
    assert round(metric(ask, "tenon_usd_per_request", model="late"), 9) == 4e-6
    assert metric(ask, "tenon_model_info", model="late", version="v1") == 1
    assert metric(ask, "tenon_ready") == 1
    for stage in ("queue", "features", "infer", "total"):
        assert metric(ask, f"tenon_{stage}_seconds_count", model="late") == 3
        assert 0 < metric(ask, f"tenon_{stage}_seconds_sum", model="late") < 3
        assert metric(ask, f"tenon_{stage}_seconds_bucket", model="late", le="+Inf") == 3
    assert metric(ask, "tenon_batch_rows_sum", model="late") == 12


def test_the_registry_is_the_one_that_is_given(start: Any, flights: Any) -> None:
    registry = CollectorRegistry()
    start(seams=Seams(registry=registry)).predict(flights.ASK)
    assert registry.get_sample_value("tenon_model_info", {"model": "late", "version": "v1"}) == 1


def test_refusals_of_a_full_queue_are_counted_apart(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(limits=ServingLimits(rows_per_request=2)))
    ask.predict({"rows": [flights.ASK] * 3})
    assert metric(ask, "tenon_errors_total", model="late", kind="invalid") == 1


def test_a_store_that_hangs_slows_no_answer_and_what_finds_no_room_is_counted(
    start: Any, flights: Any, store: Store
) -> None:
    """Order of effects, not time: while the store hangs all answers come, and then what waited is kept."""
    limits = WatchLimits(buffer_rows=60, flush_s=0.01)
    with Collector(store, "late", limits) as collector:
        ask = start(seams=Seams(tap=collector.offer), settings=Settings(tap_s=0.01, tap_batch_rows=10))
        with Store.open(store.root) as other, other.atomic():
            other.put("note", "held", {"id": "held"})
            for number in range(1, 101):
                assert ask.predict({**flights.ASK, "flight": number}).status == 200
            assert collector.counts().written == 0
            while collector.counts().offered < 100:
                time.sleep(0.01)
            assert collector.counts().waiting <= 60
        assert collector.flush(20)
        counts = collector.counts()
        assert counts.balances and (counts.written, counts.dropped) == (100 - counts.dropped, counts.dropped)
        assert counts.dropped >= 40 and metric(ask, "tenon_tap_dropped_rows_total", model="late") == counts.dropped
