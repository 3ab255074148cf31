"""All tables of the store, as numbered migrations that are only ever appended to.

Each migration commits together with its own record in `migration`, so that a process killed between two of them leaves
a database that the next one continues. The statements are written once; `{serial}`, `{real}`, `{bytes}` and `{json}`
stand for what the two databases call the same thing, and a statement that only one of them needs is marked with its
name. A test holds the hash of every migration that was released: mending one means adding the next.

Why so few tables: rooms own their records and give plain JSON, so a new room needs no new table, and a record written
by a later release keeps the fields that this one does not know. Beside the body stand what is searched for: `model`,
because nearly every question is about one, and `fields`, the body's top-level values without its lists and tables (see
`store.fields_of`), so that a search does not parse bodies. `event` refuses UPDATE and DELETE in the database itself: an
audit trail that code could rewrite by mistake would prove nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

TYPES = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "real": "REAL", "bytes": "BLOB", "json": "TEXT"},
    "postgres": {
        "serial": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "real": "double precision",
        "bytes": "bytea",
        "json": "jsonb",
    },
}

JOURNAL = """CREATE TABLE IF NOT EXISTS migration (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, at {real} NOT NULL, release TEXT NOT NULL)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema; a statement beginning with ``sqlite:`` or ``postgres:`` is for that database only."""

    number: int
    name: str
    statements: tuple[str, ...]

    def sql(self, dialect: str) -> list[str]:
        """Return the statements for one database."""
        found = []
        for statement in self.statements:
            mark, _, rest = statement.partition(":")
            if mark in TYPES:
                if mark == dialect:
                    found.append(rest.strip())
            else:
                found.append(statement.format(**TYPES[dialect]))
        return found

    def digest(self) -> str:
        """Return the hash that a test compares with the one that was released."""
        return hashlib.sha256("\n;\n".join((str(self.number), self.name, *self.statements)).encode()).hexdigest()


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        number=1,
        name="records, events, batches, entries",
        statements=(
            """CREATE TABLE record (
                seq {serial},
                kind TEXT NOT NULL,
                id TEXT NOT NULL,
                model TEXT,
                at {real} NOT NULL,
                fields {json} NOT NULL,
                body TEXT NOT NULL,
                UNIQUE (kind, id))""",
            "CREATE INDEX record_by_time ON record (kind, at, seq)",
            "CREATE INDEX record_by_model ON record (kind, model, at, seq)",
            """CREATE TABLE event (
                seq {serial},
                at {real} NOT NULL,
                kind TEXT NOT NULL,
                subject TEXT NOT NULL,
                body TEXT NOT NULL)""",
            "CREATE INDEX event_by_subject ON event (subject, kind, seq)",
            "CREATE INDEX event_by_kind ON event (kind, seq)",
            """CREATE TABLE batch (
                seq {serial},
                stream TEXT NOT NULL,
                subject TEXT NOT NULL,
                at {real} NOT NULL,
                row_count bigint NOT NULL,
                first {real} NOT NULL,
                last {real} NOT NULL,
                size bigint NOT NULL,
                body {bytes} NOT NULL)""",
            "CREATE INDEX batch_by_subject ON batch (stream, subject, seq)",
            """CREATE TABLE entry (
                seq {serial},
                at {real} NOT NULL,
                kind TEXT NOT NULL,
                subject TEXT NOT NULL,
                quantity {real} NOT NULL,
                unit TEXT NOT NULL,
                usd {real} NOT NULL,
                note TEXT NOT NULL)""",
            "CREATE INDEX entry_by_subject ON entry (subject, at)",
            "CREATE INDEX entry_by_time ON entry (at)",
            """sqlite: CREATE TRIGGER event_is_not_rewritten BEFORE UPDATE ON event
                BEGIN SELECT RAISE(ABORT, 'events are append only'); END""",
            """sqlite: CREATE TRIGGER event_is_not_deleted BEFORE DELETE ON event
                BEGIN SELECT RAISE(ABORT, 'events are append only'); END""",
            """postgres: CREATE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'events are append only'; END $$""",
            """postgres: CREATE TRIGGER event_is_not_rewritten BEFORE UPDATE OR DELETE ON event
                FOR EACH ROW EXECUTE FUNCTION event_is_append_only()""",
        ),
    ),
    Migration(
        number=2,
        name="checksums of batches",
        statements=("ALTER TABLE batch ADD COLUMN checksum bigint",),
    ),
)
