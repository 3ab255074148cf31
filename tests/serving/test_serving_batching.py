"""Requests that arrive together are scored together; nobody waits for company, fails for another, or waits for ever."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from tenon.limits import Answer, ServingLimits
from tenon.serving import Seams, Service, Settings
from tenon.serving.lane import CostCurve, Lane, Late
from tenon.serving.meter import ModelMeter
from tenon.serving.rows import Rows
from tenon.serving.tap import Observations


class Doubling:
    """Scores twice the value, keeps the size of each batch, and can be slow or refuse a value."""

    def __init__(self, slow_s: float = 0.0, poison: float = -1.0) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.slow_s = slow_s
        self.poison = poison

    def score(self, columns: Mapping[str, Sequence[Any]]) -> np.ndarray[Any, Any]:
        values = np.asarray(columns["x"], float)
        if self.poison in values:
            raise RuntimeError("this value cannot be scored")
        self.batches.append(len(values))
        self.threads.add(threading.current_thread().name)
        time.sleep(self.slow_s)
        return values * 2


class Passing:
    """Features that are the row's own values."""

    def read(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        if any(row["x"] == -13.0 for row in rows):
            raise ValueError("-13 has no features")
        return {"x": [row["x"] for row in rows]}

    def apply(self, source: str, rows: pl.DataFrame) -> int:
        return rows.height


def service(predictor: Doubling, version: str = "v1") -> Service:
    return Service(name="m", version=version, predictor=predictor, online=Passing(), inputs={"x": "float"})


def lane(predictor: Doubling, limits: ServingLimits | None = None, inline_s: float = 0.002) -> Lane:
    meter = ModelMeter()
    seen = Observations(None, meter, wait_s=0.25, batch_rows=1000)
    return Lane(service(predictor), limits or ServingLimits(), meter, seen, inline_s)


def rows(*values: float) -> Rows:
    return Rows([{"x": value} for value in values], [str(value) for value in values])


async def submit(of: Lane, *values: float, to: Service | None = None) -> list[float]:
    return await of.submit(to or of.service, rows(*values), time.perf_counter(), time.time())


def test_requests_that_arrive_together_are_one_batch() -> None:
    predictor = Doubling()

    async def together() -> list[list[float]]:
        of = lane(predictor)
        return await asyncio.gather(*(submit(of, float(number)) for number in range(40)))

    assert asyncio.run(together()) == [[number * 2.0] for number in range(40)]
    assert predictor.batches == [40]


def test_one_request_alone_is_scored_before_it_even_gives_way() -> None:
    predictor = Doubling()

    async def alone() -> list[float]:
        of = lane(predictor)
        return of.submit(of.service, rows(3.0), time.perf_counter(), time.time()).result()

    assert asyncio.run(alone()) == [6.0]


def test_requests_one_after_another_wait_for_nobody() -> None:
    predictor = Doubling()

    async def alone() -> float:
        of = lane(predictor)
        await submit(of, 1.0)
        start = time.perf_counter()
        for number in range(50):
            assert await submit(of, float(number + 100)) == [(number + 100) * 2.0]
        return (time.perf_counter() - start) / 50

    assert asyncio.run(alone()) < 0.002
    assert predictor.batches == [1] * 51


def test_what_arrives_while_a_batch_runs_makes_up_the_next() -> None:
    predictor = Doubling(slow_s=0.05)

    async def streams() -> None:
        of = lane(predictor, inline_s=0.0)
        await submit(of, 0.0)  # teaches the lane that batches are slow here
        tasks = [asyncio.create_task(submit(of, float(number))) for number in range(3)]
        await asyncio.sleep(0.02)
        tasks += [asyncio.create_task(submit(of, float(number))) for number in range(100, 120)]
        await asyncio.gather(*tasks)
        of.close()

    asyncio.run(streams())
    assert predictor.batches == [1, 3, 20]
    assert len(predictor.threads) == 2, "a slow batch is scored on the lane's own thread"


def test_a_slow_batch_does_not_stop_the_event_loop() -> None:
    async def ticking() -> float:
        of = lane(Doubling(slow_s=0.3), inline_s=0.0)
        await submit(of, 0.0)
        slow = asyncio.create_task(submit(of, 1.0))
        worst, last = 0.0, time.perf_counter()
        while not slow.done():
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        of.close()
        return worst

    assert asyncio.run(ticking()) < 0.15


def test_a_row_that_cannot_be_scored_fails_its_own_request_only() -> None:
    async def mixed() -> list[Any]:
        of = lane(Doubling(poison=5.0))
        asked = [submit(of, float(number)) for number in range(10)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(mixed())
    assert isinstance(found[5], RuntimeError)
    assert found[:5] + found[6:] == [[number * 2.0] for number in range(10) if number != 5]


def test_a_large_request_takes_turns_with_small_ones() -> None:
    predictor = Doubling(slow_s=0.02)
    finished: list[str] = []

    async def mixed() -> None:
        of = lane(predictor, ServingLimits(batch_rows=10), inline_s=0.0)

        async def ask(name: str, *values: float) -> None:
            assert await submit(of, *values) == [value * 2 for value in values]
            finished.append(name)

        large = asyncio.create_task(ask("large", *map(float, range(200, 300))))
        await asyncio.sleep(0.03)
        await asyncio.gather(large, ask("small", 1.0), ask("small", 2.0))
        of.close()

    asyncio.run(mixed())
    assert finished == ["small", "small", "large"]
    assert max(predictor.batches) == 10


def test_a_request_that_waits_past_its_deadline_is_told_so() -> None:
    async def late() -> list[Any]:
        of = lane(Doubling(slow_s=0.3), ServingLimits(request_s=0.1, batch_rows=1), inline_s=0.0)
        found = await asyncio.gather(*(submit(of, float(number)) for number in range(4)), return_exceptions=True)
        of.close()
        return found

    found = asyncio.run(late())
    assert found[0] == [0.0]
    assert isinstance(found[-1], Late)


def test_a_request_whose_caller_left_is_not_scored() -> None:
    predictor = Doubling()

    async def leaving() -> int:
        of = lane(predictor)
        other = asyncio.create_task(submit(of, 5.0))  # somebody else is coming, so the first one is not scored at once
        gone = of.submit(of.service, rows(1.0, 2.0, 3.0), time.perf_counter(), time.time())
        gone.cancel()
        await submit(of, 4.0)
        await other
        return of.waiting_rows

    assert asyncio.run(leaving()) == 0
    assert predictor.batches == [2]


def test_each_request_is_scored_by_the_version_that_checked_it() -> None:
    old, new = Doubling(), Doubling()

    async def across() -> None:
        of = lane(old)
        second = service(new, "v2")
        await asyncio.gather(*(submit(of, float(n), to=of.service if n < 3 else second) for n in range(8)))

    asyncio.run(across())
    assert (old.batches, new.batches) == ([3], [5])


def test_work_on_the_features_runs_between_batches() -> None:
    async def working() -> list[Any]:
        of = lane(Doubling())
        found = await asyncio.gather(of.alone(lambda: "done"), submit(of, 1.0), of.alone(lambda: 1 + 1))
        return list(found)

    assert asyncio.run(working()) == ["done", [2.0], 2]


def test_admission_says_later_when_the_queue_is_full_and_never_when_it_cannot_fit() -> None:
    async def full() -> list[Answer]:
        of = lane(Doubling(), ServingLimits(queue_rows=20, rows_per_request=15, batch_rows=4))
        answers = [of.admit(15).answer, of.admit(16).answer]
        waiting = [asyncio.create_task(submit(of, *map(float, range(14)))) for _ in range(1)]
        await asyncio.sleep(0)
        later = of.admit(10)
        assert later.retry_after_s >= 1.0
        answers.append(later.answer)
        await asyncio.gather(*waiting)
        answers.append(of.admit(10).answer)
        return answers

    assert asyncio.run(full()) == [Answer.OK, Answer.NEVER, Answer.LATER, Answer.OK]


# ── the cost curve ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cost_curve_learns_what_a_batch_takes() -> None:
    curve = CostCurve()
    assert curve.seconds(100) == 0.0
    for number in range(300):
        size = 1 + number % 64
        curve.learn(size, 0.001 + 0.0001 * size)
    assert curve.seconds(10) == pytest.approx(0.002, rel=0.01)
    assert curve.seconds(256) == pytest.approx(0.0266, rel=0.01)


def test_the_cost_curve_follows_a_change() -> None:
    curve = CostCurve()
    for seconds in (0.001, 0.01):
        for _ in range(400):
            curve.learn(8, seconds)
    assert curve.seconds(8) == pytest.approx(0.01, rel=0.05)
    assert curve.seconds(80) > curve.seconds(8)


# ── through the doors ────────────────────────────────────────────────────────────────────────────────────────────────


def test_concurrent_callers_get_their_own_answers(start: Any, flights: Any) -> None:
    ask = start()
    wrong: list[Any] = []

    def work(number: int) -> None:
        asker = flights.asker(ask.url)
        for step in range(30):
            row = {**flights.ASK, "distance": float(number * 30 + step), "id": f"{number}/{step}"}
            (one,) = asker.predict(row).json["predictions"]
            if one["id"] != row["id"]:
                wrong.append((row, one))
        asker.connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_full_queue_answers_503_with_retry_after_and_recovers(start: Any) -> None:
    slow = service(Doubling(slow_s=0.4))
    ask = start(slow, settings=Settings(limits=ServingLimits(queue_rows=4, batch_rows=1), inline_ms=0.0))
    statuses: list[tuple[int, str]] = []

    def work(number: int) -> None:
        asker = type(ask)(ask.url)
        answer = asker("POST", "/predict/m", {"rows": [{"x": 1.0}, {"x": 2.0}]})
        statuses.append((answer.status, answer.headers.get("retry-after", "")))
        asker.connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert {status for status, _ in statuses} == {200, 503}
    assert all(int(after) >= 1 for status, after in statuses if status == 503)
    assert ask("POST", "/predict/m", {"x": 1.0}).status == 200


def test_an_answer_past_its_deadline_is_503_with_retry_after(start: Any) -> None:
    ask = start(
        service(Doubling(slow_s=0.5)),
        settings=Settings(limits=ServingLimits(request_s=0.2, batch_rows=1), inline_ms=0.0),
    )
    answer = ask("POST", "/predict/m", {"rows": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]})
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "longer queue" in answer.json["error"]


def test_a_model_that_fails_is_500_in_words_and_only_for_that_request(start: Any) -> None:
    ask = start(service(Doubling(poison=5.0)))
    answer = ask("POST", "/predict/m", {"x": 5.0})
    assert (answer.status, "its log says why" in answer.json["error"]) == (500, True)
    assert ask("POST", "/predict/m", {"x": 6.0}).json["predictions"][0]["score"] == 12.0


def test_a_row_without_computable_features_is_422(start: Any) -> None:
    answer = start(service(Doubling()))("POST", "/predict/m", {"x": -13.0})
    assert (answer.status, "-13 has no features" in answer.json["error"]) == (422, True)


def test_health_is_answered_while_a_slow_batch_runs(start: Any) -> None:
    ask = start(service(Doubling(slow_s=0.5)), settings=Settings(inline_ms=0.0))
    ask("POST", "/predict/m", {"x": 1.0})
    other = type(ask)(ask.url)
    thread = threading.Thread(target=lambda: other("POST", "/predict/m", {"x": 1.0}))
    thread.start()
    time.sleep(0.1)
    began = time.perf_counter()
    assert ask("GET", "/healthz").status == 200
    assert time.perf_counter() - began < 0.25
    thread.join()
    other.connection.close()


def test_a_tap_that_is_slow_to_think_does_not_hold_the_answer_it_is_told_of(start: Any, flights: Any) -> None:
    def slow(batch: Mapping[str, Sequence[Any]]) -> bool:
        time.sleep(0.3)
        return True

    ask = start(seams=Seams(tap=slow), settings=Settings(tap_batch_rows=1))
    began = time.perf_counter()
    assert ask.predict(flights.ASK).status == 200
    assert time.perf_counter() - began < 0.2


def test_a_request_of_ten_thousand_rows_is_answered(ask: Any, flights: Any) -> None:
    data = json.dumps({"rows": [flights.ASK] * 10_000}).encode()
    answer = ask.predict(data)
    assert (answer.status, len(answer.json["predictions"])) == (200, 10_000)
