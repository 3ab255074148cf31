"""Another version is tried on live traffic: by share, or scoring along; no answer is lost to it, noise ends nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.serving import Bounds, Evidence, Seams, Service, Settings, Trial, judge
from tenon.serving.trial import Side, interval
from tenon.store import Store

from ..waiting import eventually

QUICK = Settings(poll_s=0.02, judged_s=0.05)


class Glue:
    """Which trial there is, how versions are made, and what the service found."""

    def __init__(self, make: Callable[[str], Service], trial: Trial | None) -> None:
        self.make = make
        self.trial = trial
        self.judged: list[Mapping[str, Any]] = []

    def seams(self, **more: Any) -> Seams:
        return Seams(
            current=lambda _: "v1",
            load=lambda _, version: self.make(version),
            trial=lambda _: self.trial,
            judged=lambda _, body: self.judged.append(body),
            **more,
        )


class Broken:
    """Scores nothing."""

    def score(self, columns: Mapping[str, Sequence[Any]], /) -> np.ndarray[Any, Any]:
        raise ValueError("no scores today")


class Slow:
    """Scores as another does, after a while."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def score(self, columns: Mapping[str, Sequence[Any]], /) -> np.ndarray[Any, Any]:
        time.sleep(self.seconds)
        found: np.ndarray[Any, Any] = self.inner.score(columns)
        return found


def begun(ask: Any) -> None:
    assert eventually(lambda: b"tenon_trial_requests{" in ask("GET", "/metrics").raw, 5)


def canary(share: float, **bounds: float) -> Trial:
    return Trial(id="t1", model="late", version="v2", kind="canary", share=share, bounds=Bounds(**bounds))


def shadow(**bounds: float) -> Trial:
    return Trial(id="t1", model="late", version="v2", kind="shadow", bounds=Bounds(**bounds))


# ── a share ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_subject_sees_one_version_and_the_share_is_kept(start: Any, flights: Any) -> None:
    glue = Glue(flights.make_service, canary(0.3))
    ask = start(seams=glue.seams(), settings=QUICK)
    begun(ask)
    seen: dict[int, set[str]] = {}
    for flight in [*range(1, 201), *range(1, 201)]:
        answer = ask.predict({**flights.ASK, "flight": flight}).json
        seen.setdefault(flight, set()).add(answer["version"])
    assert all(len(versions) == 1 for versions in seen.values())
    assert 30 <= sum(versions == {"v2"} for versions in seen.values()) <= 90


def test_a_header_says_who_the_subject_is_in_both_protocols(start: Any, flights: Any) -> None:
    glue = Glue(flights.make_service, canary(0.5))
    ask = start(seams=glue.seams(), settings=QUICK)
    begun(ask)
    inputs = [
        {"name": name, "shape": [1], "datatype": "FP64" if isinstance(value, float) else "BYTES", "data": [value]}
        if not isinstance(value, int)
        else {"name": name, "shape": [1], "datatype": "INT64", "data": [value]}
        for name, value in flights.ASK.items()
    ]
    versions = set()
    for number in range(12):
        headers = {"x-route-key": f"patient {number}"}
        plain = ask.predict(flights.ASK, headers).json["version"]
        open_inference = ask("POST", "/v2/models/late/infer", {"inputs": inputs}, headers).json["model_version"]
        assert plain == open_inference
        versions.add(plain)
    assert versions == {"v1", "v2"}


def test_a_larger_share_keeps_those_who_were_in_it() -> None:
    small, large = canary(0.05), canary(0.5)
    keys = [str(number) for number in range(4000)]
    inside = {key for key in keys if small.takes(key)}
    assert inside <= {key for key in keys if large.takes(key)}
    assert 120 < len(inside) < 290
    assert not any(shadow().takes(key) for key in keys[:50])


# ── rollback ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_canary_that_fails_loses_no_answer_and_is_rolled_back_by_itself(start: Any, flights: Any) -> None:
    glue = Glue(lambda version: flights.make_service(version, predictor=Broken()), canary(0.5))
    ask = start(seams=glue.seams(), settings=QUICK)
    begun(ask)
    statuses = []
    for number in range(300):
        answer = ask.predict(flights.ASK, {"x-route-key": str(number)})
        statuses.append((answer.status, answer.json["version"]))
    assert set(statuses) == {(200, "v1")}
    assert eventually(lambda: any(body["ended"] for body in glue.judged), 5)
    (last,) = [body for body in glue.judged if body["ended"]]
    assert last["verdict"]["answer"] == "bad" and "failed" in last["verdict"]["why"]
    time.sleep(0.1)
    assert b"tenon_trial_requests{" not in ask("GET", "/metrics").raw, "it stays away though the store still names it"


def test_a_canary_that_decides_otherwise_is_rolled_back_with_its_agreement(start: Any, flights: Any) -> None:
    glue = Glue(lambda version: flights.make_service(version, bias=-9.0), canary(0.2))
    base = flights.make_service(bias=9.0)
    ask = start(base, seams=glue.seams(), settings=QUICK)
    begun(ask)
    for number in range(200):
        assert ask.predict(flights.ASK, {"x-route-key": str(number)}).status == 200
        if any(body["ended"] for body in glue.judged):
            break
        time.sleep(0.005)
    assert eventually(lambda: any(body["ended"] for body in glue.judged), 5)
    assert "0.00 % agree" in glue.judged[-1]["verdict"]["why"]


