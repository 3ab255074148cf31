"""The collector never makes a caller wait, keeps every row or counts it, and outlives a failing store."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenon.errors import CorruptError, InputError
from tenon.limits import StoreLimits, WatchLimits
from tenon.store import Store
from tenon.watch import Collector
from tenon.watch.observation import NAMES, decode, encode, frame_of, settled, stack

from ..waiting import eventually

QUICK = WatchLimits(flush_s=0.02, retry_s=0.05, close_s=2.0)
NOON = datetime(2013, 11, 25, 12)


def batch(rows: int = 3, start: int = 0, **columns: Any) -> dict[str, Any]:
    """Build one batch as a service offers it."""
    every = range(start, start + rows)
    return {
        "id": [f"r{i}" for i in every],
        "time": [NOON + timedelta(minutes=i) for i in every],
        "at": [1e9 + i for i in every],
        "model": ["late"] * rows,
        "version": ["1"] * rows,
        "score": [0.5] * rows,
        "latency_ms": [1.5] * rows,
        "error": [None] * rows,
        "usd": [1e-7] * rows,
        "key_flight": list(every),
        "f_hour": [float(i % 24) for i in every],
        "f_carrier": ["UA"] * rows,
    } | columns


def read(store: Store) -> pl.DataFrame:
    """Read back everything in the stream."""
    return stack(decode(b.body, "test") for b in store.read("observations", "late"))


class TestEveryRowIsKeptOrCounted:
    def test_what_was_offered_is_read_back_equal(self, store: Store) -> None:
        with Collector(store, "late", QUICK) as collector:
            assert all(collector.offer(batch(10, start=10 * i)) for i in range(20))
        rows = read(store)
        assert rows["id"].to_list() == [f"r{i}" for i in range(200)]
        assert rows["time"].to_list() == [NOON + timedelta(minutes=i) for i in range(200)]
        assert rows["f_carrier"].to_list() == ["UA"] * 200
        assert collector.counts().written == 200 and collector.counts().balances

    def test_the_span_of_a_batch_is_that_of_its_rows_own_time(self, store: Store) -> None:
        with Collector(store, "late", QUICK) as collector:
            collector.offer(batch(10))
        (kept,) = store.read("observations", "late")
        assert kept.first == NOON.replace(tzinfo=UTC).timestamp()
        assert kept.last == kept.first + 9 * 60

    def test_it_writes_without_being_asked_within_about_the_flush_time(self, store: Store) -> None:
        collector = Collector(store, "late", QUICK)
        try:
            collector.offer(batch())
            assert eventually(lambda: collector.counts().written, 5) == 3
        finally:
            collector.close()

    def test_a_full_buffer_drops_whole_batches_and_the_store_remembers_how_many(self, store: Store) -> None:
        with Collector(store, "late", WatchLimits(buffer_rows=5, flush_s=30)) as collector:
            assert collector.offer(batch(5))
            assert not collector.offer(batch(1, start=5))
            assert collector.counts().dropped == 1
        (event,) = store.events("collector", "late")
        assert event["dropped"] == 1
        (finding,) = collector.findings()
        assert finding.code == "watch/dropped" and "1 because the buffer was full" in finding.said

    def test_after_close_nothing_is_taken(self, store: Store) -> None:
        collector = Collector(store, "late", QUICK)
        collector.close()
        assert not collector.offer(batch())
        assert collector.counts().dropped == 3 and collector.counts().balances

    def test_a_batch_of_unequal_columns_is_refused_alone_and_counted(self, store: Store) -> None:
        with Collector(store, "late", WatchLimits(flush_s=30)) as collector:
            collector.offer(batch(3))
            collector.offer(batch(3, start=3) | {"score": [0.1]})
            collector.offer(batch(3, start=6))
        assert read(store)["id"].to_list() == ["r0", "r1", "r2", "r6", "r7", "r8"]
        counts = collector.counts()
        assert (counts.written, counts.refused, counts.balances) == (6, 3, True)
        (event,) = store.events("collector", "late")
        assert "3" in event["why"] and event["refused"] == 3

    def test_a_batch_without_time_is_refused_and_counted(self, store: Store) -> None:
        with Collector(store, "late", QUICK) as collector:
            collector.offer({"id": ["a"], "score": [0.1]})
            collector.offer(batch(1) | {"time": [None]})
        assert collector.counts().refused == 2 and collector.counts().balances

    def test_a_batch_too_large_for_the_store_does_not_stop_the_others(self, tmp_path: Path) -> None:
        with Store.open(tmp_path, limits=StoreLimits(batch_bytes=20_000)) as store:
            with Collector(store, "late", QUICK) as collector:
                noise = np.random.default_rng(0).bytes(100_000).hex()
                collector.offer(batch(1) | {"f_carrier": [noise]})
                collector.flush()
                collector.offer(batch(3))
            assert (collector.counts().refused, collector.counts().written) == (1, 3)

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["time", "id", "score", "f_x", "f_y", "key_k", "error", "strange"]),
                st.lists(
                    st.one_of(
                        st.none(),
                        st.floats(),
                        st.integers(),
                        st.text(max_size=5),
                        st.booleans(),
                        st.datetimes(),
                        st.binary(max_size=3),
                        st.just([1]),
                    ),
                    min_size=1,
                    max_size=3,
                ),
            ),
            max_size=5,
        )
    )
    def test_whatever_is_offered_the_counts_balance_and_the_thread_lives(self, offers: list[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
            collector = Collector(store, "late", QUICK)
            for offer in offers:
                collector.offer(offer)
            collector.offer(batch(2))
            counts = collector.close()
            assert counts.balances and counts.waiting == 0 and counts.written >= 2
            assert read(store).height == counts.written


class TestACallerNeverWaits:
    def test_offering_is_quick_while_the_store_is_held_by_another_writer(self, store: Store) -> None:
        with Collector(store, "late", QUICK) as collector:
            held, release = threading.Event(), threading.Event()

            def hold() -> None:
                with store.atomic():
                    held.set()
                    release.wait(10)

            other = threading.Thread(target=hold)
            other.start()
            held.wait(5)
            slowest = 0.0
            for i in range(200):
                began = time.perf_counter()
                assert collector.offer(batch(10, start=10 * i))
                slowest = max(slowest, time.perf_counter() - began)
            release.set()
            other.join()
            assert slowest < 0.2, slowest  # writing waits for seconds; offering waits for a lock held for microseconds
        assert collector.counts().written == 2000

    def test_many_threads_may_offer_at_once(self, store: Store) -> None:
        with Collector(store, "late", QUICK) as collector:
            threads = [
                threading.Thread(
                    target=lambda n=n: [collector.offer(batch(5, start=100 * n + 5 * i)) for i in range(20)]
                )
                for n in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert read(store)["id"].n_unique() == 800 == collector.counts().written


class TestItOutlivesAFailingStore:
    def test_rows_wait_while_the_store_fails_and_are_kept_once_it_works(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path, limits=StoreLimits(busy_s=0.05))
        blocker = Store.open(tmp_path)
        collector = Collector(store, "late", QUICK)
        with blocker.atomic():
            blocker.put("note", "a", {})
            collector.offer(batch(3))
            assert eventually(lambda: collector.counts().failures)
            assert collector.counts().waiting == 3
        collector.close()
        assert collector.counts().written == 3 and collector.counts().balances
        assert read(store)["id"].to_list() == ["r0", "r1", "r2"]
        blocker.close()
        store.close()

    def test_a_store_that_never_works_again_costs_the_rows_their_record_and_they_are_counted(
        self, tmp_path: Path
    ) -> None:
        Store.open(tmp_path).close()
        store = Store.open(tmp_path, read_only=True)
        collector = Collector(store, "late", WatchLimits(flush_s=0.02, retry_s=0.05, close_s=0.2))
        collector.offer(batch(3))
        counts = collector.close()
        assert counts.dropped == 3 and counts.balances and counts.failures > 0
        store.close()

    def test_killed_at_any_moment_the_stream_holds_whole_batches(self, tmp_path: Path) -> None:
        script = """
