"""Who may ask, how often, for how much: keys, rates, money, priorities, and a budget that degrades before it sheds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenon.config import Config, KeyConfig, ServeConfig, load
from tenon.errors import ConfigError
from tenon.serving import Seams, Settings
from tenon.serving.spend import Spending

ALICE, BOB = "alice-secret-1", "bob-secret-22"
KEYS = {"alice": KeyConfig(key=ALICE, rate_per_s=0.5, burst=2), "bob": KeyConfig(key=BOB, usd_per_hour=1e-5)}


def number(ask: Any, name: str) -> float:
    """Read one number of /metrics."""
    for line in ask("GET", "/metrics").raw.decode().splitlines():
        if line.startswith(name):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def keyed(start: Any) -> Any:
    return start(settings=Settings(serve=ServeConfig(keys=KEYS, token="owner-token")))


def test_a_request_without_a_key_or_with_a_wrong_one_is_401(keyed: Any, flights: Any) -> None:
    for headers in ({}, {"x-api-key": "alice"}, {"x-api-key": ALICE + "x"}, {"authorization": "Bearer nobody-at-all"}):
        answer = keyed.predict(flights.ASK, headers)
        assert answer.status == 401 and ALICE not in answer.raw.decode()
        keyed.connection.close()
    assert keyed("GET", "/healthz").status == 200


def test_who_asks_too_often_gets_429_and_when_to_come_back(keyed: Any, flights: Any) -> None:
    statuses = [keyed.predict(flights.ASK, {"x-api-key": ALICE}) for _ in range(3)]
    assert [answer.status for answer in statuses] == [200, 200, 429]
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 2
    assert keyed.predict(flights.ASK, {"authorization": "Bearer owner-token"}).status == 200


def test_whose_money_is_spent_gets_429_and_others_do_not_pay_for_it(keyed: Any, flights: Any) -> None:
    rows = {"rows": [flights.ASK] * 11}  # at 1e-6 dollars a row
    first, second = (keyed.predict(rows, {"x-api-key": BOB}) for _ in range(2))
    assert (first.status, second.status) == (200, 429)
    assert "an hour" in second.json["error"] and int(second.headers["retry-after"]) > 100
    assert keyed.predict(flights.ASK, {"x-api-key": ALICE}).status == 200
    found = keyed("GET", "/metrics", headers={"authorization": "Bearer owner-token"}).raw.decode()
    assert 'tenon_key_usd_total{key="bob"} 1.1e-05' in found
    assert ALICE not in found and BOB not in found


def test_keys_come_from_the_file_and_the_environment_and_are_kept_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tenon.toml").write_text("[serve.keys.alice]\nrate_per_s = 5\npriority = 0\n")
    with caplog.at_level(logging.DEBUG):
        config = load(tmp_path, {"TENON_SERVE__KEYS__ALICE__KEY": ALICE})
    assert config.serve.keys == {"alice": KeyConfig(key=ALICE, rate_per_s=5.0, priority=0)}
    assert config.to_dict()["serve"]["keys"]["alice"]["key"] == "set"
    assert ALICE not in str(config.to_dict()) + caplog.text
    (tmp_path / "tenon.toml").write_text("[serve.keys.alice]\nrates = 5\n")
    with pytest.raises(ConfigError, match=r"serve: keys\.alice"):
        load(tmp_path, {})
    assert Config().to_dict()["serve"]["keys"] == {}


@pytest.mark.parametrize(
    "keys",
    [
        {"a": KeyConfig(key="short")},
        {"a": KeyConfig(key=ALICE), "b": KeyConfig(key=ALICE)},
        {"owner": KeyConfig(key=ALICE)},
        {"a": KeyConfig(key=ALICE, priority=9)},
    ],
)
def test_a_key_that_is_no_key_stops_the_service_before_it_starts(start: Any, keys: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        start(settings=Settings(serve=ServeConfig(keys=keys)))
    assert ALICE not in str(caught.value)


def test_when_it_is_crowded_those_who_can_wait_are_refused_first(start: Any, flights: Any) -> None:
    class Slow:
        def score(self, columns: Mapping[str, Sequence[Any]], /) -> np.ndarray[Any, Any]:
            time.sleep(0.15)
            return np.zeros(len(columns["hour"]))

    names = {"idle": 0, "person": 1, "urgent": 2}
    keys = {name: KeyConfig(key=f"{name}-secret", priority=priority) for name, priority in names.items()}
    settings = Settings(serve=ServeConfig(keys=keys, target_ms=200.0))
    ask = start(flights.make_service(predictor=Slow()), settings=settings)
    ask.predict(flights.ASK, {"x-api-key": "urgent-secret"})  # the cost curve learns
    ask.predict(flights.ASK, {"x-api-key": "urgent-secret"})
    others = [flights.asker(ask.url) for _ in range(3)]
    for other in others:  # one is being scored, two wait
        other.connection.request("POST", "/predict/late", json.dumps(flights.ASK), {"x-api-key": "urgent-secret"})
        time.sleep(0.02)
    refused = ask.predict(flights.ASK, {"x-api-key": "idle-secret"})
    assert refused.status == 503 and "retry-after" in refused.headers
    assert ask.predict(flights.ASK, {"x-api-key": "urgent-secret"}).status == 200
    assert all(other.connection.getresponse().read() for other in others)
    found = ask("GET", "/metrics", headers={"x-api-key": "idle-secret"}).raw.decode()
    assert 'tenon_refused_total{model="late",status="503"} 1.0' in found
    for other in others:
        other.connection.close()


def test_goodput_is_answers_within_the_target_over_requests_offered(start: Any, flights: Any) -> None:
    ask = start(settings=Settings(serve=ServeConfig(target_ms=1e-3)))
    for _ in range(3):
        assert ask.predict(flights.ASK).status == 200
    assert ask.predict({"nothing": 1}).status == 422
    assert number(ask, "tenon_offered_total") == 3 and number(ask, "tenon_answered_in_time_total") == 0


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_over_budget_the_cheaper_version_answers_and_says_so_then_requests_are_shed(start: Any, flights: Any) -> None:
    def make(version: str) -> Any:
        return flights.make_service(version, usd_per_row=1e-8)

    told: list[Any] = []
    seams = Seams(
        current=lambda _: "v1",
        load=lambda _, version: make(version),
        cheaper=lambda _: "linear",
        record=lambda kind, subject, body: told.append(body),
    )
    serve = ServeConfig(usd_per_hour=1.9e-5)
    ask = start(seams=seams, settings=Settings(serve=serve, poll_s=0.02))
    time.sleep(0.4)
    dear = {"rows": [flights.ASK] * 10}
    first, second, third = (ask.predict(dear) for _ in range(3))
    assert [answer.json["version"] for answer in (first, second)] == ["v1", "v1"]
    assert "x-tenon-degraded" not in second.headers
    assert third.json["version"] == "linear" and third.headers["x-tenon-degraded"] == "budget"
    statuses = [ask.predict({"rows": [flights.ASK] * 10}).status for _ in range(16)]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert number(ask, "tenon_degraded_total") >= 2 and number(ask, "tenon_shed_total") >= 1
    shed = ask.predict(flights.ASK)
    assert shed.status == 503 and int(shed.headers["retry-after"]) >= 1
    time.sleep(0.2)
    over = [body for body in told if body["state"] == "over budget"]
    assert len(over) == 1 and over[0]["version"] == "v1" and over[0]["cheaper"] == "linear"


def test_a_version_dearer_than_1000_predictions_may_cost_gives_way_from_the_first(start: Any, flights: Any) -> None:
    seams = Seams(
        current=lambda _: "v1",
        load=lambda _, version: flights.make_service(version, usd_per_row=1e-7),
        cheaper=lambda _: "linear",
    )
    ask = start(seams=seams, settings=Settings(serve=ServeConfig(usd_per_1000=5e-4), poll_s=0.02))
    time.sleep(0.4)
    answer = ask.predict(flights.ASK)
    assert answer.json["version"] == "linear" and answer.headers["x-tenon-degraded"] == "budget"


def test_the_budget_sheds_by_priority_and_comes_back_without_fluttering() -> None:
    budget = Spending(usd_per_hour=3600.0)
    assert not budget.degraded(1.0, 0.0)
    budget.spend(3600.0, 0.0)
    assert budget.degraded(1.0, 0.0)
    budget.spend(100.0, 0.0)
    assert [budget.wait_s(p, cheaper=False, now=0.0) > 0 for p in (0, 1, 2)] == [True, False, False]
    assert [budget.wait_s(p, cheaper=True, now=0.0) > 0 for p in (0, 1, 2)] == [False, False, False]
    budget.spend(150.0, 0.0)
    assert [budget.wait_s(p, cheaper=False, now=0.0) > 0 for p in (0, 1, 2)] == [True, True, False]
    assert budget.degraded(1.0, 350.0), "not at the first cent, but when a twentieth of an hour's money is there"
    assert not budget.degraded(1.0, 250.0 + 181.0)
