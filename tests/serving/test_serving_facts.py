"""A fact that was acknowledged is on disk, counts once and changes the next prediction; labels are kept too."""

from __future__ import annotations

import http.client
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tenon.contract import Column, Source
from tenon.errors import StoreError
from tenon.limits import ServingLimits
from tenon.serving import Seams, Settings, build_app, restore, running
from tenon.serving.keeping import to_frame, to_ipc
from tenon.store import Store


def seams(store: Store, flights: Any, **more: Any) -> Seams:
    return Seams(store=store, sources={"flights": flights.SOURCE}, **more)


def kept(store: Store, stream: str, subject: str) -> pl.DataFrame:
    return pl.concat([pl.read_ipc(io.BytesIO(batch.body)) for batch in store.read(stream, subject)])


def late_share(ask: Any, flights: Any) -> float:
    """Return the score of a fixed row: it moves when the carrier's history does."""
    score: float = ask.predict(flights.ASK).json["predictions"][0]["score"]
    return score


# ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fact_is_kept_and_changes_the_next_prediction(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights))
    before = late_share(ask, flights)
    answer = ask("POST", "/facts/flights", flights.FACT)
    assert answer.status == 200
    assert (answer.json["source"], answer.json["accepted"], answer.json["duplicates"]) == ("flights", 1, 0)
    assert late_share(ask, flights) > before
    (row,) = kept(store, "facts", "flights").to_dicts()
    assert row == {
        **flights.FACT,
        "sched_dep": datetime(2013, 10, 31, 6),
        "arr": datetime(2013, 10, 31, 10),
    }
    (batch,) = store.read("facts", "flights")
    assert batch.first == batch.last == datetime.fromisoformat("2013-10-31T10:00:00+00:00").timestamp()


def test_a_fact_posted_twice_counts_once(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights))
    other = {**flights.FACT, "flight": 10}
    ask("POST", "/facts/flights", flights.FACT)
    score = late_share(ask, flights)
    again = ask("POST", "/facts/flights", {"rows": [flights.FACT, other]}).json
    assert (again["accepted"], again["duplicates"]) == (1, 1)
    only = ask("POST", "/facts/flights", {"rows": [flights.FACT, other]}).json
    assert (only["accepted"], only["duplicates"]) == (0, 2)
    assert late_share(ask, flights) > score


def test_a_wrong_fact_is_refused_whole_and_nothing_is_kept(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights))
    answer = ask("POST", "/facts/flights", {"rows": [flights.FACT, {**flights.FACT, "carrier": "ZZ"}]})
    assert answer.status == 422
    assert answer.json["faults"][0]["path"] == "$.rows[1].carrier"
    assert not list(store.read("facts", "flights"))


def test_an_unknown_source_is_404(start: Any, flights: Any, store: Store) -> None:
    answer = start(seams=seams(store, flights))("POST", "/facts/flight", flights.FACT)
    assert (answer.status, "did you mean '/facts/flights'?" in answer.json["error"]) == (404, True)


def test_a_service_without_a_store_says_so(start: Any, flights: Any) -> None:
    answer = start(seams=Seams(sources={"flights": flights.SOURCE}))("POST", "/facts/flights", flights.FACT)
    assert (answer.status, "a store to keep facts in" in answer.json["error"]) == (503, True)


def test_more_facts_than_a_request_may_have_is_413(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights), settings=Settings(limits=ServingLimits(rows_per_request=5)))
    assert ask("POST", "/facts/flights", {"rows": [flights.FACT] * 6}).status == 413


def test_a_large_post_of_facts_is_applied_whole(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights))
    rows = [flights.fact(number) for number in range(1, 2001)]
    answer = ask("POST", "/facts/flights", {"rows": rows}).json
    assert (answer["accepted"], answer["duplicates"]) == (2000, 0)


def test_many_callers_share_transactions_and_lose_nothing(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights))

    def work(number: int) -> None:
        asker = flights.asker(ask.url)
        for step in range(10):
            assert asker("POST", "/facts/flights", flights.fact(1 + number * 10 + step)).json["accepted"] == 1
        asker.connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept(store, "facts", "flights")["flight"].to_list()) == list(range(1, 81))


