"""The catalog for a team: a PostgreSQL database, through psycopg 3 (the extra `postgres`).

`StoreConfig.catalog` is a PostgreSQL URL; tenon keeps its tables in a schema of their own, `tenon` unless the URL ends
in `?schema=NAME`, so that several projects can share one database. Every writing transaction first takes an advisory
lock of that schema: one writer at a time, as with SQLite, so that numbers become visible in their order.

Record bodies are kept as text, byte for byte as written: `jsonb` reorders keys, and refuses the character NUL, which
hostile data may well contain. The fields that are searched for stand beside them, written so that it cannot.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from tenon.errors import ConfigError, StoreError, missing_extra, sentence
from tenon.limits import StoreLimits
from tenon.store.catalog import Rows

MARKS = re.compile(r"'(?:[^']|'')*'|\?|%")


class Postgres:
    """The dialect of one PostgreSQL schema."""

    __slots__ = ("_limits", "_read_only", "_url", "begin", "place", "schema")

    name = "postgres"

    def __init__(self, url: str, limits: StoreLimits, *, read_only: bool) -> None:
        self._url, self.schema = split_schema(url)
        self._limits = limits
        self._read_only = read_only
        self.place = self._url.split("@")[-1] + f" schema {self.schema}"  # never the password
        # One message to the server and not two; it takes no parameters, so that the server accepts both at once.
        self.begin = (f"BEGIN; SELECT pg_advisory_xact_lock(hashtext('tenon.{self.schema}'))",)

    def connect(self, *, writing: bool) -> Any:
        """Open a connection; the writer of a store that is not read-only creates the schema when it is missing."""
        if writing and self._read_only:
            raise StoreError(
                sentence("a store opened for writing", "one opened read-only", at=self.place, hint="open it again")
            )
        psycopg = _psycopg()
        try:
            connection = psycopg.connect(self._url, autocommit=True, connect_timeout=10)
            # Sums of whole numbers come as `numeric`; people who ask in SQL want numbers.
            connection.adapters.register_loader("numeric", psycopg.types.numeric.FloatLoader)
            connection.execute(f"SET search_path TO {self.schema}, pg_catalog")
            connection.execute("SET client_encoding TO 'UTF8'")
            connection.execute(f"SET lock_timeout TO {int(self._limits.busy_s * 1000)}")
            if writing:
                connection.execute("SELECT pg_advisory_lock(hashtext('tenon.schema'))")
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
                connection.execute("SELECT pg_advisory_unlock(hashtext('tenon.schema'))")
            else:
                connection.execute("SET default_transaction_read_only TO on")
        except psycopg.Error as error:
            raise self._words(error) from error
        return connection

    def run(self, connection: Any, sql: str, params: Sequence[Any]) -> tuple[list[str], Rows]:
        """Run one statement and fetch all it returns."""
        psycopg = _psycopg()
        try:
            cursor = connection.execute(translate(sql), params) if params else connection.execute(sql)
            if cursor.description is None:
                return [], []
            return [column.name for column in cursor.description], cursor.fetchall()
        except psycopg.Error as error:
            raise self._words(error) from error

    def lost(self, connection: Any) -> bool:
        """Tell whether the server has dropped a connection."""
        return bool(connection.closed)

    def field(self, name: str) -> str:
        """Write the expression that is one of a record's `fields`, as text; NULL when it is not there."""
        return f"fields ->> '{name}'"

    def _words(self, error: Any) -> StoreError:
        """Say what PostgreSQL could not do, and what helps."""
        code = error.sqlstate or ""
        said = f"'{str(error).strip().splitlines()[0][:300]}'" if str(error).strip() else f"'{type(error).__name__}'"
        if code == "55P03":
            got = f"another writer for more than {self._limits.busy_s:g} s"
            return StoreError(sentence("a turn to write", got, at=self.place, hint="see pg_locks for who holds it"))
        if code == "53100":
            return StoreError(sentence("room on the server's disk", said, at=self.place, hint="nothing was changed"))
        if code.startswith("25006"):
            return StoreError(sentence("SQL that only reads", said, at=self.place))
        if code.startswith(("28", "42501", "3D")):
            hint = "check user, password and database in store.catalog"
            return StoreError(sentence("permission to use the database", said, at=self.place, hint=hint))
        if code in ("", "57P01", "57P02", "57P03") or code.startswith("08"):
            hint = "check that the server runs and the URL in store.catalog"
            return StoreError(sentence("the database to answer", said, at=self.place, hint=hint))
        return StoreError(sentence("SQL that works", said, at=self.place))


def split_schema(url: str) -> tuple[str, str]:
    """Take `schema=NAME` out of a PostgreSQL URL; return the URL without it, and the name (`tenon` by default)."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    schema = dict(options).get("schema", "tenon")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
        hint = "at most 63 lower-case letters, digits and _"
        raise ConfigError(sentence("the name of a schema", f"'{schema}'", at="store.catalog", hint=hint))
    rest = urlencode([(name, value) for name, value in options if name != "schema"])
    return urlunsplit(parts._replace(query=rest)), schema


@functools.lru_cache(maxsize=256)
def translate(sql: str) -> str:
    """Write `?` as psycopg's `%s`, leaving text in quotes as it is and doubling percent signs."""

    def swap(match: re.Match[str]) -> str:
        found = match[0]
        return "%s" if found == "?" else found.replace("%", "%%")

    return MARKS.sub(swap, sql)


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise missing_extra("psycopg", "postgres", "keep the catalog in PostgreSQL") from error
    return psycopg
