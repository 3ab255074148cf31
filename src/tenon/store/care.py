"""Care of a store: what may be thrown away (`collect`), and whether all is as it was written (`examine`).

A blob is referred to when its digest, 64 hex digits, stands anywhere in a record or an event. That is a search over
text and not a table of references, because such a table can be wrong and text cannot: the reference is the record.

A collection is safe while others write, as long as they name a blob within the grace period (one day) of putting it. A
record that was committed before the references are read is seen; one that comes later names a blob that was put, and so
made young, too lately to be taken. The age is looked at once more at the moment of deleting, in a folder under a lock
that `put` takes as well. Nothing else is locked: a collection may take long, and writers must not wait for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from tenon.errors import CorruptError, MissingError, StoreError
from tenon.finding import Finding
from tenon.store.blobs import Folder
from tenon.store.bucket import Bucket
from tenon.store.catalog import Catalog

Progress = Callable[[float, float, str], None]

GRACE_S = 24 * 3600.0
NAMED = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
PAGE = 500


def quiet(done: float, total: float, said: str) -> None:
    """Tell nobody: the progress that is used when none is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """What a collection deleted: blobs, their bytes, and temporary files of processes that died."""

    blobs: int
    size_bytes: int
    leftovers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """What a collection would delete now, and what it would leave because somebody has put it too lately."""

    blobs: int
    size_bytes: int
    leftovers: int
    young_blobs: int
    young_bytes: int


def collect(catalog: Catalog, blobs: Folder | Bucket, *, before: float) -> Garbage:
    """Delete what nothing refers to and nobody has put since `before`."""
    old = {kept.digest for kept in blobs.kept() if kept.at < before}
    count = size = 0
    if old:
        count, size = blobs.sweep(old - referred(catalog), before=before)
    dead = blobs.leftovers(before=before)
    for file in dead:
        file.unlink(missing_ok=True)
    return Garbage(blobs=count, size_bytes=size, leftovers=len(dead))


def spare(catalog: Catalog, blobs: Folder | Bucket, *, before: float, without: Collection[str]) -> Spare:
    """Say what `collect` would delete once the records `without` ("kind/id") were gone; deletes nothing."""
    named = {digest for place, digest in _references(catalog) if place not in without}
    here = [kept for kept in blobs.kept() if kept.digest not in named]
    old = [kept for kept in here if kept.at < before]
    return Spare(
        blobs=len(old),
        size_bytes=sum(kept.size for kept in old),
        leftovers=len(blobs.leftovers(before=before)),
        young_blobs=len(here) - len(old),
        young_bytes=sum(kept.size for kept in here) - sum(kept.size for kept in old),
    )


def referred(catalog: Catalog) -> set[str]:
    """Return every digest that stands in a record or an event."""
    return {digest for _, digest in _references(catalog)}


def examine(catalog: Catalog, blobs: Folder | Bucket, progress: Progress = quiet) -> list[Finding]:
    """Read all bytes and return what is wrong, gravest first, and what can be tidied."""
    try:
        findings = _damage(catalog)
        named: dict[str, str] = {}
        for place, digest in _references(catalog):
            named.setdefault(digest, place)
    except StoreError as error:
        return [_damaged(catalog.place, str(error))]
    here = {kept.digest: kept for kept in blobs.kept()}
    total = float(sum(kept.size for kept in here.values()))
    done = 0.0
    for digest, kept in sorted(here.items()):
        try:
            blobs.check(digest)
        except CorruptError as error:
            place = named.get(digest, f"blob {digest[:12]}")
            findings.append(Finding(code="store/blob-corrupt", severity="error", place=place, said=str(error)))
        except MissingError:
            pass  # deleted since we listed it
        done += kept.size
        progress(done, total, "reading blobs")
    findings.extend(_absent(named, set(here)))
    unnamed = [kept for digest, kept in here.items() if digest not in named]
    leftovers = blobs.leftovers(before=time.time() - GRACE_S)
    if unnamed or leftovers:
        size = sum(kept.size for kept in unnamed)
        findings.append(
            Finding(
                code="store/unreferenced",
                severity="info",
                place=catalog.place,
                said=f"{len(unnamed):,} blobs ({size:,} bytes) that no record names, {len(leftovers):,} leftover files",
                hint="run `tenon store gc` to delete those older than a day",
                numbers={"blobs": float(len(unnamed)), "size_bytes": float(size), "leftovers": float(len(leftovers))},
            )
        )
    return findings


def _absent(named: dict[str, str], here: set[str]) -> list[Finding]:
    return [
        Finding(
            code="store/blob-missing",
            severity="error",
            place=named[digest],
            said=f"it names the blob {digest[:12]}, which is not in the store",
            hint="restore the file, or run the stage that made it again",
        )
        for digest in sorted(set(named) - here)
    ]


def _damage(catalog: Catalog) -> list[Finding]:
    """Ask SQLite to check its own file; a server checks itself."""
    if catalog.dialect.name != "sqlite":
        catalog.read("SELECT COUNT(*) FROM record")
        return []
    said = [str(row[0]) for row in catalog.read("PRAGMA integrity_check(10)")]
    return [] if said == ["ok"] else [_damaged(catalog.place, "; ".join(said))]


def _damaged(place: str, said: str) -> Finding:
    hint = "keep a copy, then `sqlite3 FILE .recover`, or restore it from a backup"
    return Finding(code="store/catalog-damaged", severity="error", place=place, said=said, hint=hint)


def _references(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Yield (place, digest) for every digest in the bodies of records and events, a page at a time."""
    for table, name in (("record", "kind || '/' || id"), ("event", "'event ' || kind || '/' || subject")):
        after = 0
        sql = f"SELECT seq, {name}, body FROM {table} WHERE seq > ? ORDER BY seq LIMIT {PAGE}"
        while page := catalog.read(sql, (after,)):
            for _, place, body in page:
                for digest in NAMED.findall(body):
                    yield place, digest
            after = page[-1][0]
