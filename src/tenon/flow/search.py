"""Search over runs in SQL: a small database of runs, made in memory for one question and thrown away.

Tables: `runs` (one row a run: what it was, what it cost, and columns for its parameters, scores and final values),
`params`, `scores`, `final`, `packages`, `artifacts`, `data` (long form, by run). `TABLES` describes them. The tables
that a question does not name are not filled, so that two thousand runs with four hundred packages each do not matter.

Why a database of its own and not the store's: people get the same SQL whatever the catalog is kept in, what was
packed (the last value of a curve) is a column like any other, and no question can reach, let alone change, anything
else. SQLite's authorizer refuses all but reading, time and memory are bounded. A name in double quotes that is no
column would silently become text in SQLite; here it is an error.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from tenon.errors import UsageError, nearest, sentence
from tenon.flow import look
from tenon.limits import TrackLimits
from tenon.store import Store
from tenon.training import track

ROWS = 10_000  # rows of one answer
COLUMNS = 1_500  # columns of `runs`; what does not fit is in the long tables
LENGTH_BYTES = 64 * 1024 * 1024  # the longest text that a function may make
TICKS = 20_000  # steps of SQLite's machine between two looks at the clock
READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)

# table -> its columns; `runs` has more, one for each parameter, score and final value of these runs
TABLES: dict[str, tuple[str, ...]] = {
    "runs": (
        *("id", "model", "status", "trainer", "task", "seed", "at", "began", "seconds", "cpu_s", "usd", "kwh"),
        *("energy_source", "peak_bytes", "python", "commit_id", "branch", "dirty", "host", "processor", "features"),
        *("findings", "error", "params", "scores", "final"),
    ),
    "params": ("run", "name", "value"),
    "scores": ("run", "side", "metric", "value", "low", "high"),
    "final": ("run", "metric", "step", "last", "min", "max", "points", "not_finite"),
    "packages": ("run", "name", "version"),
    "artifacts": ("run", "name", "digest"),
    "data": ("run", "source", "version"),
}
JSON = ("params", "scores", "final")  # columns of `runs` that hold JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer to a question: names of columns, and rows of plain values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as mappings."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def ask(store: Store, sql: str, *, limits: TrackLimits | None = None) -> Found:
    """Answer one SELECT over the tables of runs; UsageError says what is wrong with it."""
    bounds = limits or TrackLimits()
    records = track.runs(store)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        columns = _fill(connection, store, records, sql)
        _quoted(sql, columns)
        return _answer(connection, sql, columns, bounds)
    finally:
        connection.close()


def where(store: Store, condition: str, *, limits: TrackLimits | None = None) -> list[str]:
    """Return the ids of the runs that a condition holds for, newest first."""
    # On a line of its own, so that a comment at the end of it ends there.
    found = ask(store, f"SELECT id FROM runs WHERE (\n{condition}\n) ORDER BY at DESC", limits=limits)
    return [str(row[0]) for row in found.rows]


def described(store: Store) -> dict[str, list[str]]:
    """Return the tables and their columns as they are for the runs of this store."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        return _fill(connection, store, track.runs(store), " ".join(("last_", "runs")))
    finally:
        connection.close()


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _fill(
    connection: sqlite3.Connection, store: Store, records: Sequence[Mapping[str, Any]], sql: str
) -> dict[str, list[str]]:
    """Make the tables, fill those that the question names, and return all columns by table."""
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    read = "final" in words or any(word.startswith(("last_", "min_", "max_")) for word in words)
    finals = [look.final(store, record) if read else _mapping(record.get("final")) for record in records]
    columns = {name: list(fixed) for name, fixed in TABLES.items()}
    wide = [_wide(record, final) for record, final in zip(records, finals, strict=True)]
    names = _names(wide, taken=TABLES["runs"])
    columns["runs"] += names.values()
    for table, named in columns.items():
        connection.execute(f"CREATE TABLE {table} ({', '.join(_identifier(name) for name in named)})")
    rows: dict[str, Iterable[Sequence[Any]]] = {
        "runs": (
            [*_fixed(record, final), *(values.get(key) for key in names)]
            for record, final, values in zip(records, finals, wide, strict=True)
        ),
        "params": _long(records, "params"),
        "scores": ([run["id"], side, name, *one.values()] for run in records for side, name, one in look.scores(run)),
        "final": (
            [run["id"], name, *(one.get(field) for field in TABLES["final"][2:])]
            for run, final in zip(records, finals, strict=True)
            for name, one in final.items()
        ),
        "packages": _long(records, "packages"),
        "artifacts": _long(records, "artifacts"),
        "data": _data(store, records),
    }
    for table, lines in rows.items():
        if table in words:
            marks = ", ".join("?" * len(columns[table]))
            filled = ([_plain(value) for value in line] for line in lines)
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", filled)
    return columns


def _fixed(record: Mapping[str, Any], final: Mapping[str, Any]) -> list[Any]:
    energy, git = _mapping(record.get("energy")), _mapping(record.get("git"))
    hardware, error = _mapping(record.get("hardware")), _mapping(record.get("error"))
    at = record.get("at")
    known = {
        **{name: record.get(name) for name in TABLES["runs"]},
        "began": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S") if at else None,
        "kwh": energy.get("kwh"),
        "energy_source": energy.get("source"),
        "commit_id": git.get("commit"),
        "branch": git.get("branch"),
        "dirty": git.get("dirty"),
        "host": _mapping(record.get("process")).get("host"),
        "processor": hardware.get("processor"),
        "findings": len(record.get("findings") or ()),
        "error": error.get("message"),
        "params": dict(_mapping(record.get("params"))),
        "scores": {f"{side}_{name}".lstrip("_"): one["value"] for side, name, one in look.scores(record)},
        "final": dict(final),
    }
    return [known[name] for name in TABLES["runs"]]


