"""What the store survives: SIGKILL at any write, two processes at once, a full disk, a fork, old and newer files."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenon.config import StoreConfig
from tenon.errors import CorruptError, StoreError, UsageError
from tenon.limits import StoreLimits
from tenon.store import Store
from tenon.store.catalog import Catalog, applied, migrate
from tenon.store.schema import MIGRATIONS, Migration
from tenon.store.sqlite import Sqlite

HERE = Path(__file__).parent

# The digests of migrations that were released; one that has to be mended is followed by another.
RELEASED = {
    1: "93d561b3a40c87803931ed0467805e5cc6f371295a45f12b09663f1c0be5b667",
    2: "dd576013f205c435482887ff07c679c703974ffb7f8554d1e4cbeabbb7dffc8d",
}


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def kill_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that kills the process at its n-th write."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler to build the library that kills at a write")
    library = tmp_path_factory.mktemp("kill") / "kill_at.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(HERE / "kill_at.c"), "-ldl"], check=True)
    return library


def fault_loop(kill_at: Path, folder: Path, url: str, mode: str) -> int:
    done = subprocess.run(
        [sys.executable, str(HERE / "fault_loop.py"), str(folder), url, mode],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(kill_at)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(json.loads(done.stdout)["kills"])


def test_killed_at_any_write_a_new_store_is_before_or_after(kill_at: Path, quick_disk: Path) -> None:
    assert fault_loop(kill_at, quick_disk, "", "first") > 20


def test_killed_at_any_write_a_store_goes_on(kill_at: Path, quick_disk: Path) -> None:
    assert fault_loop(kill_at, quick_disk, "", "next") > 10


def test_killed_at_any_write_or_message_a_store_in_postgres_goes_on(
    kill_at: Path, quick_disk: Path, postgres: str
) -> None:
    assert fault_loop(kill_at, quick_disk, f"{postgres}?schema=t{uuid.uuid4().hex[:16]}", "next") > 20


# ── two at once ──────────────────────────────────────────────────────────────────────────────────────────────────────

WRITER = """
    import sys
    from pathlib import Path
    from tenon.config import StoreConfig
    from tenon.store import Store

    root, url, name, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    with Store.open(root, StoreConfig(catalog=url)) as store:
        for i in range(count):
            store.put("thing", f"{name}-{i}", {"writer": name, "n": i})
            if i % 10 == 0:
                store.event("step", name, {"n": i})
"""


def test_two_processes_write_thousands_of_records_at_once(catalog_config: StoreConfig, tmp_path: Path) -> None:
    count = 1000
    # Both also open the store first at the same moment: creation is a race as well.
    writers = [python(WRITER, str(tmp_path), catalog_config.catalog, name, str(count)) for name in ("a", "b")]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    with Store.open(tmp_path, catalog_config) as store:
        for name in ("a", "b"):
            assert len(store.find("thing", writer=name)) == count
            assert len(store.events("step", name)) == count // 10
        assert store.check() == []


@pytest.mark.parametrize("turn", range(3))
def test_many_processes_that_create_the_store_at_once_all_succeed(tmp_path: Path, turn: int) -> None:
    writers = [python(WRITER, str(tmp_path), "", str(i), "5") for i in range(6)]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    with Store.open(tmp_path) as store:
        assert len(store.find("thing")) == 30


def test_a_reader_of_a_stream_misses_nothing_that_is_committed_late(
    catalog_config: StoreConfig, tmp_path: Path
) -> None:
    """Numbers become visible in their order, whoever commits first; a reader that asks for `after` sees every batch."""
    code = """
        import sys
        from pathlib import Path
        from tenon.config import StoreConfig
        from tenon.store import Store

        with Store.open(Path(sys.argv[1]), StoreConfig(catalog=sys.argv[2])) as store:
            for i in range(200):
                with store.atomic():
                    for _ in range(2):
                        store.append("s", "m", b"x", rows=1, first=0, last=0)
    """
    with Store.open(tmp_path, catalog_config) as store:
        writers = [python(code, str(tmp_path), catalog_config.catalog) for _ in range(2)]
        seen, after = 0, 0
        while True:
            running = any(writer.poll() is None for writer in writers)
            for batch in store.read("s", "m", after=after):
                seen, after = seen + 1, batch.seq
            if not running:
                break
        for writer in writers:
            assert writer.communicate()[1] == ""
    assert seen == 800


def test_a_forked_process_is_told_to_open_its_own(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from tenon.errors import UsageError
        from tenon.store import Store

        store = Store.open(Path(sys.argv[1]))
        store.put("k", "a", {})
        child = os.fork()
        if child == 0:
            try:
                store.put("k", "b", {})
            except UsageError as error:
                assert "open it in the new process" in str(error), error
                with Store.open(Path(sys.argv[1])) as own:
                    own.put("k", "c", {})
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert store.get("k", "b") is None and store.get("k", "c") == {}
    """
    process = python(code, str(tmp_path))
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


