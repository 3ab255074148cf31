"""The online state: every fact the features may need, as it becomes known, and features of one request at once.

`Online.apply` takes facts in any order: a fact is identified by its source's key and time, so the same fact twice
changes nothing and a corrected one replaces the old. `Online.read` answers for plain rows at each row's own time, with
the matrix's values to the bit (a property test compares them). `prune` forgets what no later prediction can use.

How a feature is read is decided when the state is made: one closure for each row feature, and one for each grouping
that finds the group once, each window once, and hands positions to the aggregates.

The bytes are a plain zip of Parquet files and a JSON header, sorted by key and time: the same facts give the same
bytes. Nothing is pickled. Methods may be called from several threads; a lock makes them take turns.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import threading
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import polars as pl

from tenon.contract import sql
from tenon.contract.frame import DTYPES
from tenon.errors import CorruptError, InputError, MissingError, nearest, sentence
from tenon.feature.derive import Deriver
from tenon.feature.facts import columns_needed, lookup_table
from tenon.feature.matrix import function_feature
from tenon.feature.memory import Group, Memory
from tenon.feature.plan import HistoryFeature, Look, RowFeature, TableFeature, micros, types_of
from tenon.feature.series import AGGREGATES

if TYPE_CHECKING:
    from tenon.feature.featureset import FeatureSet

FORMAT = 1
Row = Mapping[str, Any]
Found = list[Any]


class Online:
    """The state of everything known, for the features that look at the past or elsewhere."""

    __slots__ = ("_deriver", "_features", "_lock", "_memories", "_readers", "_tables")

    def __init__(
        self,
        features: FeatureSet,
        facts: Mapping[str, pl.DataFrame],
        tables: Mapping[str, pl.DataFrame],
        lookups: Mapping[str, pl.DataFrame],
    ) -> None:
        """Begin from tables of facts as `FeatureSet.online` and `FeatureSet.load` make them."""
        self._features, self._lock = features, threading.Lock()
        compiled = [feature for feature in features.plan.features if isinstance(feature, HistoryFeature)]
        self._memories = {
            name: Memory(history, compiled, facts[name]) for name, history in features.plan.histories.items()
        }
        self._tables = {name: Lookup(tables[name]) for name in features.plan.tables}
        self._deriver = Deriver(features.sources, lookups)
        self._readers = _Readers.of(features, self._memories, self._tables)

    # ── facts in ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, source: str, rows: pl.DataFrame) -> int:
        """Take in rows of a source as they become known, in any order, and return how many changed something.

        Derived columns that the rows lack are computed. A source that no feature reads changes nothing.
        """
        features = self._features
        if source not in features.sources:
            raise MissingError(
                sentence("a source of the project", f"'{source}'", hint=nearest(source, features.sources))
            )
        with self._lock:
            changed = 0
            rows = self._deriver.frame(source, self._reads(source), rows)
            if source in self._memories:
                memory = self._memories[source]
                changed = memory.put(memory.intake(rows))
            if source in self._tables:
                changed = self._tables[source].put(lookup_table(features.plan.tables[source], rows))
            return max(changed, self._deriver.put(source, rows))

    def derive_facts(self, source: str, rows: Sequence[Row]) -> pl.DataFrame:
        """Return plain rows of a source as the frame that `apply` takes, derived columns computed."""
        features = self._features
        if source not in features.sources:
            raise MissingError(
                sentence("a source of the project", f"'{source}'", hint=nearest(source, features.sources))
            )
        with self._lock:
            frame = frame_of(rows, types_of(features.sources[source]))
            return self._deriver.frame(source, self._reads(source), frame)

    def _reads(self, source: str) -> tuple[str, ...]:
        """Name the columns of a source's rows that the state is made of."""
        plan = self._features.plan
        names: list[str] = list(self._features.lookups.get(source, ()))
        for part in (plan.histories.get(source), plan.tables.get(source)):
            names += columns_needed(part) if part is not None else ()
        return tuple(dict.fromkeys(names))

    def prune(self, before: dt.datetime) -> int:
        """Forget the facts that no prediction at or after `before` can use, and return how many."""
        with self._lock:
            return sum(memory.prune(micros(before)) for memory in self._memories.values())

    # ── features out ─────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """Return the features of plain rows, a list for each feature, at each row's own time; reads only.

        Rows hold the columns of `FeatureSet.inputs`, or derived columns in their place.
        """
        try:
            with self._lock:
                whole = self._deriver.rows(self._features.spine.name, self._features.plan.spine_columns, rows)
                return self._readers.read(whole)
        except KeyError as error:
            raise InputError(
                sentence(
                    f"the column {error} in every row",
                    "a row without it",
                    at="request",
                    hint="null is allowed where the column is nullable",
                )
            ) from error

    def moments(self, rows: Sequence[Row]) -> list[dt.datetime]:
        """Return the time of each plain row, derived where the rows bring only what it is derived from; reads only."""
        spine = self._features.spine
        with self._lock:
            return [row[spine.time] for row in self._deriver.rows(spine.name, (spine.time,), rows)]

    def warm(self) -> None:
        """Make every list that reading would make when first needed."""
        with self._lock:
            for memory in self._memories.values():
                for group in memory.groups.values():
                    group.warm()

    # ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def to_bytes(self) -> bytes:
        """Return the state as a zip of Parquet files and a JSON header; equal states give equal bytes."""
        with self._lock:
            parts = {f"facts/{name}": memory.facts() for name, memory in self._memories.items()}
            parts |= {f"tables/{name}": _sorted(table.rows()) for name, table in self._tables.items()}
            parts |= {f"lookups/{name}": _sorted(frame) for name, frame in self._deriver.lookups.items()}
        named = sorted(parts)
        head = {"format": FORMAT, "features": self._features.digest, "parts": named}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("head.json"), json.dumps(head, indent=1))
            for number, name in enumerate(named):
                frame, body = parts[name], io.BytesIO()
                frame.rechunk().write_parquet(body, compression="zstd", compression_level=1, statistics=False)
                archive.writestr(zipfile.ZipInfo(f"{number}.parquet"), body.getvalue())
        return out.getvalue()


def load(features: FeatureSet, body: bytes) -> Online:
    """Read a state back; CorruptError when the bytes are damaged, InputError when they belong to other features."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            head = json.loads(archive.read("head.json"))
            parts = {
                name: pl.read_parquet(io.BytesIO(archive.read(f"{number}.parquet")))
                for number, name in enumerate(head["parts"])
            }
            version, digest = int(head["format"]), str(head["features"])
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        pl.exceptions.PolarsError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        raise CorruptError(
            sentence(
                "the bytes of an online state",
                str(error) or type(error).__name__,
                at="online state",
                hint="make it again from the data",
            )
        ) from error
    if version > FORMAT or digest != features.digest:
        wanted, got = (
            (f"format {FORMAT}", f"format {version}")
            if version > FORMAT
            else (f"features {features.digest}", f"features {digest}")
        )
        raise InputError(
            sentence(f"an online state of {wanted}", got, at="online state", hint="make it again from the data")
        )

    def under(folder: str) -> dict[str, pl.DataFrame]:
        return {name.removeprefix(folder): frame for name, frame in parts.items() if name.startswith(folder)}

    return Online(features, under("facts/"), under("tables/"), under("lookups/"))


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows in an order that does not depend on how they came."""
    return rows.sort(sorted(rows.columns), nulls_last=False)


def frame_of(rows: Sequence[Row], types: Mapping[str, str]) -> pl.DataFrame:
    """Return plain rows as a frame of the declared types; columns that nobody declared are left out."""
    present = [name for name in types if any(name in row for row in rows)]
    columns = {}
    for name in present:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pl.Series(name, values, dtype=DTYPES[types[name]], strict=True)
        except (TypeError, pl.exceptions.PolarsError) as error:
            raise InputError(
                sentence(
                    f"{types[name]} values",
                    f"{_first_other(values, types[name])!r}",
                    at=f"column '{name}'",
                    hint="convert them first",
                )
            ) from error
    return pl.DataFrame(columns)


def _first_other(values: Iterable[Any], kind: str) -> Any:
    expected: Any = {
        "int": int,
        "float": (int, float),
        "text": str,
        "bool": bool,
        "date": dt.date,
        "timestamp": dt.datetime,
    }[kind]
    return next((value for value in values if value is not None and not isinstance(value, expected)), None)


# ── lookups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Lookup:
    """A source without a time in memory: one row of argument values for each key."""

    __slots__ = ("_keys", "_schema", "arguments", "found", "single")

    def __init__(self, rows: pl.DataFrame) -> None:
        self._schema = rows.schema
        self._keys = [name for name in rows.columns if name.startswith("k_")]
        self.arguments = [name for name in rows.columns if name not in self._keys]
        self.single = len(self._keys) == 1
        self.found: dict[Any, tuple[Any, ...]] = {}
        self.put(rows)

    def put(self, rows: pl.DataFrame) -> int:
        """Take in rows and return how many changed something."""
        keys = rows[self._keys[0]].to_list() if self.single else rows.select(self._keys).rows()
        changed = 0
        for key, values in zip(keys, rows.select(self.arguments).rows(), strict=True):
            if self.found.get(key) != values:
                self.found[key] = values
                changed += 1
        return changed

    def rows(self) -> pl.DataFrame:
        """Return the rows as they were put in."""
        flat = [((key,) if self.single else key) + values for key, values in self.found.items()]
        return pl.DataFrame(flat, schema=self._schema, orient="row")


# ── how features are read ────────────────────────────────────────────────────────────────────────────────────────────


class _Readers:
    """The features as closures: what is looked up where is settled here, not while a request waits."""

    __slots__ = ("functions", "groups", "names", "outers", "rows", "simple", "slots", "time")

    def __init__(self, names: tuple[str, ...], time: str) -> None:
        self.names, self.time, self.slots = names, time, 0
        self.groups: list[Callable[[Row, int, Found], None]] = []
        self.rows: list[tuple[str, Callable[[Row], Any]]] = []
        self.simple: list[tuple[str, int]] = []
        self.outers: list[tuple[str, Callable[[Found], Any]]] = []
        self.functions: list[tuple[RowFeature, list[tuple[str, str]]]] = []

    @staticmethod
    def of(features: FeatureSet, memories: Mapping[str, Memory], tables: Mapping[str, Lookup]) -> _Readers:
        readers = _Readers(features.names, features.spine.time)
        wanted: dict[tuple[str, Any], list[tuple[int, Look]]] = {}
        types = types_of(features.spine)
        for feature in features.plan.features:
            if isinstance(feature, RowFeature):
                if feature.expr is None:
                    readers.functions.append((feature, [(name, types[name]) for name in feature.columns]))
                else:
                    readers.rows.append((feature.name, _shaped(sql.to_function(feature.expr), feature.kind)))
            elif isinstance(feature, TableFeature):
                readers.rows.append((feature.name, _table_reader(feature, tables[feature.source])))
            else:
                slots = [readers.slots + place for place in range(len(feature.looks))]
                readers.slots += len(slots)
                wanted.setdefault((feature.source, feature.grouping), []).extend(zip(slots, feature.looks, strict=True))
                if feature.outer is None:
                    readers.simple.append((feature.name, slots[0]))
                else:
                    readers.outers.append((feature.name, _outer_reader(feature, slots)))
        for (source, grouping), looks in wanted.items():
            group = memories[source].groups[grouping.columns]
            readers.groups.append(_group_reader(group, grouping.keys, looks))
        return readers

    def read(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """Return every feature of the rows."""
        out: dict[str, list[Any]] = {name: [] for name in self.names}
        time, groups, slots = self.time, self.groups, self.slots
        for row in rows:
            for name, value_of in self.rows:
                out[name].append(value_of(row))
            if not slots:
                continue
            moment = row[time]
            if moment is None:
                raise InputError(sentence(f"a time in '{time}'", "null", at="request", hint="say when the row happens"))
            found: Found = [None] * slots
            instant = micros(moment)
            for look in groups:
                look(row, instant, found)
            for name, slot in self.simple:
                out[name].append(found[slot])
            for name, outer in self.outers:
                out[name].append(outer(found))
        for feature, columns in self.functions:
            given = [pl.Series(name, [row[name] for row in rows], dtype=DTYPES[kind]) for name, kind in columns]
            out[feature.name] = function_feature(feature, given).to_list()
        return out


def _shaped(value_of: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    """Make a closure's value what the matrix holds: a finite float with one zero, or text."""
    if kind == "category":
        return value_of

    def number(row: Any) -> float | None:
        value = value_of(row)
        if value is None:
            return None
        value = float(value)
        return value + 0.0 if value - value == 0.0 else None

    return number