def _wide(record: Mapping[str, Any], final: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return what becomes columns of `runs`, by (prefix, name)."""
    found: dict[tuple[str, str], Any] = {}
    for side, name, one in look.scores(record):
        found[side or "score", name] = one["value"]
    for name, value in _mapping(record.get("params")).items():
        found["param", str(name)] = value
    for name, one in final.items():
        for field in ("last", "min", "max"):
            found[field, str(name)] = one.get(field)
    return found


def _names(wide: Iterable[Mapping[tuple[str, str], Any]], *, taken: Sequence[str]) -> dict[tuple[str, str], str]:
    """Give every wide value a column that can be written without quotes; no two share one."""
    used = set(taken)
    names: dict[tuple[str, str], str] = {}
    plain = {key: re.sub(r"\W", "_", "_".join(key).lower()) for values in wide for key in values}
    # Names that are what they look like go first, so that another that only comes to the same gets the number.
    for key in sorted(plain, key=lambda key: ("_".join(key) != plain[key], key))[: COLUMNS - len(taken)]:
        name, count = plain[key], 1
        while name in used:
            count += 1
            name = f"{plain[key]}_{count}"
        used.add(name)
        names[key] = name
    return names


def _long(records: Iterable[Mapping[str, Any]], field: str) -> Iterator[list[Any]]:
    for record in records:
        for name, value in _mapping(record.get(field)).items():
            yield [record["id"], str(name), value]


def _data(store: Store, records: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    known: dict[str, dict[str, str]] = {}
    for record in records:
        made_of = repr((record.get("features"), record.get("data")))
        if made_of not in known:
            known[made_of] = look.datasets(store, record)
        for source, version in known[made_of].items():
            yield [record["id"], source, version]


def _plain(value: Any) -> Any:
    """Turn a value into one that SQLite keeps: numbers and text as they are, what is nested as JSON."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value) if abs(value) < 2**1000 else str(value)
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return msgspec.json.encode(value).decode("utf-8")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ── the question ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _allowed(action: int, first: str | None, second: str | None, _base: str | None, _by: str | None) -> int:
    if action not in READS or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _answer(
    connection: sqlite3.Connection, sql: str, columns: Mapping[str, Sequence[str]], limits: TrackLimits
) -> Found:
    deadline = time.monotonic() + limits.search_s
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LENGTH_BYTES)
    connection.execute("SELECT 1 FROM json_each('[]')")  # makes itself known now: later it would not be authorized
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), TICKS)
    connection.set_authorizer(_allowed)
    try:
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, MemoryError) as error:
        raise _words(error, columns, limits) from error
    if cursor.description is None:
        raise UsageError(sentence("a SELECT over runs", f"'{sql.strip()[:80]}'", hint="see `tenon runs sql`"))
    if len(rows) > ROWS:
        raise UsageError(sentence(f"an answer of at most {ROWS:,} rows", "more", hint="add LIMIT, or a narrower WHERE"))
    return Found(columns=tuple(one[0] for one in cursor.description), rows=tuple(rows))


def _words(error: Exception, columns: Mapping[str, Sequence[str]], limits: TrackLimits) -> UsageError:
    """Say what SQLite did not understand or was not allowed to do."""
    said = str(error)
    names = sorted({name for named in columns.values() for name in named})
    if "no such column" in said:
        name = said.rpartition(" ")[2]
        return UsageError(sentence("a column of these tables", f"'{name}'", hint=nearest(name.split(".")[-1], names)))
    if "no such table" in said:
        name = said.rpartition(" ")[2]
        return UsageError(sentence("a table of runs", f"'{name}'", hint=nearest(name, columns)))
    if "interrupted" in said:
        hint = "ask for less, or raise limits.track.search_s"
        return UsageError(sentence(f"a search that takes at most {limits.search_s:g} s", "a longer one", hint=hint))
    if "authoriz" in said or "prohibited" in said:
        return UsageError(sentence("SQL that only reads runs", f"'{said}'", hint="ask with SELECT"))
    if "one statement" in said:
        return UsageError(sentence("one statement", "several", hint="ask them one after another"))
    return UsageError(sentence("SQL as SQLite speaks it", f"'{said}'", hint="`tenon runs sql` shows the columns"))


TOKENS = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|(\bas\s+)?\"((?:[^\"]|\"\")*)\"", re.S | re.I)


def _quoted(sql: str, columns: Mapping[str, Sequence[str]]) -> None:
    """Refuse a name in double quotes that nothing has: SQLite would take it for text and compare with that."""
    found = [(match[1], match[2].replace('""', '"')) for match in TOKENS.finditer(sql) if match[2] is not None]
    known = {*columns, *(name for named in columns.values() for name in named)}
    known |= {name.lower() for named_as, name in found if named_as}
    for named_as, name in found:
        if not named_as and name.lower() not in known:
            hint = f"{nearest(name, known)} (text stands in single quotes)"
            raise UsageError(sentence("a column in double quotes", f"'{name}'", hint=hint))