# ── a full disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_is_told_in_words_and_nothing_is_half_written(small_disk: Path) -> None:
    with Store.open(small_disk, limits=StoreLimits(free_bytes=0)) as store:
        store.put("k", "before", {"file": store.blobs.put(b"x")})
        with pytest.raises(StoreError, match=r"on the disk, got .* free .*free some space, or run `tenon store gc`"):
            store.blobs.put(b"x" * 4_000_000)
        full = small_disk / "filler"
        with full.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"\0" * 4096)
        for write in (
            lambda: store.append("s", "m", b"x" * 500_000, rows=1, first=0, last=0),
            lambda: store.blobs.put(b"y" * 9000),
            lambda: store.put("k", "big", {"text": "x" * 500_000}),
        ):
            with pytest.raises(StoreError, match="disk"):
                write()
        assert store.get("k", "before") is not None, "reading goes on"
        full.unlink()
        store.put("k", "after", {})
        assert store.get("k", "big") is None
        assert list(store.read("s", "m")) == []
        assert not [finding for finding in store.check() if finding.severity == "error"]
        assert list(small_disk.rglob(".put-*")) == []


def test_sqlite_itself_meeting_a_full_disk_is_told_in_words(small_disk: Path) -> None:
    with Store.open(small_disk, limits=StoreLimits(free_bytes=0)) as store:
        store.put("k", "before", {})
        with pytest.raises(StoreError, match="disk"), store.atomic():
            for i in range(10_000):
                # Each is small enough for the check before it; together they are not.
                store.put("k", str(i), {"text": "x" * 2_000})
        assert len(store.find("k")) == 1, "the whole block is undone"
        assert store.check() == []


def test_writing_stops_before_the_disk_is_full(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config):
        pass
    greedy = StoreLimits(free_bytes=2**60)
    with Store.open(tmp_path, catalog_config, greedy) as store:
        with pytest.raises(StoreError, match=r"to spare on the disk, got .* free"):
            store.blobs.put(b"x")
        if not catalog_config.catalog:
            with pytest.raises(StoreError, match=r"to spare on the disk, got .* free"):
                store.put("k", "a", {})
            assert store.delete("k", "a") is False, "making room is always allowed"
            store.gc()


def test_a_disk_mounted_read_only_can_be_read(small_disk: Path) -> None:
    with Store.open(small_disk, limits=StoreLimits(free_bytes=0)) as store:
        store.put("k", "a", {"x": 1})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Store.open(small_disk, read_only=True) as store:
        assert store.get("k", "a") == {"x": 1}
    with pytest.raises(StoreError, match="read-only"):
        Store.open(small_disk, limits=StoreLimits(free_bytes=0)).put("k", "b", {})


# ── files of other times ─────────────────────────────────────────────────────────────────────────────────────────────


def test_no_migration_that_was_released_has_changed() -> None:
    digests = {migration.number: migration.digest() for migration in MIGRATIONS}
    assert {number: digests[number] for number in RELEASED} == RELEASED
    assert sorted(digests) == list(range(1, len(MIGRATIONS) + 1))


@pytest.mark.parametrize("file", sorted((HERE / "past").glob("*.db")), ids=lambda file: file.stem)
def test_a_store_of_every_past_release_opens(file: Path, tmp_path: Path) -> None:
    (tmp_path / ".tenon").mkdir()
    shutil.copy(file, tmp_path / ".tenon" / "tenon.db")
    with Store.open(tmp_path, read_only=True) as store:
        assert store.get("run", "3f2a91c07d5e") == {"id": "3f2a91c07d5e", "model": "late", "at": 1.0, "status": "done"}
    with Store.open(tmp_path) as store:
        assert store.find("run", model="late", status="done")[0]["id"] == "3f2a91c07d5e"
        (event,) = store.events("alias", "late")
        assert event == {"seq": 1, "at": 2.0, "kind": "alias", "subject": "late", "version": 1, "by": "ana"}
        (batch,) = store.read("metrics", "3f2a91c07d5e")
        assert (batch.body, batch.rows, batch.first, batch.last) == (b"\x00\x01\x02", 3, 1.0, 2.0)
        (entry,) = store.entries("3f2a91c07d5e")
        assert (entry.kind, entry.usd, entry.note) == ("compute", 0.25, "made by hand")
        seq = store.append("metrics", "3f2a91c07d5e", b"new", rows=1, first=3.0, last=3.0)
        assert [one.body for one in store.read("metrics", "3f2a91c07d5e")] == [b"\x00\x01\x02", b"new"]
        sums = store.query("SELECT seq, checksum FROM batch ORDER BY seq")
        assert sums[0]["checksum"] is None, "what had no checksum is read as it is"
        assert (sums[1]["seq"], sums[1]["checksum"] is None) == (seq, False)
        store.put("run", "new", {"id": "new"})
        assert store.check() == []


