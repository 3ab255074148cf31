"""The Store: the one place that remembers. Records, events, streams of batches, ledger entries, and blobs.

It is generic: rooms own their kinds of record and give plain JSON data; the store adds atomicity, order, durability and
words for what goes wrong. Everything written is on the disk when the call returns, unless it is inside `atomic`: then
all of it is, when the block ends, or none.

    record   one JSON document per (kind, id), replaced as a whole
    event    append only, the database itself refuses to change one: the audit trail
    batch    append-only binary batches of rows by (stream, subject): metrics, observations, facts, labels
    entry    what everything cost
    blob     bytes named by their SHA-256, referred to from records by that name

A record may name blobs: put the blob first, then the record, so that no record ever names bytes that are not there.
`gc` deletes blobs that no record and no event names; a blob that is named only inside another blob is not seen.

Numbers that JSON cannot say (NaN, infinity) are kept as null in records and events; batches keep them as they are.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from tenon.config import StoreConfig
from tenon.errors import CorruptError, InputError, MissingError, StoreError, UsageError, sentence
from tenon.finding import Finding
from tenon.ledger import Entry
from tenon.limits import StoreLimits
from tenon.store import care
from tenon.store.blobs import Folder, make_folder, require_room, words_of_disk
from tenon.store.bucket import Bucket
from tenon.store.catalog import Catalog, applied, migrate
from tenon.store.postgres import Postgres
from tenon.store.sqlite import Sqlite

FOLDER = ".tenon"
PAGE_BYTES = 8 * 1024 * 1024  # batches fetched at once while reading a stream
PAGE_ROWS = 1_000
CHECKSUMS = 2  # the migration that gave batches a checksum
RESTORE = "restore the catalog from a backup, or do without this batch: delete that row by its seq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of a stream: its number, when it was written, and the rows, with the time span they cover."""

    seq: int
    at: float
    rows: int
    first: float
    last: float
    body: bytes