# ── scoring along ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_shadow_scores_along_and_its_verdict_is_good_when_it_is_the_same(start: Any, flights: Any) -> None:
    seen: list[Any] = []

    def tap(batch: Any) -> bool:
        seen.append(batch)
        return True

    glue = Glue(flights.make_service, shadow(agreement=0.5))
    ask = start(seams=glue.seams(tap=tap), settings=QUICK)
    begun(ask)
    for _ in range(60):
        assert ask.predict(flights.ASK).json["version"] == "v1"
        time.sleep(0.004)
    assert eventually(lambda: bool(glue.judged) and glue.judged[-1]["evidence"]["compared"] >= 20, 5)
    verdict = glue.judged[-1]["verdict"]
    assert verdict["checks"][0]["answer"] == "good"
    assert verdict["told"]["largest_difference"] == 0
    assert verdict["told"]["candidate_usd_per_1000"] > 0
    time.sleep(0.4)
    assert {version for batch in seen for version in batch["version"]} == {"v1"}, "a shadow makes no observations"


def test_a_slow_shadow_slows_no_answer_and_what_it_cannot_do_is_dropped_and_counted(start: Any, flights: Any) -> None:
    def make(version: str) -> Service:
        service: Service = flights.make_service(version, predictor=Slow(flights.predictor(), 0.2))
        return service

    glue = Glue(make, shadow())
    ask = start(seams=glue.seams(), settings=QUICK)
    begun(ask)
    took = []
    for _ in range(600):
        began = time.perf_counter()
        assert ask.predict(flights.ASK).status == 200
        took.append(time.perf_counter() - began)
    assert sum(each > 0.15 for each in took) <= 3, "a slow candidate would show in each, another process in a few"
    assert eventually(lambda: bool(glue.judged) and glue.judged[-1]["evidence"]["dropped"] > 0, 5)


def test_facts_reach_the_candidate_too(start: Any, flights: Any, store: Store) -> None:
    glue = Glue(flights.make_service, canary(0.5))
    seams = glue.seams(store=store, sources={"flights": flights.SOURCE})
    ask = start(seams=seams, settings=QUICK)
    begun(ask)
    before = ask.predict(flights.ASK, {"x-route-key": "a"}).json["predictions"][0]["score"]
    assert ask("POST", "/facts/flights", {"rows": [flights.fact(number) for number in range(1, 51)]}).status == 200
    scores: dict[str, set[float]] = {}
    for number in range(30):
        answer = ask.predict(flights.ASK, {"x-route-key": str(number)}).json
        scores.setdefault(answer["version"], set()).add(answer["predictions"][0]["score"])
    assert scores.keys() == {"v1", "v2"} and scores["v1"] == scores["v2"] and before not in scores["v1"]


def test_a_trial_goes_on_where_an_earlier_process_stopped(start: Any, flights: Any) -> None:
    earlier = Evidence(base=Side(requests=500, ms={3: 500}), compared=400, compared_rows=400, agreed=400.0)
    trial = Trial(id="t1", model="late", version="v2", kind="shadow", evidence=earlier.to_dict())
    glue = Glue(flights.make_service, trial)
    start(seams=glue.seams(), settings=QUICK)
    assert eventually(lambda: bool(glue.judged), 5)
    assert glue.judged[-1]["evidence"]["base"]["requests"] == 500
    assert Evidence.from_dict(earlier.to_dict()) == earlier


# ── evidence, not noise ──────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 100_000), share=st.floats(0, 1))
def test_the_interval_holds_its_own_mean_and_stays_between_nothing_and_all(count: int, share: float) -> None:
    low, high = interval(share * count, count)
    assert 0 <= low <= high <= 1
    if count:
        assert low - 1e-9 <= share <= high + 1e-9


def test_looking_after_every_request_makes_no_rollback_of_noise() -> None:
    rng = random.Random(7)
    outside = 0
    for _ in range(80):
        hits = 0
        for count in range(1, 301):
            hits += rng.random() < 0.05
            low, high = interval(hits, count, 0.05)
            if not low <= 0.05 <= high:
                outside += 1
                break
    assert outside <= 8, "at most one in twenty, though each was looked at 300 times"


def test_an_equal_candidate_becomes_good_and_a_worse_one_bad() -> None:
    def seen(errors: int, slow: int, agreed: float) -> Evidence:
        ms = {20: 3000}
        return Evidence(
            base=Side(requests=3000, ms=dict(ms)),
            candidate=Side(requests=3000, errors=errors, slow=slow, ms=dict(ms)),
            compared=3000,
            agreed=agreed,
        )

    trial = canary(0.5)
    assert judge(trial, seen(0, 0, 2990)).answer == "good"
    assert judge(trial, seen(200, 0, 2990)).answer == "bad"
    assert judge(trial, seen(0, 200, 2990)).answer == "bad"
    assert judge(trial, seen(0, 0, 2500)).answer == "bad"
    assert judge(trial, seen(30, 0, 2990)).answer == "open"
    assert judge(trial, Evidence()).answer == "open"