def test_a_store_of_a_later_release_is_refused_in_words_and_not_touched(
    catalog_config: StoreConfig, tmp_path: Path
) -> None:
    with Store.open(tmp_path, catalog_config) as store, store._catalog.atomic() as execute:
        execute(
            "INSERT INTO migration (number, name, at, release) VALUES (?, ?, ?, ?)", (99, "holograms", 0.0, "7.1.0")
        )
    for read_only in (False, True):
        with pytest.raises(
            StoreError, match=r"schema 99 \('holograms'\), written by tenon 7.1.0 .* install tenon 7.1.0"
        ):
            Store.open(tmp_path, catalog_config, read_only=read_only)


def later(number: int, *statements: str) -> Migration:
    return Migration(number=number, name=f"later {number}", statements=statements)


def test_an_old_store_is_brought_up_step_by_step_and_only_once(tmp_path: Path) -> None:
    catalog = Catalog(Sqlite(tmp_path / "t.db", StoreLimits(), read_only=False), StoreLimits(), "t.db")
    assert migrate(catalog, release="0.1.0") == list(RELEASED)
    more = (*MIGRATIONS, later(len(MIGRATIONS) + 1, "CREATE TABLE extra (x {real})", "postgres: NOT SQL"))
    assert migrate(catalog, release="0.2.0", migrations=more) == [len(MIGRATIONS) + 1]
    assert migrate(catalog, release="0.2.0", migrations=more) == []
    assert catalog.read("SELECT release FROM migration ORDER BY number")[-1] == ("0.2.0",)
    catalog.close()


def test_a_migration_that_fails_leaves_nothing_and_the_ones_before_it(tmp_path: Path) -> None:
    catalog = Catalog(Sqlite(tmp_path / "t.db", StoreLimits(), read_only=False), StoreLimits(), "t.db")
    broken = (*MIGRATIONS, later(len(MIGRATIONS) + 1, "CREATE TABLE extra (x {real})", "NOT SQL"))
    with pytest.raises(StoreError, match="SQL that works"):
        migrate(catalog, release="0.2.0", migrations=broken)
    assert applied(catalog) == set(RELEASED)
    assert catalog.read("SELECT name FROM sqlite_master WHERE name = 'extra'") == []
    catalog.close()


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_no_database_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / ".tenon").mkdir()
    (tmp_path / ".tenon" / "tenon.db").write_bytes(b"this is not a database, it is a note" * 100)
    for read_only in (False, True):
        with pytest.raises(
            CorruptError, match=r"a sound SQLite file, got 'file is not a database' .* restore it from a"
        ):
            Store.open(tmp_path, read_only=read_only)