class Store:
    """Remembers, under one root. Share it between threads; open it again in another process."""

    __slots__ = ("_catalog", "_limits", "_local", "_summed", "blobs", "folder", "root")

    def __init__(
        self, root: Path, catalog: Catalog, blobs: Folder | Bucket, limits: StoreLimits, *, summed: bool = True
    ) -> None:
        self.root = root
        self.folder = root / FOLDER
        self.blobs = blobs
        self._catalog = catalog
        self._limits = limits
        self._local = catalog.dialect.name == "sqlite"
        # Opened read-only, a store of an earlier release stays as it is: its batches have no checksums.
        self._summed = summed

    @classmethod
    def open(
        cls,
        root: Path,
        config: StoreConfig | None = None,
        limits: StoreLimits | None = None,
        *,
        read_only: bool = False,
    ) -> Self:
        """Open the store of a project folder, creating it when it is new and bringing it to the newest schema.

        With `read_only` nothing is created or migrated, and writing is refused.
        """
        config, limits = config or StoreConfig(), limits or StoreLimits()
        root = Path(root).absolute()
        folder = root / FOLDER
        catalog = _catalog(folder, config, limits, read_only=read_only)
        blobs = Bucket(config, folder / "cache", limits) if config.blobs else Folder(folder / "blobs", limits)
        summed = True
        try:
            if read_only:
                summed = CHECKSUMS in _has_tables(catalog)
            else:
                _prepare(folder)
                migrate(catalog, release=_release())
        except BaseException:  # the edge of opening: whatever ends it, no connection stays behind
            catalog.close()
            raise
        return cls(root, catalog, blobs, limits, summed=summed)

    def close(self) -> None:
        """Close the connections. Everything written is already on the disk."""
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Keep all that is written inside, or none of it. Nested blocks undo themselves alone when they raise."""
        self._room(0)
        with self._catalog.atomic():
            yield

    # ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def put(self, kind: str, id: str, body: Mapping[str, Any], *, at: float | None = None) -> None:
        """Insert the record, or replace it as a whole. Its time is `at`, else the body's own `at`, else now."""
        place = f"{_named(kind, 'kind')}/{_named(id, 'id')}"
        text = as_json(body, place)
        model = body.get("model")
        when = _number(at if at is not None else body.get("at"))
        searched = model if isinstance(model, str) and "\x00" not in model else None
        row = (kind, id, searched, time.time() if when is None else when, fields_of(body), text)
        self._room(len(text))
        with self._catalog.atomic() as execute:
            execute(
                "INSERT INTO record (kind, id, model, at, fields, body) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (kind, id) DO UPDATE "
                "SET model = excluded.model, at = excluded.at, fields = excluded.fields, body = excluded.body",
                row,
            )

    def get(self, kind: str, id: str) -> dict[str, Any] | None:
        """Return the body of a record, or None."""
        rows = self._catalog.read("SELECT body FROM record WHERE kind = ? AND id = ?", (kind, id))
        return _body(rows[0][0], f"{kind}/{id}") if rows else None

    def find(
        self, kind: str, /, *, limit: int | None = None, newest_first: bool = True, **equals: Any
    ) -> list[dict[str, Any]]:
        """Return the bodies of a kind whose top-level fields equal what is given (None: null or not there)."""
        where, params = ["kind = ?"], [kind]
        for name, value in equals.items():
            condition, more = self._equals(name, value)
            where.append(condition)
            params.extend(more)
        order = "DESC" if newest_first else "ASC"
        sql = f"SELECT id, body FROM record WHERE {' AND '.join(where)} ORDER BY at {order}, seq {order}{_limit(limit)}"
        return [_body(body, f"{kind}/{id}") for id, body in self._catalog.read(sql, params)]

    def delete(self, kind: str, id: str) -> bool:
        """Remove a record; return whether it was there."""
        with self._catalog.atomic() as execute:
            return bool(execute("DELETE FROM record WHERE kind = ? AND id = ? RETURNING seq", (kind, id)))

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def event(self, kind: str, subject: str, body: Mapping[str, Any], *, at: float | None = None) -> int:
        """Append to the audit trail and return the event's number. Nothing can change it afterwards."""
        text = as_json(body, f"event {_named(kind, 'kind')}/{subject}")
        self._room(len(text))
        with self._catalog.atomic() as execute:
            sql = "INSERT INTO event (at, kind, subject, body) VALUES (?, ?, ?, ?) RETURNING seq"
            return int(execute(sql, (time.time() if at is None else at, kind, subject, text))[0][0])

    def events(
        self, kind: str | None = None, subject: str | None = None, *, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return events, oldest first, as {seq, at, kind, subject, **body}; with `limit`, the newest so many."""
        where, params = _where({"kind = ?": kind, "subject = ?": subject})
        sql = f"SELECT seq, at, kind, subject, body FROM event{where} ORDER BY seq DESC{_limit(limit)}"
        found = []
        for seq, at, event_kind, event_subject, body in reversed(self._catalog.read(sql, params)):
            own = {"seq": seq, "at": at, "kind": event_kind, "subject": event_subject}
            found.append({**_body(body, f"event {seq}"), **own})
        return found

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, stream: str, subject: str, body: bytes, *, rows: int, first: float, last: float) -> int:
        """Append a batch of `rows` rows whose own times lie in [first, last]; return its number, which only grows."""
        place = f"stream {_named(stream, 'stream')}/{subject}"
        if len(body) > self._limits.batch_bytes:
            wanted = f"a batch of at most {self._limits.batch_bytes:,} bytes"
            raise InputError(sentence(wanted, f"{len(body):,}", at=place, hint="append it in several"))
        if not (math.isfinite(first) and math.isfinite(last) and first <= last):
            raise UsageError(sentence("first <= last in Unix seconds", f"{first!r} and {last!r}", at=place))
        self._room(len(body))
        sum_of_all = _checksum(stream, subject, rows, first, last, body)
        row = (stream, subject, time.time(), rows, float(first), float(last), len(body), bytes(body), sum_of_all)
        with self._catalog.atomic() as execute:
            sql = (
                "INSERT INTO batch (stream, subject, at, row_count, first, last, size, body, checksum) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq"
            )
            return int(execute(sql, row)[0][0])

    def read(
        self,
        stream: str,
        subject: str,
        *,
        after: int = 0,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[Batch]:
        """Yield batches in order, a few megabytes at a time: those numbered above `after` that touch [since, until).

        Each is checked against the sum it was appended with; CorruptError names one that has changed since.
        """
        where, params = _where({"stream = ?": stream, "subject = ?": subject, "last >= ?": since, "first < ?": until})
        sizes = f"SELECT seq, size FROM batch{where} AND seq > ? ORDER BY seq LIMIT {PAGE_ROWS}"
        fields = f"seq, at, row_count, first, last, body, {'checksum' if self._summed else 'NULL'}"
        bodies = f"SELECT {fields} FROM batch{where} AND seq >= ? AND seq <= ? ORDER BY seq"
        while page := self._catalog.read(sizes, [*params, after]):
            for low, high in _pages(page):
                for row in self._catalog.read(bodies, [*params, low, high]):
                    yield _batch(stream, subject, row)
            after = page[-1][0]

    def fold(self, stream: str, subject: str, body: bytes, *, over: Sequence[Batch], rows: int | None = None) -> None:
        """Replace consecutive batches by one with the same rows, in one step; it takes the number of the last.

        Streams of many small batches (a run that logged for hours) are folded so that reading them stays quick. With
        `rows` it holds so many of them only: the others are dropped.
        """
        assert over, "nothing to fold"
        self._room(len(body))
        rows = sum(batch.rows for batch in over) if rows is None else rows
        first, last = min(batch.first for batch in over), max(batch.last for batch in over)
        sum_of_all = _checksum(stream, subject, rows, first, last, body)
        with self._catalog.atomic() as execute:
            execute(
                "DELETE FROM batch WHERE stream = ? AND subject = ? AND seq >= ? AND seq < ?",
                (stream, subject, over[0].seq, over[-1].seq),
            )
            execute(
                "UPDATE batch SET row_count = ?, first = ?, last = ?, size = ?, body = ?, checksum = ? WHERE seq = ?",
                (rows, first, last, len(body), bytes(body), sum_of_all, over[-1].seq),
            )

    def trim(self, stream: str, subject: str, *, before: float) -> int:
        """Delete the batches whose rows are all older than `before`; return how many rows went."""
        with self._catalog.atomic() as execute:
            sql = "DELETE FROM batch WHERE stream = ? AND subject = ? AND last < ? RETURNING row_count"
            return sum(int(row[0]) for row in execute(sql, (stream, subject, before)))

    def newest(self, stream: str, subject: str) -> int:
        """Return the number of the newest batch, 0 for none."""
        sql = "SELECT MAX(seq) FROM batch WHERE stream = ? AND subject = ?"
        return int(self._catalog.read(sql, (stream, subject))[0][0] or 0)

    def subjects(self, stream: str) -> list[dict[str, Any]]:
        """Return what a stream holds by subject: {subject, batches, rows, bytes, first, last, seq of the newest}."""
        sql = (
            "SELECT subject, COUNT(*) AS batches, SUM(row_count) AS row_sum, SUM(size) AS bytes, MIN(first) AS first, "
            "MAX(last) AS last, MAX(seq) AS seq FROM batch WHERE stream = ? GROUP BY subject ORDER BY subject"
        )
        return [
            {"subject": row[0], "batches": int(row[1]), "rows": int(row[2]), "bytes": int(row[3])}
            | {"first": row[4], "last": row[5], "seq": int(row[6])}
            for row in self._catalog.read(sql, (stream,))
        ]

    # ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def charge(self, *entries: Entry) -> None:
        """Write down what something cost; several entries are kept together or not at all."""
        self._room(0)
        with self._catalog.atomic() as execute:
            sql = "INSERT INTO entry (at, kind, subject, quantity, unit, usd, note) VALUES (?, ?, ?, ?, ?, ?, ?)"
            for e in entries:
                execute(sql, (e.at, e.kind, e.subject, float(e.quantity), e.unit, float(e.usd), e.note))

    def entries(
        self,
        subject: str | None = None,
        kind: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[Entry]:
        """Return ledger entries in order of time, from `since` to before `until`."""
        where, params = _where({"subject = ?": subject, "kind = ?": kind, "at >= ?": since, "at < ?": until})
        sql = f"SELECT kind, subject, quantity, unit, usd, at, note FROM entry{where} ORDER BY at, seq"
        names = ("kind", "subject", "quantity", "unit", "usd", "at", "note")
        return [Entry(**dict(zip(names, row, strict=True))) for row in self._catalog.read(sql, params)]

    # ── looking and tidying ──────────────────────────────────────────────────────────────────────────────────────────

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Run SQL that only reads, for people; `?` marks parameters in either database."""
        names, rows = self._catalog.table(sql, tuple(params))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def gc(self, *, grace_s: float = care.GRACE_S) -> care.Garbage:
        """Delete blobs that no record or event names and that nobody has put within `grace_s`, and files of the dead.

        Safe while others write, as long as they name a blob within `grace_s` of putting it.
        """
        return care.collect(self._catalog, self.blobs, before=time.time() - grace_s)

    def spare(self, *, without: Collection[str] = (), grace_s: float = care.GRACE_S) -> care.Spare:
        """Say what `gc` would delete once the records `without`, each "kind/id", were gone. Deletes nothing."""
        return care.spare(self._catalog, self.blobs, before=time.time() - grace_s, without=without)

    def check(self, progress: care.Progress = care.quiet) -> list[Finding]:
        """Read everything and return what is wrong: a damaged catalog, missing or changed blobs, what can be tidied."""
        findings = care.examine(self._catalog, self.blobs, progress)
        if any(finding.code == "store/catalog-damaged" for finding in findings):
            return findings
        return [*self._damaged_batches(), *findings]

    def size_bytes(self) -> int:
        """Return what the store holds: all blobs, and the catalog's file (a server's catalog is not counted)."""
        blobs = sum(kept.size for kept in self.blobs.kept())
        file = self.folder / "tenon.db"
        return blobs + (file.stat().st_size if self._local and file.is_file() else 0)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _damaged_batches(self) -> Iterator[Finding]:
        """Read every batch that has a checksum, and tell of each that no longer has it."""
        if not self._summed:
            return
        for stream, subject in self._catalog.read("SELECT DISTINCT stream, subject FROM batch ORDER BY 1, 2"):
            after = 0
            while True:
                try:
                    for batch in self.read(stream, subject, after=after):
                        after = batch.seq
                    break
                except CorruptError as error:
                    # The batches before the damaged one were read; go on after it.
                    sql = "SELECT MIN(seq) FROM batch WHERE stream = ? AND subject = ? AND seq > ?"
                    after = self._catalog.read(sql, (stream, subject, after))[0][0]
                    if after is None:
                        break  # deleted meanwhile
                    place = f"{stream}/{subject}/{after}"
                    yield Finding(
                        code="store/catalog-damaged", severity="error", place=place, said=str(error), hint=RESTORE
                    )

    def _room(self, size: int) -> None:
        if self._local:
            require_room(self.folder, size, self._limits)

    def _equals(self, name: str, value: Any) -> tuple[str, list[Any]]:
        if not name.isidentifier() or not name.isascii():
            raise UsageError(sentence("the name of a top-level field", f"'{name}'", at="store.find"))
        if value is not None and not isinstance(value, (bool, int, float, str)):
            got = f"{type(value).__name__} for '{name}'"
            raise UsageError(sentence("text, a number, true, false or None", got, at="store.find"))
        if name == "model" and isinstance(value, str) and "\x00" not in value:
            return "model = ?", [value]
        field, said = self._catalog.dialect.field(name), _said(value)
        return (f"{field} IS NULL", []) if said is None else (f"{field} = ?", [said])


def _catalog(folder: Path, config: StoreConfig, limits: StoreLimits, *, read_only: bool) -> Catalog:
    if not config.catalog:
        file = folder / "tenon.db"
        return Catalog(Sqlite(file, limits, read_only=read_only), limits, str(file))
    if config.catalog.startswith(("postgresql://", "postgres://")):
        dialect = Postgres(config.catalog, limits, read_only=read_only)
        return Catalog(dialect, limits, dialect.place)
    shown = config.catalog.split("@")[-1]
    hint = "or leave it out to keep the catalog in .tenon/tenon.db"
    raise UsageError(sentence("postgresql://user@host/database", f"'{shown}'", at="store.catalog", hint=hint))


def _prepare(folder: Path) -> None:
    """Create the store's folder, which keeps itself out of git."""
    with words_of_disk(folder):
        make_folder(folder)
        note = folder / ".gitignore"
        if not note.exists():
            note.write_text("*\n", "ascii")


def _has_tables(catalog: Catalog) -> set[int]:
    """Return the numbers of the migrations that the database has; MissingError when it holds no store."""
    try:
        return applied(catalog)
    except CorruptError:
        raise
    except StoreError as error:
        if "migration" in str(error):
            hint = "run `tenon init` or `tenon run` first"
            raise MissingError(sentence("a store", "a database without one", at=catalog.place, hint=hint)) from error
        raise


def _release() -> str:
    import tenon

    return tenon.__version__


def as_json(body: Mapping[str, Any], place: str) -> str:
    """Write a body as it is kept; UsageError for what is no plain data."""
    try:
        return msgspec.json.encode(dict(body), enc_hook=_plain).decode("utf-8")
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
        raise UsageError(
            sentence("plain JSON data", f"'{error}'", at=place, hint="give dict, list, text, numbers")
        ) from error


def fields_of(body: Mapping[str, Any]) -> str:
    """Write the top-level values of a body, without its lists and tables, each as the text it is compared by.

    That text is the value's own JSON, with whole numbers always written without a point: so 1 and 1.0 are equal, while
    1, "1" and true are not. It is JSON inside JSON, so that no database has to unescape what a hostile value holds.
    """
    said = {name: _said(value) for name, value in body.items() if isinstance(name, str) and name.isidentifier()}
    return msgspec.json.encode({name: text for name, text in said.items() if text is not None}).decode()


def _said(value: Any) -> str | None:
    """Return the text that a value is compared by; None for null, and for what holds other values."""
    if value is None or isinstance(value, (dict, list, tuple, set, frozenset)):
        return None
    text = msgspec.json.encode(value, enc_hook=_plain).decode()
    if text == "null" or text.startswith(("[", "{")):
        return None
    number = float(text) if text[0] in "-0123456789" and not text.lstrip("-").isdigit() else 0.5
    return str(int(number)) if number.is_integer() else text


def _plain(value: Any) -> Any:
    """Turn what is nearly JSON into JSON: NumPy numbers and arrays, and paths."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _body(text: str, place: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise CorruptError(sentence("JSON", f"'{error}'", at=place, hint="run `tenon store check`")) from error


def _batch(stream: str, subject: str, row: Sequence[Any]) -> Batch:
    """Return a batch as read; CorruptError when it has a checksum and that is not its own."""
    seq, at, rows, first, last, body, expected = row
    if expected is not None:
        try:
            found = f"{_checksum(stream, subject, rows, first, last, body):08x}"
        except (struct.error, TypeError):  # SQLite lets damage turn a number into anything
            found = "fields of another type"
        if found != f"{expected:08x}":
            wanted = f"a batch with the checksum {expected:08x}"
            raise CorruptError(sentence(wanted, found, at=f"{stream}/{subject}/{seq}", hint=RESTORE))
    return Batch(seq=seq, at=at, rows=rows, first=first, last=last, body=bytes(body))


def _checksum(stream: str, subject: str, rows: int, first: float, last: float, body: bytes) -> int:
    """Return the CRC-32 of a batch: its bytes, and what stands beside them, so that no field can change unseen."""
    beside = struct.pack("<qdd", rows, first, last) + f"{stream}\x00{subject}".encode("utf-8", "surrogatepass")
    return zlib.crc32(beside, zlib.crc32(body))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _named(name: str, what: str) -> str:
    if not isinstance(name, str) or not name or "\x00" in name:
        raise UsageError(sentence(f"a {what} of at least one character", repr(name), at="store"))
    return name


def _where(conditions: Mapping[str, Any]) -> tuple[str, list[Any]]:
    given = {text: value for text, value in conditions.items() if value is not None}
    return (" WHERE " + " AND ".join(given) if given else "", list(given.values()))


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {max(int(limit), 0)}"


def _pages(sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut (seq, size) pairs into ranges of seq whose bodies together stay small."""
    low, held = sizes[0][0], 0
    last = low
    for seq, size in sizes:
        if held and held + size > PAGE_BYTES:
            yield low, last
            low, held = seq, 0
        last, held = seq, held + size
    yield low, last