import sys, time
from pathlib import Path
from tenon.store import Store
from tenon.watch import Collector
from tenon.limits import WatchLimits
from datetime import datetime
collector = Collector(Store.open(Path(sys.argv[1])), "late", WatchLimits(flush_s=0.01))
i = 0
while True:
    collector.offer({"id": [str(i), str(i)], "time": [datetime(2013, 1, 1)] * 2, "score": [0.1, 0.2]})
    i += 1
    time.sleep(0.0005)
    if i == 200: print("going", flush=True)
"""
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        with Store.open(tmp_path) as store:
            rows = read(store)
            assert rows.height > 100 and rows.height == sum(b.rows for b in store.read("observations", "late"))
            assert (rows.group_by("id").len()["len"] == 2).all()


class TestTypesAreSettled:
    def test_batches_of_different_types_read_back_as_one_frame(self, store: Store) -> None:
        with Collector(store, "late", WatchLimits(flush_s=30)) as collector:
            collector.offer(batch(1) | {"f_x": [None]})
            collector.flush()
            collector.offer(batch(1, start=1) | {"f_x": [1]})
            collector.flush()
            collector.offer(batch(1, start=2) | {"f_x": [2.5], "f_new": [True]})
            collector.flush()
            collector.offer(batch(1, start=3) | {"f_x": ["word"]})
        assert read(store)["f_x"].to_list() == [None, "1.0", "2.5", "word"]
        assert read(store)["f_new"].to_list() == [None, None, 1.0, None]

    @pytest.mark.parametrize(
        "value",
        [
            "2013-11-25T12:00:00",
            "2013-11-25 12:00:00Z",
            datetime(2013, 11, 25, 12),
            datetime(2013, 11, 25, 12, tzinfo=UTC),
            1385380800,
            1385380800.0,
        ],
    )
    def test_a_time_may_be_given_in_any_usual_form(self, value: Any) -> None:
        assert frame_of({"time": [value]})["time"].to_list() == [NOON]

    def test_numpy_columns_are_taken(self) -> None:
        frame = frame_of({"time": [NOON, NOON], "score": np.array([0.1, np.nan]), "id": ["a", "b"]})
        assert frame["score"].to_list()[0] == 0.1 and frame.columns[: len(NAMES)] == list(NAMES)

    def test_numbers_given_as_text_among_numbers_are_read(self) -> None:
        assert frame_of({"time": [NOON] * 3, "score": [0.5, "0.25", "x"]})["score"].to_list() == [0.5, 0.25, None]

    def test_columns_of_unequal_length_are_refused_in_words(self) -> None:
        with pytest.raises(InputError, match="columns of one length"):
            frame_of({"time": [NOON], "score": [1, 2]})

    def test_damaged_bytes_are_named_with_their_place(self) -> None:
        good = encode(settled(frame_of(batch())))
        for bad in (b"", b"junk", good[: len(good) // 2]):
            with pytest.raises(CorruptError, match="observations/late/7"):
                decode(bad, "observations/late/7")

    def test_a_round_trip_changes_nothing(self) -> None:
        frame = frame_of(batch(100))
        assert decode(encode(frame), "here").equals(frame)
