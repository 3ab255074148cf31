"""Blobs: named by their bytes, whole or absent, checked when read; in a folder and in an object store."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.config import StoreConfig
from tenon.errors import ConfigError, CorruptError, InputError, MissingError, StoreError, UsageError
from tenon.limits import StoreLimits
from tenon.store import Store
from tenon.store.blobs import Folder
from tenon.store.bucket import Bucket


def damage(store: Store, digest: str, data: bytes) -> None:
    """Change a blob's bytes where they are kept, as a failing disk or a careless person would."""
    if isinstance(store.blobs, Folder):
        file = store.blobs.path(digest)
        file.chmod(0o644)
        file.write_bytes(data)
    else:
        store.blobs._call("put", store.blobs._key(digest), data)
        for file in store.blobs.cache.glob("??/*"):
            file.unlink()


def older(store: Store, digest: str, seconds: float) -> None:
    """Make a blob in a folder look as if it had been put long ago."""
    past = time.time() - seconds
    os.utime(store.blobs.path(digest), (past, past))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2000))
def test_bytes_come_back_under_their_digest(store: Store, data: bytes) -> None:
    digest = store.blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.blobs.read(digest) == data
    assert store.blobs.path(digest).read_bytes() == data
    assert (store.blobs.has(digest), store.blobs.size(digest)) == (True, len(data))
    store.blobs.check(digest)


