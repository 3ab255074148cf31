"""Records, events, streams and entries: the same promises in SQLite and in PostgreSQL."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.config import StoreConfig
from tenon.errors import InputError, MissingError, StoreError, UsageError
from tenon.ledger import Entry
from tenon.limits import StoreLimits
from tenon.store import Store

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner),
)
open_world = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@open_world
@given(body=st.dictionaries(texts, plain, max_size=4))
def test_a_record_comes_back_as_it_was_given(catalog: Store, body: dict[str, Any]) -> None:
    catalog.put("thing", "id", body)
    assert catalog.get("thing", "id") == body
    assert list(catalog.get("thing", "id") or {}) == list(body), "also in its order"


def test_what_is_not_there_is_none(catalog: Store) -> None:
    assert catalog.get("thing", "nothing") is None
    assert catalog.find("thing") == []
    assert catalog.delete("thing", "nothing") is False


def test_putting_again_replaces_the_whole_record(catalog: Store) -> None:
    catalog.put("thing", "a", {"x": 1, "y": 2})
    catalog.put("thing", "a", {"x": 3})
    assert catalog.get("thing", "a") == {"x": 3}
    assert len(catalog.find("thing")) == 1
    assert catalog.delete("thing", "a") is True
    assert catalog.get("thing", "a") is None


def test_the_same_id_of_two_kinds_is_two_records(catalog: Store) -> None:
    catalog.put("run", "a", {"x": 1})
    catalog.put("model", "a", {"x": 2})
    assert catalog.get("run", "a") == {"x": 1}


def test_the_newest_come_first_and_ties_in_the_order_written(catalog: Store) -> None:
    catalog.put("run", "old", {"id": "old", "at": 10.0})
    catalog.put("run", "first", {"id": "first"}, at=20.0)
    catalog.put("run", "second", {"id": "second"}, at=20.0)
    assert [record["id"] for record in catalog.find("run")] == ["second", "first", "old"]
    assert [record["id"] for record in catalog.find("run", newest_first=False)] == ["old", "first", "second"]
    assert [record["id"] for record in catalog.find("run", limit=1)] == ["second"]
    assert catalog.find("run", limit=0) == []


def test_finding_compares_values_and_their_types(catalog: Store) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "one": {"v": 1},
        "one-point-zero": {"v": 1.0},
        "true": {"v": True},
        "text": {"v": "1"},
        "null": {"v": None},
        "absent": {},
        "tenth": {"v": 0.30000000000000004},
    }
    for id, body in bodies.items():
        catalog.put("k", id, {"id": id, **body})

    def found(value: Any) -> set[str]:
        return {record["id"] for record in catalog.find("k", v=value)}

    assert found(1) == {"one", "one-point-zero"}
    assert found(True) == {"true"}
    assert found("1") == {"text"}
    assert found(None) == {"null", "absent"}
    assert found(0.30000000000000004) == {"tenth"}
    assert found(0.3) == set()
    assert found(False) == set()


@open_world
@given(value=numbers, other=numbers)
def test_any_number_is_found_again_and_only_by_its_equals(catalog: Store, value: float, other: float) -> None:
    catalog.put("n", "a", {"v": value})
    assert len(catalog.find("n", v=value)) == 1
    assert len(catalog.find("n", v=other)) == (1 if value == other else 0)


def test_several_fields_must_all_be_equal(catalog: Store) -> None:
    for i in range(6):
        catalog.put("run", str(i), {"id": str(i), "model": "late" if i % 2 else "other", "status": "done", "n": i})
    assert [record["id"] for record in catalog.find("run", model="late", status="done")] == ["5", "3", "1"]
    assert [record["id"] for record in catalog.find("run", model="late", n=3)] == ["3"]
    assert catalog.find("run", model="nobody") == []


@open_world
@given(value=texts, noise=texts)
def test_any_text_is_found_again_and_nothing_else(catalog: Store, value: str, noise: str) -> None:
    catalog.put("t", "a", {"name": value, "noise": noise})
    catalog.put("t", "b", {"name": value + "x"})
    assert catalog.find("t", name=value) == [{"name": value, "noise": noise}]


def test_a_field_may_be_called_like_an_argument_but_must_be_a_name(catalog: Store) -> None:
    catalog.put("k", "a", {"kind": "x", "self": 1})
    assert len(catalog.find("k", kind="x")) == 1
    hostile: dict[str, Any] = {"a') OR 1=1 --": 1}
    with pytest.raises(UsageError, match="the name of a top-level field"):
        catalog.find("k", **hostile)
    with pytest.raises(UsageError, match="list for 'v'"):
        catalog.find("k", v=[1])


def test_numpy_values_and_paths_become_plain_and_what_is_not_a_number_becomes_null(catalog: Store) -> None:
    body = {"a": np.float64(1.5), "b": np.int64(3), "c": np.arange(3), "d": Path("x/y"), "e": math.nan, "f": math.inf}
    catalog.put("k", "a", body)
    assert catalog.get("k", "a") == {"a": 1.5, "b": 3, "c": [0, 1, 2], "d": "x/y", "e": None, "f": None}


@pytest.mark.parametrize("value", [object(), {1, object()}, "\ud800", 1 + 2j])
def test_what_is_not_json_is_refused_in_words_and_nothing_is_written(catalog: Store, value: Any) -> None:
    with pytest.raises(UsageError, match=r"expected plain JSON data, got .* - at k/a"):
        catalog.put("k", "a", {"v": value})
    assert catalog.get("k", "a") is None


def test_kind_and_id_have_at_least_one_character(catalog: Store) -> None:
    for kind, id in (("", "a"), ("k", ""), ("k", "a\x00b")):
        with pytest.raises(UsageError, match="at least one character"):
            catalog.put(kind, id, {})


# ── all or nothing ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Stop(Exception):
    pass


def test_an_error_undoes_everything_in_the_block(catalog: Store) -> None:
    with pytest.raises(_Stop), catalog.atomic():
        catalog.put("k", "a", {})
        catalog.event("k", "s", {})
        catalog.append("st", "s", b"x", rows=1, first=0, last=0)
        catalog.charge(_entry(1.0))
        raise _Stop
    assert catalog.get("k", "a") is None
    assert (catalog.events(), list(catalog.read("st", "s")), catalog.entries()) == ([], [], [])


def test_a_nested_block_undoes_itself_alone(catalog: Store) -> None:
    with catalog.atomic():
        catalog.put("k", "outer", {})
        with pytest.raises(_Stop), catalog.atomic():
            catalog.put("k", "inner", {})
            with catalog.atomic():
                catalog.put("k", "innermost", {})
            raise _Stop
        catalog.put("k", "after", {"id": "after"})
    assert {id for id in ("outer", "inner", "innermost", "after") if catalog.get("k", id) is not None} == {
        "outer",
        "after",
    }


def test_inside_one_reads_what_one_has_written_and_others_do_not(catalog: Store) -> None:
    seen: list[Any] = []
    with catalog.atomic():
        catalog.put("k", "a", {"x": 1})
        assert catalog.get("k", "a") == {"x": 1}
        other = threading.Thread(target=lambda: seen.append(catalog.get("k", "a")))
        other.start()
        other.join()
    assert seen == [None]
    assert catalog.get("k", "a") == {"x": 1}


def test_a_statement_that_failed_and_was_caught_inside_does_not_commit_half(catalog: Store) -> None:
    with pytest.raises(StoreError, match="every statement of an `atomic` block to work"), catalog.atomic():
        catalog.put("k", "a", {})
        with pytest.raises(StoreError):
            catalog.query("SELECT nothing FROM nowhere")
    assert catalog.get("k", "a") is None
    with catalog.atomic():
        catalog.put("k", "b", {})
        with pytest.raises(StoreError), catalog.atomic():
            catalog.query("SELECT nothing FROM nowhere")
    assert catalog.get("k", "b") == {}, "in a nested block only that block is undone"


def test_threads_write_in_turns_and_lose_nothing(catalog: Store) -> None:
    def work(name: int) -> None:
        for i in range(25):
            with catalog.atomic():
                catalog.put("k", f"{name}-{i}", {"n": i})
                catalog.event("made", str(name), {"i": i})

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(catalog.find("k")) == 150
    assert [event["i"] for event in catalog.events("made", "3")] == list(range(25))


def test_a_writer_that_holds_on_too_long_is_told_of(catalog_config: StoreConfig, tmp_path: Path) -> None:
    impatient = StoreLimits(busy_s=0.2)
    with Store.open(tmp_path, catalog_config) as holder, Store.open(tmp_path, catalog_config, impatient) as waiting:
        failures: list[BaseException] = []

        def write(store: Store) -> None:
            try:
                store.put("k", "b", {})
            except StoreError as error:
                failures.append(error)

        with holder.atomic():
            holder.put("k", "a", {})
            with pytest.raises(StoreError, match=r"a turn to write, got another .* for more than 0.2 s"):
                waiting.put("k", "b", {})
        with waiting.atomic():
            thread = threading.Thread(target=write, args=(waiting,))
            thread.start()
            thread.join()
        assert "another thread writing" in str(failures[0])
        waiting.put("k", "b", {})
        assert waiting.get("k", "a") == {}, "and afterwards both go on"


# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_come_oldest_first_with_their_number_and_time(catalog: Store) -> None:
    catalog.event("alias", "late", {"version": 1, "by": "ana"}, at=5.0)
    catalog.event("alias", "other", {"version": 9}, at=6.0)
    catalog.event("serving", "late", {"state": "start"}, at=7.0)
    assert [event["seq"] for event in catalog.events()] == [1, 2, 3]
    first = {"seq": 1, "at": 5.0, "kind": "alias", "subject": "late", "version": 1, "by": "ana"}
    assert catalog.events("alias", "late") == [first]
    assert [event["at"] for event in catalog.events(subject="late")] == [5.0, 7.0]
    assert [event["at"] for event in catalog.events(limit=2)] == [6.0, 7.0], "the newest two, oldest first"


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_batches_come_back_in_order_with_their_bytes(catalog: Store) -> None:
    bodies = [bytes([i]) * i * 1000 for i in range(20)]
    numbers = [catalog.append("m", "run", body, rows=i, first=i, last=i + 0.5) for i, body in enumerate(bodies)]
    catalog.append("m", "another run", b"other", rows=1, first=0, last=0)
    catalog.append("other", "run", b"other", rows=1, first=0, last=0)
    found = list(catalog.read("m", "run"))
    assert [batch.body for batch in found] == bodies
    assert [batch.seq for batch in found] == numbers == sorted(numbers)
    assert [(batch.rows, batch.first, batch.last) for batch in found[:2]] == [(0, 0.0, 0.5), (1, 1.0, 1.5)]
    assert [batch.rows for batch in catalog.read("m", "run", after=numbers[17])] == [18, 19]


def test_a_time_span_gives_the_batches_that_touch_it(catalog: Store) -> None:
    for start in (0, 10, 20, 30):
        catalog.append("o", "m", b"", rows=start, first=start, last=start + 10)
    assert [batch.rows for batch in catalog.read("o", "m", since=10.5)] == [10, 20, 30]
    assert [batch.rows for batch in catalog.read("o", "m", until=20)] == [0, 10]
    assert [batch.rows for batch in catalog.read("o", "m", since=25, until=26)] == [20]


def test_a_reader_goes_on_where_it_left_while_others_append(catalog: Store) -> None:
    catalog.append("o", "m", b"1", rows=1, first=0, last=0)
    reading = catalog.read("o", "m")
    last = next(reading).seq
    catalog.append("o", "m", b"2", rows=1, first=0, last=0)
    assert [batch.body for batch in catalog.read("o", "m", after=last)] == [b"2"]


def test_many_large_batches_are_read_a_few_at_a_time(catalog: Store) -> None:
    body = b"x" * 3_000_000
    for _ in range(7):
        catalog.append("o", "m", body, rows=1, first=0, last=0)
    assert sum(len(batch.body) for batch in catalog.read("o", "m")) == 21_000_000


def test_folding_puts_one_batch_in_the_place_of_many(catalog: Store) -> None:
    for i in range(5):
        catalog.append("m", "run", bytes([i]), rows=2, first=i, last=i + 1)
    every = list(catalog.read("m", "run"))
    catalog.fold("m", "run", b"".join(batch.body for batch in every[:4]), over=every[:4])
    folded, last = catalog.read("m", "run")
    assert (folded.body, folded.rows, folded.first, folded.last) == (b"\x00\x01\x02\x03", 8, 0.0, 4.0)
    assert (folded.seq, last.seq) == (every[3].seq, every[4].seq)


def test_trimming_takes_whole_batches_that_are_past(catalog: Store) -> None:
    for start in (0, 10, 20):
        catalog.append("o", "m", b"", rows=3, first=start, last=start + 9)
    assert catalog.trim("o", "m", before=15) == 3
    (held,) = catalog.subjects("o")
    newest = list(catalog.read("o", "m"))[-1].seq
    assert held == {"subject": "m", "batches": 2, "rows": 6, "bytes": 0, "first": 10.0, "last": 29.0, "seq": newest}
    assert catalog.trim("o", "m", before=math.inf) == 6


def test_a_batch_has_bounds(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config, StoreLimits(batch_bytes=10)) as store:
        with pytest.raises(
            InputError, match="a batch of at most 10 bytes, got 11 - at stream o/m; append it in several"
        ):
            store.append("o", "m", b"x" * 11, rows=1, first=0, last=0)
        for first, last in ((1.0, 0.0), (math.nan, 0.0), (0.0, math.inf)):
            with pytest.raises(UsageError, match="first <= last in Unix seconds"):
                store.append("o", "m", b"x", rows=1, first=first, last=last)


# ── cost, and questions in SQL ───────────────────────────────────────────────────────────────────────────────────────


def _entry(usd: float, *, subject: str = "run-1", at: float = 1.0) -> Entry:
    return Entry(kind="compute", subject=subject, quantity=2.0, unit="core s", usd=usd, at=at, note="n")


def test_entries_come_back_equal_and_in_order_of_time(catalog: Store) -> None:
    later, earlier, other = _entry(0.1, at=9.0), _entry(0.2, at=3.0), _entry(0.3, subject="run-2", at=5.0)
    catalog.charge(later)
    catalog.charge(earlier, other)
    assert catalog.entries() == [earlier, other, later]
    assert catalog.entries("run-1") == [earlier, later]
    assert catalog.entries(since=3.5, until=9.0) == [other]
    assert catalog.entries(kind="storage") == []


def test_people_may_ask_in_sql_and_only_ask(catalog: Store) -> None:
    for i in range(3):
        catalog.put("run", str(i), {"n": i})
    sql = "SELECT kind, COUNT(*) AS n, SUM(at) AS total FROM record WHERE id <> ? AND kind <> 'a?b%' GROUP BY kind"
    (row,) = catalog.query(sql, ["0"])
    assert (row["kind"], row["n"], type(row["total"])) == ("run", 2, float)
    with pytest.raises(StoreError, match="SQL that only reads"):
        catalog.query("DELETE FROM record")
    with pytest.raises(StoreError, match="SQL that works"):
        catalog.query("SELEKT 1")
    assert len(catalog.find("run")) == 3


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_opening_again_finds_everything(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config) as first:
        first.put("k", "a", {"x": 1})
    with Store.open(tmp_path, catalog_config) as second:
        assert second.get("k", "a") == {"x": 1}
        assert second.root == tmp_path


def test_read_only_reads_and_refuses_to_write(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config) as writer:
        writer.put("k", "a", {"x": 1})
        with Store.open(tmp_path, catalog_config, read_only=True) as reader:
            assert reader.get("k", "a") == {"x": 1}
            writer.put("k", "a", {"x": 2})
            assert reader.get("k", "a") == {"x": 2}
            with pytest.raises(StoreError, match="opened for writing, got one opened read-only"):
                reader.put("k", "b", {})


def test_read_only_creates_nothing(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"expected a store, got .*run `tenon init`"):
        Store.open(tmp_path, catalog_config, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_store_says_so(catalog_config: StoreConfig, tmp_path: Path) -> None:
    store = Store.open(tmp_path, catalog_config)
    store.close()
    store.close()
    with pytest.raises(UsageError, match="an open store, got one that was closed"):
        store.get("k", "a")
    with pytest.raises(UsageError, match="an open store, got one that was closed"):
        store.put("k", "a", {})