def _key_reader(keys: Sequence[str]) -> Callable[[Row], Any]:
    if not keys:
        return lambda row: ()
    return itemgetter(*keys)


def _table_reader(feature: TableFeature, table: Lookup) -> Callable[[Row], Any]:
    key_of, place, found = _key_reader(feature.keys), table.arguments.index(feature.argument), table.found

    def read(row: Row) -> Any:
        values = found.get(key_of(row))
        return None if values is None else values[place]

    return read


def _outer_reader(feature: HistoryFeature, slots: Sequence[int]) -> Callable[[Found], Any]:
    assert feature.outer is not None
    value_of = _shaped(sql.to_function(feature.outer), feature.kind)
    named = [
        (f"_agg{place}", slot, look.type) for place, (slot, look) in enumerate(zip(slots, feature.looks, strict=True))
    ]

    def read(found: Found) -> Any:
        return value_of({name: _as_type(found[slot], kind) for name, slot, kind in named})

    return read


def _as_type(value: Any, kind: str) -> Any:
    """Give an aggregate the type that the SQL around it was checked with, as `matrix.as_type` does."""
    if value is None or kind in ("float", "text"):
        return value
    if kind == "bool":
        return value != 0.0
    whole = int(value)
    return whole if -(2**63) <= whole < 2**63 else None