class Failing:
    """A store whose disk is full from the second batch on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.full = False
        self.read: Any = store.read
        self.atomic = store.atomic

    def append(self, stream: str, subject: str, body: bytes, *, rows: int, first: float, last: float) -> int:
        if self.full:
            raise StoreError("expected room on the disk, got none")
        return self.store.append(stream, subject, body, rows=rows, first=first, last=last)


def test_a_full_disk_is_503_in_words_and_the_fact_is_not_applied(start: Any, flights: Any, store: Store) -> None:
    failing = Failing(store)
    ask = start(seams=Seams(store=failing, sources={"flights": flights.SOURCE}))
    before = late_share(ask, flights)
    failing.full = True
    answer = ask("POST", "/facts/flights", flights.FACT)
    assert (answer.status, "nothing was kept: expected room on the disk" in answer.json["error"]) == (503, True)
    assert int(answer.headers["retry-after"]) >= 1
    assert late_share(ask, flights) == before
    failing.full = False
    assert ask("POST", "/facts/flights", flights.FACT).json["accepted"] == 1
    assert late_share(ask, flights) > before


# ── starting again ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_facts_newer_than_the_snapshot_are_applied_on_start(start: Any, flights: Any, store: Store) -> None:
    first = start(seams=seams(store, flights))
    before = late_share(first, flights)
    seq = first("POST", "/facts/flights", flights.FACT).json["seq"]
    after = late_share(first, flights)
    again = start(flights.make_service(), seams=seams(store, flights))
    assert late_share(again, flights) == after != before
    seen = start(flights.make_service(facts_seq=seq), seams=seams(store, flights))
    assert late_share(seen, flights) == before, "a snapshot that has seen a batch is not given it again"


def test_restoring_twice_changes_nothing(flights: Any, store: Store) -> None:
    frame = to_frame([{**flights.FACT, "sched_dep": datetime(2013, 10, 31, 6), "arr": None}], flights.SOURCE.columns)
    seq = store.append("facts", "flights", to_ipc(frame), rows=1, first=0.0, last=0.0)
    online = flights.make_service().online
    sources = {"flights": flights.SOURCE}
    assert restore(online, store, sources) == seq
    once = online.to_bytes()
    assert restore(online, store, sources) == seq
    assert online.to_bytes() == once
    assert restore(online, store, sources, seq) == seq


def test_a_batch_that_cannot_be_applied_does_not_keep_a_service_from_starting(
    start: Any, flights: Any, store: Store
) -> None:
    other = to_ipc(pl.DataFrame({"nothing": [1]}))
    store.append("facts", "flights", other, rows=1, first=0.0, last=0.0)
    store.append("facts", "flights", b"no arrow file", rows=1, first=0.0, last=0.0)
    ask = start(seams=seams(store, flights))
    assert ask("GET", "/readyz").status == 200


def test_a_store_that_cannot_be_read_keeps_a_service_from_starting_and_says_why(flights: Any, store: Store) -> None:
    failing = Failing(store)

    def unreadable(*_: Any, **__: Any) -> Any:
        raise StoreError("expected a store, got a locked one")

    failing.read = unreadable
    app = build_app([flights.make_service()], seams=Seams(store=failing, sources={"flights": flights.SOURCE}))
    with pytest.raises(StoreError, match="a locked one"), running(app):
        pass


def test_facts_of_a_source_that_a_model_does_not_read_are_kept_and_change_nothing(
    start: Any, flights: Any, store: Store
) -> None:
    other = Source("planes", key=["tailnum"], columns=[Column("tailnum"), Column("seats", "int")])
    with_planes = Seams(store=store, sources={"flights": flights.SOURCE, "planes": other})
    ask = start(seams=with_planes)
    answer = ask("POST", "/facts/planes", {"tailnum": "N1", "seats": 150}).json
    assert (answer["accepted"], answer["duplicates"]) == (0, 1)
    assert kept(store, "facts", "planes").to_dicts() == [{"tailnum": "N1", "seats": 150}]
    assert start(seams=with_planes).predict(flights.ASK).status == 200


SERVER = """
import sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("flights_service", sys.argv[1])
given = sys.modules["flights_service"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(given)
from tenon.serving import Seams, build_app, run
from tenon.store import Store
with Store.open(Path(sys.argv[2])) as store:
    seams = Seams(store=store, sources={"flights": given.FLIGHTS})
    run(build_app([given.make_service()], seams=seams), port=0, started=lambda url: print(url, flush=True))
"""


def test_a_service_that_is_killed_has_every_fact_it_acknowledged(flights: Any, tmp_path: Path) -> None:
    acknowledged = 0
    place = tmp_path / "project"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", SERVER, str(Path(__file__).with_name("conftest.py")), str(place)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as server:
            assert server.stdout is not None
            ask = flights.asker(server.stdout.readline().strip())
            if acknowledged:
                again = {"rows": [flights.fact(n) for n in range(1, acknowledged + 1)]}
                assert ask("POST", "/facts/flights", again).json["duplicates"] == acknowledged
            threading.Timer(0.5, server.send_signal, [signal.SIGKILL]).start()
            try:
                while True:
                    if ask("POST", "/facts/flights", flights.fact(acknowledged + 1)).status == 200:
                        acknowledged += 1
            except (OSError, http.client.HTTPException):
                pass  # cut in the middle
            server.wait()
    with Store.open(place) as store:
        found = set(kept(store, "facts", "flights")["flight"].to_list())
    assert acknowledged > 5
    assert set(range(1, acknowledged + 1)) <= found


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def labelled(flights: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Store]]:
    """Run one service with a store for the tests of labels."""
    with Store.open(tmp_path_factory.mktemp("labels")) as opened:
        app = build_app([flights.make_service()], seams=seams(opened, flights))
        with running(app) as url:
            asker = flights.asker(url)
            yield asker, opened
            asker.connection.close()


@pytest.mark.parametrize(("label", "value"), [(True, 1.0), (False, 0.0), (1, 1.0), (33.5, 33.5), (None, None)])
def test_a_label_is_kept_as_a_number(labelled: Any, flights: Any, label: Any, value: float | None) -> None:
    ask, store = labelled
    own = ask.predict(flights.ASK).json["predictions"][0]["id"]
    answer = ask("POST", "/labels/late", {"id": own, "label": label, "known": "2013-11-01T09:00:00Z"})
    assert (answer.status, answer.json["accepted"]) == (200, 1)
    row = kept(store, "labels", "late").to_dicts()[-1]
    assert row == {"id": own, "label": value, "known": datetime(2013, 11, 1, 9)}


def test_a_label_without_a_time_is_known_now(start: Any, flights: Any, store: Store) -> None:
    ask = start(seams=seams(store, flights, clock=lambda: 1_000_000.0))
    ask("POST", "/labels/late", {"rows": [{"id": 5, "label": 0}, {"id": "x", "label": True}]})
    frame = kept(store, "labels", "late")
    assert frame["id"].to_list() == ["5", "x"]
    assert frame["known"].to_list() == [datetime(1970, 1, 12, 13, 46, 40)] * 2


@pytest.mark.parametrize(
    ("row", "path"),
    [
        ({"label": 1}, "$.rows[0].id"),
        ({"id": "x", "label": "yes"}, "$.label"),
        ({"id": "x", "label": 1, "known": "soon"}, "$.known"),
        ({"id": "x", "lable": 1}, "$.lable"),
    ],
)
def test_a_wrong_label_is_refused_with_its_path(labelled: Any, row: dict[str, Any], path: str) -> None:
    answer = labelled[0]("POST", "/labels/late", row)
    assert answer.status == 422
    assert answer.json["faults"][0]["path"] == path


# ── while facts arrive ───────────────────────────────────────────────────────────────────────────────────────────────


def test_predictions_go_on_while_facts_wait_for_the_disk(start: Any, flights: Any, store: Store) -> None:
    """Another process holds the store: a post of facts waits for it, and predictions are answered meanwhile."""
    ask = start(seams=seams(store, flights))
    answers: list[Any] = []

    def post() -> None:
        rows = [flights.fact(number) for number in range(1, 501)]
        asker = flights.asker(ask.url)
        answers.append(asker("POST", "/facts/flights", {"rows": rows}))
        asker.connection.close()

    posting = threading.Thread(target=post)
    with Store.open(store.root) as other, other.atomic():
        other.put("note", "held", {"id": "held"})  # the transaction writes, so that nobody else can
        posting.start()
        for _ in range(50):
            assert ask.predict(flights.ASK).status == 200
        assert posting.is_alive() and not answers, "the facts are acknowledged only once they are kept"
    posting.join(30)
    assert answers[0].json["accepted"] == 500
