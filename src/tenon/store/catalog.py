"""The catalog: one way of talking SQL to two databases, one writer at a time, and all or nothing.

Two dialects (`sqlite.Sqlite`, `postgres.Postgres`) open connections, run one statement and put the database's errors
into words; everything else is here once. Statements are written with `?`.

Writing goes through one connection under a lock: a second thread waits for the first, a second process waits in the
database (`BEGIN IMMEDIATE`; an advisory lock in PostgreSQL). One writer at a time also means that sequence numbers
become visible in their order, so that a reader who asks for what came after number 7 never misses a number 6 that was
committed late. Inside `atomic` the thread reads through its own writer and so sees what it has written.

Reading takes a connection from a small pool and gives it back. Thread-local connections were tried and given up: a
thread that ends takes its connection with it unclosed, and a service with many threads opens a file for each.

A process that forks must open the store again: a database connection shared by two processes corrupts both.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from tenon.errors import MissingError, StoreError, UsageError, sentence
from tenon.limits import StoreLimits
from tenon.store.schema import JOURNAL, MIGRATIONS, TYPES, Migration

Rows = list[tuple[Any, ...]]
Execute = Callable[[str, Sequence[Any]], Rows]

IDLE_READERS = 8  # connections kept open for the next reader; more are opened when needed and closed after


class Dialect(Protocol):
    """What one database does its own way."""

    @property
    def name(self) -> str: ...

    @property
    def begin(self) -> tuple[str, ...]: ...

    def connect(self, *, writing: bool) -> Any: ...

    def run(self, connection: Any, sql: str, params: Sequence[Any]) -> tuple[list[str], Rows]: ...

    def lost(self, connection: Any) -> bool: ...

    def field(self, name: str) -> str: ...


class _Lost(Exception):
    """A connection had died since it was last used; nothing has been done with it."""


class Catalog:
    """A database with one writer and many readers; safe to share between threads, not between processes."""

    __slots__ = (
        "_closed",
        "_depth",
        "_failed",
        "_idle",
        "_lock",
        "_owner",
        "_pid",
        "_writer",
        "dialect",
        "limits",
        "place",
    )

    def __init__(self, dialect: Dialect, limits: StoreLimits, place: str) -> None:
        self.dialect = dialect
        self.limits = limits
        self.place = place
        self._lock = threading.RLock()
        self._owner = 0
        self._depth = 0
        self._failed = False
        self._writer: Any = None
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._closed = False

    def read(self, sql: str, params: Sequence[Any] = ()) -> Rows:
        """Run a query and return its rows; inside `atomic` it sees what this thread has written."""
        return self.table(sql, params)[1]

    def table(self, sql: str, params: Sequence[Any] = ()) -> tuple[list[str], Rows]:
        """Run a query and return the names of its columns and its rows."""
        if self._owner == threading.get_ident():
            return self._run(sql, params)
        self._usable()
        try:
            return self._pooled(sql, params)
        except _Lost:
            return self._pooled(sql, params, fresh=True)

    @contextmanager
    def atomic(self) -> Iterator[Execute]:
        """Hold the writer: all statements inside are kept, or none. Nested blocks undo themselves alone."""
        self._usable()
        if not self._lock.acquire(timeout=self.limits.busy_s):
            got = f"another thread writing for more than {self.limits.busy_s:g} s"
            raise StoreError(sentence("a turn to write", got, at=self.place, hint="end its `atomic` block sooner"))
        try:
            if self._depth:
                with self._savepoint(f"nested_{self._depth}"):
                    yield self._execute
            else:
                with self._transaction():
                    yield self._execute
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close every connection; using the catalog afterwards is an error."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._discard(self._idle.pop())
            if self._writer is not None:
                self._discard(self._writer)
                self._writer = None

    def _pooled(self, sql: str, params: Sequence[Any], *, fresh: bool = False) -> tuple[list[str], Rows]:
        """Run a query on a connection of the pool; raise _Lost when that one had died since it was last used."""
        used = not fresh and bool(self._idle)
        try:
            connection = self._idle.pop() if used else self.dialect.connect(writing=False)
        except IndexError:  # another thread took the last one meanwhile
            used, connection = False, self.dialect.connect(writing=False)
        try:
            found = self.dialect.run(connection, sql, params)
        except BaseException as error:  # the edge to a driver: a connection that failed is not used again
            lost = used and isinstance(error, StoreError) and self.dialect.lost(connection)
            self._discard(connection)
            if lost:
                raise _Lost from error
            raise
        if len(self._idle) < IDLE_READERS and not self._closed and not self.dialect.lost(connection):
            self._idle.append(connection)
        else:
            self._discard(connection)
        return found

    def _execute(self, sql: str, params: Sequence[Any] = ()) -> Rows:
        return self._run(sql, params)[1]

    def _run(self, sql: str, params: Sequence[Any]) -> tuple[list[str], Rows]:
        try:
            return self.dialect.run(self._writer, sql, params)
        except BaseException:  # the edge to a driver: the block that holds this statement may not commit
            self._failed = True
            raise

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._begin()
            self._depth = 1
            self._failed = False
            self._owner = threading.get_ident()
            yield
            self._not_failed()
            self._execute("COMMIT")
        except BaseException:  # the edge of a block: whatever ends it, Ctrl-C too, undoes it
            self._undo("ROLLBACK")
            raise
        finally:
            self._depth = 0
            self._owner = 0

    @contextmanager
    def _savepoint(self, name: str) -> Iterator[None]:
        self._execute(f"SAVEPOINT {name}")
        self._depth += 1
        try:
            yield
            self._not_failed()
            self._execute(f"RELEASE SAVEPOINT {name}")
        except BaseException:  # the edge of a block: whatever ends it, Ctrl-C too, undoes it
            self._undo(f"ROLLBACK TO SAVEPOINT {name}")
            self._undo(f"RELEASE SAVEPOINT {name}")
            self._failed = False
            raise
        finally:
            self._depth -= 1

    def _not_failed(self) -> None:
        """Refuse to commit when an error was caught inside: PostgreSQL would quietly roll everything back."""
        if self._failed:
            hint = "let the error leave the block, or put what may fail in a nested `atomic`"
            raise StoreError(
                sentence("every statement of an `atomic` block to work", "one that failed", at=self.place, hint=hint)
            )

    def _begin(self) -> None:
        """Begin a transaction, on a new connection when the old one has died since it was last used."""
        fresh = self._writer is None
        if fresh:
            self._writer = self.dialect.connect(writing=True)
        try:
            for sql in self.dialect.begin:
                self._execute(sql)
        except StoreError:
            lost = self.dialect.lost(self._writer)
            self._discard(self._writer)
            self._writer = None
            if fresh or not lost:
                raise
            self._begin()

    def _undo(self, sql: str) -> None:
        """Undo; a connection that cannot even do that is thrown away, which undoes as well."""
        if self._writer is None:
            return
        try:
            self._execute(sql)
        except StoreError:
            if sql == "ROLLBACK":
                self._discard(self._writer)
                self._writer = None

    def _discard(self, connection: Any) -> None:
        # Closing what is already broken may fail in the database's own way; there is nothing left to lose.
        with suppress(Exception):
            connection.close()

    def _usable(self) -> None:
        if self._closed:
            raise UsageError(sentence("an open store", "one that was closed", at=self.place, hint="open it again"))
        if os.getpid() != self._pid:
            got = f"one opened by process {self._pid} before it forked into {os.getpid()}"
            raise UsageError(sentence("a store of this process", got, at=self.place, hint="open it in the new process"))


# ── migrations ───────────────────────────────────────────────────────────────────────────────────────────────────────


def migrate(catalog: Catalog, *, release: str, migrations: Sequence[Migration] = MIGRATIONS) -> list[int]:
    """Bring the database to the newest schema and return the numbers of the migrations that ran; usually none.

    Raises StoreError, before changing anything, when a later release has already written to it.
    """
    with suppress(StoreError, MissingError):  # no journal yet: a new database
        if applied(catalog, migrations) == {migration.number for migration in migrations}:
            return []
    ran = []
    for migration in migrations:
        with catalog.atomic() as execute:
            execute(JOURNAL.format(**TYPES[catalog.dialect.name]), ())
            # Looked up again inside the transaction: another process may have been first.
            if migration.number in applied(catalog, migrations):
                continue
            for sql in migration.sql(catalog.dialect.name):
                execute(sql, ())
            record = (migration.number, migration.name, time.time(), release)
            execute("INSERT INTO migration (number, name, at, release) VALUES (?, ?, ?, ?)", record)
            ran.append(migration.number)
    return ran


def applied(catalog: Catalog, migrations: Sequence[Migration] = MIGRATIONS) -> set[int]:
    """Return the numbers of the migrations the database has; refuse one that a later release has written."""
    rows = catalog.read("SELECT number, name, release FROM migration ORDER BY number")
    known = {migration.number for migration in migrations}
    newer = [row for row in rows if row[0] not in known]
    if newer:
        number, name, release = newer[-1]
        raise StoreError(
            sentence(
                f"a store of at most schema {max(known, default=0)}",
                f"schema {number} ('{name}'), written by tenon {release}",
                at=catalog.place,
                hint=f"install tenon {release} or later; nothing was changed",
            )
        )
    return {row[0] for row in rows}