def test_a_file_is_copied_and_left_alone(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "data.bin"
    file.write_bytes(os.urandom(3_000_000))
    digest = store.blobs.put(file)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(b"changed afterwards")
    assert store.blobs.size(digest) == 3_000_000
    store.blobs.check(digest)


def test_putting_the_same_bytes_twice_keeps_them_once(store: Store) -> None:
    assert store.blobs.put(b"same") == store.blobs.put(b"same")
    assert list(store.blobs.digests()) == [hashlib.sha256(b"same").hexdigest()]


def test_digests_lists_what_is_there_and_delete_takes_it_away(store: Store) -> None:
    digests = {store.blobs.put(str(i).encode()) for i in range(5)}
    assert set(store.blobs.digests()) == digests
    gone = digests.pop()
    assert store.blobs.delete(gone) is True
    assert store.blobs.delete(gone) is False
    assert set(store.blobs.digests()) == digests
    assert store.blobs.has(gone) is False


def test_a_blob_that_is_not_there_is_missing_in_words(store: Store) -> None:
    digest = "ab" * 32
    assert store.blobs.has(digest) is False
    for ask in (store.blobs.path, store.blobs.read, store.blobs.size, store.blobs.check):
        with pytest.raises(
            MissingError, match=r"expected the blob abababababab, got nothing .* run `tenon store check`"
        ):
            ask(digest)


@pytest.mark.parametrize("name", ["", "abc", "../" + "a" * 61, "A" * 64, "g" * 64, "a" * 65])
def test_a_name_that_is_no_digest_never_becomes_a_path(store: Store, name: str) -> None:
    assert store.blobs.has(name) is False
    for ask in (store.blobs.path, store.blobs.read, store.blobs.size, store.blobs.delete):
        with pytest.raises(UsageError, match="a SHA-256 in 64 hex digits"):
            ask(name)


def test_changed_bytes_are_never_given_out(store: Store) -> None:
    digest = store.blobs.put(b"the truth")
    damage(store, digest, b"the truth!")
    said = r"bytes with the digest [0-9a-f]{12}, got digest [0-9a-f]{12} .* delete that file and run again, or restore"
    with pytest.raises(CorruptError, match=said):
        store.blobs.read(digest)
    with pytest.raises(CorruptError, match=said):
        store.blobs.check(digest)


@pytest.mark.parametrize("as_file", [False, True])
def test_putting_bytes_again_mends_what_the_disk_has_damaged(tmp_path: Path, as_file: bool) -> None:
    (tmp_path / "file").write_bytes(b"the truth")
    with Store.open(tmp_path) as store:
        digest = store.blobs.put(b"the truth")
        damage(store, digest, b"the lie!!")
        assert store.blobs.put(tmp_path / "file" if as_file else b"the truth") == digest
        assert store.blobs.read(digest) == b"the truth"


def test_many_blobs_are_asked_for_at_once(store: Store) -> None:
    here = {store.blobs.put(str(i).encode()) for i in range(20)}
    gone = {"ab" * 32, "cd" * 32}
    assert store.blobs.absent([*here, *gone]) == gone
    assert store.blobs.absent([]) == set()


def test_what_a_collection_would_take_is_said_before_it_takes_it(store: Store) -> None:
    named, gone = store.blobs.put(b"named"), store.blobs.put(b"named by what goes")
    store.put("thing", "a", {"file": named})
    store.put("thing", "b", {"file": gone})
    store.blobs.put(b"named by nobody")
    said = store.spare(grace_s=-5.0, without={"thing/b"})
    assert (said.blobs, said.size_bytes, said.young_blobs) == (2, 33, 0)
    young = store.spare(without={"thing/b"})
    assert (young.blobs, young.young_blobs, young.young_bytes) == (0, 2, 33)
    assert len(set(store.blobs.digests())) == 3, "nothing was deleted"
    store.delete("thing", "b")
    freed = store.gc(grace_s=-5.0)
    assert (freed.blobs, freed.size_bytes) == (said.blobs, said.size_bytes)


def test_only_a_file_can_be_kept(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a file to keep, got nothing"):
        store.blobs.put(tmp_path / "absent")
    with pytest.raises(InputError, match=r"expected a file to keep, got no plain file"):
        store.blobs.put(tmp_path)
    assert list(store.blobs.digests()) == []


def test_threads_that_put_the_same_bytes_agree(store: Store) -> None:
    data = os.urandom(200_000)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(store.blobs.put(data))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(data).hexdigest()] * 6
    assert store.blobs.read(found[0]) == data


def test_nothing_temporary_is_left(store: Store, tmp_path: Path) -> None:
    store.blobs.put(b"a")
    store.blobs.put(b"a")
    with pytest.raises(InputError):
        store.blobs.put(tmp_path)
    assert list(tmp_path.rglob(".put-*")) == []


# ── collecting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_collecting_takes_what_nothing_names_and_leaves_the_rest(store: Store) -> None:
    named = store.blobs.put(b"in a record, deep inside")
    told = store.blobs.put(b"in an event")
    spare = store.blobs.put(b"in neither")
    store.put("dataset", "d", {"files": [{"parts": [named]}]})
    store.event("note", "d", {"file": told})
    garbage = store.gc(grace_s=-60.0)
    assert (garbage.blobs, garbage.size_bytes) == (1, len(b"in neither"))
    assert set(store.blobs.digests()) == {named, told}
    assert store.blobs.has(spare) is False
    store.delete("dataset", "d")
    assert store.gc(grace_s=-60.0).blobs == 1


def test_what_was_put_a_moment_ago_is_not_garbage(store: Store) -> None:
    digest = store.blobs.put(b"its record is just being written")
    assert store.gc().blobs == 0
    assert store.blobs.has(digest)


def test_putting_an_old_blob_again_makes_it_young(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        digest = store.blobs.put(b"old and unreferenced")
        older(store, digest, 10 * 24 * 3600)
        store.blobs.put(b"old and unreferenced")
        assert store.gc().blobs == 0
        older(store, digest, 10 * 24 * 3600)
        assert store.gc().blobs == 1


def test_a_collection_beside_writers_never_takes_what_a_record_names(tmp_path: Path) -> None:
    grace_s = 0.3
    stop = threading.Event()
    problems: list[str] = []

    def write(name: int) -> None:
        with Store.open(tmp_path) as store:
            for turn in itertools.count():
                if stop.is_set():
                    return
                began = time.monotonic()
                # The same blobs again and again: sometimes named, sometimes garbage, often old.
                digest = store.blobs.put(f"{name} {turn % 150}".encode())
                store.put("k", f"{name}", {"file": digest})
                quick = time.monotonic() - began < grace_s  # what is promised to writers who name a blob in time
                if quick and not store.blobs.has(digest):
                    problems.append(digest)
                store.delete("k", f"{name}")
                time.sleep(0.002)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    with Store.open(tmp_path) as store:
        deadline = time.monotonic() + 2.0
        taken = 0
        while time.monotonic() < deadline:
            taken += store.gc(grace_s=grace_s).blobs
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert taken, "something was collected meanwhile, or this shows nothing"


def test_files_of_processes_that_died_are_swept(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.blobs.put(b"x")
        folder = tmp_path / ".tenon" / "blobs"
        (folder / ".put-1-dead").write_bytes(b"half")
        (folder / ".put-2-alive").write_bytes(b"half")
        os.utime(folder / ".put-1-dead", (1.0, 1.0))
        (finding,) = [finding for finding in store.check() if finding.code == "store/unreferenced"]
        assert finding.numbers["leftovers"] == 1.0
        assert store.gc().leftovers == 1
        assert [file.name for file in folder.glob(".put-*")] == [".put-2-alive"]


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_store_has_nothing_to_tell(store: Store) -> None:
    store.put("dataset", "d", {"file": store.blobs.put(b"x" * 1000)})
    seen: list[float] = []
    assert store.check(lambda done, total, said: seen.append(done / total)) == []
    assert seen == [1.0]
    assert store.size_bytes() >= 1000


def test_what_is_wrong_is_found_and_named(store: Store) -> None:
    kept, changed, lost, spare = (store.blobs.put(text) for text in (b"kept", b"changed", b"lost", b"spare"))
    store.put("dataset", "kept", {"file": kept})
    store.put("dataset", "changed", {"file": changed})
    store.put("version", "late-3", {"onnx": lost, "manifest": kept})
    damage(store, changed, b"CHANGED")
    store.blobs.delete(lost)
    found = {(finding.code, finding.severity, finding.place.split(" ")[0]) for finding in store.check()}
    assert ("store/blob-corrupt", "error", "dataset/changed") in found
    assert ("store/blob-missing", "error", "version/late-3") in found
    assert {code for code, _, _ in found} == {"store/blob-corrupt", "store/blob-missing", "store/unreferenced"}
    assert spare in set(store.blobs.digests())


# ── the object store alone ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(s3: str, tmp_path: Path) -> Bucket:
    config = StoreConfig(blobs=f"s3://bucket/{tmp_path.name}/{time.time_ns()}", s3_endpoint=s3, s3_region="us-east-1")
    return Bucket(config, tmp_path / "cache", StoreLimits(cache_bytes=2_500_000))


def test_another_machine_fetches_into_its_own_cache(bucket: Bucket, tmp_path: Path) -> None:
    digest = bucket.put(b"shared")
    config = StoreConfig(blobs=bucket._url, s3_endpoint=bucket_endpoint(bucket), s3_region="us-east-1")
    elsewhere = Bucket(config, tmp_path / "elsewhere", StoreLimits())
    assert elsewhere.read(digest) == b"shared"
    assert elsewhere.path(digest).is_relative_to(tmp_path / "elsewhere")


def bucket_endpoint(bucket: Bucket) -> str:
    return str(bucket._store.config["endpoint"])


def test_a_file_damaged_in_the_cache_is_fetched_again(bucket: Bucket) -> None:
    digest = bucket.put(b"truth")
    file = bucket.path(digest)
    file.chmod(0o644)
    file.write_bytes(b"lie")
    assert bucket.read(digest) == b"truth"


def test_the_cache_stays_within_its_bound_and_keeps_what_is_in_use(bucket: Bucket) -> None:
    digests = [bucket.put(bytes([i]) * 1_000_000) for i in range(4)]
    assert len(list(bucket.cache.glob("??/*"))) == 4, "all were used within the hour"
    for i, digest in enumerate(digests[:3]):
        past = time.time() - 7200 + i
        os.utime(bucket.path(digest), (past, past))
    bucket.put(b"one more")
    held = {file.name for file in bucket.cache.glob("??/*")}
    assert digests[0] not in held and digests[1] not in held and digests[3] in held
    assert bucket.read(digests[0]) == bytes([0]) * 1_000_000, "and is fetched when it is needed"


def test_an_object_store_that_does_not_answer_is_told_in_words(tmp_path: Path) -> None:
    config = StoreConfig(blobs="s3://bucket", s3_endpoint="http://127.0.0.1:9", s3_region="us-east-1")
    with pytest.raises(StoreError, match=r"the object store to answer, got .*the network, store.s3_endpoint"):
        Bucket(config, tmp_path, StoreLimits(), retries=0).put(b"x")


def test_a_bucket_that_does_not_exist_is_told_in_words(s3: str, tmp_path: Path) -> None:
    config = StoreConfig(blobs="s3://nowhere/x", s3_endpoint=s3, s3_region="us-east-1")
    with pytest.raises(StoreError, match=r"expected a bucket, got .* at s3://nowhere/x; create it"):
        Bucket(config, tmp_path, StoreLimits()).put(b"x")
    with pytest.raises(StoreError, match=r"the object store to answer, got .* check that the bucket exists"):
        list(Bucket(config, tmp_path, StoreLimits()).digests())


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://", "/a/folder"])
def test_a_url_that_is_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    with pytest.raises(ConfigError, match="expected s3://bucket/prefix, got"):
        Store.open(tmp_path, StoreConfig(blobs=url))
