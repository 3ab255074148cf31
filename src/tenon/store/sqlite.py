"""The default catalog: one SQLite file, in WAL mode, with commits that survive a power cut.

WAL lets readers go on while one writes; `synchronous=FULL` makes each commit reach the disk before it returns; the busy
timeout makes a second process wait its turn; `BEGIN IMMEDIATE` takes the write lock at the start, where waiting works,
and not in the middle, where SQLite can only refuse. Setting WAL needs the file alone for an instant and does not honour
the timeout when two processes create it at once, so that is tried again here.

WAL does not work on network file systems: `tenon doctor` probes the locks.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenon.errors import CorruptError, MissingError, StoreError, sentence
from tenon.limits import StoreLimits
from tenon.store.catalog import Rows


class Sqlite:
    """The dialect of one SQLite file."""

    __slots__ = ("_frozen", "_limits", "_path", "_read_only")

    name = "sqlite"
    begin = ("BEGIN IMMEDIATE",)

    def __init__(self, path: Path, limits: StoreLimits, *, read_only: bool) -> None:
        self._path = path
        self._limits = limits
        self._read_only = read_only
        self._frozen = False

    def connect(self, *, writing: bool) -> sqlite3.Connection:
        """Open a connection; only the writer of a store that is not read-only may create the file or change it."""
        if writing and self._read_only:
            raise StoreError(
                sentence("a store opened for writing", "one opened read-only", at=str(self._path), hint="open it again")
            )
        if not writing and not self._path.is_file():
            raise MissingError(
                sentence("a store", "no file", at=str(self._path), hint="run `tenon init` or `tenon run` first")
            )
        try:
            connection = self._open("rwc" if writing else "ro")
        except sqlite3.Error as error:
            raise self._words(error) from error
        try:
            if writing:
                self._to_wal(connection)
                # FULL: in WAL mode, NORMAL may lose the last commits in a power cut.
                connection.execute("PRAGMA synchronous = FULL")
            else:
                connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            connection.close()
            raise self._words(error) from error
        return connection

    def run(self, connection: sqlite3.Connection, sql: str, params: Sequence[Any]) -> tuple[list[str], Rows]:
        """Run one statement and fetch all it returns."""
        try:
            cursor = connection.execute(sql, params)
            names = [column[0] for column in cursor.description or ()]
            return names, cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise self._words(error) from error

    def lost(self, connection: sqlite3.Connection) -> bool:
        """Tell whether a connection may not be used again: one opened as unchanging would not see what changes."""
        return self._frozen

    def field(self, name: str) -> str:
        """Write the expression that is one of a record's `fields`, as text; NULL when it is not there."""
        return f"json_extract(fields, '$.\"{name}\"')"

    def _open(self, mode: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        try:
            connection = self._connect(uri)
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except sqlite3.OperationalError:
            waiting = self._path.with_name(self._path.name + "-wal")
            if mode != "ro" or (waiting.exists() and waiting.stat().st_size):
                raise
            # A folder we may not write to (a mounted image): without a log to replay, the file alone is the truth.
            self._frozen = True
            connection = self._connect(f"{uri}&immutable=1")
        return connection

    def _connect(self, uri: str) -> sqlite3.Connection:
        return sqlite3.connect(
            uri, uri=True, timeout=self._limits.busy_s, isolation_level=None, check_same_thread=False
        )

    def _to_wal(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._limits.busy_s
        while True:
            try:
                if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not _is(error, "SQLITE_BUSY", "SQLITE_LOCKED") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _may_write(self) -> bool:
        """Tell whether the disk would let us write, so that a refusal was ours: a reader's."""
        return os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK)

    def _words(self, error: sqlite3.Error | sqlite3.Warning) -> StoreError:
        """Say what SQLite could not do, and what helps."""
        place = str(self._path)
        if _is(error, "SQLITE_BUSY", "SQLITE_LOCKED"):
            got = f"another process writing for more than {self._limits.busy_s:g} s"
            return StoreError(sentence("a turn to write", got, at=place, hint="see who holds it: `fuser` on that file"))
        if _is(error, "SQLITE_FULL"):
            return StoreError(
                sentence("room on the disk", "a full disk", at=place, hint="free some; nothing was changed")
            )
        if _is(error, "SQLITE_NOTADB", "SQLITE_CORRUPT"):
            hint = "keep a copy, then `sqlite3 FILE .recover`, or restore it from a backup"
            return CorruptError(sentence("a sound SQLite file", f"'{error}'", at=place, hint=hint))
        if _is(error, "SQLITE_READONLY") and "readonly database" in str(error) and self._may_write():
            return StoreError(sentence("SQL that only reads", f"'{error}'", at=place))
        if _is(error, "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH"):
            hint = "check who owns the file and its folder, and that the disk is not mounted read-only"
            return StoreError(sentence("permission to use the file", f"'{error}'", at=place, hint=hint))
        if _is(error, "SQLITE_IOERR"):
            hint = "the disk may be full or failing: run `tenon doctor`"
            return StoreError(sentence("the disk to work", f"'{error}'", at=place, hint=hint))
        return StoreError(sentence("SQL that works", f"'{error}'", at=place))


def _is(error: BaseException, *names: str) -> bool:
    """Tell whether an SQLite error is one of these, or of their extended forms (SQLITE_BUSY_SNAPSHOT)."""
    return str(getattr(error, "sqlite_errorname", "")).startswith(names)
