"""Blobs in an object store that speaks S3: `s3://bucket/prefix`, through obstore (the extra `s3`).

An upload is whole or absent by the protocol's own promise. Bytes are staged and hashed on this machine first, so that
what is uploaded is what was hashed; the staged copy stays in a cache under `.tenon/cache`, and what is asked for later
is fetched there, checked against its name and renamed into place. The cache is bounded; the least recently used files
leave it, but none that was used in the last hour, because somebody may be about to open it.

Credentials come from where every S3 tool looks: the environment (AWS_ACCESS_KEY_ID ...) or the machine's role. Blobs
that the store already has are not sent again, unless they are old: sending makes them young, which protects them from
a garbage collection that runs meanwhile. Object stores have no lock to share, so between its last look at a blob's age
and its deletion a collection leaves a few milliseconds open; run it when nobody writes if that is too much for you.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tenon.config import StoreConfig
from tenon.errors import ConfigError, StoreError, missing_extra, sentence
from tenon.limits import StoreLimits
from tenon.store.blobs import (
    DIGEST,
    Kept,
    checked,
    corrupt,
    hash_of,
    leaving_nothing,
    leftovers,
    make_folder,
    missing,
    require_room,
    stage,
    verified,
    words_of_disk,
)

YOUNG_S = 6 * 3600.0  # a blob put again after this long is sent again, to make it young
IN_USE_S = 3600.0  # a file used within this long stays in the cache
TIMEOUT = "120s"
RETRIES = 4
ASKED_AT_ONCE = 16
TRIMS = 64  # the cache is looked through whenever such a part of its bound has come in


class Bucket:
    """Blobs as objects of one bucket, under one prefix, with a bounded cache of files on this machine."""

    __slots__ = ("_limits", "_store", "_untrimmed", "_url", "cache")

    def __init__(self, config: StoreConfig, cache: Path, limits: StoreLimits, *, retries: int = RETRIES) -> None:
        self.cache = cache
        self._url = config.blobs
        self._limits = limits
        self._store = _open(config, retries)
        self._untrimmed = limits.cache_bytes  # the first file that comes looks at what others have left

    def put(self, data: bytes | Path) -> str:
        """Keep bytes, or the content of a file, and return their digest. It is whole or absent."""
        if isinstance(data, bytes):
            digest = hashlib.sha256(data).hexdigest()
            if self._young(digest, len(data)):
                return digest
        digest, temporary = stage(data, self.cache, self._limits)
        with leaving_nothing(temporary):
            if isinstance(data, bytes) or not self._young(digest, temporary.stat().st_size):
                self._call("put", self._key(digest), temporary)
            self._into_cache(temporary, digest)
        return digest

    def path(self, digest: str) -> Path:
        """Return a file of this machine that holds the blob, fetched and checked when it is not in the cache."""
        file = self._cached(digest)
        if file.is_file():
            with words_of_disk(file):
                file.touch()
            return file
        kept = self._head(digest)
        if kept is None:
            raise missing(digest, self._url)
        require_room(self.cache, kept.size, self._limits)
        with words_of_disk(self.cache):
            make_folder(self.cache)
        temporary = self.cache / f".put-{os.getpid()}-{secrets.token_hex(8)}"
        with leaving_nothing(temporary):
            self._fetch(digest, temporary)
            found = hash_of(temporary)
            if found != digest:
                raise corrupt(digest, found, f"{self._url}/{self._key(digest)}")
            self._into_cache(temporary, digest)
        return file

    def read(self, digest: str) -> bytes:
        """Return a blob's bytes, checked against its name; a damaged file in the cache is fetched again."""
        file = self.path(digest)
        try:
            return verified(file, digest)
        except StoreError:
            file.unlink(missing_ok=True)
            return verified(self.path(digest), digest)

    def check(self, digest: str) -> None:
        """Read all bytes of an object, without keeping them, and raise CorruptError when they are not as named."""
        running = hashlib.sha256()
        try:
            with self._words():
                for chunk in _obstore().get(self._store, self._key(digest)).stream():
                    running.update(chunk)
        except FileNotFoundError:
            raise missing(digest, self._url) from None
        if running.hexdigest() != digest:
            raise corrupt(digest, running.hexdigest(), f"{self._url}/{self._key(digest)}")

    def has(self, digest: str) -> bool:
        """Ask the object store whether it has the blob."""
        return bool(DIGEST.fullmatch(digest)) and self._head(digest) is not None

    def absent(self, digests: Iterable[str]) -> set[str]:
        """Ask the object store for many blobs at once; return those it does not have."""
        asked = list(digests)
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            return {digest for digest, here in zip(asked, threads.map(self.has, asked), strict=True) if not here}

    def size(self, digest: str) -> int:
        """Ask the object store for the size of a blob in bytes."""
        kept = self._head(checked(digest))
        if kept is None:
            raise missing(digest, self._url)
        return kept.size

    def delete(self, digest: str) -> bool:
        """Remove a blob, here and in the cache; return whether the object store had it."""
        had = self._head(digest) is not None
        if had:
            self._call("delete", self._key(digest))
        self._cached(digest).unlink(missing_ok=True)
        return had

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs, in the object store's order."""
        for kept in self.kept():
            yield kept.digest

    def kept(self) -> Iterator[Kept]:
        """Yield every blob of the bucket with its size and age."""
        with self._words():
            for page in _obstore().list(self._store):
                for found in page:
                    name = found["path"].rpartition("/")[2]
                    if DIGEST.fullmatch(name):
                        yield Kept(digest=name, size=found["size"], at=found["last_modified"].timestamp())

    def sweep(self, doomed: set[str], *, before: float) -> tuple[int, int]:
        """Delete those blobs that nobody has put again since `before`; return how many and how many bytes."""
        count = size = 0
        for digest in sorted(doomed):
            kept = self._head(digest)
            if kept is not None and kept.at < before and self.delete(digest):
                count += 1
                size += kept.size
        return count, size

    def leftovers(self, *, before: float) -> list[Path]:
        """Return temporary files that processes left in the cache when they died."""
        return leftovers(self.cache, before=before)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _key(self, digest: str) -> str:
        return f"{checked(digest)[:2]}/{digest}"

    def _cached(self, digest: str) -> Path:
        return self.cache / checked(digest)[:2] / digest

    def _head(self, digest: str) -> Kept | None:
        key = self._key(digest)
        try:
            with self._words():
                found = _obstore().head(self._store, key)
        except FileNotFoundError:
            return None
        return Kept(digest=digest, size=found["size"], at=found["last_modified"].timestamp())

    def _young(self, digest: str, size: int) -> bool:
        """Ask whether the object store has the blob, whole, and so lately that no collection will take it."""
        kept = self._head(digest)
        return kept is not None and kept.size == size and kept.at >= time.time() - YOUNG_S

    def _call(self, verb: str, *arguments: Any) -> Any:
        try:
            with self._words():
                return getattr(_obstore(), verb)(self._store, *arguments)
        except FileNotFoundError as error:
            raise StoreError(sentence("a bucket", f"'{_first_line(error)}'", at=self._url, hint="create it")) from error

    def _fetch(self, digest: str, target: Path) -> None:
        try:
            with self._words(), target.open("wb") as file:
                for chunk in _obstore().get(self._store, self._key(digest)).stream():
                    file.write(chunk)
        except FileNotFoundError:
            raise missing(digest, self._url) from None

    def _into_cache(self, temporary: Path, digest: str) -> None:
        file = self._cached(digest)
        with words_of_disk(file):
            self._untrimmed += temporary.stat().st_size
            make_folder(file.parent)
            temporary.replace(file)
        # Looking at every file for each of thousands of small ones would cost more than sending them.
        if self._untrimmed * TRIMS > self._limits.cache_bytes:
            held = self._trim()
            self._untrimmed = held if held > self._limits.cache_bytes else 0

    def _trim(self) -> int:
        """Remove the least recently used files while the cache is larger than its bound; return what it holds."""
        files = []
        for file in self.cache.glob("??/*"):
            with suppress(FileNotFoundError):
                state = file.stat()
                files.append((state.st_mtime, state.st_size, file))
        held = sum(size for _, size, _ in files)
        for used, size, file in sorted(files):
            if held <= self._limits.cache_bytes or used > time.time() - IN_USE_S:
                break
            file.unlink(missing_ok=True)
            held -= size
        return held

    @contextmanager
    def _words(self) -> Iterator[None]:
        """Turn the object store's errors into StoreError; what is not found stays FileNotFoundError for the caller."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, _obstore().exceptions.BaseError) as error:
            hint = (
                "check that the bucket exists, the network, store.s3_endpoint, store.s3_region and the AWS_* variables"
            )
            raise StoreError(
                sentence("the object store to answer", f"'{_first_line(error)}'", at=self._url, hint=hint)
            ) from error


def _obstore() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise missing_extra("obstore", "s3", "keep blobs in an object store") from error
    return obstore


def _open(config: StoreConfig, retries: int) -> Any:
    """Build the S3 client; nothing is sent yet."""
    _obstore()
    from obstore.store import S3Store

    bucket, _, prefix = config.blobs.removeprefix("s3://").partition("/")
    if not config.blobs.startswith("s3://") or not bucket:
        hint = "for example s3://my-bucket/flights, or leave it out to keep blobs in .tenon/blobs"
        raise ConfigError(sentence("s3://bucket/prefix", f"'{config.blobs}'", at="store.blobs", hint=hint))
    places: dict[str, Any] = {"endpoint": config.s3_endpoint, "region": config.s3_region}
    return S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        client_options={"allow_http": config.s3_endpoint.startswith("http://"), "timeout": TIMEOUT},
        retry_config={"max_retries": retries},
        **{name: value for name, value in places.items() if value},
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