def test_a_damaged_database_is_found_by_the_check(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        for i in range(300):
            store.put("k", str(i), {"text": "x" * 500})
    file = tmp_path / ".tenon" / "tenon.db"
    data = bytearray(file.read_bytes())
    data[20_000:60_000] = os.urandom(40_000)
    file.write_bytes(data)
    with Store.open(tmp_path) as store:
        codes = {finding.code for finding in store.check()}
    assert codes == {"store/catalog-damaged"}


def test_a_flipped_byte_in_the_file_of_a_batch_is_found_and_named(tmp_path: Path) -> None:
    body = b"observations of one hour " * 8
    with Store.open(tmp_path) as store:
        store.append("observations", "late", b"the hour before", rows=1, first=1.0, last=1.0)
        store.append("observations", "late", body, rows=1, first=2.0, last=2.0)
        store.append("observations", "late", b"the hour after", rows=1, first=3.0, last=3.0)
    file = tmp_path / ".tenon" / "tenon.db"
    data = bytearray(file.read_bytes())
    assert data.count(body) == 1
    data[data.index(body) + 100] ^= 0x10
    file.write_bytes(data)
    with Store.open(tmp_path) as store:
        batches = store.read("observations", "late")
        assert next(batches).body == b"the hour before"
        said = r"expected a batch with the checksum .* at observations/late/2; restore"
        with pytest.raises(CorruptError, match=said):
            next(batches)
        assert [one.body for one in store.read("observations", "late", after=2)] == [b"the hour after"]
        (finding,) = store.check()
        assert (finding.code, finding.place) == ("store/catalog-damaged", "observations/late/2")


@pytest.mark.parametrize("field", ["row_count = 7", "first = 0.5", "last = 9", "subject = 'other'", "body = 'x'"])
def test_a_changed_field_of_a_batch_is_found_in_either_database(
    field: str, catalog_config: StoreConfig, tmp_path: Path
) -> None:
    with Store.open(tmp_path, catalog_config) as store:
        seq = store.append("labels", "late", b"abc", rows=1, first=1.0, last=2.0)
        with store._catalog.atomic() as execute:
            execute(f"UPDATE batch SET {field}", ())
        with pytest.raises(CorruptError, match=f"at labels/(late|other)/{seq};"):
            list(store.read("labels", "other" if "other" in field else "late"))
        assert [finding.code for finding in store.check()] == ["store/catalog-damaged"]


def test_folded_batches_have_the_checksum_of_the_whole(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config) as store:
        for i in range(3):
            store.append("rows", "a", b"abc", rows=1, first=float(i), last=i + 0.5)
        store.fold("rows", "a", b"abcabcabc", over=list(store.read("rows", "a")))
        (whole,) = store.read("rows", "a")
        assert (whole.body, whole.rows, whole.last) == (b"abcabcabc", 3, 2.5)
        assert store.check() == []


def test_a_record_that_is_no_json_any_more_is_told_with_its_name(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.put("k", "a", {})
        with sqlite3.connect(tmp_path / ".tenon" / "tenon.db") as raw:
            raw.execute("UPDATE record SET body = '{'")
        raw.close()
        with pytest.raises(CorruptError, match=r"expected JSON, got .* at k/a"):
            store.get("k", "a")


def test_the_database_itself_refuses_to_rewrite_events(catalog_config: StoreConfig, tmp_path: Path) -> None:
    with Store.open(tmp_path, catalog_config) as store:
        store.event("alias", "late", {"version": 1})
        for sql in ("UPDATE event SET body = '{}'", "DELETE FROM event"):
            with pytest.raises(StoreError, match="events are append only"), store._catalog.atomic() as execute:
                execute(sql, ())
        assert len(store.events()) == 1


def test_commits_reach_the_disk_and_readers_do_not_wait(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store, store._catalog.atomic() as execute:
        assert execute("PRAGMA journal_mode", ()) == [("wal",)]
        assert execute("PRAGMA synchronous", ()) == [(2,)], "FULL"


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_the_server_has_dropped_is_opened_again(postgres: str, tmp_path: Path) -> None:
    config = StoreConfig(catalog=f"{postgres}?schema=t{uuid.uuid4().hex[:16]}")
    drop = (
        "SELECT pg_terminate_backend(pid) AS dropped FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname=?"
    )
    with Store.open(tmp_path, config) as store, Store.open(tmp_path, config) as other:
        store.put("k", "a", {})
        assert len(store.find("k")) == 1, "now there is a connection for writing and one for reading"
        (name,) = other.query("SELECT current_database() AS name")
        assert sum(bool(row["dropped"]) for row in other.query(drop, [name["name"]])) >= 2
        assert len(store.find("k")) == 1
        store.put("k", "b", {})
        other.put("k", "c", {})
        assert len(store.find("k")) == 3
        with pytest.raises(StoreError, match="the database to answer"), store.atomic():
            store.put("k", "d", {})
            other.query(drop, [name["name"]])
            store.put("k", "e", {})
        assert len(store.find("k")) == 3, "what was in the middle is undone, and told"


def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    config = StoreConfig(catalog="postgresql://ana:secret@127.0.0.1:9/db")
    with pytest.raises(StoreError, match=r"the database to answer, got .* check that the server runs") as caught:
        Store.open(tmp_path, config)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [tmp_path / ".tenon"]


@pytest.mark.parametrize("url", ["mysql://a@b/c", "postgresql://a@b/c?schema=No-Name"])
def test_a_catalog_tenon_does_not_speak_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"expected (postgresql://user@host/database|the name of a schema), got"):
        Store.open(tmp_path, StoreConfig(catalog=url))


# ── light ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_importing_the_store_pulls_in_nothing_heavy() -> None:
    process = python("import sys, tenon.store; print(' '.join(sys.modules))")
    modules = set(process.communicate()[0].split())
    assert not modules & {"polars", "numpy", "psycopg", "obstore", "tenon.ingest", "tenon.training"}


def test_the_store_keeps_itself_out_of_git(tmp_path: Path) -> None:
    with Store.open(tmp_path):
        assert (tmp_path / ".tenon" / ".gitignore").read_text("ascii") == "*\n"


def test_using_a_path_that_cannot_hold_a_store_is_told(tmp_path: Path) -> None:
    (tmp_path / ".tenon").write_text("a file")
    with pytest.raises((StoreError, UsageError)):
        Store.open(tmp_path)