def _group_reader(
    group: Group, keys: Sequence[str], looks: Sequence[tuple[int, Look]]
) -> Callable[[Row, int, Found], None]:
    """Return what finds one group, its windows, and the aggregates of each."""
    key_of = _key_reader(keys)
    at = {name: place for place, name in enumerate(group.arguments)}
    asof = [(slot, at[look.argument], 2 * look.window_us) for slot, look in looks if look.aggregate == "asof"]
    counts: dict[int, list[int]] = {}
    windows: dict[int, list[tuple[int, int, Callable[..., Any]]]] = {}
    nothing = [slot for slot, look in looks if look.aggregate in ("count", "distinct")]
    for slot, look in looks:
        if look.aggregate == "asof":
            continue
        windows.setdefault(2 * look.window_us, [])
        if look.argument:
            windows[2 * look.window_us].append((slot, at[look.argument], AGGREGATES[look.aggregate]))
        else:
            counts.setdefault(2 * look.window_us, []).append(slot)
    spans = [(span, jobs, counts.get(span, [])) for span, jobs in windows.items()]

    def read(row: Row, time: int, found: Found) -> None:
        series = group.get(key_of(row))
        if series is None:
            for slot in nothing:
                found[slot] = 0.0
            return
        instants, tracks, now = series.instants, series.tracks, 2 * time
        hi = bisect_right(instants, now)
        for slot, place, limit in asof:
            if hi and not (limit and instants[hi - 1] < now - limit):
                found[slot] = tracks[place].values[hi - 1]
        replaced = series.replaced
        for span, jobs, counted in spans:
            lo = bisect_right(instants, now - span + 1, 0, hi)
            if replaced and bisect_right(replaced, now) > bisect_right(replaced, now - span + 1):
                count, current = series.current(lo, hi, now, group.until)
                for slot in counted:
                    found[slot] = float(count)
                for slot, place, aggregate in jobs:
                    found[slot] = aggregate(current[place], 0, count)
                continue
            for slot in counted:
                found[slot] = float(hi - lo)
            for slot, place, aggregate in jobs:
                track = tracks[place]
                if track.ready != len(track.values):
                    track.settle()
                found[slot] = aggregate(track, lo, hi)

    return read
